"""
Backtracking line search inside a trust region (Schulman et al. 2015, arXiv:1502.05477, Appendix C).

The candidates are ``theta + c^k s`` for k = 0, 1, ...: the first that improves the surrogate and stays in the region is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple


class Candidate(NamedTuple):
    """The surrogate L and the mean KL(old || new) at one candidate."""

    surrogate: float
    kl: float


class Judgement(Enum):
    """What the line search says of a candidate."""

    ACCEPTED = "improves the surrogate inside the trust region"
    NON_FINITE = "has a surrogate or a KL that is not finite"
    OUTSIDE = "is outside the trust region"
    NO_IMPROVEMENT = "does not improve the surrogate"


@dataclass(frozen=True)
class LineSearch:
    """
    How a line search ended.

    :param fraction: ``c^k`` of the last candidate
    :param evaluations: number of candidates evaluated
    :param candidate: the last candidate's values
    :param judgement: the verdict on the last candidate; unless accepted, on the smallest step tried
    """

    fraction: float
    evaluations: int
    candidate: Candidate
    judgement: Judgement


def judge(candidate: Candidate, old_surrogate: float, target_kl: float) -> Judgement:
    """
    Decide about one candidate: ``KL <= target_kl`` and ``L > L_old``, both finite.

    :param candidate: its surrogate and KL
    :param old_surrogate: L at the old parameters
    :param target_kl: the trust region's radius
    :return: the verdict
    """
    if not (math.isfinite(candidate.surrogate) and math.isfinite(candidate.kl)):
        return Judgement.NON_FINITE
    if candidate.kl > target_kl:
        return Judgement.OUTSIDE
    return Judgement.ACCEPTED if candidate.surrogate > old_surrogate else Judgement.NO_IMPROVEMENT


def backtrack(
    evaluate: Callable[[float], Candidate],
    old_surrogate: float,
    target_kl: float,
    shrinking_factor: float,
    max_iterations: int,
) -> LineSearch:
    """
    Shrink the step until a candidate is accepted or the candidates run out.

    :param evaluate: moves to the given fraction of the step and measures there
    :param old_surrogate: L at the old parameters
    :param target_kl: the trust region's radius
    :param shrinking_factor: c, in (0, 1)
    :param max_iterations: number of candidates, at least 1
    :return: the last candidate evaluated, which ``evaluate`` has left in place
    """
    fraction = 1.0
    for evaluations in range(1, max_iterations + 1):
        candidate = evaluate(fraction)
        judgement = judge(candidate, old_surrogate, target_kl)
        if judgement is Judgement.ACCEPTED or evaluations == max_iterations:
            break
        fraction *= shrinking_factor
    return LineSearch(fraction, evaluations, candidate, judgement)
