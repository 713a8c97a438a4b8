"""
Linear operators, and approximate solutions of ``A x = b``.

A solver is any callable that maps an operator and a right-hand side to a :class:`Solution`. It may ask the operator for more
than products: a diagonal for a Jacobi preconditioner, for example, which may cost many products.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import torch as th


class LinearOperator(ABC):
    """
    A symmetric matrix A that is never formed.

    :param size: n, where A has shape ``(n, n)``
    """

    def __init__(self, size: int) -> None:
        self.size = size

    @abstractmethod
    def __matmul__(self, v: th.Tensor) -> th.Tensor:
        """
        Compute ``A v``.

        :param v: shape ``(n,)``, not changed
        :return: shape ``(n,)``
        """

    def diagonal(self) -> th.Tensor:
        """
        Compute the diagonal of A.

        :return: shape ``(n,)``
        :raises NotImplementedError: if the class does not define it
        """
        raise NotImplementedError(
            f"{type(self).__name__} gives only products A @ v: define diagonal() on it, or estimate it from products."
        )


class DampedOperator(LinearOperator):
    """
    ``A + lambda I``.

    :param operator: A
    :param damping: lambda, added to every eigenvalue
    """

    def __init__(self, operator: LinearOperator, damping: float) -> None:
        super().__init__(operator.size)
        self._operator = operator
        self._damping = damping

    def __matmul__(self, v: th.Tensor) -> th.Tensor:
        """Compute ``A v + lambda v``."""
        return (self._operator @ v).add(v, alpha=self._damping)

    def diagonal(self) -> th.Tensor:
        """Compute ``diag(A) + lambda``."""
        return self._operator.diagonal().add(self._damping)


class Termination(Enum):
    """Why a solver stopped."""

    CONVERGED = "the relative residual reached the tolerance"
    ITERATION_LIMIT = "the iteration limit was reached"
    NON_POSITIVE_CURVATURE = "a direction with p^T A p <= 0 was met; the iterate before it is kept"
    NON_FINITE = "a product with A, or a number computed from it, was not finite; the iterate before it is kept"


@dataclass(frozen=True)
class Solution:
    """
    An approximate solution of ``A x = b``, and how it was reached.

    :param x: the last finite iterate, shape ``(n,)``
    :param residual: ``b - A x`` up to rounding, shape ``(n,)``; callers compute ``A x`` from it without another product
    :param iterations: number of iterations that led to ``x``
    :param relative_residual: ``|b - A x| / |b|``
    :param termination: why the solver stopped
    """

    x: th.Tensor
    residual: th.Tensor
    iterations: int
    relative_residual: float
    termination: Termination


Solver = Callable[[LinearOperator, th.Tensor], Solution]
"""``(A, b) -> Solution``."""
