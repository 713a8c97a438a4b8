"""Which parameters the policy's action distribution depends on: found by trying, never by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_trpo.distributions import family, unvalidated
from sb3_trpo.modes import evaluation_mode
from sb3_trpo.numerics.fisher import Outputs


class ParameterSplit(NamedTuple):
    """
    The trainable parameters of an actor-critic policy, by name, in three groups.

    :param policy: the distribution changes with them, and a gradient says how: the trust-region step moves them
    :param critic: the distribution does not change with them: the critic may move them
    :param detached: the distribution changes with them, but no gradient reaches them: nothing may move them
    """

    policy: dict[str, nn.Parameter]
    critic: dict[str, nn.Parameter]
    detached: dict[str, nn.Parameter]


def split_parameters(policy: ActorCriticPolicy) -> ParameterSplit:
    """
    Split the trainable parameters by what the action distribution depends on.

    The graph of the distribution's parameters shows where a gradient reaches. Of the rest, each is replaced by NaN in turn:
    if that shows in the distribution, the policy depends on it all the same, behind a ``detach``. Frozen parameters
    (``requires_grad=False``) are in no group.

    :param policy: the actor-critic policy; its parameters are not touched
    :return: the three groups
    """
    trainable = {name: parameter for name, parameter in policy.named_parameters() if parameter.requires_grad}
    observation = _blank_observation(policy)
    with evaluation_mode(policy), unvalidated():
        reached = _reached_by_gradient(policy, observation, trainable)
        others = [name for name in trainable if name not in reached]
        detached = _seen_by_value(policy, observation, others)
    return ParameterSplit(
        policy={name: trainable[name] for name in trainable if name in reached},
        critic={name: trainable[name] for name in others if name not in detached},
        detached={name: trainable[name] for name in others if name in detached},
    )


class _DistributionParameters(nn.Module):
    """The map from an observation to z as a module, so that torch can call it with other parameters."""

    def __init__(self, policy: ActorCriticPolicy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, observation: PyTorchObs) -> Outputs:
        distribution = self.policy.get_distribution(observation)
        return family(distribution).parameters(distribution)


def _reached_by_gradient(policy: ActorCriticPolicy, observation: PyTorchObs, parameters: dict[str, nn.Parameter]) -> set[str]:
    outputs = [z for z in _DistributionParameters(policy)(observation) if z.requires_grad]
    if not outputs:
        return set()
    gradients = th.autograd.grad([z.sum() for z in outputs], list(parameters.values()), allow_unused=True)
    return {name for name, gradient in zip(parameters, gradients, strict=True) if gradient is not None}


def _seen_by_value(policy: ActorCriticPolicy, observation: PyTorchObs, names: Sequence[str]) -> list[str]:
    """Find the names whose value shows in the distribution: all at once first, for mostly there are none."""
    if not names or not _shows(policy, observation, names):
        return []
    return [name for name in names if _shows(policy, observation, [name])]


@th.no_grad()
def _shows(policy: ActorCriticPolicy, observation: PyTorchObs, names: Sequence[str]) -> bool:
    module = _DistributionParameters(policy)
    poisoned = {f"policy.{name}": th.full_like(policy.get_parameter(name), th.nan) for name in names}
    try:
        outputs = th.func.functional_call(module, poisoned, (observation,))
    except (ValueError, RuntimeError):
        return True  # a policy that refuses the NaN has seen it
    return any(bool(z.isnan().any()) for z in outputs)


def _blank_observation(policy: ActorCriticPolicy) -> PyTorchObs:
    """Make a batch of one observation of zeros, drawn from no generator and equal on every rank."""
    space = policy.observation_space
    if isinstance(space, spaces.Dict):
        return {key: _zeros(part, policy.device) for key, part in space.spaces.items()}
    return _zeros(space, policy.device)


def _zeros(space: spaces.Space[np.ndarray], device: th.device) -> th.Tensor:
    return th.as_tensor(np.zeros((1, *(space.shape or ())), dtype=space.dtype), device=device)
