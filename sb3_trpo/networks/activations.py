"""
Activations with their slopes.

An activation acts on each element alone, so J v and J^T u take the same product with its slope. Symbols are those of
``stack.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch as th
from torch.nn import functional as F  # noqa: N812  # torch's own name for it

from sb3_trpo.numerics.torch_private import (
    TimesSlope,
    elu_backward,
    gelu_backward,
    leaky_relu_backward,
    relu_backward,
    silu_backward,
    tanh_backward,
)


class Activation(NamedTuple):
    """
    An activation and its slope.

    :param function: ``a -> h`` by torch, with the bits of the module; may overwrite a if the slope is computed from h
    :param times_slope: ``(d, a, out=None) -> d * slope``, or the same with h in place of a
    :param slope_from_input: whether ``times_slope`` takes a rather than h
    :param fast: ``(a, out) -> None`` on a CPU, by a library that is faster than torch; equal to ``function`` up to rounding
    :param array: ``(a, out=)`` by NumPy, if it has such a function; equal to ``function`` up to rounding
    :param array_times_slope: ``(d, a or h, out) -> None`` by NumPy, like ``times_slope``
    """

    function: Callable[[th.Tensor], th.Tensor]
    times_slope: TimesSlope
    slope_from_input: bool
    fast: Callable[[np.ndarray, np.ndarray], None] | None = None
    array: Callable[..., object] | None = None
    array_times_slope: Callable[[np.ndarray, np.ndarray, np.ndarray], object] | None = None


def _numpy_tanh(a: np.ndarray, out: np.ndarray) -> None:
    """Compute tanh by NumPy, which takes a fifth of torch's time on some machines."""
    with np.errstate(under="ignore"):  # intermediate results underflow harmlessly, but users may let NumPy raise on that
        np.tanh(a, out=out)


def _numpy_tanh_backward(d: np.ndarray, h: np.ndarray, out: np.ndarray) -> None:
    """Compute ``d (1 - h^2)``."""
    np.multiply(h, h, out=out)
    np.subtract(1.0, out, out=out)
    np.multiply(out, d, out=out)


def _numpy_relu_backward(d: np.ndarray, h: np.ndarray, out: np.ndarray) -> None:
    """Compute ``d`` where ``h > 0``."""
    np.multiply(d, h > 0.0, out=out)


IDENTITY = Activation(lambda a: a, lambda d, _, out=None: d, slope_from_input=False)


KEPT = lru_cache(maxsize=64)


@KEPT
def _tanh() -> Activation:
    return Activation(th.tanh_, tanh_backward(), False, _numpy_tanh, np.tanh, _numpy_tanh_backward)


@KEPT
def _relu(inplace: bool = False) -> Activation:
    return Activation(
        th.relu_,
        relu_backward(),
        slope_from_input=False,
        array=partial(np.maximum, 0.0),
        array_times_slope=_numpy_relu_backward,
    )


@KEPT
def _elu(alpha: float = 1.0, inplace: bool = False) -> Activation:
    return Activation(lambda a: F.elu(a, alpha), elu_backward(alpha), slope_from_input=True)


@KEPT
def _leaky_relu(negative_slope: float = 0.01, inplace: bool = False) -> Activation:
    return Activation(
        lambda a: F.leaky_relu(a, negative_slope),
        leaky_relu_backward(negative_slope),
        slope_from_input=True,
    )


@KEPT
def _silu(inplace: bool = False) -> Activation:
    return Activation(F.silu, silu_backward(), slope_from_input=True)


@KEPT
def _gelu(approximate: str = "none") -> Activation:
    return Activation(lambda a: F.gelu(a, approximate=approximate), gelu_backward(approximate), slope_from_input=True)


ACTIVATIONS: dict[Callable[..., Any], Callable[..., Activation]] = {
    th.tanh: _tanh,
    th.relu: _relu,
    F.relu: _relu,
    F.elu: _elu,
    F.leaky_relu: _leaky_relu,
    F.silu: _silu,
    F.gelu: _gelu,
}
"""Makes an activation from the arguments of torch's function that follow its input; the same object for the same arguments."""
