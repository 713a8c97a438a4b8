"""
Running a small dense stack many times on batches of one size, by NumPy.

NumPy's calls take a third to half of the time of torch's. That counts for networks as small as most policies are: the product
of 128 rows with a layer of 64x64 takes 10 us, and the calls around it as much again. Buffers and views are made once, as in
``preallocated.py``, and the results equal those of the modules up to rounding. Symbols are those of ``stack.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch as th

from sb3_trpo.networks.activations import IDENTITY, Activation
from sb3_trpo.networks.affine import WithInput
from sb3_trpo.networks.stack import Layer, Stack

SINGLE_THREADED = 2**18
"""
Multiplications up to which OpenBLAS, which NumPy's wheels come with, takes a product on one thread.

It would share a larger one among as many threads as the machine has cores, whatever ``torch.set_num_threads`` allows, so torch
takes that one.
"""
SMALL_LAYER = 2**13
"""Entries of a layer, all rows together, up to which NumPy is faster: 128 rows of 64 units. Measured with tanh."""


class ArrayRunner:
    """
    Runs a dense stack forward, and then backward. It is a :class:`~sb3_trpo.networks.prepared.preallocated.Runner`.

    It sees what is written in place into the stack's tensors, but not that a tensor is given other memory
    (``tensor.data = ...``). NumPy may complain about underflow or overflow, as the user has set.

    :param stack: dense layers on the CPU, of float32; the last one may pass its input on
    :param n_rows: number of rows in a batch
    :param gradient: tensors like the stack's, to write ``J^T u`` to; empty if only the forward pass is needed
    """

    def __init__(self, stack: Stack, n_rows: int, gradient: Sequence[th.Tensor] = ()) -> None:
        self.input = self.output = np.empty((n_rows, stack.layers[0].weight.shape[1]), np.float32)
        self._forward: list[Callable[[], object]] = []
        self._backward: list[Callable[[np.ndarray], np.ndarray]] = []
        pairs = stack.by_layer(gradient) if gradient else []
        for index, layer in enumerate(stack.layers):
            x, a = self.output, self._affine(layer, self.output)
            h = self._activated(layer.activation, a)
            if pairs:
                kept = a if layer.activation.slope_from_input else h
                self._backward.append(_vjp_call(layer, x, kept, *pairs[index], is_first=index == 0))
            self.output = h
        self._output = th.from_numpy(self.output)

    def _affine(self, layer: Layer, x: np.ndarray) -> np.ndarray:
        """Prepare ``W x + b``, and behind it x if the layer passes it on."""
        n_outputs = len(layer.weight)
        passed_on = x.shape[1] if isinstance(layer.affine, WithInput) else 0
        whole = np.empty((len(x), n_outputs + passed_on), np.float32)
        a = whole[:, :n_outputs]
        if passed_on:
            self._forward.append(partial(np.copyto, whole[:, n_outputs:], x))
        self._forward.append(product_call(x, layer.weight.detach().numpy().T, a))
        if layer.bias is not None:
            self._forward.append(partial(np.add, a, layer.bias.detach().numpy(), out=a))
        return whole

    def _activated(self, activation: Activation, a: np.ndarray) -> np.ndarray:
        """Prepare ``activation(a)``, in place if the slope does not need a."""
        if activation is IDENTITY:
            return a
        h = np.empty_like(a) if activation.slope_from_input else a
        if activation.array is not None:
            self._forward.append(partial(activation.array, a, out=h))
        else:
            self._forward.append(partial(_apply, activation, th.from_numpy(a), th.from_numpy(h)))
        return h

    def run(self) -> None:
        """Compute :attr:`output` from :attr:`input`. If NumPy raises on underflow, it can be called again."""
        for call in self._forward:
            call()

    def __call__(self, x: th.Tensor) -> th.Tensor:
        """Compute the last h, shape ``(n, n_outputs)``; valid until the next call."""
        np.copyto(self.input, x.numpy())
        self.run()
        return self._output

    def vjp(self, u: th.Tensor) -> None:
        """Compute ``J^T u`` at the x of the last call, summed over the batch, and write it to the runner's gradient."""
        cotangent = u.numpy()
        for call in reversed(self._backward):
            cotangent = call(cotangent)


def pays_by_arrays(stack: Stack, n_rows: int) -> bool:
    """
    Check that a stack is so small that :class:`ArrayRunner` is the quickest.

    :param stack: the layers
    :param n_rows: number of rows in a batch
    :return: whether it is, and NumPy can run it
    """
    weights = [layer.weight for layer in stack.layers]
    is_known = all(weight.dim() == 2 and weight.dtype == th.float32 and weight.device.type == "cpu" for weight in weights)
    return is_known and n_rows * max(max(weight.shape) for weight in weights) <= SMALL_LAYER


def product_call(left: np.ndarray, right: np.ndarray, out: np.ndarray) -> Callable[[], object]:
    """
    Prepare a matrix product, by NumPy or torch, whichever is quicker.

    :param left: shape ``(n, k)``
    :param right: shape ``(k, m)``
    :param out: shape ``(n, m)``
    :return: computes the product of what the arguments hold when it is called
    """
    if len(left) == 1 or left.size * right.shape[1] <= SINGLE_THREADED:
        return partial(np.matmul, left, right, out=out)
    return partial(th.mm, th.from_numpy(left), th.from_numpy(right), out=th.from_numpy(out))


def _apply(activation: Activation, a: th.Tensor, h: th.Tensor) -> None:
    h.copy_(activation.function(a))


def _vjp_call(
    layer: Layer, x: np.ndarray, kept: np.ndarray, dw: th.Tensor, db: th.Tensor | None, is_first: bool
) -> Callable[[np.ndarray], np.ndarray]:
    """Prepare the map from the cotangent of h to that of x; it writes the layer's part of ``J^T u`` to ``dw`` and ``db``."""
    delta, dx = np.empty((len(x), len(layer.weight)), np.float32), np.empty_like(x)
    times_slope = partial(_times_slope, layer.activation, kept, delta)
    calls = [product_call(delta.T, x, dw.numpy())]
    if db is not None:
        calls.append(partial(np.matmul, np.ones(len(x), np.float32), delta, out=db.numpy()))
    if not is_first:  # nobody needs the cotangent of the features
        calls.append(product_call(delta, layer.weight.detach().numpy(), dx))

    def vjp(u: np.ndarray) -> np.ndarray:
        times_slope(u)
        for call in calls:
            call()
        return dx

    return vjp


def _times_slope(activation: Activation, kept: np.ndarray, delta: np.ndarray, u: np.ndarray) -> None:
    """Write ``u * slope`` to delta."""
    if activation is IDENTITY:
        np.copyto(delta, u)
    elif activation.array_times_slope is not None:
        activation.array_times_slope(u, kept, delta)
    else:
        np.copyto(delta, activation.times_slope(th.from_numpy(u), th.from_numpy(kept)).numpy())
