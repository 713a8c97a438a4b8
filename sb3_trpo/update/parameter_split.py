"""
Which parameters the policy's action distribution depends on.

Names such as "value" tell nothing about a custom policy, so it is found out by trying: a gradient reaches a parameter, or NaN
in its place shows in the distribution.
"""

from __future__ import annotations

import warnings
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
from sb3_trpo.parallel.communicator import ALONE, Communicator
from sb3_trpo.rollouts.batch import RolloutBatch
from sb3_trpo.rollouts.inputs import PolicyInputs
from sb3_trpo.rollouts.transitions import GRAPH_LIMITS, default_chunk_size
from sb3_trpo.update.modes import evaluation_mode

Look = Callable[[PolicyInputs], Outputs]
"""Computes z, the parameters of the policy's distribution, in some states."""


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

    def warn_about_detached(self) -> None:
        """Warn about parameters that shape the distribution but cannot be trained."""
        if self.detached:
            warnings.warn(
                f"The policy's distribution depends on {', '.join(self.detached)}, but through a detach() that stops "
                "gradients. They stay as they are: the step cannot move them, and the critic must not.",
                UserWarning,
                stacklevel=2,
            )


def split_of(
    policy: ActorCriticPolicy,
    networks: Networks | None,
    batch: RolloutBatch | Sequence[PolicyInputs],
    chunk_size: int | None = None,
    communicator: Communicator = ALONE,
    kinds: Sequence[DistributionKind] = CORE_KINDS,
) -> ParameterSplit:
    """
    Split the trainable parameters of a policy, at each update again, because users freeze and replace parts in between.

    :param policy: the actor-critic policy
    :param networks: its layers, if it is a plain one: then its structure tells
    :param batch: a rollout, or some states where there is none yet: else the states tell
    :param chunk_size: states to look at together, ``None`` to choose by observation size
    :param communicator: connects the ranks, each of which has its own rollout
    :param kinds: known kinds of distributions
    :return: the three groups, with at least one parameter of the policy
    :raises ValueError: if no trainable parameter changes the distribution
    """
    if networks is not None:
        split = split_by_structure(policy, networks)
    elif isinstance(batch, RolloutBatch):
        size = chunk_size or default_chunk_size(policy.observation_space, GRAPH_LIMITS)
        split = split_parameters(policy, batch.chunks(1, size).inputs, kinds).over_ranks(policy, communicator)
    else:
        split = split_parameters(policy, batch, kinds)
    if not split.policy:
        raise ValueError(
            f"No trainable parameter changes the action distribution of {type(policy).__name__}: there is nothing for TRPO to "
            "improve. Set requires_grad=True on some, or check for a detach() in get_distribution()."
        )
    return split


def split_parameters(
    policy: ActorCriticPolicy, states: Sequence[PolicyInputs], kinds: Sequence[DistributionKind] = CORE_KINDS
) -> ParameterSplit:
    """
    Split the trainable parameters by what the action distribution depends on in given states.

    The graph of the distribution's parameters shows where a gradient reaches. The other parameters are replaced by NaN: if the
    distribution shows it, the policy depends on them all the same, behind a ``detach``. Frozen parameters
    (``requires_grad=False``) are in no group.

    :param policy: the actor-critic policy; its parameters end as they were, bit for bit, whatever happens
    :param states: inputs in all states that matter, for a policy may use some parameters only in some of them; gone through
        twice, and may be made on the way
    :param kinds: known kinds of distributions
    :return: the three groups
    """
    trainable = {name: parameter for name, parameter in policy.named_parameters() if parameter.requires_grad}
    look = partial(_distribution_parameters, policy, kinds)
    with evaluation_mode(policy), unvalidated():
        reached = _reached_by_gradient(look, states, trainable)
        others = {name: parameter for name, parameter in trainable.items() if name not in reached}
        detached = _seen_by_value(look, states, others)
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


def _distribution_parameters(policy: ActorCriticPolicy, kinds: Sequence[DistributionKind], inputs: PolicyInputs) -> Outputs:
    with twice_differentiable(policy):  # cuDNN's recurrent layers have no derivative at all in evaluation mode
        distribution = inputs.distribution(policy)
    return kind_of(distribution, kinds).parameters(distribution)


def _reached_by_gradient(look: Look, states: Sequence[PolicyInputs], parameters: dict[str, nn.Parameter]) -> set[str]:
    reached: set[str] = set()
    for inputs in states:
        outputs = [z.sum() for z in look(inputs) if z.requires_grad]
        if outputs:
            gradients = th.autograd.grad(outputs, list(parameters.values()), allow_unused=True)
            reached |= {name for name, gradient in zip(parameters, gradients, strict=True) if gradient is not None}
    return reached


@th.no_grad()
def _seen_by_value(look: Look, states: Sequence[PolicyInputs], parameters: dict[str, nn.Parameter]) -> set[str]:
    """Find the parameters whose value shows in the distribution: first all at once, because usually none does."""
    seen: set[str] = set()
    for inputs in states:
        left = {name: parameter for name, parameter in parameters.items() if name not in seen}
        if not left:
            break
        if _shows(look, inputs, list(left.values())):
            seen |= {name for name, parameter in left.items() if _shows(look, inputs, [parameter])}
    return seen


def _shows(look: Look, inputs: PolicyInputs, parameters: Sequence[nn.Parameter]) -> bool:
    """Look at the distribution with NaN in the parameters' place, written into them so that every alias has it too."""
    old = [parameter.clone() for parameter in parameters]
    try:
        assign(parameters, [th.full_like(parameter, th.nan) for parameter in parameters])
        suspicious = [z.isnan() for z in look(inputs)]
        assign(parameters, old)
    except Exception:  # a policy that raises on NaN has seen it, whatever the error is
        assign(parameters, old)
        return True
    except BaseException:
        assign(parameters, old)
        raise
    if not any(bool(part.any()) for part in suspicious):
        return False
    healthy = look(inputs)  # there may be NaN without ours, for huge observations
    return any(bool((part & z.isfinite()).any()) for part, z in zip(suspicious, healthy, strict=True))
