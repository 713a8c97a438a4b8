"""
Conjugate gradient for ``A x = b``, with A symmetric and known only as ``v -> A v``.

Hestenes & Stiefel 1952; the symbols are those of Nocedal & Wright 2006, Algorithm 5.2, with r of the opposite sign.

======  ============================================
A       the operator, positive definite where it matters
b       right-hand side
x       iterate, from zero: nothing is drawn at random
r       residual ``b - A x``
p       search direction, conjugate to the earlier ones
alpha   step length along p
======  ============================================
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

import torch as th

from sb3_trpo.numerics.linear_operator import Operator


class Termination(Enum):
    """Why conjugate gradient stopped."""

    CONVERGED = "the relative residual reached the tolerance"
    ITERATION_LIMIT = "the iteration limit was reached"
    NON_POSITIVE_CURVATURE = "a direction with p^T A p <= 0 was met; the iterate before it is kept"
    NON_FINITE = "a product with A, or what follows from it, was not finite; the iterate before it is kept"


@dataclass(frozen=True)
class Solution:
    """
    An approximate solution and how it was reached.

    :param x: the last sound iterate
    :param residual: ``b - A x``, by recurrence
    :param iterations: products with A that entered ``x``
    :param relative_residual: ``|b - A x| / |b|``
    :param termination: why the solver stopped
    """

    x: th.Tensor
    residual: th.Tensor
    iterations: int
    relative_residual: float
    termination: Termination


def conjugate_gradient(operator: Operator, b: th.Tensor, max_iterations: int, residual_tol: float) -> Solution:
    """
    Solve ``A x = b`` approximately.

    Three numbers per iteration go to the host, at once, to decide about stopping.

    :param operator: ``v -> A v``
    :param b: right-hand side, shape ``(n,)``, finite
    :param max_iterations: products with A at most
    :param residual_tol: stop when ``|b - A x| <= residual_tol * |b|``
    :return: the solution with its termination; ``x`` is always finite
    """
    x, r = th.zeros_like(b), b
    p, r_dot_r = r, r.dot(r)
    b_dot_b = float(r_dot_r)
    if b_dot_b == 0.0:
        return Solution(x, r, 0, 0.0, Termination.CONVERGED)

    relative_residual = 1.0
    for iteration in range(max_iterations):
        a_p = operator(p)
        p_a_p = p.dot(a_p)
        alpha = r_dot_r / p_a_p
        next_x, next_r = th.addcmul(x, alpha, p), th.addcmul(r, alpha, a_p, value=-1)
        next_r_dot_r = next_r.dot(next_r)

        curvature, squared_residual, largest = th.stack((p_a_p, next_r_dot_r, next_x.abs().max())).tolist()
        breakdown = _breakdown(curvature, squared_residual, largest)
        if breakdown is not None:
            return Solution(x, r, iteration, relative_residual, breakdown)

        x, r = next_x, next_r
        relative_residual = math.sqrt(squared_residual / b_dot_b)
        if relative_residual <= residual_tol:
            return Solution(x, r, iteration + 1, relative_residual, Termination.CONVERGED)
        p = th.addcmul(r, next_r_dot_r / r_dot_r, p)
        r_dot_r = next_r_dot_r
    return Solution(x, r, max_iterations, relative_residual, Termination.ITERATION_LIMIT)


def _breakdown(curvature: float, squared_residual: float, largest: float) -> Termination | None:
    """Name what forbids the next iterate, if anything, by ``p^T A p``, its ``r^T r`` and its largest entry."""
    if not math.isfinite(curvature):
        return Termination.NON_FINITE
    if curvature <= 0.0:
        return Termination.NON_POSITIVE_CURVATURE
    return None if math.isfinite(squared_residual) and math.isfinite(largest) else Termination.NON_FINITE
