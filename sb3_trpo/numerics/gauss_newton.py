r"""
Gauss-Newton matrices ``F = mean(J^T M J)`` as operators, never formed.

F is positive semi-definite for every function ``z(theta)``, since M is. If z are the parameters of a probability
distribution and M is its Fisher metric, F is the Fisher matrix (Schulman et al. 2015, arXiv:1502.05477, Appendix C.1).

======  ========================================================
theta   parameters, flattened
z       outputs for one sample, ``z = z(theta)``
J       ``dz / dtheta``
M       metric in the space of z, positive semi-definite
w       weight of a sample, 0 for padding
v       a vector in the space of theta
u       a vector in the space of z
======  ========================================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch as th

from sb3_trpo.numerics.flat import flatten
from sb3_trpo.numerics.linear_operator import LinearOperator

Outputs = tuple[th.Tensor, ...]
"""z of several samples, or a tangent or cotangent of it: tensors with the samples along their first dimension."""
Metric = Callable[[Outputs], Outputs]
"""``dz -> M dz``."""
Mean = Callable[[th.Tensor, float], th.Tensor]
"""``(sum, weight) -> sum / weight``; where processes share the samples, both are first summed over the processes."""


class Linearization(NamedTuple):
    """
    The two products with J at the current parameters.

    :param jvp: ``v -> J v``
    :param vjp: ``u -> J^T u``, summed over samples
    """

    jvp: Callable[[th.Tensor], Outputs]
    vjp: Callable[[Outputs], th.Tensor]


class Curvature(NamedTuple):
    """
    What one chunk of samples adds to F.

    :param linearization: products with J
    :param metric: product with M, weights included
    :param weight: sum of the samples' weights
    """

    linearization: Linearization
    metric: Metric
    weight: float


def linearize(z: Outputs, theta: Sequence[th.Tensor]) -> Linearization:
    """
    Make the products ``J v`` and ``J^T u`` from the autograd graph of z.

    ``J^T u`` is one backward pass. It is linear in u, so a second backward pass, through the first, differentiates ``(J^T
    u)^T v`` with respect to u and gives ``J v``. This works for every operation that autograd differentiates twice. Forward
    mode would need a separate formula for each operation, and dual numbers in place of the parameters.

    :param z: outputs with a graph that leads to ``theta``; outputs without a graph count as constants
    :param theta: the tensors to differentiate with respect to
    :return: the products, valid until ``theta`` is changed in place
    """
    varying = _varying(z)
    seeds = [th.zeros_like(tensor, requires_grad=True) for tensor in varying]  # any u: only the graph of J^T u is needed
    product_with_seeds = flatten(th.autograd.grad(varying, theta, seeds, create_graph=True, materialize_grads=True))

    def jvp(v: th.Tensor) -> Outputs:
        tangents = iter(th.autograd.grad(product_with_seeds, seeds, v, retain_graph=True, materialize_grads=True))
        return tuple(next(tangents) if tensor.requires_grad else th.zeros_like(tensor) for tensor in z)

    return Linearization(jvp, vjp_of(z, theta))


def vjp_of(z: Outputs, theta: Sequence[th.Tensor]) -> Callable[[Outputs], th.Tensor]:
    """
    Make the product ``J^T u`` from the autograd graph of z: one backward pass.

    :param z: outputs with a graph that leads to ``theta``; outputs without a graph count as constants
    :param theta: the tensors to differentiate with respect to
    :return: the product, valid until ``theta`` is changed in place
    """
    varying = _varying(z)

    def vjp(u: Outputs) -> th.Tensor:
        cotangents = [part for part, tensor in zip(u, z, strict=True) if tensor.requires_grad]
        return flatten(th.autograd.grad(varying, theta, cotangents, retain_graph=True, materialize_grads=True))

    return vjp


def _varying(z: Outputs) -> list[th.Tensor]:
    return [tensor for tensor in z if tensor.requires_grad]


def weighted(metric: Metric, weights: th.Tensor) -> Metric:
    """
    Make ``dz -> w M dz``, so that the mean over samples becomes ``sum(w J^T M J) / sum(w)``.

    :param metric: M of each sample
    :param weights: w of each sample, shape ``(n_samples,)``
    :return: the weighted metric
    """
    return lambda dz: tuple(th.einsum("n,n...->n...", weights, part) for part in metric(dz))


def gauss_newton_product(curvature: Curvature, v: th.Tensor) -> th.Tensor:
    """
    Compute ``J^T M J v``, summed over the samples of one chunk.

    :param curvature: the chunk's linearization and metric
    :param v: shape ``(n_parameters,)``
    :return: shape ``(n_parameters,)``
    """
    return curvature.linearization.vjp(curvature.metric(curvature.linearization.jvp(v)))


def gauss_newton_diagonal(curvature: Curvature, like: th.Tensor) -> th.Tensor:
    """
    Compute the diagonal of ``J^T M J``, ``(J e_i)^T M (J e_i)`` for each i, summed over the samples of one chunk.

    :param curvature: the chunk's linearization and metric
    :param like: a vector of parameters, for its shape ``(n_parameters,)``, type and device
    :return: shape ``(n_parameters,)``
    """
    diagonal, e = th.zeros_like(like), th.zeros_like(like)
    for i in range(len(like)):
        e[i] = 1.0
        column = curvature.linearization.jvp(e)
        for part, image in zip(column, curvature.metric(column), strict=True):
            diagonal[i] += (part * image).sum()
        e[i] = 0.0
    return diagonal


class GaussNewtonOperator(LinearOperator):
    """
    ``F = mean(J^T M J)`` over all chunks of samples.

    :param like: a vector of parameters, for its shape ``(n_parameters,)``, type and device
    :param curvatures: called for each product; yields the curvature of every chunk. It may keep them all, with their graphs,
        or build one after another, so that one chunk bounds the memory
    :param mean: divides the sum over samples by their weight
    """

    def __init__(self, like: th.Tensor, curvatures: Callable[[], Iterable[Curvature]], mean: Mean) -> None:
        super().__init__(len(like))
        self._like = like
        self._curvatures = curvatures
        self._mean = mean

    def __matmul__(self, v: th.Tensor) -> th.Tensor:
        """Compute ``F v``."""
        return self._mean_over_chunks(lambda curvature: gauss_newton_product(curvature, v))

    def diagonal(self) -> th.Tensor:
        """
        Compute the diagonal of F exactly. This takes n products with J, so it suits networks with few parameters.

        :return: shape ``(n,)``
        """
        return self._mean_over_chunks(lambda curvature: gauss_newton_diagonal(curvature, self._like))

    def _mean_over_chunks(self, of_chunk: Callable[[Curvature], th.Tensor]) -> th.Tensor:
        def weighted_sum(curvature: Curvature) -> tuple[th.Tensor, float]:
            return of_chunk(curvature), curvature.weight

        total, total_weight = th.zeros_like(self._like), 0.0
        # map() releases each curvature before the next one is built; a loop variable would hold on to it.
        for part, weight in map(weighted_sum, self._curvatures()):
            total += part
            total_weight += weight
        return self._mean(total, total_weight)
