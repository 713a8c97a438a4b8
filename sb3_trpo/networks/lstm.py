r"""
LSTM layers (Hochreiter & Schmidhuber 1997, with forget gates) with a ``J v`` that costs about as much as a forward pass.

``linearize`` in ``numerics/gauss_newton.py`` differentiates ``J^T u``. The fused LSTM kernels compute the layer and
``J^T u``, but cuDNN's cannot be differentiated again, and oneDNN's then allocates the gradients of all weights for every
time step: 1 GiB for 1,000 steps of 256 units. Since ``J^T u`` is linear in u, and ``linearize`` differentiates it with
respect to u alone, ``J v`` is the only derivative needed. Here it is written as the recurrence below and registered with
autograd. Everything else is left to the fused kernels.

==============  ============================================================================================
x, h, c         input, output and cell state, ``(n_steps, n_sequences, n)``; h_0 and c_0 come before step 1
W, R, b         input weights, recurrent weights and the sum of both biases, each for all four gates
a_t             pre-activations of the gates, ``W x_t + R h_{t-1} + b``, in torch's order i, f, g, o
i, f, o, g      input, forget and output gate, ``sigmoid(a)``; candidate, ``tanh(a)``
c_t, h_t        ``f c_{t-1} + i g`` and ``o tanh(c_t)``
dx, dh, ...     tangents
u, v            cotangent of (h, last c); tangent of the inputs
==============  ============================================================================================

The tangents follow the same recurrence, linearized at the values of the forward pass:

    da_t = W dx_t + dW x_t + dR h_{t-1} + db + R dh_{t-1}
    dc_t = g i(1-i) da_i + c_{t-1} f(1-f) da_f + i(1-g^2) da_g + f dc_{t-1}
    dh_t = tanh(c_t) o(1-o) da_o + o(1-tanh(c_t)^2) dc_t

Only ``R dh_{t-1}`` needs the previous step, so a step costs one product with R. Everything else is computed for all steps at
once.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple, TypeGuard

import torch as th
from torch import nn

from sb3_trpo.numerics.torch_private import fused_lstm_layer

States = tuple[th.Tensor, th.Tensor]
"""h and c."""
Tangents = tuple[th.Tensor | None, ...]
"""Tangents or cotangents of a layer's inputs, ``None`` for 0."""


class Slopes(NamedTuple):
    """
    The factors in the recurrence of the tangents, for all steps.

    :param previous_h: ``h_{t-1}``
    :param of_gates: factors of da, for i, f, g and o; shape ``(n_steps, n_sequences, 4 n_hidden)``
    :param of_previous_c: factor of ``dc_{t-1}``, f
    :param of_c: factor of ``dc_t``, ``o (1 - tanh(c_t)^2)``
    """

    previous_h: th.Tensor
    of_gates: th.Tensor
    of_previous_c: th.Tensor
    of_c: th.Tensor


class LayerRun:
    """
    One forward pass of one layer, and its derivatives.

    :param inputs: x, h_0, c_0, W, R and, unless the layer has no bias, both biases
    """

    def __init__(self, inputs: tuple[th.Tensor, ...]) -> None:
        # From detached inputs, in a graph apart: the fused kernel's backward pass is needed for J^T u, but must not be part of
        # the graph that linearize() differentiates twice.
        self._inputs = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in inputs]
        x, h_0, c_0, *weights = self._inputs
        with th.enable_grad():
            self._h, _, self._c = fused_lstm_layer(x, h_0, c_0, weights)

    def outputs(self) -> States:
        """
        Return all h and the last c, without a graph.

        They are new tensors, because autograd makes the outputs refer to this object. A reference back would make a cycle,
        which keeps its memory until the garbage collector runs.
        """
        return self._h.detach(), self._c.detach()

    def vjp(self, dh: th.Tensor | None, dc: th.Tensor | None) -> Tangents:
        """
        Compute ``J^T u``, by the fused kernel's backward pass.

        :param dh: cotangent of all h, ``None`` for 0
        :param dc: cotangent of the last c, ``None`` for 0; at least one of the two is given
        :return: cotangents of the inputs, ``None`` for inputs that require no gradient
        """
        given = [(output, u) for output, u in ((self._h, dh), (self._c, dc)) if u is not None]
        wanted = [tensor for tensor in self._inputs if tensor.requires_grad]
        outputs, cotangents = zip(*given, strict=True)
        found = iter(th.autograd.grad(outputs, wanted, cotangents, retain_graph=True, materialize_grads=True))
        return tuple(next(found) if tensor.requires_grad else None for tensor in self._inputs)

    @cached_property
    @th.no_grad()
    def _slopes(self) -> Slopes:
        """Recompute the gates, which the fused kernel does not return, from its h: all steps at once."""
        x, h_0, c_0, w, r, *biases = self._inputs
        previous_h = th.cat((h_0, self._h[:-1]))
        a = x @ w.t() + previous_h @ r.t() + sum(biases)
        i, f, g, o = a.chunk(4, dim=2)
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        cells = [c_0[0]]  # the kernel returns only the last c; this recurrence is elementwise, so its steps are cheap
        for forget, new in zip(f, i * g, strict=True):
            cells.append(th.addcmul(new, forget, cells[-1]))
        previous_c, tanh_c = th.stack(cells[:-1]), th.stack(cells[1:]).tanh()
        of_gates = (g * i * (1 - i), previous_c * f * (1 - f), i * (1 - g * g), tanh_c * o * (1 - o))
        return Slopes(previous_h, th.cat(of_gates, dim=2), f, o * (1 - tanh_c * tanh_c))

    def _gate_tangents(
        self, dx: th.Tensor | None, dw: th.Tensor | None, dr: th.Tensor | None, *db: th.Tensor | None
    ) -> th.Tensor:
        """Compute ``W dx + dW x + dR h_{t-1} + db`` for all steps: da without the part that depends on the previous step."""
        x, _, _, w, *_ = self._inputs
        da = th.zeros_like(self._slopes.of_gates)
        # Data and frozen weights have no tangent, which saves their products.
        for left, right in ((dx, w), (x, dw), (self._slopes.previous_h, dr)):
            if left is not None and right is not None:
                da += left @ right.t()
        for bias in db:
            da += 0.0 if bias is None else bias
        return da

    @th.no_grad()
    def jvp(self, v: Tangents) -> States:
        """
        Compute ``J v``.

        :param v: tangents of the inputs, ``None`` for 0
        :return: tangents of all h, and of the last c
        """
        _, h_0, c_0, _, r, *_ = self._inputs
        dx, dh_0, dc_0, *d_weights = v
        dh = th.zeros_like(h_0[0]) if dh_0 is None else dh_0[0]
        dc = th.zeros_like(c_0[0]) if dc_0 is None else dc_0[0]
        da, r_t = self._gate_tangents(dx, *d_weights), r.t()
        gates = da.view(*da.shape[:2], 4, -1)
        through_c, direct = gates[:, :, :3], gates[:, :, 3]  # i, f and g act through c, o acts on h directly
        tangents = th.empty_like(self._h)
        # The views are made once for all steps: a step has little arithmetic, and calls would take most of its time.
        _, of_gates, of_previous_c, of_c = self._slopes
        for parts in zip(da, of_gates, through_c, direct, of_previous_c, of_c, tangents, strict=True):
            da_t, of_gates_t, through_c_t, direct_t, of_previous_c_t, of_c_t, dh_t = parts
            da_t.addmm_(dh, r_t).mul_(of_gates_t)
            dc = th.addcmul(through_c_t.sum(1), of_previous_c_t, dc)
            dh = th.addcmul(direct_t, of_c_t, dc, out=dh_t)
        return tangents, dc[None]


class _Layer(th.autograd.Function):
    """
    The layer, as autograd sees it: its derivative is :class:`_VJP`.

    The inputs are arguments so that autograd knows what the outputs depend on; the run has its own copies of them.
    """

    @staticmethod
    def forward(ctx: Any, run: LayerRun, *inputs: th.Tensor) -> States:
        ctx.run = run
        ctx.set_materialize_grads(False)  # None for 0, which saves the products with zeros
        return run.outputs()

    @staticmethod
    def backward(ctx: Any, dh: th.Tensor | None, dc: th.Tensor | None) -> Any:
        return (None, *_VJP.apply(ctx.run, dh, dc))  # type: ignore[no-untyped-call]  # torch's, without types


class _VJP(th.autograd.Function):
    """
    ``u -> J^T u``, as autograd sees it: linear in u, so its derivative maps v to ``J v``.

    ``J^T u`` depends on x and the weights as well, but that derivative is left out: ``linearize`` never asks for it.
    """

    @staticmethod
    def forward(ctx: Any, run: LayerRun, dh: th.Tensor | None, dc: th.Tensor | None) -> Any:
        ctx.run = run
        ctx.set_materialize_grads(False)
        return run.vjp(dh, dc)

    @staticmethod
    def backward(ctx: Any, *v: th.Tensor | None) -> Any:
        tangents = zip(ctx.run.jvp(v), ctx.needs_input_grad[1:], strict=True)
        return (None, *(tangent if is_wanted else None for tangent, is_wanted in tangents))


def is_supported(layer: nn.Module) -> TypeGuard[nn.LSTM]:
    """
    Check whether :func:`linearisable_lstm` computes a layer.

    :param layer: any module
    :return: whether it is an LSTM with one direction, no projections, time first and no active dropout, and not an instance
        of a subclass, which may compute anything
    """
    is_plain = type(layer) is nn.LSTM and not (layer.bidirectional or layer.proj_size or layer.batch_first)
    return is_plain and not (layer.training and layer.dropout)


def linearisable_lstm(layer: nn.LSTM, x: th.Tensor, states: States | None) -> tuple[th.Tensor, States]:
    """
    Compute an LSTM, layer by layer, so that ``linearize`` can differentiate it.

    :param layer: an LSTM for which :func:`is_supported` holds
    :param x: shape ``(n_steps, n_sequences, n_inputs)``
    :param states: h_0 and c_0, each of shape ``(n_layers, n_sequences, n_hidden)``; ``None`` for zeros
    :return: h of the last layer for all steps, and h and c of all layers after the last step
    """
    if states is None:
        zeros = x.new_zeros(layer.num_layers, x.shape[1], layer.hidden_size)
        states = zeros, zeros
    last_h, last_c = [], []
    for weights, h_0, c_0 in zip(layer.all_weights, *(th.split(state, 1) for state in states), strict=True):
        inputs = (x, h_0, c_0, *weights)
        x, c = _Layer.apply(LayerRun(inputs), *inputs)  # type: ignore[no-untyped-call]  # torch's, without types
        last_h.append(x[-1:])
        last_c.append(c)
    return x, (th.cat(last_h), th.cat(last_c))
