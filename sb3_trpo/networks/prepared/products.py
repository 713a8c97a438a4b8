"""
``J v`` and ``J^T u`` of a dense stack at one batch, prepared for many products.

Conjugate gradient asks for a dozen products at the same batch. For a network of 64 units, views, allocations and calls would
take as long as the arithmetic, so they are made once. Symbols are those of ``stack.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch as th

from sb3_trpo.networks.activations import IDENTITY
from sb3_trpo.networks.affine import is_narrow
from sb3_trpo.networks.stack import Intermediates, Layer, Stack


class Workspace:
    """
    Buffers for the layers' tangents and cotangents. Batches of one size share them: one product is made at a time.

    :param stack: dense layers
    :param n_rows: number of rows in a batch
    """

    def __init__(self, stack: Stack, n_rows: int) -> None:
        first = stack.layers[0].weight
        self.buffers = [_buffer(layer, n_rows) for layer in stack.layers]
        self.cotangent = first.new_empty(n_rows, stack.n_outputs)


def _buffer(layer: Layer, n_rows: int) -> th.Tensor:
    """Allocate ``(n_rows, n_outputs)``, transposed in memory if a product with W on the left is to be written to it."""
    shape = n_rows, len(layer.weight)
    return layer.weight.new_empty(shape[::-1]).t() if _is_on_the_left(layer) else layer.weight.new_empty(shape)


def _is_on_the_left(layer: Layer) -> bool:
    """Choose the order of the factors: an activation's slope would be multiplied slowly with a transposed result."""
    return is_narrow(layer.weight) and layer.activation is IDENTITY


class PreparedProducts:
    """
    The products at one batch. They see no later change of the tensors' values but the products' own arguments.

    :param stack: dense layers
    :param x: the features of the forward pass
    :param intermediates: what it kept
    :param v: tensors like the stack's, in which :meth:`jvp` finds the tangents
    :param out: tensors like the stack's, to which :meth:`vjp` writes
    :param workspace: buffers for batches of this size
    """

    def __init__(
        self,
        stack: Stack,
        x: th.Tensor,
        intermediates: Intermediates,
        v: Sequence[th.Tensor],
        out: Sequence[th.Tensor],
        workspace: Workspace,
    ) -> None:
        self._d_output, self._cotangent = workspace.buffers[-1], workspace.cotangent
        self._jvp: list[Callable[[], object]] = []
        self._vjp: list[Callable[[], object]] = []
        inputs, kept = [x.flatten(1), *intermediates.hidden], intermediates.slope_inputs
        tangents, results = stack.by_layer(v), stack.by_layer(out)
        for index, layer in enumerate(stack.layers):
            da, below = workspace.buffers[index], workspace.buffers[index - 1] if index else None
            self._jvp += _jvp_calls(layer, inputs[index], kept[index], *tangents[index], da, below)
        delta = workspace.cotangent
        for index in reversed(range(len(stack.layers))):
            below = workspace.buffers[index - 1] if index else None
            self._vjp += _vjp_calls(stack.layers[index], inputs[index], kept[index], delta, *results[index], below)
            delta = below if below is not None else delta

    def jvp(self) -> th.Tensor:
        """
        Compute ``J v``.

        :return: shape ``(n, n_outputs)``
        """
        for call in self._jvp:
            call()
        return self._d_output.clone(memory_format=th.contiguous_format)

    def vjp(self, u: th.Tensor) -> None:
        """
        Compute ``J^T u``, summed over the batch.

        :param u: shape ``(n, n_outputs)``, left unchanged
        """
        self._cotangent.copy_(u)
        for call in self._vjp:
            call()


def _jvp_calls(
    layer: Layer,
    x: th.Tensor,
    kept: th.Tensor,
    dw: th.Tensor,
    db: th.Tensor | None,
    da: th.Tensor,
    below: th.Tensor | None,
) -> list[Callable[[], object]]:
    """Prepare ``da = dW x + db + W dx``, and ``slope * da`` in its place; ``below`` holds dx, if it is not 0."""
    if _is_on_the_left(layer):
        left, right, bias, out = dw, x.t(), None if db is None else db[:, None], da.t()
    else:
        left, right, bias, out = x, dw.t(), db, da
    calls: list[Callable[[], object]] = [
        partial(th.mm, left, right, out=out) if bias is None else partial(th.addmm, bias, left, right, out=out)
    ]
    if below is not None:
        weight = layer.weight.detach()
        factors = (weight, below.t()) if _is_on_the_left(layer) else (below, weight.t())
        calls.append(partial(out.addmm_, *factors))
    if layer.activation is not IDENTITY:
        calls.append(partial(layer.activation.times_slope, da, kept, da))
    return calls


def _vjp_calls(
    layer: Layer,
    x: th.Tensor,
    kept: th.Tensor,
    delta: th.Tensor,
    dw: th.Tensor,
    db: th.Tensor | None,
    below: th.Tensor | None,
) -> list[Callable[[], object]]:
    """Prepare the derivatives in W and b, and in x unless nobody needs it; ``delta`` holds the cotangent of h."""
    calls: list[Callable[[], object]] = []
    if layer.activation is not IDENTITY:
        calls.append(partial(layer.activation.times_slope, delta, kept, delta))
    calls.append(partial(layer.affine.vjp_weight, delta, x, dw))
    if db is not None:
        calls.append(partial(layer.affine.vjp_bias, delta, db))
    if below is not None:
        calls.append(partial(th.mm, delta, layer.weight.detach(), out=below))
    return calls
