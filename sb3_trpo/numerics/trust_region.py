"""
One trust-region step (Schulman et al. 2015, arXiv:1502.05477, Section 6 and Appendix C).

========  ===========================================================
theta     parameters, changed in place
L         surrogate objective
g         its gradient at the old parameters
F         Fisher matrix, an operator
lambda    damping
x         solution of ``(F + lambda I) x = g``, the natural gradient
s         full step, x scaled to the boundary of the trust region
delta     radius of the trust region, ``target_kl``
========  ===========================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

import torch as th

from sb3_trpo.numerics.conjugate_gradient import Solution, Termination, conjugate_gradient
from sb3_trpo.numerics.flat import assign, unflatten
from sb3_trpo.numerics.line_search import Candidate, Judgement, LineSearch, backtrack
from sb3_trpo.numerics.linear_operator import Operator, damped

ROUNDING_SHARE = 0.01
"""
How much of the trust region's radius rounding may make up.

The mean square of what it changes log-probabilities by is about the KL that it adds to a step, if independent of the step.
"""


class Outcome(Enum):
    """How a trust-region step ended; ``advice`` says what to do about it."""

    ACCEPTED = "accepted"
    EMPTY_REGION = "empty trust region"
    ZERO_GRADIENT = "zero gradient"
    LOST_IN_ROUNDING = "lost in rounding"
    NON_FINITE_GRADIENT = "non-finite gradient"
    NON_POSITIVE_CURVATURE = "non-positive curvature"
    NON_FINITE_CURVATURE = "non-finite curvature"
    NON_FINITE_CANDIDATE = "non-finite surrogate or KL"
    KL_NEVER_SATISFIED = "KL never satisfied"
    NO_IMPROVEMENT = "no improvement"

    @property
    def advice(self) -> str:
        """One sentence on what to do if this outcome persists."""
        return _ADVICE[self]


_ADVICE = {
    Outcome.ACCEPTED: "The step was taken; there is nothing to do.",
    Outcome.EMPTY_REGION: "target_kl has reached 0, so the policy stays; end its schedule above 0 to go on learning.",
    Outcome.ZERO_GRADIENT: "The advantages carry no signal; check that the reward varies, or collect more steps (n_steps).",
    Outcome.LOST_IN_ROUNDING: "Rounding errors change the policy as much as a step may: no KL can be trusted. Normalise the "
    "observations, with VecNormalize for instance, or raise target_kl.",
    Outcome.NON_FINITE_GRADIENT: "The policy was left alone; look for infinite log-probabilities (a std near 0, saturated "
    "logits) and for observations or rewards of huge size, which VecNormalize would scale.",
    Outcome.NON_POSITIVE_CURVATURE: "The Fisher matrix is singular along the gradient to rounding; raise cg_damping.",
    Outcome.NON_FINITE_CURVATURE: "A Fisher product overflowed; raise cg_damping and look for a std or probability near 0.",
    Outcome.NON_FINITE_CANDIDATE: "Even the smallest step made the policy non-finite; lower target_kl or raise cg_damping.",
    Outcome.KL_NEVER_SATISFIED: "Even the smallest step left the trust region; raise line_search_max_iter, lower "
    "line_search_shrinking_factor, or raise cg_damping.",
    Outcome.NO_IMPROVEMENT: "No step inside the trust region improved the surrogate; once in a while this is harmless, "
    "otherwise raise cg_max_steps or n_steps, or lower target_kl.",
}

_OUTCOME_OF_JUDGEMENT = {
    Judgement.ACCEPTED: Outcome.ACCEPTED,
    Judgement.NON_FINITE: Outcome.NON_FINITE_CANDIDATE,
    Judgement.OUTSIDE: Outcome.KL_NEVER_SATISFIED,
    Judgement.NO_IMPROVEMENT: Outcome.NO_IMPROVEMENT,
}


@dataclass(frozen=True)
class Settings:
    """
    The numbers that shape a step.

    :param target_kl: delta, the largest mean KL(old || new), finite and >= 0
    :param cg_max_steps: Fisher products at most, >= 1
    :param cg_residual_tol: relative residual at which conjugate gradient stops, >= 0
    :param cg_damping: lambda, >= 0
    :param shrinking_factor: factor between candidates, in (0, 1)
    :param line_search_max_iter: number of candidates, >= 1
    """

    target_kl: float
    cg_max_steps: int
    cg_residual_tol: float
    cg_damping: float
    shrinking_factor: float
    line_search_max_iter: int


@dataclass(frozen=True)
class LocalModel:
    """
    The problem at the old parameters.

    :param parameters: theta, the tensors to change in place
    :param surrogate: L at the old parameters
    :param gradient: g, shape ``(n_parameters,)``
    :param fisher: ``v -> F v`` at the old parameters
    :param evaluate: measures L and the mean KL(old || current) at whatever the parameters are when it is called
    :param rounding: mean square of what rounding changes log-probabilities by, in nats squared
    """

    parameters: Sequence[th.Tensor]
    surrogate: float
    gradient: th.Tensor
    fisher: Operator
    evaluate: Callable[[], Candidate]
    rounding: float = 0.0


@dataclass(frozen=True)
class Step:
    """
    The record of one trust-region step. What was not reached is ``None``.

    :param outcome: how it ended
    :param surrogate: L at the parameters that remain
    :param kl: mean KL(old || new) at the parameters that remain, 0 unless accepted
    :param gradient_norm: ``|g|``
    :param solution: what conjugate gradient found
    :param line_search: how the line search ended
    :param expected_improvement: ``c^k g^T s``, the first-order promise of the last candidate
    :param improvement: ``L - L_old`` at the last candidate
    """

    outcome: Outcome
    surrogate: float
    kl: float = 0.0
    gradient_norm: float | None = None
    solution: Solution | None = None
    line_search: LineSearch | None = None
    expected_improvement: float | None = None
    improvement: float | None = None


def trust_region_step(model: LocalModel, settings: Settings) -> Step:
    """
    Improve the surrogate within the trust region, in place.

    Whatever happens, exceptions and interrupts included, the parameters end as an accepted candidate or as they were, bit for
    bit.

    :param model: the problem at the old parameters
    :param settings: the numbers that shape the step
    :return: the record of the step
    """
    old = [parameter.detach().clone() for parameter in model.parameters]
    try:
        step = _attempt(model, settings, old)
        if step.outcome is not Outcome.ACCEPTED:
            assign(model.parameters, old)
    except BaseException:  # an interrupt, too, even one in the midst of the lines above
        assign(model.parameters, old)
        raise
    return step


def _attempt(model: LocalModel, settings: Settings, old: Sequence[th.Tensor]) -> Step:
    """Take the step of :func:`trust_region_step`; unless accepted, the parameters are left at the last candidate."""
    gradient_norm = math.sqrt(float(model.gradient.dot(model.gradient)))
    hindrance = _hindrance(model, gradient_norm, settings.target_kl)
    if hindrance is not None:
        return Step(hindrance, model.surrogate, gradient_norm=gradient_norm)

    operator = damped(model.fisher, settings.cg_damping)
    solution = conjugate_gradient(operator, model.gradient, settings.cg_max_steps, settings.cg_residual_tol)
    full_step = step_to_boundary(solution, model.gradient, settings.target_kl)
    breakdown = _breakdown(solution, full_step)
    if breakdown is not None:
        return Step(breakdown, model.surrogate, gradient_norm=gradient_norm, solution=solution)

    directions = unflatten(full_step, old)

    def evaluate(fraction: float) -> Candidate:
        assign(model.parameters, [start.add(step, alpha=fraction) for start, step in zip(old, directions, strict=True)])
        return model.evaluate()

    search = backtrack(evaluate, model.surrogate, settings.target_kl, settings.shrinking_factor, settings.line_search_max_iter)
    outcome = _OUTCOME_OF_JUDGEMENT[search.judgement]
    reached = search.candidate if outcome is Outcome.ACCEPTED else Candidate(model.surrogate, 0.0)
    return Step(
        outcome,
        reached.surrogate,
        reached.kl,
        gradient_norm,
        solution,
        search,
        expected_improvement=search.fraction * float(model.gradient.dot(full_step)),
        improvement=search.candidate.surrogate - model.surrogate,
    )


def step_to_boundary(solution: Solution, gradient: th.Tensor, target_kl: float) -> th.Tensor:
    """
    Scale the natural gradient to the boundary of the trust region: ``s = sqrt(2 delta / x^T (F + lambda I) x) x``.

    ``(F + lambda I) x = g - r`` saves the product.

    :param solution: x and its residual r
    :param gradient: g
    :param target_kl: delta
    :return: s, shape ``(n_parameters,)``
    """
    curvature = solution.x.dot(gradient - solution.residual)
    return (2.0 * target_kl / curvature).sqrt() * solution.x


def _hindrance(model: LocalModel, gradient_norm: float, target_kl: float) -> Outcome | None:
    """Name what makes a step pointless before it is begun, if anything."""
    if not (math.isfinite(model.surrogate) and math.isfinite(gradient_norm)):
        return Outcome.NON_FINITE_GRADIENT
    if target_kl > 0.0 and model.rounding > ROUNDING_SHARE * target_kl:  # where a gradient of 0 is noise, too
        return Outcome.LOST_IN_ROUNDING
    if gradient_norm == 0.0:
        return Outcome.ZERO_GRADIENT
    return Outcome.EMPTY_REGION if target_kl == 0.0 else None


def _breakdown(solution: Solution, full_step: th.Tensor) -> Outcome | None:
    """Name what makes a solution unusable, if anything: the iterate before a breakdown is still a fine direction."""
    if solution.iterations == 0 and solution.termination is not Termination.NON_FINITE:
        return Outcome.NON_POSITIVE_CURVATURE
    is_usable = solution.iterations > 0 and bool(full_step.isfinite().all())  # x^T (F + lambda I) x may underflow to 0
    return None if is_usable else Outcome.NON_FINITE_CURVATURE
