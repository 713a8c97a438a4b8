"""
Running a stack many times on batches of one size.

For a small network, calls and allocations take as long as the arithmetic. :class:`PreallocatedRunner` makes its buffers and
transposed views once, so that only the products and activations themselves are left. Symbols are those of ``stack.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import numpy as np
import torch as th

from sb3_trpo.networks.activations import IDENTITY, Activation
from sb3_trpo.networks.affine import WithInput
from sb3_trpo.networks.stack import Layer, Stack

SMALL_PRODUCT = 2**16
"""Multiplications up to which NumPy's product of several rows takes less time than torch's, calls included."""


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
    :param exact: whether h must equal the modules' output bit for bit, even if that is slower
    """

    def __init__(self, stack: Stack, n_rows: int, gradient: Sequence[th.Tensor] = (), exact: bool = False) -> None:
        first = stack.layers[0].weight
        self.input = self.output = first.new_empty(n_rows, first.shape[1])
        self._forward: list[Callable[[], object]] = []
        self._backward: list[Callable[[th.Tensor], th.Tensor]] = []
        pairs = stack.by_layer(gradient) if gradient else []
        for index, layer in enumerate(stack.layers):
            x, a = self.output, first.new_empty(n_rows, len(layer.weight))
            self.output = th.empty_like(a) if layer.activation.slope_from_input else a
            self._forward += [_affine_call(layer, x, a), *_activation_calls(layer.activation, a, self.output, exact)]
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


class ArrayRunner:
    """
    Runs a dense stack forward on a few rows, by NumPy.

    For few numbers, NumPy's calls take a third of the time of torch's. The output equals that of the modules up to rounding.
    Like :class:`PreallocatedRunner` it sees what is written in place into the stack's tensors.

    :param stack: dense layers on the CPU, of float32
    :param n_rows: number of rows in a batch
    """

    def __init__(self, stack: Stack, n_rows: int) -> None:
        self.input = self.output = np.empty((n_rows, stack.layers[0].weight.shape[1]), np.float32)
        self._calls: list[Callable[[], object]] = []
        for layer in stack.layers:
            x, n_outputs = self.output, len(layer.weight)
            passed_on = x.shape[1] if isinstance(layer.affine, WithInput) else 0
            whole = np.empty((n_rows, n_outputs + passed_on), np.float32)
            a = whole[:, :n_outputs]
            if passed_on:
                self._calls.append(partial(np.copyto, whole[:, n_outputs:], x))
            self._calls.append(partial(np.matmul, x, layer.weight.detach().numpy().T, out=a))
            if layer.bias is not None:
                self._calls.append(partial(np.add, a, layer.bias.detach().numpy(), out=a))
            self.output = whole
            if layer.activation.array is not None:
                self._calls.append(partial(layer.activation.array, a, out=a))
            elif layer.activation is not IDENTITY:
                self.output = np.empty_like(a)
                self._calls.append(partial(_apply, layer.activation, th.from_numpy(a), th.from_numpy(self.output)))

    def run(self) -> None:
        """Compute :attr:`output` from :attr:`input`. NumPy may raise on underflow; then it can be called again."""
        for call in self._calls:
            call()


def _apply(activation: Activation, a: th.Tensor, h: th.Tensor) -> None:
    h.copy_(activation.function(a))


def pays_by_arrays(stack: Stack, n_rows: int) -> bool:
    """
    Check that :class:`ArrayRunner` is quicker than :class:`PreallocatedRunner`.

    :param stack: dense layers
    :param n_rows: number of rows in a batch
    :return: whether each product is of one row, or small; measured on layers of 64 and 256 units
    """
    return n_rows == 1 or n_rows * max(layer.weight.numel() for layer in stack.layers) <= SMALL_PRODUCT


class RowRunner(Protocol):
    """Computes one array from another, on a few rows."""

    def run(self) -> None:
        """Compute it. NumPy may raise on underflow; then this can be called again."""
        ...


def row_runner(stack: Stack, n_rows: int) -> tuple[RowRunner, np.ndarray, np.ndarray]:
    """
    Choose what runs a stack on a few rows.

    :param stack: the layers, dense and on the CPU
    :param n_rows: number of rows
    :return: the runner, its input and its output
    """
    if pays_by_arrays(stack, n_rows) or not stack.is_dense:  # the last layer may pass its input on
        runner = ArrayRunner(stack, n_rows)
        return runner, runner.input, runner.output
    preallocated = PreallocatedRunner(stack, n_rows)
    return preallocated, preallocated.input.numpy(), preallocated.output.numpy()


def _affine_call(layer: Layer, x: th.Tensor, a: th.Tensor) -> Callable[[], object]:
    """Prepare ``a = W x + b``."""
    weight = layer.weight.detach()
    if layer.bias is None:
        return partial(th.mm, x, weight.t(), out=a)
    bias = layer.bias.detach()
    if len(x) == 1 and _sums_alike(weight, bias):
        return partial(th.addmv, bias, weight, x[0], out=a[0])
    return partial(th.addmm, bias, x, weight.t(), out=a)


def _sums_alike(weight: th.Tensor, bias: th.Tensor) -> bool:
    """
    Check that BLAS gives ``W x + b`` the same bits as a matrix product of one row and as the cheaper product with a vector.

    The order in which BLAS sums depends on the shape and not on the values, so a few probes of all magnitudes decide.
    """
    probes = th.arange(1.0, 4 * weight.shape[1] + 1, dtype=weight.dtype, device=weight.device).sin().view(4, -1)
    return all(th.equal(th.addmm(bias, x[None], weight.t())[0], th.addmv(bias, weight, x)) for x in probes)


def _activation_calls(activation: Activation, a: th.Tensor, h: th.Tensor, exact: bool) -> list[Callable[[], object]]:
    """Prepare ``h = activation(a)``: a single call, or none if h is a."""
    if activation is IDENTITY:
        return []
    if activation.fast is not None and not exact and a.device.type == "cpu":
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
