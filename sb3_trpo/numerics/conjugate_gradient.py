"""
Conjugate gradient for ``A x = b`` with A symmetric, from products ``A v`` alone.

Hestenes & Stiefel 1952. Symbols follow Nocedal & Wright 2006, Algorithm 5.2, except that r has the opposite sign.

Differences from the textbook:
1. Curvature need not be positive: at ``p^T A p <= 0`` the previous iterate is kept. A Gauss-Newton matrix is singular along
   directions that change nothing, and rounding may make their curvature negative.
2. An iterate is kept only if it is finite, so an overflow costs one iteration and not the solution.

Another method is another :data:`~sb3_trpo.numerics.linear_operator.Solver`; ``update/policy_step.py`` chooses it. A new reason
to stop is a member of :class:`~sb3_trpo.numerics.linear_operator.Termination`.

======  ============================================
A       the operator, positive definite where it matters
b       right-hand side
x       iterate, starting at zero
r       residual ``b - A x``
p       search direction, conjugate to the earlier ones
alpha   step length along p
======  ============================================
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch as th

from sb3_trpo.numerics.linear_operator import LinearOperator, Solution, Termination


@dataclass(frozen=True)
class ConjugateGradient:
    """
    Conjugate gradient, started at zero.

    :param max_iterations: largest number of iterations, each with one product with A, >= 1
    :param residual_tol: stop when ``|b - A x| <= residual_tol * |b|``, >= 0
    """

    max_iterations: int
    residual_tol: float

    def __call__(self, operator: LinearOperator, b: th.Tensor) -> Solution:
        """
        Solve ``A x = b`` approximately.

        :param operator: A
        :param b: right-hand side, shape ``(n,)``, finite
        :return: the solution; its ``x`` is always finite
        """
        x, r = th.zeros_like(b), b
        p, r_dot_r = r, r.dot(r)
        b_dot_b = float(r_dot_r)
        if b_dot_b == 0.0:
            return Solution(x, r, 0, 0.0, Termination.CONVERGED)

        relative_residual = 1.0
        for iteration in range(self.max_iterations):
            a_p = operator @ p
            p_a_p = p.dot(a_p)
            alpha = r_dot_r / p_a_p
            next_x, next_r = th.addcmul(x, alpha, p), th.addcmul(r, alpha, a_p, value=-1)
            next_r_dot_r = next_r.dot(next_r)

            # One transfer of three numbers: each read from a GPU waits for it to finish.
            curvature, squared_residual, largest = th.stack((p_a_p, next_r_dot_r, next_x.abs().max())).tolist()
            breakdown = _breakdown(curvature, squared_residual, largest)
            if breakdown is not None:
                return Solution(x, r, iteration, relative_residual, breakdown)

            x, r = next_x, next_r
            relative_residual = math.sqrt(squared_residual / b_dot_b)
            if relative_residual <= self.residual_tol:
                return Solution(x, r, iteration + 1, relative_residual, Termination.CONVERGED)
            p = th.addcmul(r, next_r_dot_r / r_dot_r, p)
            r_dot_r = next_r_dot_r
        return Solution(x, r, self.max_iterations, relative_residual, Termination.ITERATION_LIMIT)


def _breakdown(curvature: float, squared_residual: float, largest: float) -> Termination | None:
    """
    Find a reason to reject the next iterate.

    :param curvature: ``p^T A p``
    :param squared_residual: ``r^T r`` of the next iterate
    :param largest: largest absolute value in the next iterate
    :return: the reason, or ``None`` if the iterate is finite and the curvature positive
    """
    if not math.isfinite(curvature):
        return Termination.NON_FINITE
    if curvature <= 0.0:
        return Termination.NON_POSITIVE_CURVATURE
    return None if math.isfinite(squared_residual) and math.isfinite(largest) else Termination.NON_FINITE
