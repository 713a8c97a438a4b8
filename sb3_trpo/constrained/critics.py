"""The critics of costs: what they predict, and the advantages that follow (GAE, arXiv:1506.02438)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import obs_as_tensor

from sb3_trpo.rollouts.advantages import compute_advantages
from sb3_trpo.rollouts.collection.truncation import TruncatedEpisode
from sb3_trpo.rollouts.plain_spaces import Observation, map_parts
from sb3_trpo.rollouts.transitions import PASS_LIMITS, default_chunk_size


def in_order(limits: Mapping[str, float], keys: Sequence[str]) -> dict[str, float]:
    """
    Put limits into the order of a model's critics, which is that of the alphabet: each critic keeps its cost.

    :param limits: limits by key
    :param keys: keys of the costs that the model has critics for; none before there are critics
    :return: the limits
    :raises ValueError: if these are the limits of other costs
    """
    if keys and {*keys} != {*limits}:
        raise ValueError(
            f"cost_limits has the keys {sorted(limits)}, but the model was made for {[*keys]} and has a critic for each. "
            "Its limits may change, not their keys: give a limit for each of them, or make a new model."
        )
    return {key: limits[key] for key in sorted(limits)}


@th.no_grad()
def values_at(critic: ActorCriticPolicy, observations: Observation, n: int) -> np.ndarray:
    """
    Compute values, some at a time to bound memory.

    :param critic: a policy, in evaluation mode, whose critic predicts a cost
    :param observations: plain observations, shape ``(n, ...)`` or a dict of such arrays
    :param n: their number
    :return: shape ``(n,)``
    """
    size = default_chunk_size(critic.observation_space, PASS_LIMITS)
    parts = [map_parts(itemgetter(slice(start, start + size)), observations) for start in range(0, n, size)]
    values = [critic.predict_values(obs_as_tensor(part, critic.device)) for part in parts]
    return th.cat(values).flatten().cpu().numpy()


def stacked(observations: Sequence[Any], rows: Observation) -> Observation:
    """
    Stack single observations in the shapes that a buffer has for them.

    :param observations: plain observations of single environments
    :param rows: the buffer's observations, shape ``(n_transitions, ...)`` or a dict of such arrays
    :return: the observations along the first dimension
    """
    if isinstance(rows, dict):
        return {key: np.stack([each[key] for each in observations]).reshape(-1, *part.shape[1:]) for key, part in rows.items()}
    return np.stack(observations).reshape(-1, *rows.shape[1:])


def cost_buffer(
    critic: ActorCriticPolicy,
    buffer: RolloutBuffer,
    costs: np.ndarray,
    truncated: list[TruncatedEpisode],
    last: tuple[Observation, np.ndarray],
    discounts: tuple[float, float],
) -> RolloutBuffer:
    """
    View a rollout with a cost in place of the reward.

    :param critic: a policy, in evaluation mode, whose critic predicts the cost
    :param buffer: the full rollout buffer, flattened over (step, env)
    :param costs: cost of each step, shape ``(n_steps, n_envs)``
    :param truncated: episodes that a time limit cut off: their future is bootstrapped, as that of rewards is
    :param last: the plain observations after the last step, and whether they start an episode
    :param discounts: gamma and lambda of the cost
    :return: a shallow copy with the cost's values, advantages and returns
    """
    view = copy.copy(buffer)
    view.gamma, view.gae_lambda = discounts
    n_steps, n_envs = costs.shape
    view.rewards = costs.astype(np.float32)
    view.values = values_at(critic, buffer.observations, n_steps * n_envs).reshape(n_envs, n_steps).T
    if truncated:
        steps, envs, observations = zip(*truncated, strict=True)
        after = values_at(critic, stacked(observations, buffer.observations), len(observations))
        np.add.at(view.rewards, (list(steps), list(envs)), view.gamma * after)
    observations_after, starts = last
    compute_advantages(view, values_at(critic, observations_after, n_envs), starts)
    for name in ("values", "advantages", "returns"):
        setattr(view, name, RolloutBuffer.swap_and_flatten(getattr(view, name)))
    return view
