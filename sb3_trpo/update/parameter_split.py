"""Which parameters the policy's action distribution depends on: found by trying, never by name."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_trpo.distributions.argument_checks import unvalidated
from sb3_trpo.distributions.base import DistributionKind
from sb3_trpo.distributions.registry import CORE_KINDS, kind_of
from sb3_trpo.networks.double_backward import twice_differentiable
from sb3_trpo.networks.plain_network import Networks
from sb3_trpo.numerics.flat import assign
from sb3_trpo.numerics.gauss_newton import Outputs
from sb3_trpo.parallel.communicator import Communicator
from sb3_trpo.rollouts.inputs import Inputs, action_distribution, some_inputs
from sb3_trpo.update.modes import evaluation_mode

Read = Callable[[], Inputs]
"""Gives what the policy acts on in some states when called."""
Look = Callable[[Inputs], Outputs]
"""Computes the parameters of the policy's distribution."""


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


def split_parameters(
    policy: ActorCriticPolicy, batches: Sequence[Read] = (), kinds: Sequence[DistributionKind] = CORE_KINDS
) -> ParameterSplit:
    """
    Split the trainable parameters by what the action distribution depends on, in given states.

    The graph of the distribution's parameters shows where a gradient reaches. The rest is replaced by NaN: what shows that in
    the distribution the policy depends on all the same, behind a ``detach``. Frozen parameters (``requires_grad=False``) are
    in no group.

    :param policy: the actor-critic policy; its parameters end as they were, bit for bit, whatever happens
    :param batches: all states that matter, for a policy may use some parameters in some of them only; if there are none,
        one that the observation space allows
    :param kinds: known kinds of distributions
    :return: the three groups
    """
    trainable = {name: parameter for name, parameter in policy.named_parameters() if parameter.requires_grad}
    batches, look = batches or [partial(_any_inputs, policy)], partial(_distribution_parameters, policy, kinds)
    with evaluation_mode(policy), unvalidated():
        reached = _reached_by_gradient(look, batches, trainable)
        others = {name: parameter for name, parameter in trainable.items() if name not in reached}
        detached = _seen_by_value(look, batches, others)
    return ParameterSplit(
        policy={name: parameter for name, parameter in trainable.items() if name in reached},
        critic={name: parameter for name, parameter in others.items() if name not in detached},
        detached={name: parameter for name, parameter in others.items() if name in detached},
    )


def agree(split: ParameterSplit, policy: ActorCriticPolicy, communicator: Communicator) -> ParameterSplit:
    """
    Split as any rank must: what a policy uses in some states only, one rank may not have met.

    :param split: of this rank
    :param policy: the actor-critic policy, the same on all ranks
    :param communicator: which have met other states each
    :return: the same groups on all, in the policy's order
    """
    found = dict.fromkeys(split.critic, 0) | dict.fromkeys(split.detached, 1) | dict.fromkeys(split.policy, 2)
    parameters = {name: parameter for name, parameter in policy.named_parameters() if name in found}
    groups = communicator.gather(th.tensor([found[name] for name in parameters])).amax(0).tolist()

    def chosen(wanted: int) -> dict[str, nn.Parameter]:
        return {name: value for (name, value), group in zip(parameters.items(), groups, strict=True) if group == wanted}

    return ParameterSplit(policy=chosen(2), critic=chosen(0), detached=chosen(1))


def split_by_structure(policy: ActorCriticPolicy, networks: Networks) -> ParameterSplit:
    """
    Split the trainable parameters of a policy whose networks are known: nothing need be tried.

    :param policy: the actor-critic policy
    :param networks: read out of it
    :return: the groups, none detached
    """
    of_policy = {id(tensor) for tensor in networks.policy_tensors}
    trainable = {name: parameter for name, parameter in policy.named_parameters() if parameter.requires_grad}
    return ParameterSplit(
        policy={name: parameter for name, parameter in trainable.items() if id(parameter) in of_policy},
        critic={name: parameter for name, parameter in trainable.items() if id(parameter) not in of_policy},
        detached={},
    )


def _any_inputs(policy: ActorCriticPolicy) -> Inputs:
    """Draw a batch of one observation from the space, by a generator of its own: the same one each time."""
    space = copy.deepcopy(policy.observation_space)
    space.seed(0)
    observation, _ = policy.obs_to_tensor(space.sample())
    return some_inputs(policy, observation)


def _distribution_parameters(policy: ActorCriticPolicy, kinds: Sequence[DistributionKind], inputs: Inputs) -> Outputs:
    with twice_differentiable(policy):  # cuDNN's recurrent layers have no derivative in evaluation mode at all
        distribution = action_distribution(inputs, policy)
    return kind_of(distribution, kinds).parameters(distribution)


def _reached_by_gradient(look: Look, batches: Sequence[Read], parameters: dict[str, nn.Parameter]) -> set[str]:
    reached: set[str] = set()
    for read in batches:
        outputs = [z.sum() for z in look(read()) if z.requires_grad]
        if outputs:
            gradients = th.autograd.grad(outputs, list(parameters.values()), allow_unused=True)
            reached |= {name for name, gradient in zip(parameters, gradients, strict=True) if gradient is not None}
    return reached


@th.no_grad()
def _seen_by_value(look: Look, batches: Sequence[Read], parameters: dict[str, nn.Parameter]) -> set[str]:
    """Find the parameters whose value shows in the distribution: all at once first, for mostly there are none."""
    seen: set[str] = set()
    for read in batches:
        left = {name: parameter for name, parameter in parameters.items() if name not in seen}
        inputs = read()
        if left and _shows(look, inputs, list(left.values())):
            seen |= {name for name, parameter in left.items() if _shows(look, inputs, [parameter])}
    return seen


def _shows(look: Look, inputs: Inputs, parameters: Sequence[nn.Parameter]) -> bool:
    """Put NaN in the parameters' place for one look at the distribution; in place, so that no alias escapes."""
    old = [parameter.clone() for parameter in parameters]
    try:
        assign(parameters, [th.full_like(parameter, th.nan) for parameter in parameters])
        suspicious = [z.isnan() for z in look(inputs)]
        assign(parameters, old)
    except Exception:  # a policy that refuses the NaN, by whatever error, has seen it
        assign(parameters, old)
        return True
    except BaseException:
        assign(parameters, old)
        raise
    if not any(bool(part.any()) for part in suspicious):
        return False
    healthy = look(inputs)  # which may have NaN of its own, for huge observations
    return any(bool((part & z.isfinite()).any()) for part, z in zip(suspicious, healthy, strict=True))
