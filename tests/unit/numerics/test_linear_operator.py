import pytest
import torch as th
from helpers.operators import DenseOperator, dense

from sb3_trpo.numerics.linear_operator import DampedOperator, LinearOperator

MATRIX = th.tensor([[2.0, 1.0, 0.0], [1.0, 3.0, -1.0], [0.0, -1.0, 5.0]], dtype=th.float64)


class ProductsOnly(LinearOperator):
    def __matmul__(self, v):
        return 2.0 * v


@pytest.mark.parametrize("damping", [0.0, 0.5])
def test_damping_is_added_to_every_eigenvalue(damping):
    operator, v = DampedOperator(DenseOperator(MATRIX), damping), th.tensor([1.0, -2.0, 3.0], dtype=th.float64)
    th.testing.assert_close(dense(operator), MATRIX + damping * th.eye(3, dtype=th.float64))
    th.testing.assert_close(operator @ v, MATRIX @ v + damping * v)
    assert operator.diagonal().tolist() == [2.0 + damping, 3.0 + damping, 5.0 + damping]
    assert operator.size == 3
    assert v.tolist() == [1.0, -2.0, 3.0]


@pytest.mark.parametrize("operator", [ProductsOnly(3), DampedOperator(ProductsOnly(3), 0.1)])
def test_an_operator_without_a_diagonal_says_so(operator):
    with pytest.raises(NotImplementedError, match="ProductsOnly gives only products"):
        operator.diagonal()


def test_an_operator_must_have_a_product():
    class Nothing(LinearOperator):
        pass

    with pytest.raises(TypeError, match="__matmul__"):
        Nothing(3)
