import weakref
from functools import partial

import torch as th
from helpers.operators import dense
from hypothesis import given, settings, strategies as st
from torch.autograd.functional import jacobian

from sb3_trpo.numerics.flat import flatten, unflatten
from sb3_trpo.numerics.gauss_newton import Curvature, GaussNewtonOperator, gauss_newton_product, linearize, weighted

N = 4


def model(weight, b, scale, unused):
    """Give two outputs per state, one of which reuses the other's parameters, and one that is constant."""
    x = th.linspace(-1.0, 1.0, 3 * N, dtype=th.float64).view(N, 3)
    hidden = th.tanh(x @ weight + b)
    return hidden * scale.exp(), (hidden.square().sum(1, keepdim=True) + b[0]).relu(), th.ones(N, 1, dtype=th.float64)


def make_theta(seed=0):
    generator = th.Generator().manual_seed(seed)
    shapes = [(3, 2), (2,), (), (2, 2)]
    return [th.randn(shape, generator=generator, dtype=th.float64).requires_grad_() for shape in shapes]


def join(z):
    return th.cat(z, 1)


def split(flat):
    return flat.split([2, 1, 1], 1)


def dense_jacobian(theta):
    return jacobian(lambda flat: join(model(*unflatten(flat, theta))), flatten(theta).detach())


def random_metric(seed):
    """Make a symmetric positive-definite M per state that couples all outputs, dense and as a product."""
    root = th.randn((N, 4, 4), generator=th.Generator().manual_seed(seed), dtype=th.float64)
    matrices = root @ root.mT
    return matrices, lambda dz: split((matrices @ join(dz)[..., None]).squeeze(-1))


def test_jvp_and_vjp_are_products_with_the_dense_jacobian():
    theta = make_theta()
    jac, linearization = dense_jacobian(theta), linearize(model(*theta), theta)
    for column, basis in enumerate(th.eye(jac.shape[2], dtype=th.float64)):
        th.testing.assert_close(join(linearization.jvp(basis)), jac[..., column])
    for row in th.eye(N * 4, dtype=th.float64).view(-1, N, 4):
        th.testing.assert_close(linearization.vjp(split(row)), th.einsum("nk,nkp->p", row, jac))


def test_products_leave_no_gradient_and_no_graph_behind():
    theta = make_theta()
    linearization = linearize(model(*theta), theta)
    product = linearization.vjp(linearization.jvp(th.ones_like(flatten(theta))))
    assert all(parameter.grad is None for parameter in theta)
    assert not product.requires_grad


def test_weights_multiply_each_samples_metric():
    matrices, metric = random_metric(1)
    weights, dz = th.tensor([0.0, 1.0, 0.5, 2.0], dtype=th.float64), split(th.ones((N, 4), dtype=th.float64))
    th.testing.assert_close(join(weighted(metric, weights)(dz)), weights[:, None] * matrices.sum(2))


def make_operator(theta):
    """Make the operator over two chunks of different metrics and weights, its dense matrix, and the weights it divides by."""
    jac, linearization = dense_jacobian(theta), linearize(model(*theta), theta)
    (first, first_metric), (second, second_metric) = random_metric(1), random_metric(2)
    curvatures = [Curvature(linearization, first_metric, 3.0), Curvature(linearization, second_metric, 5.0)]
    divisors = []

    def mean(total, weight):
        divisors.append(weight)
        return total / weight

    matrix = th.einsum("nkp,nkl,nlq->pq", jac, first + second, jac) / 8.0
    return GaussNewtonOperator(flatten(theta).detach(), lambda: iter(curvatures), mean), matrix, divisors


def test_operator_sums_chunks_before_it_divides_by_their_weight():
    operator, matrix, divisors = make_operator(make_theta())
    assert operator.size == 13
    th.testing.assert_close(dense(operator), matrix)
    assert divisors == [8.0] * 13


def test_diagonal_is_that_of_the_dense_matrix():
    operator, matrix, divisors = make_operator(make_theta())
    th.testing.assert_close(operator.diagonal(), matrix.diagonal())
    assert divisors == [8.0]


def test_each_curvature_is_freed_before_the_next_one_is_built():
    theta = make_theta()
    linearization, alive, counts = linearize(model(*theta), theta), weakref.WeakSet(), []

    def build():
        metric = partial(tuple)  # the identity, as an object that can be watched
        alive.add(metric)
        counts.append(len(alive))
        return Curvature(linearization, metric, 1.0)

    operator = GaussNewtonOperator(flatten(theta).detach(), lambda: (build() for _ in range(3)), lambda total, _: total)
    _ = operator @ th.ones(13, dtype=th.float64)
    operator.diagonal()
    assert counts == [1] * 6


@settings(max_examples=50)
@given(st.integers(0, 2**32), st.integers(0, 2**32))
def test_gauss_newton_matrix_is_symmetric_and_positive_semi_definite(theta_seed, metric_seed):
    theta = make_theta(theta_seed)
    curvature = Curvature(linearize(model(*theta), theta), random_metric(metric_seed)[1], N)
    fisher = th.stack([gauss_newton_product(curvature, v) for v in th.eye(13, dtype=th.float64)])
    th.testing.assert_close(fisher, fisher.T)
    assert th.linalg.eigvalsh(fisher).min() >= -1e-12 * fisher.abs().max()
