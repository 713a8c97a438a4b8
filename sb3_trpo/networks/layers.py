"""
A plain stack of layers with its derivatives by hand: no graph, and the modules' own weight tensors.

======  =====================================================================
x       input of a layer, the features for the first one
W, b    weight and bias of a layer, the module's own tensors
a       pre-activation, affine in x: ``W x + b``
h       ``activation(a)``, the input of the next layer
J       derivative of the last h by all W and b
v, u    tangent of the W and b; cotangent of the last h
delta   derivative of ``u^T h`` by a
======  =====================================================================

Activations act on each element alone, so ``J v`` and ``J^T u`` pass them by the same product with their slope.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch as th
from torch import nn
from torch.nn import functional as F, grad  # noqa: N812  # torch's own name for it

from sb3_trpo.numerics.torch_private import (
    elu_backward,
    gelu_backward,
    leaky_relu_backward,
    silu_backward,
    tanh_backward,
    threshold_backward,
)

_conv2d_input: Callable[..., th.Tensor] = grad.conv2d_input
_conv2d_weight: Callable[..., th.Tensor] = grad.conv2d_weight


NARROW = 20
"""Columns below which they go to the left: measured with MKL on 2,048 rows; with one column it makes no difference."""


class Activation(NamedTuple):
    """
    An activation and its slope.

    :param function: ``a -> h`` by torch, with the bits of the module; may overwrite a where the slope is read off h
    :param scale: ``(d, a or h) -> d * slope``
    :param by_input: whether the slope is read off a rather than off h
    :param quick: ``(a, out) -> None``, where another library is quicker on a CPU; the same up to rounding
    """

    function: Callable[[th.Tensor], th.Tensor]
    scale: Callable[[th.Tensor, th.Tensor], th.Tensor]
    by_input: bool
    quick: Callable[[np.ndarray, np.ndarray], None] | None = None


def _quick_tanh(a: np.ndarray, out: np.ndarray) -> None:
    """Compute tanh by NumPy, in a fifth of torch's time on some machines; tiny numbers may underflow on the way."""
    with np.errstate(under="ignore"):
        np.tanh(a, out=out)


IDENTITY = Activation(lambda a: a, lambda d, _: d, by_input=False)
ACTIVATIONS: dict[type[nn.Module], Callable[..., Activation]] = {
    nn.Identity: lambda _: IDENTITY,
    nn.Tanh: lambda _: Activation(th.tanh_, tanh_backward, by_input=False, quick=_quick_tanh),
    nn.ReLU: lambda _: Activation(th.relu_, lambda d, h: threshold_backward(d, h, 0), by_input=False),
    nn.ELU: lambda module: Activation(
        lambda a: F.elu(a, module.alpha),
        lambda d, a: elu_backward(d, a, module.alpha),
        by_input=True,
    ),
    nn.LeakyReLU: lambda module: Activation(
        lambda a: F.leaky_relu(a, module.negative_slope),
        lambda d, a: leaky_relu_backward(d, a, module.negative_slope),
        by_input=True,
    ),
    nn.SiLU: lambda _: Activation(F.silu, silu_backward, by_input=True),
    nn.GELU: lambda module: Activation(
        lambda a: F.gelu(a, approximate=module.approximate),
        lambda d, a: gelu_backward(d, a, module.approximate),
        by_input=True,
    ),
}
"""By exact type of module: a subclass may compute anything."""


class Affine(Protocol):
    """The map ``(x, W) -> W x``, linear in each, and its derivatives."""

    def __call__(self, x: th.Tensor, weight: th.Tensor, bias: th.Tensor | None) -> th.Tensor:
        """Compute ``W x + b`` with the bits of the module."""
        ...

    def product(self, x: th.Tensor, weight: th.Tensor, bias: th.Tensor | None) -> th.Tensor:
        """Compute ``W x + b``, up to rounding, in the order of factors that is quickest."""
        ...

    def add(self, a: th.Tensor, x: th.Tensor, weight: th.Tensor) -> th.Tensor:
        """Compute ``a + W x``; may overwrite a."""
        ...

    def pull_input(self, delta: th.Tensor, x: th.Tensor, weight: th.Tensor) -> th.Tensor:
        """Derive ``delta^T (W x)`` by x."""
        ...

    def pull_weight(self, delta: th.Tensor, x: th.Tensor, out: th.Tensor) -> None:
        """Derive ``delta^T (W x)`` by W, summed over the batch, into ``out``."""
        ...

    def pull_bias(self, delta: th.Tensor, out: th.Tensor) -> None:
        """Derive ``delta^T (W x + b)`` by b, summed over the batch, into ``out``."""
        ...


class Dense:
    """
    ``nn.Linear``, on inputs flattened to ``(n, n_features)``.

    A matrix product takes BLAS a half to a sixth of the time with the narrow factor on the left; see ``NARROW``.
    """

    def __call__(self, x: th.Tensor, weight: th.Tensor, bias: th.Tensor | None) -> th.Tensor:
        """Compute ``W x + b``."""
        return F.linear(x.flatten(1), weight, bias)

    def product(self, x: th.Tensor, weight: th.Tensor, bias: th.Tensor | None) -> th.Tensor:
        """Compute ``W x + b``."""
        if not _is_narrow(weight):
            return self(x, weight, bias)
        x = x.flatten(1)
        return (weight.mm(x.t()) if bias is None else th.addmm(bias[:, None], weight, x.t())).t()

    def add(self, a: th.Tensor, x: th.Tensor, weight: th.Tensor) -> th.Tensor:
        """Compute ``a + W x`` in place."""
        x = x.flatten(1)
        return a.t().addmm_(weight, x.t()).t() if _is_narrow(weight) else a.addmm_(x, weight.t())

    def pull_input(self, delta: th.Tensor, x: th.Tensor, weight: th.Tensor) -> th.Tensor:
        """Derive by x."""
        return delta.mm(weight).view(x.shape)

    def pull_weight(self, delta: th.Tensor, x: th.Tensor, out: th.Tensor) -> None:
        """Derive by W."""
        x = x.flatten(1)
        if x.shape[1] < delta.shape[1]:
            out.copy_(x.t().mm(delta).t())
        else:
            th.mm(delta.t(), x, out=out)

    def pull_bias(self, delta: th.Tensor, out: th.Tensor) -> None:
        """Derive by b."""
        th.sum(delta, 0, out=out)


def _is_narrow(weight: th.Tensor) -> bool:
    """Tell whether a layer's output is so much narrower than its input that it belongs on the left."""
    return 1 < len(weight) < min(NARROW, weight.shape[1])


@dataclass(frozen=True)
class Convolution:
    """``nn.Conv2d`` with zero padding, on inputs ``(n, channels, height, width)``."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def __call__(self, x: th.Tensor, weight: th.Tensor, bias: th.Tensor | None) -> th.Tensor:
        """Compute ``W x + b``."""
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    product = __call__

    def add(self, a: th.Tensor, x: th.Tensor, weight: th.Tensor) -> th.Tensor:
        """Compute ``a + W x`` in place."""
        return a.add_(self(x, weight, None))

    def pull_input(self, delta: th.Tensor, x: th.Tensor, weight: th.Tensor) -> th.Tensor:
        """Derive by x."""
        return _conv2d_input(x.shape, weight, delta, self.stride, self.padding, self.dilation, self.groups)

    def pull_weight(self, delta: th.Tensor, x: th.Tensor, out: th.Tensor) -> None:
        """Derive by W."""
        out.copy_(_conv2d_weight(x, out.shape, delta, self.stride, self.padding, self.dilation, self.groups))

    def pull_bias(self, delta: th.Tensor, out: th.Tensor) -> None:
        """Derive by b."""
        th.sum(delta, (0, 2, 3), out=out)


class Layer(NamedTuple):
    """An affine map with its tensors, and the activation after it."""

    affine: Affine
    weight: th.Tensor
    bias: th.Tensor | None
    activation: Activation


class Tape(NamedTuple):
    """
    What one pass leaves for the derivatives.

    :param hidden: the inputs of all layers but the first
    :param kept: for each layer, what the slope of its activation is read off
    :param output: the last h
    """

    hidden: list[th.Tensor]
    kept: list[th.Tensor]
    output: th.Tensor


@dataclass(frozen=True)
class Stack:
    """Layers in a row; vectors in the space of its tensors are lists like :attr:`tensors`."""

    layers: tuple[Layer, ...]

    @property
    def is_dense(self) -> bool:
        """Whether there is no convolution in it."""
        return all(isinstance(layer.affine, Dense) for layer in self.layers)

    @property
    def tensors(self) -> list[th.Tensor]:
        """All W and b, layer by layer."""
        return [tensor for layer in self.layers for tensor in (layer.weight, layer.bias) if tensor is not None]

    def with_tensors(self, tensors: Sequence[th.Tensor]) -> Stack:
        """
        Make the same stack on other tensors.

        :param tensors: like :attr:`tensors`
        :return: the stack
        """
        pairs = zip(self.layers, self.paired(tensors), strict=True)
        return Stack(tuple(layer._replace(weight=weight, bias=bias) for layer, (weight, bias) in pairs))

    def __call__(self, x: th.Tensor) -> th.Tensor:
        """
        Compute the last h as the modules do: what is measured here is the policy that acts.

        :param x: features, not changed
        :return: shape ``(n, n_outputs)``
        """
        for layer in self.layers:
            x = layer.activation.function(layer.affine(x, layer.weight, layer.bias))
        return x

    def record(self, x: th.Tensor) -> Tape:
        """
        Compute the last h, with the same bits, and keep what the derivatives need.

        :param x: features, which :meth:`push` and :meth:`pull` want again
        :return: the tape
        """
        inputs, kept = [x], []
        for layer in self.layers:
            a = layer.affine(inputs[-1], layer.weight, layer.bias)
            h = layer.activation.function(a)
            kept.append(a if layer.activation.by_input else h)
            inputs.append(h)
        return Tape(inputs[1:-1], kept, inputs[-1])

    def push(self, x: th.Tensor, tape: Tape, v: Sequence[th.Tensor]) -> th.Tensor:
        """
        Compute ``J v``.

        :param x: the features recorded
        :param tape: the record
        :param v: like :attr:`tensors`
        :return: shape ``(n, n_outputs)``
        """
        tangent = None
        for layer, x_l, kept, (dw, db) in zip(self.layers, [x, *tape.hidden], tape.kept, self.paired(v), strict=True):
            da = layer.affine.product(x_l, dw, db)
            if tangent is not None:
                da = layer.affine.add(da, tangent, layer.weight)
            tangent = layer.activation.scale(da, kept)
        assert tangent is not None
        return tangent

    def pull(self, x: th.Tensor, tape: Tape, u: th.Tensor, out: Sequence[th.Tensor]) -> None:
        """
        Compute ``J^T u``, summed over the batch.

        :param x: the features recorded
        :param tape: the record
        :param u: shape ``(n, n_outputs)``
        :param out: overwritten, like :attr:`tensors`
        """
        rows = list(zip(self.layers, [x, *tape.hidden], tape.kept, self.paired(out), strict=True))
        for layer, x_l, kept, (dw, db) in reversed(rows):
            delta = layer.activation.scale(u, kept)
            layer.affine.pull_weight(delta, x_l, dw)
            if db is not None:
                layer.affine.pull_bias(delta, db)
            if layer is not self.layers[0]:
                u = layer.affine.pull_input(delta, x_l, layer.weight)

    def paired(self, tensors: Sequence[th.Tensor]) -> list[tuple[th.Tensor, th.Tensor | None]]:
        """
        Deal tensors out to the layers.

        :param tensors: like :attr:`tensors`
        :return: W and b of each
        """
        left = iter(tensors)
        return [(next(left), None if layer.bias is None else next(left)) for layer in self.layers]
