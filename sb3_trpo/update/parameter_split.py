"""
Which parameters the policy's action distribution depends on.

Names such as "value" tell nothing about a custom policy, so it is found out by trying: a gradient reaches a parameter, or NaN
in its place shows in the distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_trpo.distributions.argument_checks import unvalidated
from sb3_trpo.distributions.kinds import family
from sb3_trpo.networks.double_backward import twice_differentiable
from sb3_trpo.networks.plain_network import Networks
from sb3_trpo.numerics.flat import assign
from sb3_trpo.numerics.gauss_newton import Outputs
from sb3_trpo.parallel.communicator import Communicator
from sb3_trpo.rollouts.inputs import PolicyInputs
from sb3_trpo.update.modes import evaluation_mode


class ParameterSplit(NamedTuple):
    """
    The trainable parameters of an actor-critic policy, by name, in three groups.

    :param policy: the distribution changes with these, and a gradient tells how: the trust-region step moves them
    :param critic: the distribution does not change with these: the critic may move them
    :param detached: the distribution changes with these, but no gradient reaches them: nothing may move them
    """

    policy: dict[str, nn.Parameter]
    critic: dict[str, nn.Parameter]
    detached: dict[str, nn.Parameter]

    def over_ranks(self, policy: ActorCriticPolicy, communicator: Communicator) -> ParameterSplit:
        """
        Split as the findings of all ranks require: a policy may use some parameters only in states that one rank met.

        :param policy: the actor-critic policy, the same on all ranks
        :param communicator: connects the ranks, each of which has found a split in its own states
        :return: the same groups on all ranks, in the policy's order
        """
        found = dict.fromkeys(self.critic, 0) | dict.fromkeys(self.detached, 1) | dict.fromkeys(self.policy, 2)
        parameters = {name: parameter for name, parameter in policy.named_parameters() if name in found}
        groups = communicator.gather(th.tensor([found[name] for name in parameters])).amax(0).tolist()

        def members(wanted: int) -> dict[str, nn.Parameter]:
            return {name: value for (name, value), group in zip(parameters.items(), groups, strict=True) if group == wanted}

        return ParameterSplit(policy=members(2), critic=members(0), detached=members(1))


def split_parameters(policy: ActorCriticPolicy, states: Sequence[PolicyInputs]) -> ParameterSplit:
    """
    Split the trainable parameters by what the action distribution depends on in given states.

    The graph of the distribution's parameters shows where a gradient reaches. The other parameters are replaced by NaN: if the
    distribution shows it, the policy depends on them all the same, behind a ``detach``. Frozen parameters
    (``requires_grad=False``) are in no group.

    :param policy: the actor-critic policy; its parameters end as they were, bit for bit, whatever happens
    :param states: inputs in all states that matter, for a policy may use some parameters only in some of them; gone through
        twice, and may be made on the way
    :return: the three groups
    """
    trainable = {name: parameter for name, parameter in policy.named_parameters() if parameter.requires_grad}
    with evaluation_mode(policy), unvalidated():
        reached = _reached_by_gradient(policy, states, trainable)
        others = {name: parameter for name, parameter in trainable.items() if name not in reached}
        detached = _seen_by_value(policy, states, others)
    return ParameterSplit(
        policy={name: parameter for name, parameter in trainable.items() if name in reached},
        critic={name: parameter for name, parameter in others.items() if name not in detached},
        detached={name: parameter for name, parameter in others.items() if name in detached},
    )


def split_by_structure(policy: ActorCriticPolicy, networks: Networks) -> ParameterSplit:
    """
    Split the trainable parameters of a policy whose networks are known, without trying.

    :param policy: the actor-critic policy
    :param networks: its networks, on its own tensors
    :return: the groups, with nothing detached
    """
    of_policy = {id(tensor) for tensor in networks.policy_tensors}
    trainable = {name: parameter for name, parameter in policy.named_parameters() if parameter.requires_grad}
    return ParameterSplit(
        policy={name: parameter for name, parameter in trainable.items() if id(parameter) in of_policy},
        critic={name: parameter for name, parameter in trainable.items() if id(parameter) not in of_policy},
        detached={},
    )


def _distribution_parameters(policy: ActorCriticPolicy, inputs: PolicyInputs) -> Outputs:
    with twice_differentiable(policy):  # cuDNN's recurrent layers have no derivative at all in evaluation mode
        distribution = inputs.distribution(policy)
    return family(distribution).parameters(distribution)


def _reached_by_gradient(
    policy: ActorCriticPolicy, states: Sequence[PolicyInputs], parameters: dict[str, nn.Parameter]
) -> set[str]:
    reached: set[str] = set()
    for inputs in states:
        outputs = [z.sum() for z in _distribution_parameters(policy, inputs) if z.requires_grad]
        if outputs:
            gradients = th.autograd.grad(outputs, list(parameters.values()), allow_unused=True)
            reached |= {name for name, gradient in zip(parameters, gradients, strict=True) if gradient is not None}
    return reached


@th.no_grad()
def _seen_by_value(policy: ActorCriticPolicy, states: Sequence[PolicyInputs], parameters: dict[str, nn.Parameter]) -> set[str]:
    """Find the parameters whose value shows in the distribution: first all at once, because usually none does."""
    seen: set[str] = set()
    for inputs in states:
        left = {name: parameter for name, parameter in parameters.items() if name not in seen}
        if not left:
            break
        if _shows(policy, inputs, list(left.values())):
            seen |= {name for name, parameter in left.items() if _shows(policy, inputs, [parameter])}
    return seen


def _shows(policy: ActorCriticPolicy, inputs: PolicyInputs, parameters: Sequence[nn.Parameter]) -> bool:
    """Look at the distribution with NaN in the parameters' place, written into them so that every alias has it too."""
    old = [parameter.clone() for parameter in parameters]
    try:
        assign(parameters, [th.full_like(parameter, th.nan) for parameter in parameters])
        suspicious = [z.isnan() for z in _distribution_parameters(policy, inputs)]
        assign(parameters, old)
    except Exception:  # a policy that raises on NaN has seen it, whatever the error is
        assign(parameters, old)
        return True
    except BaseException:
        assign(parameters, old)
        raise
    if not any(bool(part.any()) for part in suspicious):
        return False
    healthy = _distribution_parameters(policy, inputs)  # there may be NaN without ours, for huge observations
    return any(bool((part & z.isfinite()).any()) for part, z in zip(suspicious, healthy, strict=True))
