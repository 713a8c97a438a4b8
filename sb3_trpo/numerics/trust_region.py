"""
One trust-region step (Schulman et al. 2015, arXiv:1502.05477, Section 6 and Appendix C).

========  =====================================================================
theta     parameters, changed in place
L         surrogate objective, to be increased
g         its gradient at the old parameters
F         Hessian of the first constraint's value at the old parameters
lambda    damping
x         solution of ``(F + lambda I) x = g``, the natural gradient
s         full step, x scaled to the boundary of the trust region
delta     radius of the trust region, the bound of the first constraint
========  =====================================================================

The first constraint is the divergence that defines the trust region. To second order its value after a step s is
``s^T F s / 2``, which gives the step its direction and length. The line search measures every constraint, including the first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

import torch as th

from sb3_trpo.numerics.flat import assign, unflatten
from sb3_trpo.numerics.line_search import Candidate, Constraint, Judgement, LineSearch, LineSearchResult
from sb3_trpo.numerics.linear_limits import Limit
from sb3_trpo.numerics.linear_operator import DampedOperator, LinearOperator, Solution, Solver, Termination

ROUNDING_SHARE = 0.01
"""Largest share of delta that rounding errors may make up: beyond it, the value of the first constraint means nothing."""


class Outcome(Enum):
    """How a trust-region step ended. Names and values call the first constraint the KL: they appear in logs."""

    ACCEPTED = "accepted"
    LIMITED = "accepted, on a limit"
    RECOVERED = "accepted, towards a limit out of reach"
    EMPTY_REGION = "empty trust region"
    ZERO_GRADIENT = "zero gradient"
    LOST_IN_ROUNDING = "lost in rounding"
    NON_FINITE_GRADIENT = "non-finite gradient"
    NON_POSITIVE_CURVATURE = "non-positive curvature"
    NON_FINITE_CURVATURE = "non-finite curvature"
    NON_FINITE_CANDIDATE = "non-finite surrogate or KL"
    KL_NEVER_SATISFIED = "KL never satisfied"
    CONSTRAINT_NEVER_SATISFIED = "constraint never satisfied"
    NO_IMPROVEMENT = "no improvement"
    NO_RECOVERY = "no improvement of a limited quantity"

    @property
    def is_accepted(self) -> bool:
        """Whether the parameters have changed."""
        return self in (Outcome.ACCEPTED, Outcome.LIMITED, Outcome.RECOVERED)


@dataclass(frozen=True)
class LocalModel:
    """
    The problem at the old parameters: increase L subject to the constraints.

    :param parameters: theta, the tensors to change in place
    :param surrogate: L at the old parameters
    :param gradient: g, shape ``(n_parameters,)``
    :param fisher: F at the old parameters
    :param constraints: at least one; the first defines the trust region. A bound of 0 on any of them rules out every step
    :param evaluate: measures L and the constraints' values at the current parameters, followed by how much each limited
        quantity has changed
    :param rounding: what rounding errors alone may add to the first constraint's value
    :param limits: what else bounds the step, see :mod:`~sb3_trpo.numerics.limited_step`
    """

    parameters: Sequence[th.Tensor]
    surrogate: float
    gradient: th.Tensor
    fisher: LinearOperator
    constraints: Sequence[Constraint]
    evaluate: Callable[[], Candidate]
    rounding: float = 0.0
    limits: Sequence[Limit] = ()

    @property
    def radius(self) -> float:
        """Delta."""
        return self.constraints[0].bound

    @cached_property
    def gradient_norm(self) -> float:
        """Norm of g."""
        return math.sqrt(float(self.gradient.dot(self.gradient)))


@dataclass(frozen=True)
class Step:
    """
    The record of one trust-region step. Fields that the step did not reach are ``None``.

    :param outcome: how it ended
    :param surrogate: L at the parameters that remain
    :param values: the constraints' values at the parameters that remain, in order; empty unless accepted
    :param gradient_norm: ``|g|``
    :param solution: what the solver found
    :param line_search: how the line search ended
    :param expected_improvement: ``c^k g^T s``, the first-order prediction for the last candidate
    :param improvement: ``L - L_old`` at the last candidate
    :param limited_changes: how much each limited quantity has changed at the last candidate, ``()`` without limits
    :param multipliers: what each limit costs, in L per unit of the limited quantity; 0 for a limit that does not hold the step
    """

    outcome: Outcome
    surrogate: float
    values: tuple[float, ...] = ()
    gradient_norm: float | None = None
    solution: Solution | None = None
    line_search: LineSearchResult | None = None
    expected_improvement: float | None = None
    improvement: float | None = None
    limited_changes: tuple[float, ...] = ()
    multipliers: tuple[float, ...] = ()

    @property
    def kl(self) -> float:
        """Value of the first constraint at the parameters that remain, 0 unless accepted."""
        return self.values[0] if self.values else 0.0

    @property
    def description(self) -> str:
        """The outcome in words, with the name of the constraint that even the smallest step violated."""
        violated = None if self.line_search is None else self.line_search.violated
        return self.outcome.value if violated is None else f"{self.outcome.value} ({violated.name})"


Attempt = Callable[[LocalModel, Solver, LineSearch, float, Sequence[th.Tensor]], Step]
"""``(model, solver, line_search, damping, old) -> step``: takes a step, but may leave rejected parameters behind."""


def trust_region_step(
    model: LocalModel, solver: Solver, line_search: LineSearch, damping: float, attempt: Attempt | None = None
) -> Step:
    """
    Increase the surrogate subject to the constraints, in place.

    Whatever happens, exceptions and interrupts included, the parameters end either at an accepted candidate or as they were,
    bit for bit.

    :param model: the problem at the old parameters
    :param solver: solves ``(F + lambda I) x = g``
    :param line_search: chooses among the candidates along the full step
    :param damping: lambda, >= 0
    :param attempt: chooses the full step and searches along it; ``None`` for the natural gradient
    :return: the record of the step
    """
    obstacle = obstacle_to(model)
    if obstacle is not None:
        return Step(obstacle, model.surrogate, gradient_norm=model.gradient_norm)
    old = [parameter.detach().clone() for parameter in model.parameters]
    try:
        step = (attempt or natural_step)(model, solver, line_search, damping, old)
        if not step.outcome.is_accepted:
            assign(model.parameters, old)
    except BaseException:  # interrupts too, even one that comes after the attempt
        assign(model.parameters, old)
        raise
    return step


def natural_step(model: LocalModel, solver: Solver, line_search: LineSearch, damping: float, old: Sequence[th.Tensor]) -> Step:
    """
    Take the step of :func:`trust_region_step` along the natural gradient.

    :param model: the problem at the old parameters
    :param solver: solves ``(F + lambda I) x = g``
    :param line_search: chooses among the candidates along the full step
    :param damping: lambda, >= 0
    :param old: copies of the old parameters
    :return: the record of the step; the parameters are left at the last candidate even if it was rejected
    """
    solution = solver(DampedOperator(model.fisher, damping), model.gradient)
    full_step = step_to_boundary(solution, model.gradient, model.radius)
    breakdown = breakdown_of(solution, full_step)
    if breakdown is not None:
        return Step(breakdown, model.surrogate, gradient_norm=model.gradient_norm, solution=solution)

    search = line_search(evaluation_along(full_step, model, old), model.surrogate, model.constraints)
    outcome = outcome_of(search, model.constraints)
    is_accepted = outcome is Outcome.ACCEPTED
    return Step(
        outcome,
        surrogate=search.candidate.surrogate if is_accepted else model.surrogate,
        values=search.candidate.values if is_accepted else (),
        gradient_norm=model.gradient_norm,
        solution=solution,
        line_search=search,
        expected_improvement=search.fraction * float(model.gradient.dot(full_step)),
        improvement=search.candidate.surrogate - model.surrogate,
    )


def evaluation_along(full_step: th.Tensor, model: LocalModel, old: Sequence[th.Tensor]) -> Callable[[float], Candidate]:
    """
    Prepare the evaluation of candidates.

    :param full_step: s, shape ``(n_parameters,)``
    :param model: the problem
    :param old: copies of the old parameters
    :return: moves the parameters by a fraction of the step and measures there
    """
    directions = unflatten(full_step, old)

    def evaluate(fraction: float) -> Candidate:
        assign(model.parameters, [start.add(step, alpha=fraction) for start, step in zip(old, directions, strict=True)])
        return model.evaluate()

    return evaluate


def step_to_boundary(solution: Solution, gradient: th.Tensor, radius: float) -> th.Tensor:
    """
    Scale the natural gradient to the boundary of the trust region: ``s = sqrt(2 delta / x^T (F + lambda I) x) x``.

    Since ``(F + lambda I) x = g - r``, this takes no further product.

    :param solution: x and its residual r
    :param gradient: g
    :param radius: delta
    :return: s, shape ``(n_parameters,)``
    """
    curvature = solution.x.dot(gradient - solution.residual)
    return (2.0 * radius / curvature).sqrt() * solution.x


def obstacle_to(model: LocalModel) -> Outcome | None:
    """
    Find a reason not to begin a step. With g = 0 a broken limit can still be mended.

    :param model: the problem
    :return: the reason, ``None`` if there is none
    """
    numbers = model.surrogate, model.gradient_norm
    if not (all(map(math.isfinite, numbers)) and all(limit.is_finite for limit in model.limits)):
        return Outcome.NON_FINITE_GRADIENT
    # Before the check for a gradient of 0, which is noise as well where rounding dominates.
    if model.radius > 0.0 and model.rounding > ROUNDING_SHARE * model.radius:
        return Outcome.LOST_IN_ROUNDING
    if model.gradient_norm == 0.0 and not any(limit.can_be_mended for limit in model.limits):
        return Outcome.ZERO_GRADIENT
    return Outcome.EMPTY_REGION if any(constraint.bound == 0.0 for constraint in model.constraints) else None


def breakdown_of(solution: Solution, full_step: th.Tensor) -> Outcome | None:
    """
    Find a reason not to use a solution. The iterate before a breakdown is still a good direction.

    :param solution: what the solver found
    :param full_step: s, computed from it
    :return: the reason, ``None`` if there is none
    """
    if solution.iterations == 0 and solution.termination is not Termination.NON_FINITE:
        return Outcome.NON_POSITIVE_CURVATURE
    is_usable = solution.iterations > 0 and bool(full_step.isfinite().all())  # x^T (F + lambda I) x may underflow to 0
    return None if is_usable else Outcome.NON_FINITE_CURVATURE


def outcome_of(search: LineSearchResult, constraints: Sequence[Constraint]) -> Outcome:
    """
    Name the outcome of a step that reached the line search.

    :param search: how the line search ended
    :param constraints: what it had to satisfy
    :return: the outcome
    """
    if search.judgement is Judgement.VIOLATED:
        is_first = search.violated is constraints[0]
        return Outcome.KL_NEVER_SATISFIED if is_first else Outcome.CONSTRAINT_NEVER_SATISFIED
    return {
        Judgement.ACCEPTED: Outcome.ACCEPTED,
        Judgement.NON_FINITE: Outcome.NON_FINITE_CANDIDATE,
        Judgement.NO_IMPROVEMENT: Outcome.NO_IMPROVEMENT,
    }[search.judgement]
