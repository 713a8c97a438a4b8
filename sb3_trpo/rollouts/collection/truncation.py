"""Episodes that a time limit has cut off, whose last rewards still lack the bootstrapped value."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import numpy as np

from sb3_trpo.rollouts.plain_spaces import PlainSpaces
from sb3_trpo.rollouts.validation import require_finite_end, truncated_observation


class TruncatedEpisode(NamedTuple):
    """
    An episode that a time limit cut off.

    :param step: index of its last step in the rollout
    :param env_index: index of the environment
    :param last_observation: the observation after that step, in the plain space
    """

    step: int
    env_index: int
    last_observation: Any


def truncated_episodes(
    step: int, ended: np.ndarray, infos: list[dict[str, Any]], plain: PlainSpaces
) -> list[TruncatedEpisode]:
    """
    Find the episodes that a time limit has cut off at a step.

    :param step: index of the step in the rollout
    :param ended: indices of the environments where an episode ended
    :param infos: the step's info dicts, one per environment
    :param plain: converts observations to the plain space
    :return: the episodes, with copies of their last observations, which the environments may overwrite
    :raises ValueError: if such an observation is not finite
    """
    found = []
    for env_index in ended:
        last = truncated_observation(infos[env_index])
        if last is not None:
            require_finite_end(infos[env_index], int(env_index), step)
            found.append(TruncatedEpisode(step, env_index, plain.encode(copy.deepcopy(last))))
    return found
