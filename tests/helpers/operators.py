"""Linear operators for tests."""

import torch as th

from sb3_trpo.numerics.linear_operator import LinearOperator


class DenseOperator(LinearOperator):
    """A matrix; the products are kept."""

    def __init__(self, matrix: th.Tensor) -> None:
        super().__init__(len(matrix))
        self.matrix = matrix
        self.products: list[th.Tensor] = []

    def __matmul__(self, v: th.Tensor) -> th.Tensor:
        self.products.append(self.matrix @ v)
        return self.products[-1]

    def diagonal(self) -> th.Tensor:
        return self.matrix.diagonal()


class BrokenOperator(DenseOperator):
    """A matrix, but one of the products has a bad first entry; 0 for none."""

    def __init__(self, matrix: th.Tensor, bad_call: int, bad: float) -> None:
        super().__init__(matrix)
        self.bad_call, self.bad = bad_call, bad

    def __matmul__(self, v: th.Tensor) -> th.Tensor:
        product = super().__matmul__(v)
        if len(self.products) == self.bad_call:
            product[0] = self.bad
        return product


def dense(operator: LinearOperator) -> th.Tensor:
    """Form an operator's matrix, column by column."""
    return th.stack([operator @ e for e in th.eye(operator.size, dtype=th.float64)], dim=1)
