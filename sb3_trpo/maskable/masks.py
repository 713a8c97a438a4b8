"""
Action masks: where they come from, what must hold of them, and the distributions that they leave.

A masked action has probability 0, exactly: its logit is so low that its exponential is. So it adds nothing to the KL
divergence, to the entropy or to the Fisher metric, and whatever its logit's derivative is, nothing comes of it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.vec_env import VecEnv

from sb3_trpo.extras import CONTRIB, needs
from sb3_trpo.rollouts.inputs import Inputs, action_distribution, inputs_in, observations_in, restrict, state_values

with needs(*CONTRIB):
    from sb3_contrib.common.maskable.buffers import MaskableDictRolloutBufferSamples, MaskableRolloutBufferSamples
    from sb3_contrib.common.maskable.distributions import (
        MaskableDistribution,
    )
    from sb3_contrib.common.maskable.utils import EXPECTED_METHOD_NAME, is_masking_supported


IMPOSSIBLE = -1e8
"""Logit of a masked action, as in sb3-contrib."""


class Masked(NamedTuple):
    """
    Inputs of a policy with what it may do.

    :param unmasked: the inputs, which may be a type of their own
    :param action_masks: one flag per option of each choice, shape ``(n, n_options)``; 0 forbids
    """

    unmasked: Inputs
    action_masks: th.Tensor


@restrict.register
def _(inputs: Masked, distribution: MaskableDistribution) -> Distribution:
    distribution.apply_masking(inputs.action_masks)
    return distribution


@action_distribution.register
def _(inputs: Masked, policy: ActorCriticPolicy) -> Distribution:
    return restrict(inputs, action_distribution(inputs.unmasked, policy))


@state_values.register
def _(inputs: Masked, policy: ActorCriticPolicy) -> th.Tensor:
    return state_values(inputs.unmasked, policy)


@observations_in.register
def _(inputs: Masked) -> PyTorchObs:
    return observations_in(inputs.unmasked)


@inputs_in.register
def _(samples: MaskableRolloutBufferSamples | MaskableDictRolloutBufferSamples) -> Masked:
    return Masked(samples.observations, samples.action_masks)


def options_of(space: spaces.Space[Any]) -> list[int]:
    """
    Count the options of each choice that an action consists of.

    :param space: Discrete, MultiDiscrete or MultiBinary
    :return: one number per choice; their sum is the length of a mask
    """
    if isinstance(space, spaces.Discrete):
        return [int(space.n)]
    if isinstance(space, spaces.MultiDiscrete):
        return [int(n) for n in space.nvec.flatten()]
    assert isinstance(space, spaces.MultiBinary)
    return [2] * int(np.prod(space.shape))


def require_masks(env: VecEnv) -> None:
    """
    Refuse environments that give no masks.

    :param env: the training environments
    :raises ValueError: if they do not
    """
    if not is_masking_supported(env):
        raise ValueError(
            f"The environment has no method {EXPECTED_METHOD_NAME}(), which must give the mask of the present state. Add one, "
            "or wrap it: sb3_contrib.common.wrappers.ActionMasker(env, function). Without masks, use sb3_trpo.TRPO."
        )


def masks_from(env: VecEnv, space: spaces.Space[Any], step: int) -> np.ndarray:
    """
    Ask each environment what may be done now.

    :param env: the training environments
    :param space: of their actions
    :param step: index of the step in the rollout
    :return: booleans of shape ``(n_envs, n_options)``
    :raises ValueError: if a mask has the wrong size, or allows nothing, naming the environment and the step
    """
    return checked_masks(env.env_method(EXPECTED_METHOD_NAME), space, f"at step {step} of the rollout")


def checked_masks(rows: Any, space: spaces.Space[Any], when: str) -> np.ndarray:
    """
    Check masks.

    :param rows: one mask for each environment, of 0 and 1 or booleans
    :param space: of the actions
    :param when: for the message
    :return: booleans of shape ``(n_envs, n_options)``
    :raises ValueError: if a mask has the wrong size, holds anything but flags, or allows nothing
    """
    options = options_of(space)
    flags = [_joined(row) for row in rows]
    for env_index, row in enumerate(flags):
        odd = None if row.dtype == bool else next((flag for flag in row.tolist() if flag not in (0, 1)), None)
        if row.size != sum(options) or odd is not None:
            fault = f"has {row.size} entries" if odd is None else f"holds {odd}"
            raise ValueError(
                f"The action mask of environment {env_index} {when} {fault}, but {space} needs {sum(options)} flags, True or "
                "1 for what is allowed: one for each option of each choice (a bit has two: off, on), joined."
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


def _joined(row: Any) -> np.ndarray:
    """Make one array of a mask, which may be a sequence of one mask per choice."""
    try:
        return np.asarray(row).reshape(-1)
    except ValueError:  # of different lengths
        return np.concatenate([np.ravel(part) for part in row])
