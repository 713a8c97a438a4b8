r"""
The Fisher matrix of a policy as an operator ``v -> F v``, never formed.

``F = mean(J^T M J)`` over states (Schulman et al. 2015, arXiv:1502.05477, Appendix C.1), a Gauss-Newton matrix and hence
positive semi-definite whatever the network.

======  ====================================================================
theta   parameters of the policy, flattened
z       parameters of the action distribution at a state, ``z = z(theta)``
J       ``dz / dtheta``
M       the distribution's own Fisher metric, the Hessian of KL(old || .) in z
w       weight of a state, 0 for padding
v       a vector in the space of theta
u       a vector in the space of z
======  ====================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch as th

from sb3_trpo.numerics.flat import flatten
from sb3_trpo.numerics.linear_operator import Operator

Outputs = tuple[th.Tensor, ...]
Metric = Callable[[Outputs], Outputs]
Mean = Callable[[th.Tensor, float], th.Tensor]
"""Maps a sum over states and the weight summed to their quotient; over ranks, it reduces both first."""


class Linearisation(NamedTuple):
    """The two products with J at the current parameters."""

    jvp: Callable[[th.Tensor], Outputs]
    vjp: Callable[[Outputs], th.Tensor]


class Curvature(NamedTuple):
    """What one chunk of states adds to the Fisher matrix: ``J^T M J`` summed over them, and their weight."""

    linearisation: Linearisation
    metric: Metric
    weight: float


def linearise(z: Outputs, theta: Sequence[th.Tensor]) -> Linearisation:
    """
    Give J v and J^T u from the autograd graph of z.

    ``J^T u`` is one backward pass. It is linear in u, so differentiating ``(J^T u)^T v`` in u gives ``J v`` by a second one,
    with every operation that autograd differentiates twice. Forward mode would need a formula of its own for each, and
    the parameters swapped for dual numbers.

    :param z: tensors of any shapes with a graph that leads to ``theta``; ones without a graph count as constants
    :param theta: the tensors to differentiate in
    :return: the products, valid as long as ``theta`` is not changed in place
    """
    moving = [tensor for tensor in z if tensor.requires_grad]
    seeds = [th.zeros_like(tensor, requires_grad=True) for tensor in moving]
    pulled = th.autograd.grad(moving, theta, seeds, create_graph=True, materialize_grads=True)
    pulled_flat = flatten(pulled)

    def jvp(v: th.Tensor) -> Outputs:
        tangents = iter(th.autograd.grad(pulled_flat, seeds, v, retain_graph=True, materialize_grads=True))
        return tuple(next(tangents) if tensor.requires_grad else th.zeros_like(tensor) for tensor in z)

    def vjp(u: Outputs) -> th.Tensor:
        cotangents = [part for part, tensor in zip(u, z, strict=True) if tensor.requires_grad]
        return flatten(th.autograd.grad(moving, theta, cotangents, retain_graph=True, materialize_grads=True))

    return Linearisation(jvp, vjp)


def gauss_newton_product(curvature: Curvature, v: th.Tensor) -> th.Tensor:
    """
    Compute ``J^T M J v``, summed over the states of one chunk.

    :param curvature: the chunk's linearisation and metric
    :param v: shape ``(n_parameters,)``
    :return: shape ``(n_parameters,)``
    """
    return curvature.linearisation.vjp(curvature.metric(curvature.linearisation.jvp(v)))


def weighted(metric: Metric, weights: th.Tensor) -> Metric:
    """
    Make ``dz -> w M dz``: the mean over states is then ``sum(w J^T M J) / sum(w)``.

    :param metric: M of each state
    :param weights: w of each, shape ``(n,)``
    :return: the product
    """
    return lambda dz: tuple(th.einsum("n,n...->n...", weights, part) for part in metric(dz))


def fisher_operator(curvatures: Callable[[], Iterable[Curvature]], mean: Mean) -> Operator:
    """
    Make ``v -> F v`` with ``F = mean(J^T M J)`` over all chunks.

    :param curvatures: called by every product: it may give a list made once, with the graphs at hand, or build one chunk after
        the other, so that memory is bounded by one chunk
    :param mean: divides the sum by the summed weight
    :return: the operator on vectors of shape ``(n_parameters,)``
    """

    def product(v: th.Tensor) -> th.Tensor:
        def weighted(curvature: Curvature) -> tuple[th.Tensor, float]:
            return gauss_newton_product(curvature, v), curvature.weight

        total, total_weight = th.zeros_like(v), 0.0
        for part, weight in map(weighted, curvatures()):  # which lets go of each curvature before the next one is built
            total += part
            total_weight += weight
        return mean(total, total_weight)

    return product
