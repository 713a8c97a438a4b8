"""
Conjugate gradient with a Jacobi preconditioner for ``A x = b`` (Golub and Van Loan 2013, Matrix Computations, section 11.5.2).

======  ===============================================
A       the operator, positive definite where it matters
b       right-hand side
x       iterate, starting at zero
r       residual ``b - A x``
D       diagonal of A
z       preconditioned residual ``r / D``
p       search direction, conjugate to the earlier ones
alpha   step length along p
======  ===============================================
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch as th

from sb3_trpo.numerics.linear_operator import LinearOperator, Solution, Termination


@dataclass(frozen=True)
class PreconditionedConjugateGradient:
    """
    Conjugate gradient on ``D^-1 A``, started at zero.

    :param max_iterations: largest number of iterations, each with one product with A, >= 1
    :param residual_tol: stop when ``|b - A x| <= residual_tol * |b|``, >= 0
    """

    max_iterations: int
    residual_tol: float

    def __call__(self, operator: LinearOperator, b: th.Tensor) -> Solution:
        """
        Solve ``A x = b`` approximately.

        :param operator: A, which must have a diagonal
        :param b: right-hand side, shape ``(n,)``, finite
        :return: the solution; its ``x`` is always finite
        """
        x, r, norm = th.zeros_like(b), b, float(b.norm())
        if norm == 0.0:
            return Solution(x, r, 0, 0.0, Termination.CONVERGED)
        diagonal = operator.diagonal()
        p = z = r / diagonal
        r_dot_z, relative_residual = r.dot(z), 1.0
        for iteration in range(self.max_iterations):
            a_p = operator @ p
            curvature = p.dot(a_p)
            if curvature <= 0.0:
                return Solution(x, r, iteration, relative_residual, Termination.NON_POSITIVE_CURVATURE)
            alpha = r_dot_z / curvature
            next_x, next_r = x + alpha * p, r - alpha * a_p
            next_residual = float(next_r.norm()) / norm
            if not (math.isfinite(next_residual) and bool(next_x.isfinite().all())):
                return Solution(x, r, iteration, relative_residual, Termination.NON_FINITE)
            x, r, relative_residual = next_x, next_r, next_residual
            if relative_residual <= self.residual_tol:
                return Solution(x, r, iteration + 1, relative_residual, Termination.CONVERGED)
            z = r / diagonal
            next_r_dot_z = r.dot(z)
            p, r_dot_z = z + next_r_dot_z / r_dot_z * p, next_r_dot_z
        return Solution(x, r, self.max_iterations, relative_residual, Termination.ITERATION_LIMIT)
