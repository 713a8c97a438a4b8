"""
Which parameters the policy's action distribution depends on.

A custom policy may call its parameters anything, so names such as "value" prove nothing. A parameter is the policy's if a
gradient reaches it from the distribution, or if the distribution becomes NaN when it does.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, Protocol

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_trpo.distributions.argument_checks import unvalidated
from sb3_trpo.distributions.base import DistributionKind
from sb3_trpo.distributions.registry import CORE_KINDS, kind_of
from sb3_trpo.networks.double_backward import twice_differentiable
from sb3_trpo.numerics.flat import assign
from sb3_trpo.numerics.gauss_newton import Outputs
from sb3_trpo.parallel.communicator import ALONE, Communicator
from sb3_trpo.rollouts.batch import RolloutBatch
from sb3_trpo.rollouts.inputs import PolicyInputs
from sb3_trpo.rollouts.transitions import GRAPH_LIMITS, default_chunk_size
from sb3_trpo.update.modes import evaluation_mode

ParametersAt = Callable[[PolicyInputs], Outputs]
"""Computes z, the parameters of the policy's distribution, at some states."""


class PolicyTensors(Protocol):
    """A policy whose structure is known."""

    @property
    def policy_tensors(self) -> list[th.Tensor]:
        """What the action distribution depends on."""
        ...


class ParameterSplit(NamedTuple):
    """
    The trainable parameters of an actor-critic policy, by name, in three groups.

    :param policy: the distribution depends on these, and a gradient reaches them: the trust-region step moves them
    :param critic: the distribution does not depend on these: the critic may move them
    :param detached: the distribution depends on these, but no gradient reaches them: nothing may move them
    """

    policy: dict[str, nn.Parameter]
    critic: dict[str, nn.Parameter]
    detached: dict[str, nn.Parameter]

    def over_ranks(self, policy: ActorCriticPolicy, communicator: Communicator) -> ParameterSplit:
        """
        Combine the splits of all ranks: a policy may use some parameters only in states that a single rank has met.

        :param policy: the actor-critic policy, the same on all ranks
        :param communicator: connects the ranks, each with a split found in its own states
        :return: the same groups on all ranks, in the policy's order
        """
        # In the order of precedence: what any rank's policy depends on is the policy's on all of them.
        found = dict.fromkeys(self.critic, 0) | dict.fromkeys(self.detached, 1) | dict.fromkeys(self.policy, 2)
        parameters = {name: parameter for name, parameter in policy.named_parameters() if name in found}
        groups = communicator.gather(th.tensor([found[name] for name in parameters])).amax(0).tolist()

        def members(wanted: int) -> dict[str, nn.Parameter]:
            return {name: value for (name, value), group in zip(parameters.items(), groups, strict=True) if group == wanted}

        return ParameterSplit(policy=members(2), critic=members(0), detached=members(1))

    def warn_about_detached(self) -> None:
        """Warn about parameters that the distribution depends on but that cannot be trained."""
        if self.detached:
            warnings.warn(
                f"The policy's distribution depends on {', '.join(self.detached)}, but through a detach() that stops "
                "gradients. They stay as they are: the step cannot move them, and the critic must not.",
                UserWarning,
                stacklevel=2,
            )


def split_of(
    policy: ActorCriticPolicy,
    networks: PolicyTensors | None,
    batch: RolloutBatch | Sequence[PolicyInputs],
    chunk_size: int | None = None,
    communicator: Communicator = ALONE,
    kinds: Sequence[DistributionKind] = CORE_KINDS,
) -> ParameterSplit:
    """
    Split the trainable parameters of a policy; done at every update, because users freeze and replace parts in between.

    :param policy: the actor-critic policy
    :param networks: its networks if they are known, which then show the split
    :param batch: the rollout in which to look for it otherwise, or some states if there is no rollout yet
    :param chunk_size: number of states to look at together, ``None`` to choose by observation size
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
    Split the trainable parameters by what the action distribution depends on in the given states.

    The graph of the distribution shows which parameters a gradient reaches. The others are replaced by NaN: if NaN shows in
    the distribution, the policy depends on them all the same, through a ``detach``. Frozen parameters
    (``requires_grad=False``) are in no group.

    :param policy: the actor-critic policy; its parameters end as they were, bit for bit, whatever happens
    :param states: all states that matter, in chunks, for a policy may use some parameters only in some of them. They are read
        twice, one chunk at a time, so a chunk may be made when it is read
    :param kinds: known kinds of distributions
    :return: the three groups
    """
    trainable = {name: parameter for name, parameter in policy.named_parameters() if parameter.requires_grad}
    z_at = partial(_distribution_parameters, policy, kinds)
    with evaluation_mode(policy), unvalidated():
        reached = _reached_by_gradient(z_at, states, trainable)
        others = {name: parameter for name, parameter in trainable.items() if name not in reached}
        detached = _seen_by_value(z_at, states, others)
    return ParameterSplit(
        policy={name: parameter for name, parameter in trainable.items() if name in reached},
        critic={name: parameter for name, parameter in others.items() if name not in detached},
        detached={name: parameter for name, parameter in others.items() if name in detached},
    )


def split_by_structure(policy: ActorCriticPolicy, networks: PolicyTensors) -> ParameterSplit:
    """
    Split the trainable parameters of a policy with known networks, without running it.

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


def _reached_by_gradient(z_at: ParametersAt, states: Sequence[PolicyInputs], parameters: dict[str, nn.Parameter]) -> set[str]:
    """Find the parameters in the graph of the distribution; a gradient of 0 counts, for it may be another one elsewhere."""
    reached: set[str] = set()
    for inputs in states:
        outputs = [z.sum() for z in z_at(inputs) if z.requires_grad]
        if outputs:
            gradients = th.autograd.grad(outputs, list(parameters.values()), allow_unused=True)
            reached |= {name for name, gradient in zip(parameters, gradients, strict=True) if gradient is not None}
    return reached


@th.no_grad()
def _seen_by_value(z_at: ParametersAt, states: Sequence[PolicyInputs], parameters: dict[str, nn.Parameter]) -> set[str]:
    """Find the parameters that the distribution depends on by value: first all at once, because usually there are none."""
    seen: set[str] = set()
    for inputs in states:
        left = {name: parameter for name, parameter in parameters.items() if name not in seen}
        if not left:
            break
        if _shows(z_at, inputs, list(left.values())):
            seen |= {name for name, parameter in left.items() if _shows(z_at, inputs, [parameter])}
    return seen


def _shows(z_at: ParametersAt, inputs: PolicyInputs, parameters: Sequence[nn.Parameter]) -> bool:
    """Fill the parameters with NaN, in place so that every alias has it too, and check for NaN in the distribution."""
    old = [parameter.clone() for parameter in parameters]
    try:
        assign(parameters, [th.full_like(parameter, th.nan) for parameter in parameters])
        suspicious = [z.isnan() for z in z_at(inputs)]
        assign(parameters, old)
    except Exception:  # a policy that raises on NaN has read it, whatever the error is
        assign(parameters, old)
        return True
    except BaseException:  # an interrupt is no answer
        assign(parameters, old)
        raise
    if not any(bool(part.any()) for part in suspicious):
        return False
    healthy = z_at(inputs)  # huge observations may give NaN without ours
    return any(bool((part & z.isfinite()).any()) for part, z in zip(suspicious, healthy, strict=True))
