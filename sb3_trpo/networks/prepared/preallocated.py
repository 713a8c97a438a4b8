"""
Running a stack many times on batches of one size.

For a small network, calls and allocations take as long as the arithmetic. :class:`PreallocatedRunner` makes its buffers and
transposed views once, so that only the products and activations themselves are left. Symbols are those of ``stack.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import torch as th

from sb3_trpo.networks.activations import IDENTITY, Activation
from sb3_trpo.networks.stack import Layer, Stack


class Runner(Protocol):
    """Runs a stack forward, and then backward."""

    def __call__(self, x: th.Tensor) -> th.Tensor:
        """Compute the last h, shape ``(n, n_outputs)``; valid until the next call."""
        ...

    def vjp(self, u: th.Tensor) -> None:
        """Compute ``J^T u`` at the x of the last call, summed over the batch, and write it to the runner's gradient."""
        ...


class AllocatingRunner:
    """
    Runs any stack on batches of any size.

    :param stack: the layers
    :param gradient: tensors like the stack's, to write ``J^T u`` to
    """

    def __init__(self, stack: Stack, gradient: Sequence[th.Tensor]) -> None:
        self._stack = stack
        self._gradient = gradient

    def __call__(self, x: th.Tensor) -> th.Tensor:
        """Compute the last h."""
        self._x, self._intermediates = x, self._stack.forward(x)
        return self._intermediates.output

    def vjp(self, u: th.Tensor) -> None:
        """Compute ``J^T u``."""
        self._stack.vjp(self._x, self._intermediates, u, self._gradient)


class PreallocatedRunner:
    """
    Runs a dense stack on batches of one size.

    It sees what is written in place into the stack's tensors, but not that a tensor is given other memory
    (``tensor.data = ...``).

    :param stack: dense layers
    :param n_rows: number of rows in a batch
    :param gradient: tensors like the stack's, to write ``J^T u`` to; empty if only the forward pass is needed
    """

    def __init__(self, stack: Stack, n_rows: int, gradient: Sequence[th.Tensor] = ()) -> None:
        first = stack.layers[0].weight
        self.input = self.output = first.new_empty(n_rows, first.shape[1])
        self._forward: list[Callable[[], object]] = []
        self._backward: list[Callable[[th.Tensor], th.Tensor]] = []
        pairs = stack.by_layer(gradient) if gradient else []
        for index, layer in enumerate(stack.layers):
            x, a = self.output, first.new_empty(n_rows, len(layer.weight))
            self.output = th.empty_like(a) if layer.activation.slope_from_input else a
            self._forward += [_affine_call(layer, x, a), *_activation_calls(layer.activation, a, self.output)]
            if pairs:
                kept = a if layer.activation.slope_from_input else self.output
                self._backward.append(_vjp_call(layer, x, kept, *pairs[index], is_first=index == 0))

    def run(self) -> None:
        """Compute :attr:`output` from :attr:`input`."""
        for call in self._forward:
            call()

    def __call__(self, x: th.Tensor) -> th.Tensor:
        """Compute the last h."""
        self.input.copy_(x)
        self.run()
        return self.output

    def vjp(self, u: th.Tensor) -> None:
        """Compute ``J^T u``."""
        for call in reversed(self._backward):
            u = call(u)


def _affine_call(layer: Layer, x: th.Tensor, a: th.Tensor) -> Callable[[], object]:
    """Prepare ``a = W x + b``."""
    weight = layer.weight.detach()
    if layer.bias is None:
        return partial(th.mm, x, weight.t(), out=a)
    bias = layer.bias.detach()
    return partial(th.addmm, bias, x, weight.t(), out=a)


def _activation_calls(activation: Activation, a: th.Tensor, h: th.Tensor) -> list[Callable[[], object]]:
    """Prepare ``h = activation(a)``: a single call, or none if h is a."""
    if activation is IDENTITY:
        return []
    if activation.fast is not None and a.device.type == "cpu":
        return [partial(activation.fast, a.numpy(), h.numpy())]
    return [partial(activation.function, a)] if h is a else [lambda: h.copy_(activation.function(a))]


def _vjp_call(
    layer: Layer, x: th.Tensor, kept: th.Tensor, dw: th.Tensor, db: th.Tensor | None, is_first: bool
) -> Callable[[th.Tensor], th.Tensor]:
    """Prepare the map from the cotangent of h to that of x; it writes the layer's part of ``J^T u`` to ``dw`` and ``db``."""
    weight, dx = layer.weight.detach(), th.empty_like(x)
    times_slope = None if layer.activation is IDENTITY else layer.activation.times_slope

    def vjp(u: th.Tensor) -> th.Tensor:
        delta = u if times_slope is None else times_slope(u, kept)
        layer.affine.vjp_weight(delta, x, dw)
        if db is not None:
            layer.affine.vjp_bias(delta, db)
        # Nobody needs the cotangent of the features, so the first layer saves that product.
        return delta if is_first else th.mm(delta, weight, out=dx)

    return vjp
