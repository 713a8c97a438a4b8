"""
Affine maps ``a = W x + b`` with their derivatives: dense layers and convolutions. Symbols are those of ``stack.py``.

The derivatives take x, W and delta, the cotangent of a, as arguments: a map holds no tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch as th
from torch.nn import functional as F  # noqa: N812  # torch's own name for it

from sb3_trpo.numerics.torch_private import convolution_vjp

NARROW = 20
"""Number of outputs below which W goes to the left of a product; measured with MKL on 2,048 rows."""


class Affine(Protocol):
    """The map ``(x, W, b) -> W x + b`` and its derivatives."""

    def __call__(self, x: th.Tensor, weight: th.Tensor, bias: th.Tensor | None) -> th.Tensor:
        """Compute ``W x + b`` with the bits of the module."""
        ...

    def arranged(self, x: th.Tensor) -> th.Tensor:
        """Give x the shape in which the map takes it, so that it need not be copied for each product."""
        ...

    def product(self, x: th.Tensor, weight: th.Tensor, bias: th.Tensor | None) -> th.Tensor:
        """Compute ``W x + b`` up to rounding, with the factors in whichever order is faster."""
        ...

    def add(self, a: th.Tensor, x: th.Tensor, weight: th.Tensor) -> th.Tensor:
        """Compute ``a + W x``; may overwrite a."""
        ...

    def vjp_input(self, delta: th.Tensor, x: th.Tensor, weight: th.Tensor) -> th.Tensor:
        """Differentiate ``delta^T (W x)`` in x."""
        ...

    def vjp_weight(self, delta: th.Tensor, x: th.Tensor, out: th.Tensor) -> None:
        """Differentiate ``delta^T (W x)`` in W, summed over the batch, and write the result to ``out``."""
        ...

    def vjp_bias(self, delta: th.Tensor, out: th.Tensor) -> None:
        """Differentiate ``delta^T (W x + b)`` in b, summed over the batch, and write the result to ``out``."""
        ...


class Dense:
    """
    ``nn.Linear``, on inputs flattened to ``(n, n_features)``.

    BLAS takes between a sixth and half of the time if the narrow factor is on the left of a product; see ``NARROW``.
    """

    def __call__(self, x: th.Tensor, weight: th.Tensor, bias: th.Tensor | None) -> th.Tensor:
        """Compute ``W x + b``."""
        return F.linear(x.flatten(1), weight, bias)

    def arranged(self, x: th.Tensor) -> th.Tensor:
        """Flatten x to ``(n, n_features)``."""
        return x.flatten(1)

    def product(self, x: th.Tensor, weight: th.Tensor, bias: th.Tensor | None) -> th.Tensor:
        """Compute ``W x + b``."""
        if not is_narrow(weight):
            return self(x, weight, bias)
        x = x.flatten(1)
        return (weight.mm(x.t()) if bias is None else th.addmm(bias[:, None], weight, x.t())).t()

    def add(self, a: th.Tensor, x: th.Tensor, weight: th.Tensor) -> th.Tensor:
        """Compute ``a + W x`` in place."""
        x = x.flatten(1)
        return a.t().addmm_(weight, x.t()).t() if is_narrow(weight) else a.addmm_(x, weight.t())

    def vjp_input(self, delta: th.Tensor, x: th.Tensor, weight: th.Tensor) -> th.Tensor:
        """Differentiate in x."""
        return delta.mm(weight).view(x.shape)

    def vjp_weight(self, delta: th.Tensor, x: th.Tensor, out: th.Tensor) -> None:
        """Differentiate in W."""
        x = x.flatten(1)
        if x.shape[1] < delta.shape[1]:  # the narrow factor on the left here too, even at the price of a copy
            out.copy_(x.t().mm(delta).t())
        else:
            th.mm(delta.t(), x, out=out)

    def vjp_bias(self, delta: th.Tensor, out: th.Tensor) -> None:
        """Differentiate in b."""
        th.sum(delta, 0, out=out)


def is_narrow(weight: th.Tensor) -> bool:
    """
    Check whether W should be on the left of a product. For a single output it makes no difference.

    :param weight: W of a dense layer
    :return: whether it has few outputs
    """
    return 1 < len(weight) < min(NARROW, weight.shape[1])


class WithInput:
    """
    A dense layer that passes its input on behind its output: ``a = (W x + b, x)``.

    For distributions that depend on the last hidden layer in two ways, such as gSDE's. ``product`` is the part of a tangent
    that comes from W and b, so it has zeros where the input is passed on.
    """

    def __call__(self, x: th.Tensor, weight: th.Tensor, bias: th.Tensor | None) -> th.Tensor:
        """Compute ``(W x + b, x)``."""
        return th.cat([DENSE(x, weight, bias), x.flatten(1)], dim=1)

    def arranged(self, x: th.Tensor) -> th.Tensor:
        """Flatten x to ``(n, n_features)``."""
        return x.flatten(1)

    def product(self, x: th.Tensor, weight: th.Tensor, bias: th.Tensor | None) -> th.Tensor:
        """Compute ``(W x + b, 0)``."""
        return th.cat([DENSE.product(x, weight, bias), th.zeros_like(x.flatten(1))], dim=1)

    def add(self, a: th.Tensor, x: th.Tensor, weight: th.Tensor) -> th.Tensor:
        """Compute ``a + (W x, x)`` in place."""
        n_outputs = len(weight)
        a[:, :n_outputs].addmm_(x.flatten(1), weight.t())
        a[:, n_outputs:] += x.flatten(1)
        return a

    def vjp_input(self, delta: th.Tensor, x: th.Tensor, weight: th.Tensor) -> th.Tensor:
        """Differentiate in x."""
        n_outputs = len(weight)
        return th.addmm(delta[:, n_outputs:], delta[:, :n_outputs], weight).view(x.shape)

    def vjp_weight(self, delta: th.Tensor, x: th.Tensor, out: th.Tensor) -> None:
        """Differentiate in W."""
        DENSE.vjp_weight(delta[:, : len(out)], x, out)

    def vjp_bias(self, delta: th.Tensor, out: th.Tensor) -> None:
        """Differentiate in b."""
        DENSE.vjp_bias(delta[:, : len(out)], out)


DENSE = Dense()


@dataclass(frozen=True)
class Convolution:
    """``nn.Conv2d`` with zero padding, on inputs ``(n, channels, height, width)``; the fields are the module's."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @property
    def _options(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]:
        return self.stride, self.padding, self.dilation, self.groups

    def __call__(self, x: th.Tensor, weight: th.Tensor, bias: th.Tensor | None) -> th.Tensor:
        """Compute ``W x + b``."""
        return F.conv2d(x, weight, bias, *self._options)

    def arranged(self, x: th.Tensor) -> th.Tensor:
        """Leave x as it is."""
        return x

    product = __call__

    def add(self, a: th.Tensor, x: th.Tensor, weight: th.Tensor) -> th.Tensor:
        """Compute ``a + W x`` in place."""
        return a.add_(self(x, weight, None))

    def vjp_input(self, delta: th.Tensor, x: th.Tensor, weight: th.Tensor) -> th.Tensor:
        """Differentiate in x."""
        return convolution_vjp(delta, x, weight, *self._options, in_weight=False)

    def vjp_weight(self, delta: th.Tensor, x: th.Tensor, out: th.Tensor) -> None:
        """Differentiate in W."""
        out.copy_(convolution_vjp(delta, x, out, *self._options, in_weight=True))

    def vjp_bias(self, delta: th.Tensor, out: th.Tensor) -> None:
        """Differentiate in b."""
        th.sum(delta, (0, 2, 3), out=out)
