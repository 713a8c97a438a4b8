"""Which parameters the policy's action distribution depends on: found by trying, never by name."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_trpo.distributions import family, unvalidated
from sb3_trpo.modes import evaluation_mode
from sb3_trpo.numerics.fisher import Outputs
from sb3_trpo.numerics.flat import assign


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

    :param policy: the actor-critic policy; its parameters end as they were, bit for bit, whatever happens
    :return: the three groups
    """
    trainable = {name: parameter for name, parameter in policy.named_parameters() if parameter.requires_grad}
    observation = _any_observation(policy)
    with evaluation_mode(policy), unvalidated():
        reached = _reached_by_gradient(policy, observation, trainable)
        others = {name: parameter for name, parameter in trainable.items() if name not in reached}
        detached = _seen_by_value(policy, observation, others)
    return ParameterSplit(
        policy={name: parameter for name, parameter in trainable.items() if name in reached},
        critic={name: parameter for name, parameter in others.items() if name not in detached},
        detached={name: parameter for name, parameter in others.items() if name in detached},
    )


def _distribution_parameters(policy: ActorCriticPolicy, observation: PyTorchObs) -> Outputs:
    distribution = policy.get_distribution(observation)
    return family(distribution).parameters(distribution)


def _reached_by_gradient(policy: ActorCriticPolicy, observation: PyTorchObs, parameters: dict[str, nn.Parameter]) -> set[str]:
    outputs = [z.sum() for z in _distribution_parameters(policy, observation) if z.requires_grad]
    if not outputs:
        return set()
    gradients = th.autograd.grad(outputs, list(parameters.values()), allow_unused=True)
    return {name for name, gradient in zip(parameters, gradients, strict=True) if gradient is not None}


def _seen_by_value(policy: ActorCriticPolicy, observation: PyTorchObs, parameters: dict[str, nn.Parameter]) -> set[str]:
    """Find the parameters whose value shows in the distribution: all at once first, for mostly there are none."""
    if not parameters or not _shows(policy, observation, list(parameters.values())):
        return set()
    return {name for name, parameter in parameters.items() if _shows(policy, observation, [parameter])}


@th.no_grad()
def _shows(policy: ActorCriticPolicy, observation: PyTorchObs, parameters: Sequence[nn.Parameter]) -> bool:
    """Put NaN in the parameters' place for one look at the distribution; in place, so that no alias escapes."""
    old = [parameter.clone() for parameter in parameters]
    try:
        assign(parameters, [th.full_like(parameter, th.nan) for parameter in parameters])
        seen = any(bool(z.isnan().any()) for z in _distribution_parameters(policy, observation))
        assign(parameters, old)
    except (ValueError, RuntimeError):  # a policy that refuses the NaN has seen it
        assign(parameters, old)
        return True
    except BaseException:
        assign(parameters, old)
        raise
    return seen


def _any_observation(policy: ActorCriticPolicy) -> PyTorchObs:
    """Draw a batch of one observation, from a generator of its own: the same one each time, on every rank."""
    space = copy.deepcopy(policy.observation_space)
    space.seed(0)
    observation, _ = policy.obs_to_tensor(space.sample())
    return observation
