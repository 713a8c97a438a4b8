"""
The passes of a stack, prepared for many repetitions.

A pass of a small network spends as much time on calls as on arithmetic. A bound one has its buffers and transposed views made
once, so that only the products and activations themselves are left. Symbols are those of ``layers.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import torch as th

from sb3_trpo.networks.layers import IDENTITY, Activation, Layer, Stack


class Pass(Protocol):
    """A forward pass and the one back."""

    def __call__(self, x: th.Tensor) -> th.Tensor:
        """Compute the last h, shape ``(n, n_outputs)``; valid until the next call."""
        ...

    def pull(self, u: th.Tensor) -> None:
        """Compute ``J^T u``, summed over the batch, for the x of the last call, into the tensors given beforehand."""
        ...


class TapePass:
    """
    The passes of any stack.

    :param stack: the layers
    :param gradient: what to write ``J^T u`` into, like the stack's tensors
    """

    def __init__(self, stack: Stack, gradient: Sequence[th.Tensor]) -> None:
        self._stack = stack
        self._gradient = gradient

    def __call__(self, x: th.Tensor) -> th.Tensor:
        """Compute the last h."""
        self._x, self._tape = x, self._stack.record(x)
        return self._tape.output

    def pull(self, u: th.Tensor) -> None:
        """Compute ``J^T u``."""
        self._stack.pull(self._x, self._tape, u, self._gradient)


class BoundPass:
    """
    The passes of a dense stack on a fixed number of rows.

    It sees whatever is written into the stack's tensors, but not that one of them comes to lie elsewhere.

    :param stack: dense layers
    :param n_rows: number of rows
    :param gradient: what to write ``J^T u`` into, like the stack's tensors; none if only the forward pass is wanted
    :param exact: whether h must have the bits that the modules would give, rather than be quick
    """

    def __init__(self, stack: Stack, n_rows: int, gradient: Sequence[th.Tensor] = (), exact: bool = False) -> None:
        first = stack.layers[0].weight
        self.input = self.output = first.new_empty(n_rows, first.shape[1])
        self._forward: list[Callable[[], object]] = []
        self._backward: list[Callable[[th.Tensor], th.Tensor]] = []
        pairs = stack.paired(gradient) if gradient else []
        for index, layer in enumerate(stack.layers):
            x, a = self.output, first.new_empty(n_rows, len(layer.weight))
            self.output = th.empty_like(a) if layer.activation.by_input else a
            self._forward += [_bound_affine(layer, x, a), *_bound_activation(layer.activation, a, self.output, exact)]
            if pairs:
                kept = a if layer.activation.by_input else self.output
                self._backward.append(_bound_pull(layer, x, kept, *pairs[index], is_first=index == 0))

    def run(self) -> None:
        """Compute :attr:`output` from :attr:`input`."""
        for call in self._forward:
            call()

    def __call__(self, x: th.Tensor) -> th.Tensor:
        """Compute the last h."""
        self.input.copy_(x)
        self.run()
        return self.output

    def pull(self, u: th.Tensor) -> None:
        """Compute ``J^T u``."""
        for call in reversed(self._backward):
            u = call(u)


def _bound_affine(layer: Layer, x: th.Tensor, a: th.Tensor) -> Callable[[], object]:
    weight = layer.weight.detach()
    if layer.bias is None:
        return partial(th.mm, x, weight.t(), out=a)
    bias = layer.bias.detach()
    if len(x) == 1 and _sum_alike(weight, bias):
        return partial(th.addmv, bias, weight, x[0], out=a[0])
    return partial(th.addmm, bias, x, weight.t(), out=a)


def _sum_alike(weight: th.Tensor, bias: th.Tensor) -> bool:
    """
    Check that BLAS gives ``W x + b`` the same bits as a matrix product of one row and as the cheaper product with a vector.

    It goes by shape and not by value, so that some numbers of all sizes tell.
    """
    probes = th.arange(1.0, 4 * weight.shape[1] + 1, dtype=weight.dtype, device=weight.device).sin().view(4, -1)
    return all(th.equal(th.addmm(bias, x[None], weight.t())[0], th.addmv(bias, weight, x)) for x in probes)


def _bound_activation(activation: Activation, a: th.Tensor, h: th.Tensor, exact: bool) -> list[Callable[[], object]]:
    """Turn a into h by no call, one, or one and a copy."""
    if activation is IDENTITY:
        return []
    if activation.quick is not None and not exact and a.device.type == "cpu":
        return [partial(activation.quick, a.numpy(), h.numpy())]
    return [partial(activation.function, a)] if h is a else [lambda: h.copy_(activation.function(a))]


def _bound_pull(
    layer: Layer, x: th.Tensor, kept: th.Tensor, dw: th.Tensor, db: th.Tensor | None, is_first: bool
) -> Callable[[th.Tensor], th.Tensor]:
    """Take ``u`` of the layer's h to that of its x, and the layer's part of ``J^T u`` into ``dw`` and ``db``."""
    weight, dx = layer.weight.detach(), th.empty_like(x)
    scale = None if layer.activation is IDENTITY else layer.activation.scale

    def pull(u: th.Tensor) -> th.Tensor:
        delta = u if scale is None else scale(u, kept)
        layer.affine.pull_weight(delta, x, dw)
        if db is not None:
            layer.affine.pull_bias(delta, db)
        return delta if is_first else th.mm(delta, weight, out=dx)

    return pull
