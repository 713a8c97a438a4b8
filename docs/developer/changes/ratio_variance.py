"""
A second constraint: the variance of the importance ratios.

The surrogate weighs each advantage by the ratio ``pi(a|s) / pi_old(a|s)``. If a few ratios are large, few transitions decide,
even where the KL is small. For n transitions the effective sample size is about ``n / (1 + variance)``.
"""

from __future__ import annotations

import torch as th
from stable_baselines3.common.distributions import Distribution

from sb3_trpo.distributions.base import DistributionKind
from sb3_trpo.numerics.gauss_newton import Outputs
from sb3_trpo.rollouts.transitions import Transitions
from sb3_trpo.update.constraints import PolicyConstraint


def squared_deviations(kind: DistributionKind, old: Outputs, distribution: Distribution, chunk: Transitions) -> th.Tensor:
    """
    Compute ``(pi / pi_old - 1)^2`` for each transition; the mean of the ratio is 1.

    :param kind: not needed
    :param old: not needed
    :param distribution: the new policy's distribution
    :param chunk: the transitions
    :return: shape ``(n,)``
    """
    return (distribution.log_prob(chunk.actions) - chunk.old_log_prob).expm1().square()


def ratio_variance(bound: float) -> PolicyConstraint:
    """
    Bound the variance of the importance ratios.

    :param bound: the largest variance allowed
    :return: the constraint
    """
    return PolicyConstraint("variance of the ratios", bound, squared_deviations)
