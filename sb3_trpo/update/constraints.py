"""
Constraints on a policy step.

A constraint bounds the mean, or a quantile, over the rollout of one number per state, its terms. The first constraint, on the
mean KL(old || new), defines the trust region. To add another one, write a function like :func:`kl_terms` and pass a
:class:`PolicyConstraint` after the first in ``policy_step.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch as th
from stable_baselines3.common.distributions import Distribution

from sb3_trpo.distributions.base import DistributionKind
from sb3_trpo.numerics.gauss_newton import Outputs
from sb3_trpo.numerics.line_search import Constraint
from sb3_trpo.rollouts.transitions import Transitions


class Comparison(NamedTuple):
    """
    The policy beside the old one, at the states of one chunk.

    :param kind: the kind of both distributions
    :param old: z of the old policy
    :param distribution: the policy's distribution, with its graph if the terms are to be differentiated
    :param log_ratio: ``log pi(a|s) - log pi_old(a|s)`` of each action, in nats, shape ``(n,)``, with its graph
    :param chunk: the transitions
    """

    kind: DistributionKind
    old: Outputs
    distribution: Distribution
    log_ratio: th.Tensor
    chunk: Transitions


Terms = Callable[[Comparison], th.Tensor]
"""What a constraint bounds: a number for each state, shape ``(n,)``."""


@dataclass(frozen=True)
class PolicyConstraint(Constraint):
    """
    An upper bound on a mean over the rollout, or on a quantile.

    :param name: names the constraint in records
    :param bound: the largest value allowed
    :param terms: computes the term of each state, shape ``(n,)``
    :param log_key: logger key of the value after an accepted step, ``None`` for no log
    :param level: ``None`` bounds the mean; a number q in (0, 1] the q-quantile of the terms, their maximum if q is 1
    """

    terms: Terms
    log_key: str | None = None
    level: float | None = None


def kl_terms(policies: Comparison) -> th.Tensor:
    """
    Compute KL(old || new) of the joint action at each state.

    :param policies: the policies
    :return: shape ``(n,)``, in nats
    """
    return policies.kind.kl(policies.old, policies.kind.parameters(policies.distribution))


def mean_kl(target_kl: float) -> PolicyConstraint:
    """
    Bound the mean KL(old || new) (Schulman et al. 2015, arXiv:1502.05477, eq. 12).

    :param target_kl: the radius of the trust region, in nats
    :return: the constraint that defines the trust region
    """
    return PolicyConstraint("mean KL(old || new)", target_kl, kl_terms, "train/kl_divergence_loss")


def state_kl(bound: float, level: float) -> PolicyConstraint:
    """
    Bound the largest KL(old || new) of any state, or of a share of the states.

    The guarantee of improvement (Schulman et al. 2015, arXiv:1502.05477, Theorem 1) needs the maximum over states bounded. The
    mean stands in for it (Section 4).

    :param bound: the largest KL allowed, in nats; infinite to measure only
    :param level: share of the states that must keep the bound, in (0, 1]
    :return: the constraint
    """
    name = "largest KL(old || new) of a state" if level == 1.0 else f"{level:g}-quantile of KL(old || new) over states"
    return PolicyConstraint(name, bound, kl_terms, "train/state_kl", level)


def cost_terms(index: int, scale: float, policies: Comparison) -> th.Tensor:
    """
    Compute ``scale * pi(a|s) / pi_old(a|s) * A_C`` at each transition, the surrogate of a cost (Achiam et al. 2017, eq. 10).

    :param index: which cost
    :param scale: what a mean over states is multiplied by to give the change of an episode's cost
    :param policies: the policies, and the transitions with the advantages of costs
    :return: shape ``(n,)``
    """
    advantages = policies.chunk.cost_advantages
    assert advantages is not None, "the policy step adds them"
    return scale * policies.log_ratio.exp() * advantages[:, index]


def cost_limit(name: str, index: int, excess: float, scale: float) -> PolicyConstraint:
    """
    Bound the expected cost of an episode.

    If the cost's advantages have mean 0, its surrogate is the predicted change of the cost, which may be what is left to the
    limit.

    :param name: key of the cost
    :param index: which cost
    :param excess: the estimated cost of an episode less its limit; negative while the limit is kept
    :param scale: what a mean over states is multiplied by to give the change of an episode's cost
    :return: the limit
    """
    return PolicyConstraint(f"limit of {name}", -excess, partial(cost_terms, index, scale))
