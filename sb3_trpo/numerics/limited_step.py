"""
A trust-region step under limits on other quantities than L: constrained policy optimization.

The source is Achiam et al. 2017, arXiv:1705.10528, equations 10 to 14 and Algorithm 1.

    maximize g^T s   subject to   s^T H s / 2 <= delta   and   c_i + b_i^T s <= 0 for every limit i

======  ==================================================================================
H       ``F + lambda I``
g       gradient of L
b_i     gradient of the limited quantity i
c_i     its excess over its bound at the old parameters
s       full step
======  ==================================================================================

1. Solve ``H x = g``. If the step of plain TRPO keeps all limits to first order, it is the solution.
2. Otherwise solve ``H y_i = b_i`` for every limit, and find the best step in the span of all these vectors
   (:mod:`~sb3_trpo.numerics.linear_limits`). The exact solution lies in the span of the exact vectors. Conjugate gradient
   stops early, but what it returns is used for what it is: the residuals give ``H x`` and ``H y_i`` without a further
   product, so the quadratic form and the linear ones are exact on the span.
3. Search along s. A candidate must keep the constraints and the limits as they are measured; a limit that was broken before
   must not be broken further. L must improve, unless the step of plain TRPO would not mend a broken limit: then the sum of
   what is over the limits must fall.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch as th

from sb3_trpo.numerics.line_search import Candidate, Constraint, LineSearch
from sb3_trpo.numerics.linear_limits import LimitedStep, Region, best_step
from sb3_trpo.numerics.linear_operator import DampedOperator, LinearOperator, Solution, Solver
from sb3_trpo.numerics.trust_region import (
    LocalModel,
    Outcome,
    Step,
    breakdown_of,
    evaluation_along,
    outcome_of,
    step_to_boundary,
)

SMALLEST_EIGENVALUE = 1e-5
"""Of the directions' Gram matrix, with ones on its diagonal: below it, directions are the same but for rounding in float32."""


def limited_step(model: LocalModel, solver: Solver, line_search: LineSearch, damping: float, old: Sequence[th.Tensor]) -> Step:
    """
    Take a step under limits, for :func:`~sb3_trpo.numerics.trust_region.trust_region_step`.

    :param model: the problem at the old parameters, with its limits
    :param solver: solves ``(F + lambda I) x = b``
    :param line_search: chooses among the candidates along the full step
    :param damping: lambda, >= 0
    :param old: copies of the old parameters
    :return: the record of the step; the parameters are left at the last candidate even if it was rejected
    """
    proposal = propose(model, solver, DampedOperator(model.fisher, damping))
    if isinstance(proposal, Failure):
        return Step(proposal.outcome, model.surrogate, gradient_norm=model.gradient_norm, solution=proposal.solution)
    return _search(model, proposal, line_search, old)


class Failure(NamedTuple):
    """
    Why there is no full step.

    :param outcome: the reason
    :param solution: what the solver found for g
    """

    outcome: Outcome
    solution: Solution | None


class Proposal(NamedTuple):
    """
    A full step.

    :param full_step: s, shape ``(n_parameters,)``
    :param solution: what the solver found for g; ``None`` if g is 0
    :param region: what the limits leave of the trust region
    :param multipliers: nu, one for each limit
    """

    full_step: th.Tensor
    solution: Solution | None
    region: Region
    multipliers: tuple[float, ...]


def propose(model: LocalModel, solver: Solver, operator: LinearOperator) -> Proposal | Failure:
    """
    Choose the full step.

    :param model: the problem
    :param solver: the solver
    :param operator: H
    :return: the step, or why there is none
    """
    solution = solver(operator, model.gradient) if bool(model.gradient.any()) else None
    if solution is not None:
        full_step = step_to_boundary(solution, model.gradient, model.radius)
        breakdown = breakdown_of(solution, full_step)
        if breakdown is not None:
            return Failure(breakdown, solution)
        if all(limit.excess + float(limit.gradient.dot(full_step)) <= 0.0 for limit in model.limits):
            return Proposal(full_step, solution, Region.FREE, (0.0,) * len(model.limits))
    gradients = [limit.gradient for limit in model.limits]
    solutions = [solver(operator, gradient) for gradient in gradients if bool(gradient.any())]
    targets = [gradient for gradient in gradients if bool(gradient.any())]
    if solution is not None:
        solutions, targets = [solution, *solutions], [model.gradient, *targets]
    basis = orthonormal_basis(solutions, targets)
    if basis is None:
        return Failure(Outcome.NON_FINITE_CURVATURE, solution)
    best = _best_in(basis, model)
    full_step = (basis @ best.u).to(model.gradient.dtype)
    if not bool(full_step.isfinite().all()):
        return Failure(Outcome.NON_FINITE_CURVATURE, solution)
    return Proposal(full_step, solution, best.region, tuple(best.multipliers.tolist()))


def orthonormal_basis(solutions: Sequence[Solution], targets: Sequence[th.Tensor]) -> th.Tensor | None:
    """
    Find a basis Q of the span of approximate solutions X of ``H X = B`` with ``Q^T H Q = I``.

    :param solutions: columns of X, with their residuals
    :param targets: columns of B
    :return: Q, float64, shape ``(n_parameters, k)``; ``None`` if no column has a positive and finite ``x^T H x``
    """
    x = th.stack([each.x for each in solutions], dim=1).double()
    of_x = th.stack([target - each.residual for each, target in zip(solutions, targets, strict=True)], dim=1).double()
    gram = x.T @ of_x
    gram = (gram + gram.T) / 2.0
    squares = gram.diagonal()
    usable = (squares > 0.0) & squares.isfinite() & gram.isfinite().all(dim=0)
    if not bool(usable.any()):
        return None
    scale = squares[usable].rsqrt()
    eigenvalues, vectors = th.linalg.eigh(gram[usable][:, usable] * scale[:, None] * scale)
    kept = eigenvalues > SMALLEST_EIGENVALUE
    return (x[:, usable] * scale).matmul(vectors[:, kept] * eigenvalues[kept].rsqrt())


def _best_in(basis: th.Tensor, model: LocalModel) -> LimitedStep:
    """Solve the problem in the coordinates of a basis, in which H is the identity."""
    rows = th.stack([limit.gradient for limit in model.limits]).double() @ basis
    excesses = rows.new_tensor([limit.excess for limit in model.limits])
    solved = best_step((basis.T @ model.gradient.double()).cpu(), rows.cpu(), excesses.cpu(), model.radius)
    return solved._replace(u=solved.u.to(basis.device))


def _search(model: LocalModel, proposal: Proposal, line_search: LineSearch, old: Sequence[th.Tensor]) -> Step:
    """Search along the full step, and name the outcome."""
    is_broken = proposal.region is not Region.FREE and any(limit.can_be_mended for limit in model.limits)
    constraints = [*model.constraints, *(Constraint(limit.name, max(-limit.excess, 0.0)) for limit in model.limits)]
    measure, last = evaluation_along(proposal.full_step, model, old), list[Candidate]()

    def evaluate(fraction: float) -> Candidate:
        last[:] = [measure(fraction)]
        return last[0]._replace(surrogate=-total_excess(last[0], model)) if is_broken else last[0]

    before = -total_excess(None, model) if is_broken else model.surrogate
    search = line_search(evaluate, before, constraints)
    measured = last[0]
    outcome = _named(outcome_of(search, constraints), proposal.region, is_broken)
    return Step(
        outcome,
        surrogate=measured.surrogate if outcome.is_accepted else model.surrogate,
        values=measured.values[: len(model.constraints)] if outcome.is_accepted else (),
        gradient_norm=model.gradient_norm,
        solution=proposal.solution,
        line_search=search,
        expected_improvement=search.fraction * float(model.gradient.dot(proposal.full_step)),
        improvement=measured.surrogate - model.surrogate,
        limited_changes=measured.values[len(model.constraints) :],
        multipliers=proposal.multipliers,
    )


def total_excess(candidate: Candidate | None, model: LocalModel) -> float:
    """
    Add up by how much limits are broken. Each is divided by the length of its gradient, for their units may differ.

    :param candidate: what was measured, ``None`` at the old parameters
    :param model: the problem
    :return: the sum over the limits that were broken at the old parameters
    """
    changes = (0.0,) * len(model.limits) if candidate is None else candidate.values[len(model.constraints) :]
    return sum(
        max(0.0, limit.excess + change) / float(limit.gradient.norm())
        for limit, change in zip(model.limits, changes, strict=True)
        if limit.can_be_mended
    )


def _named(outcome: Outcome, region: Region, is_broken: bool) -> Outcome:
    """Name the outcome with regard to the limits."""
    if outcome is Outcome.ACCEPTED:
        return {Region.FREE: Outcome.ACCEPTED, Region.LIMITED: Outcome.LIMITED, Region.EMPTY: Outcome.RECOVERED}[region]
    return Outcome.NO_RECOVERY if outcome is Outcome.NO_IMPROVEMENT and is_broken else outcome
