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


def dense(operator: LinearOperator) -> th.Tensor:
    """Form an operator's matrix, column by column."""
    return th.stack([operator @ e for e in th.eye(operator.size, dtype=th.float64)], dim=1)
