"""
A second constraint: the variance of the importance ratios.

The surrogate weighs each advantage by the ratio ``pi(a|s) / pi_old(a|s)``. If a few ratios are large, few transitions decide,
even where the KL is small. For n transitions the effective sample size is about ``n / (1 + variance)``.
"""

from __future__ import annotations

import torch as th

from sb3_trpo.update.constraints import Comparison, PolicyConstraint


def squared_deviations(policies: Comparison) -> th.Tensor:
    """
    Compute ``(pi / pi_old - 1)^2`` for each transition; the mean of the ratio is 1.

    :param policies: the new policy beside the old one
    :return: shape ``(n,)``
    """
    return policies.log_ratio.expm1().square()


def ratio_variance(bound: float) -> PolicyConstraint:
    """
    Bound the variance of the importance ratios.

    :param bound: the largest variance allowed
    :return: the constraint
    """
    return PolicyConstraint("variance of the ratios", bound, squared_deviations)
