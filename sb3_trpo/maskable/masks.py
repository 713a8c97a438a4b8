"""
Action masks: reading them from the environments, and checking them.

A masked action has probability exactly 0, because the exponential of its logit is 0. It therefore adds nothing to the KL
divergence, to the entropy or to the Fisher metric, all of which weigh the derivative of its logit by that probability.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from sb3_trpo.extras import CONTRIB, needs

with needs(*CONTRIB):
    from sb3_contrib.common.maskable.utils import EXPECTED_METHOD_NAME, is_masking_supported


IMPOSSIBLE = -1e8
"""Logit of a masked action, as in sb3-contrib."""


def options_of(space: spaces.Space[Any]) -> list[int]:
    """
    Count the options of each choice in an action.

    :param space: a Discrete, MultiDiscrete or MultiBinary space; a bit is a choice between two options
    :return: number of options of each choice; their sum is the length of a mask
    """
    if isinstance(space, spaces.Discrete):
        return [int(space.n)]
    if isinstance(space, spaces.MultiDiscrete):
        return [int(n) for n in space.nvec.flatten()]
    assert isinstance(space, spaces.MultiBinary)
    return [2] * int(np.prod(space.shape))


def require_masks(env: VecEnv) -> None:
    """
    Raise if environments have no action masks.

    :param env: vectorized environments
    :raises ValueError: if they have no method ``action_masks()``
    """
    if not is_masking_supported(env):
        raise ValueError(
            f"The environment has no method {EXPECTED_METHOD_NAME}(), which must return the mask of the present state. Add "
            "one, or wrap it: sb3_contrib.common.wrappers.ActionMasker(env, function). Without masks, use sb3_trpo.TRPO."
        )


def masks_from(env: VecEnv, space: spaces.Space[Any], step: int) -> np.ndarray:
    """
    Ask each environment for the mask of its present state.

    :param env: the training environments
    :param space: their action space
    :param step: index of the step in the rollout, for the message
    :return: booleans of shape ``(n_envs, n_options)``
    :raises ValueError: if a mask has the wrong size, holds anything but flags, or allows nothing; names environment and step
    """
    return checked_masks(env.env_method(EXPECTED_METHOD_NAME), space, f"at step {step} of the rollout")


def checked_masks(rows: Any, space: spaces.Space[Any], when: str) -> np.ndarray:
    """
    Check masks and convert them to booleans.

    :param rows: one mask per environment, of booleans or of 0 and 1, flat or as one sequence per choice
    :param space: the action space
    :param when: where the masks come from, for the message
    :return: booleans of shape ``(n_envs, n_options)``
    :raises ValueError: if a mask has the wrong size, holds anything but flags, or allows nothing
    """
    options = options_of(space)
    flags = [_flattened(row) for row in rows]
    for env_index, row in enumerate(flags):
        odd = None if row.dtype == bool else next((flag for flag in row.tolist() if flag not in (0, 1)), None)
        if row.size != sum(options) or odd is not None:
            fault = f"has {row.size} entries" if odd is None else f"holds {odd}"
            raise ValueError(
                f"The action mask of environment {env_index} {when} {fault}, but {space} needs {sum(options)} flags, True or "
                "1 for what is allowed: one for each option of each choice (a bit has two: off, on), concatenated."
            )
    masks = np.stack(flags).astype(bool)
    is_free = np.logical_or.reduceat(masks, np.cumsum([0, *options[:-1]]), axis=1)
    if not is_free.all():
        env_index, choice = (int(index) for index in np.argwhere(~is_free)[0])
        raise ValueError(
            f"The action mask of environment {env_index} {when} allows no option of choice {choice} of {space}: it is "
            f"{masks[env_index].astype(int).tolist()}. At least one option must be allowed, in terminal states too: end the "
            "episode instead, or allow an action without effect. The policy is unchanged."
        )
    return masks


def _flattened(row: Any) -> np.ndarray:
    """Flatten a mask, which may be a sequence of one mask per choice."""
    try:
        return np.asarray(row).reshape(-1)
    except ValueError:  # the masks of the choices have different lengths
        return np.concatenate([np.ravel(part) for part in row])
