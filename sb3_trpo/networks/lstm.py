r"""
LSTM layers (Hochreiter & Schmidhuber 1997, with forget gates) whose ``J v`` costs a pass, and not a graph of backward steps.

Fused kernels compute the layer and ``J^T u``. They have no second derivative (cuDNN), or one that makes the weights' gradients
anew at each step of time (oneDNN: 1 GiB for 1,000 steps of 256 units). But all that ``linearise`` in ``fisher.py`` asks for is
the derivative of ``J^T u`` in u, which is ``J v``; it is written down here, and handed to autograd as that.

==============  ========================================================================
x, h, c         input, output and memory, ``(n_steps, n_sequences, n)``; h_0, c_0 before
W, R, b         weights for x and for h, and the sum of both biases, four gates each
a               ``W x_t + R h_{t-1} + b``, of the gates in torch's order i, f, g, o
i, f, o, g      ``sigmoid(a)`` of the input, forget and output gate, ``tanh(a)``
c_t, h_t        ``f c_{t-1} + i g`` and ``o tanh(c_t)``
dx, dh, ...     tangents
==============  ========================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple, TypeGuard

import torch as th
from torch import nn

from sb3_trpo.networks.cudnn import without_cudnn
from sb3_trpo.numerics.torch_private import fused_lstm_layer

States = tuple[th.Tensor, th.Tensor]
Tangents = tuple[th.Tensor | None, ...]


class Slopes(NamedTuple):
    """
    How a step depends on a and on the c before it.

    ``dc_t = f dc_{t-1} + sum(of_gates[:3] da)`` and ``dh_t = of_gates[3] da + of_c dc_t``, with gates in the order i, f, g, o.

    :param previous_h: h before each step
    :param forget: f
    :param of_gates: shape ``(n_steps, n_sequences, 4 n_hidden)``
    :param of_c: ``o (1 - tanh(c)^2)``
    """

    previous_h: th.Tensor
    forget: th.Tensor
    of_gates: th.Tensor
    of_c: th.Tensor


class LayerRun:
    """
    One pass of one layer, with its derivatives.

    :param inputs: x, h_0, c_0, W, R, and both biases if there are any
    """

    def __init__(self, inputs: tuple[th.Tensor, ...]) -> None:
        self._inputs = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in inputs]
        x, h, c, *weights = self._inputs
        with th.enable_grad():  # training mode, without which cuDNN has no derivative at all
            self._h, _, self._c = fused_lstm_layer(x, h, c, weights)

    def outputs(self) -> States:
        """Give all h and the last c, without their graph: new tensors, for autograd ties them to whoever holds the run."""
        return self._h.detach(), self._c.detach()

    def pull(self, dh: th.Tensor | None, dc: th.Tensor | None) -> tuple[th.Tensor | None, ...]:
        """
        Compute ``J^T u``.

        :param dh: cotangent of all h, ``None`` for 0
        :param dc: cotangent of the last c, ``None`` for 0
        :return: cotangents of the inputs, ``None`` for those that need none
        """
        pairs = [(out, u) for out, u in ((self._h, dh), (self._c, dc)) if u is not None]
        wanted = [tensor for tensor in self._inputs if tensor.requires_grad]
        outputs, cotangents = zip(*pairs, strict=True)
        found = iter(th.autograd.grad(outputs, wanted, cotangents, retain_graph=True, materialize_grads=True))
        return tuple(next(found) if tensor.requires_grad else None for tensor in self._inputs)

    @cached_property
    @th.no_grad()
    def _slopes(self) -> Slopes:
        x, h, c, w, r, *biases = self._inputs
        previous_h = th.cat((h, self._h[:-1]))
        a = x @ w.t() + previous_h @ r.t() + sum(biases)
        i, f, g, o = a.chunk(4, dim=2)
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        memory = [c[0]]
        for forget, new in zip(f, i * g, strict=True):
            memory.append(th.addcmul(new, forget, memory[-1]))
        previous_c, tanh_c = th.stack(memory[:-1]), th.stack(memory[1:]).tanh()
        parts = (g * i * (1 - i), previous_c * f * (1 - f), i * (1 - g * g), tanh_c * o * (1 - o))
        return Slopes(previous_h, f, th.cat(parts, dim=2), o * (1 - tanh_c * tanh_c))

    @th.no_grad()
    def push(self, tangents: Tangents) -> States:
        """
        Compute ``J v``.

        :param tangents: of the inputs, ``None`` for 0
        :return: tangents of all h, and of the last c
        """
        x, h, c, w, r, *_ = self._inputs
        dx, dh_0, dc_0, dw, dr, *of_biases = tangents
        slopes = self._slopes
        da = th.zeros_like(slopes.of_gates)
        for left, right in ((dx, w), (x, dw), (slopes.previous_h, dr)):
            if left is not None and right is not None:
                da += left @ right.t()
        for db in of_biases:
            da += 0.0 if db is None else db
        dh = th.zeros_like(h[0]) if dh_0 is None else dh_0[0]
        dc = th.zeros_like(c[0]) if dc_0 is None else dc_0[0]
        n, r_t, steps = 3 * h.shape[2], r.t(), []
        for da_t, forget, of_gates, of_c in zip(da, slopes.forget, slopes.of_gates, slopes.of_c, strict=True):
            through = of_gates * th.addmm(da_t, dh, r_t)
            dc = th.addcmul(through[:, :n].unflatten(1, (3, -1)).sum(1), forget, dc)
            dh = th.addcmul(through[:, n:], of_c, dc)
            steps.append(dh)
        return th.stack(steps), dc[None]


class _Layer(th.autograd.Function):
    """The layer, to autograd."""

    @staticmethod
    def forward(ctx: Any, run: LayerRun, *inputs: th.Tensor) -> States:
        ctx.run = run
        ctx.set_materialize_grads(False)
        return run.outputs()

    @staticmethod
    def backward(ctx: Any, dh: th.Tensor | None, dc: th.Tensor | None) -> Any:
        return (None, *_Pullback.apply(ctx.run, dh, dc))  # type: ignore[no-untyped-call]  # torch's, without types


class _Pullback(th.autograd.Function):
    """``u -> J^T u``, to autograd: linear in u, with ``v -> J v`` as its own pullback. What else it depends on is left out."""

    @staticmethod
    def forward(ctx: Any, run: LayerRun, dh: th.Tensor | None, dc: th.Tensor | None) -> Any:
        ctx.run = run
        ctx.set_materialize_grads(False)
        return run.pull(dh, dc)

    @staticmethod
    def backward(ctx: Any, *tangents: th.Tensor | None) -> Any:
        pushed = ctx.run.push(tangents)
        return (None, *(part if wanted else None for part, wanted in zip(pushed, ctx.needs_input_grad[1:], strict=True)))


def has_formula(layer: nn.Module) -> TypeGuard[nn.LSTM]:
    """
    Tell whether a layer is one that this module computes.

    :param layer: the layer
    :return: whether it is an LSTM of one direction without projections
    """
    plain = type(layer) is nn.LSTM and not (layer.bidirectional or layer.proj_size or layer.batch_first)
    return plain and not (layer.training and layer.dropout)


def linearisable(layer: nn.LSTM, x: th.Tensor, states: States) -> tuple[th.Tensor, States]:
    """
    Compute an LSTM whose derivatives ``linearise`` can take; without dropout between its layers.

    :param layer: the LSTM, in evaluation mode
    :param x: shape ``(n_steps, n_sequences, n_inputs)``
    :param states: h and c before, shape ``(n_layers, n_sequences, n_hidden)``
    :return: h of the last layer, and h and c of all layers after the last step
    """
    last_h, last_c = [], []
    for weights, h, c in zip(layer.all_weights, *(th.split(state, 1) for state in states), strict=True):
        inputs = (x, h, c, *weights)
        x, c_n = _Layer.apply(LayerRun(inputs), *inputs)  # type: ignore[no-untyped-call]  # torch's, without types
        last_h.append(x[-1:])
        last_c.append(c_n)
    return x, (th.cat(last_h), th.cat(last_c))


def forward_of(layer: nn.LSTM) -> Callable[..., Any]:
    """
    Make what takes the place of the layer's ``forward``.

    :param layer: the LSTM
    :return: :func:`linearisable` of it; its own where no derivative is asked for, or for sequences of a form not known here
    """
    own = layer.forward

    def forward(x: Any, states: States | None = None) -> Any:
        if not th.is_grad_enabled():
            return own(x, states)
        if not isinstance(x, th.Tensor) or x.dim() != 3:
            with without_cudnn(next(layer.parameters()).device):
                return own(x, states)
        zeros = x.new_zeros(layer.num_layers, x.shape[1], layer.hidden_size)
        return linearisable(layer, x, (zeros, zeros) if states is None else states)

    return forward
