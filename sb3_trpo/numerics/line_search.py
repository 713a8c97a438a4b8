"""
Backtracking line search under constraints (Schulman et al. 2015, arXiv:1502.05477, Appendix C).

The candidates are ``theta + c^k s`` for k = 0, 1, ... The first one that improves the surrogate and satisfies every constraint
is accepted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple


@dataclass(frozen=True)
class Constraint:
    """
    An upper bound on a number that is measured at every candidate.

    :param name: names the constraint in records
    :param bound: the largest value allowed
    """

    name: str
    bound: float


class Candidate(NamedTuple):
    """
    What is measured at one candidate.

    :param surrogate: L
    :param values: the value that each constraint bounds, in the order of the constraints
    """

    surrogate: float
    values: tuple[float, ...]

    @property
    def kl(self) -> float:
        """Value of the first constraint, which is the divergence from the old parameters in a trust-region step."""
        return self.values[0]


class Judgement(Enum):
    """The line search's verdict on a candidate."""

    ACCEPTED = "improves the surrogate and satisfies every constraint"
    NON_FINITE = "has a surrogate or a constraint's value that is not finite"
    VIOLATED = "violates a constraint"
    NO_IMPROVEMENT = "does not improve the surrogate"


@dataclass(frozen=True)
class LineSearchResult:
    """
    How a line search ended.

    :param fraction: ``c^k`` of the last candidate
    :param evaluations: number of candidates evaluated
    :param candidate: what was measured at the last candidate
    :param judgement: the verdict on the last candidate, which is the smallest step tried unless accepted
    :param violated: the first constraint that the last candidate violates, if the verdict is ``VIOLATED``
    """

    fraction: float
    evaluations: int
    candidate: Candidate
    judgement: Judgement
    violated: Constraint | None = None


LineSearch = Callable[[Callable[[float], Candidate], float, Sequence[Constraint]], LineSearchResult]
"""``(evaluate, old_surrogate, constraints) -> result``; see :meth:`BacktrackingLineSearch.__call__`."""


def first_violated(candidate: Candidate, constraints: Sequence[Constraint]) -> Constraint | None:
    """
    Find the first constraint with ``value > bound``.

    :param candidate: what was measured
    :param constraints: the constraints, as many as the candidate has values
    :return: the constraint, or ``None`` if all are satisfied
    """
    for constraint, value in zip(constraints, candidate.values, strict=True):
        if value > constraint.bound:
            return constraint
    return None


def judge(candidate: Candidate, old_surrogate: float, constraints: Sequence[Constraint]) -> Judgement:
    """
    Judge one candidate: everything finite, ``value <= bound`` for every constraint, ``L > L_old``.

    :param candidate: what was measured
    :param old_surrogate: L_old, at the old parameters
    :param constraints: the constraints, as many as the candidate has values
    :return: the verdict
    """
    if not all(map(math.isfinite, (candidate.surrogate, *candidate.values))):
        return Judgement.NON_FINITE
    if first_violated(candidate, constraints) is not None:
        return Judgement.VIOLATED
    return Judgement.ACCEPTED if candidate.surrogate > old_surrogate else Judgement.NO_IMPROVEMENT


@dataclass(frozen=True)
class BacktrackingLineSearch:
    """
    Backtracking from the full step.

    :param shrinking_factor: c, in (0, 1)
    :param max_iterations: largest number of candidates, >= 1
    """

    shrinking_factor: float
    max_iterations: int

    def __call__(
        self, evaluate: Callable[[float], Candidate], old_surrogate: float, constraints: Sequence[Constraint]
    ) -> LineSearchResult:
        """
        Shrink the step until a candidate is accepted or the candidates run out.

        :param evaluate: moves the parameters by the given fraction of the step and measures there
        :param old_surrogate: L_old, at the old parameters
        :param constraints: what a candidate must satisfy
        :return: the result; ``evaluate`` has left the parameters at its candidate
        """
        fraction = 1.0
        for evaluations in range(1, self.max_iterations + 1):
            candidate = evaluate(fraction)
            judgement = judge(candidate, old_surrogate, constraints)
            if judgement is Judgement.ACCEPTED or evaluations == self.max_iterations:
                break
            fraction *= self.shrinking_factor
        violated = first_violated(candidate, constraints) if judgement is Judgement.VIOLATED else None
        return LineSearchResult(fraction, evaluations, candidate, judgement, violated)
