"""
Reading what modules compute, by running them on a stand-in for a tensor.

Modules call torch's functions, and those let an argument that is not a tensor answer for itself (``__torch_function__``). The
stand-in knows the few functions that make up a plain stack of layers, and records each of them with its weights. So it does
not matter how a module is written, only what it computes. Whatever else a module does with the stand-in raises an error, which
means that it is no plain stack. Nothing is patched, so other threads may run modules in the meantime.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import torch as th
from torch import nn
from torch.nn import functional as F  # noqa: N812  # torch's own name for it

from sb3_trpo.networks.activations import ACTIVATIONS, IDENTITY
from sb3_trpo.networks.affine import DENSE, Affine, Convolution
from sb3_trpo.networks.stack import Layer, Stack

BATCH_SIZE = object()
"""Stands for the number of rows; a module may only hand it back, to keep the first dimension while it flattens the others."""


class NotPlainError(Exception):
    """A module does something that a plain stack does not do."""


@dataclass(frozen=True, eq=False)
class TracedTensor:
    """
    A stand-in for the tensor that some layers have computed.

    :param is_flat: whether it stands for a tensor of shape ``(n, n_features)``, rather than one with more dimensions
    :param layers: the layers so far
    """

    is_flat: bool
    layers: tuple[Layer, ...] = ()

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> TracedTensor:
        """Record a call of one of torch's functions, which comes here because an argument is a stand-in."""
        traced, *others = args or (None,)
        if not isinstance(traced, TracedTensor) or any(isinstance(other, TracedTensor) for other in others):
            raise NotPlainError(function)
        if function in ACTIVATIONS:
            return traced._activated(function, *others, **(kwargs or {}))
        record = _RECORDS.get(function, _refuse)
        return record(traced, *others, **(kwargs or {}))

    def __bool__(self) -> bool:
        raise NotPlainError(bool)

    def _with_layer(self, affine: Affine, weight: th.Tensor, bias: th.Tensor | None) -> TracedTensor:
        return TracedTensor(affine is DENSE, (*self.layers, Layer(affine, weight, bias, IDENTITY)))

    def _dense(self, weight: th.Tensor, bias: th.Tensor | None = None) -> TracedTensor:
        below = self.layers[-1] if self.layers else None
        fits = below is None or below.affine is not DENSE or len(below.weight) == weight.shape[1]
        if not self.is_flat or not fits:  # it would act on the last dimension alone, or raise torch's error
            raise NotPlainError(F.linear)
        return self._with_layer(DENSE, weight, bias)

    def _convolution(
        self,
        weight: th.Tensor,
        bias: th.Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> TracedTensor:
        if self.is_flat or isinstance(padding, str):
            raise NotPlainError(F.conv2d)
        return self._with_layer(Convolution(_pair(stride), _pair(padding), _pair(dilation), groups), weight, bias)

    def _activated(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> TracedTensor:
        if not self.layers or self.layers[-1].activation is not IDENTITY:
            raise NotPlainError(function)
        *others, last = self.layers
        activation = ACTIVATIONS[function](*args, **kwargs)
        return TracedTensor(self.is_flat, (*others, last._replace(activation=activation)))

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> TracedTensor:
        """Merge all dimensions but the first. A dense layer does this by itself, so it takes no layer."""
        if start_dim != 1 or end_dim not in (-1, 1 if self.is_flat else -1):
            raise NotPlainError(th.flatten)
        return TracedTensor(True, self.layers)

    def relu(self) -> TracedTensor:
        """Record an activation."""
        return self._activated(F.relu)

    def tanh(self) -> TracedTensor:
        """Record an activation."""
        return self._activated(th.tanh)

    def size(self, dim: int) -> object:
        """Return the number of rows; other sizes are not known."""
        return BATCH_SIZE if dim == 0 else _refuse()

    @property
    def shape(self) -> tuple[object]:
        """The number of rows; other sizes are not known."""
        return (BATCH_SIZE,)

    def reshape(self, *shape: Any) -> TracedTensor:
        """Merge all dimensions but the first; other shapes are refused."""
        return self.flatten(1) if shape == (BATCH_SIZE, -1) else _refuse()

    view = reshape


def _pair(sizes: Any) -> tuple[int, ...]:
    return (sizes, sizes) if isinstance(sizes, int) else tuple(sizes)


def _refuse(*_: object, **__: object) -> NoReturn:
    raise NotPlainError


_RECORDS: dict[Callable[..., Any], Callable[..., TracedTensor]] = {
    F.linear: TracedTensor._dense,
    F.conv2d: TracedTensor._convolution,
    th.flatten: TracedTensor.flatten,
}


def trace(functions: Iterable[Callable[[Any], Any]], is_flat: bool) -> Stack | None:
    """
    Read functions that follow each other, such as modules, as one stack.

    :param functions: the first takes the features, each other one the result of the one before
    :param is_flat: whether the features have the shape ``(n, n_features)``
    :return: the stack on the functions' own tensors; ``None`` if they compute anything else, or nothing
    """
    traced: Any = TracedTensor(is_flat)
    try:
        for function in functions:
            traced = function(traced)
    except Exception:  # whatever the user's code makes of a stand-in
        return None
    is_read = isinstance(traced, TracedTensor) and traced.layers
    return Stack(traced.layers) if is_read else None


def same_stacks(one: Stack | None, other: Stack | None) -> bool:
    """
    Compare what has been read.

    :param one: a stack, or ``None``
    :param other: the same
    :return: whether both have the same operations on the very same tensors, or both are ``None``
    """
    if one is None or other is None:
        return one is other
    return [_identity(layer) for layer in one.layers] == [_identity(layer) for layer in other.layers]


def _identity(layer: Layer) -> tuple[object, ...]:
    return layer.affine, id(layer.weight), id(layer.bias), id(layer.activation)


@contextmanager
def in_mode(module: nn.Module, is_training: bool) -> Iterator[None]:
    """
    Put a module and all modules inside it in training or evaluation mode in a block; each has its own mode back afterwards.

    :param module: the module
    :param is_training: which mode
    """
    modes = [(each, each.training) for each in module.modules()]
    try:
        module.train(is_training)
        yield
    finally:
        for each, mode in modes:
            each.training = mode
