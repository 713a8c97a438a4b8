"""
Reading what modules compute, by running them on a stand-in for a tensor.

Modules call torch's functions, and those let an argument that is not a tensor answer for itself (``__torch_function__``). The
stand-in knows the few functions that make up a plain stack of layers, and records each of them with its weights. So it does
not matter how a module is written, only what it computes. Whatever else a module does with the stand-in raises an error, which
means that it is not a plain stack. Nothing is patched, so other threads may run modules in the meantime.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from typing import Any, NoReturn

import torch as th
from torch import nn
from torch.nn import functional as F  # noqa: N812  # torch's own name for it

from sb3_trpo.networks.activations import ACTIVATIONS, IDENTITY
from sb3_trpo.networks.affine import DENSE, Affine, Convolution
from sb3_trpo.networks.stack import Layer, Stack, identity

ALIKE = 1e-4
"""Difference of float32 results, relative to the largest, that the order of sums explains."""
NO_DATA = th.empty(0, device="meta")
"""A tensor that no branch can be taken on."""


class NotPlainError(Exception):
    """A module does something that a plain stack does not do."""


def _described(self: object) -> str:
    """Tell a user whose module prints a stand-in, or writes it to a log, what it is."""
    return f"<{type(self).__name__} of sb3_trpo, which reads the module>"


class Unknown:
    """Something that depends on the data: no branch may be taken on it."""

    def _refuse(self, *_: object) -> bool:
        raise NotPlainError("a comparison")

    __bool__ = __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _refuse
    __hash__ = None  # type: ignore[assignment]
    __repr__ = _described


class BatchSize(Unknown):
    """Stands for the number of rows, which a module may only hand back, to keep it while it flattens other dimensions."""


class Shape(Unknown):
    """Stands for a shape of which the first entry alone is known to be the number of rows."""

    def __getitem__(self, index: object) -> BatchSize:
        return BatchSize() if type(index) is int and index == 0 else _refuse()

    def __iter__(self) -> NoReturn:
        _refuse()


class TracedTensor(th.Tensor):
    """
    A stand-in for the tensor that some layers have computed.

    It is a tensor, because modules may check that they are given one; but what is done with it comes here. Should torch pass
    it by, there are no data for a branch to be taken on.

    :param is_flat: whether it stands for a tensor of shape ``(n, n_features)``, rather than one with more dimensions
    :param layers: the layers so far; an operation in place changes them for all who hold the stand-in
    """

    def __new__(cls, is_flat: bool, layers: tuple[Layer, ...] = ()) -> TracedTensor:
        """Make the tensor."""
        return NO_DATA.as_subclass(cls)

    def __init__(self, is_flat: bool, layers: tuple[Layer, ...] = ()) -> None:
        self.is_flat = is_flat
        self.layers = layers

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> TracedTensor:
        """Record a call of one of torch's functions, which comes here because an argument is a stand-in."""
        traced, *others = args or (None,)
        if not isinstance(traced, TracedTensor) or any(isinstance(other, TracedTensor) for other in others):
            raise NotPlainError(function)
        if not th.is_grad_enabled() or th.is_autocast_enabled(_device_of(others)):
            raise NotPlainError("gradients are switched off, or types changed")
        if function in ACTIVATIONS:
            return traced._activated(function, *others, **(kwargs or {}))
        record = _RECORDS.get(function, _refuse)
        return record(traced, *others, **(kwargs or {}))

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
        layers = (*others, last._replace(activation=ACTIVATIONS[function](*args, **kwargs)))
        if not _is_in_place(function, *args, **kwargs):
            return TracedTensor(self.is_flat, layers)
        self.layers = layers
        return self

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

    def size(self, dim: int) -> BatchSize:  # type: ignore[override]  # a stand-in for a number
        """Return the number of rows; other sizes are not known."""
        return self.shape[dim]

    @property
    def shape(self) -> Shape:  # type: ignore[override]  # a stand-in too
        """The shape, of which the number of rows alone may be asked."""
        return Shape()

    def reshape(self, *shape: Any) -> TracedTensor:
        """Merge all dimensions but the first; other shapes are refused."""
        is_known = len(shape) == 2 and type(shape[0]) is BatchSize and type(shape[1]) is int and shape[1] == -1
        return self.flatten(1) if is_known else _refuse()

    view = reshape  # type: ignore[assignment]
    __repr__ = _described  # type: ignore[assignment]


def _pair(sizes: Any) -> tuple[int, ...]:
    return (sizes, sizes) if isinstance(sizes, int) else tuple(sizes)


def _is_in_place(function: Callable[..., Any], *args: Any, **kwargs: Any) -> bool:
    """Check for the argument ``inplace``."""
    bound = signature(ACTIVATIONS[function]).bind(*args, **kwargs)
    return bool(bound.arguments.get("inplace", False))


def _device_of(arguments: Iterable[object]) -> str:
    return next((argument.device.type for argument in arguments if isinstance(argument, th.Tensor)), "cpu")


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
        with th.enable_grad():
            for function in functions:
                traced = function(traced)
    except Exception:  # whatever the user's code makes of a stand-in
        return None
    is_read = isinstance(traced, TracedTensor) and traced.layers
    return Stack(traced.layers) if is_read else None


def outcome(functions: Iterable[Callable[[Any], Any]], stack: Stack, x: th.Tensor) -> list[th.Tensor] | None:
    """
    Run what has been read.

    :param functions: as for :func:`trace`
    :param stack: what it has returned
    :param x: some features
    :return: outputs, and ``J^T u`` in the stack's tensors; ``None`` if the functions raise an error
    """
    h: Any = x
    try:
        with th.enable_grad():
            for function in functions:
                h = function(h)
            return _with_gradients(h, stack)
    except Exception:  # whatever the user's code does with data
        return None


def _with_gradients(h: th.Tensor, stack: Stack) -> list[th.Tensor]:
    """Differentiate outputs, weighted unevenly, in the tensors of a stack."""
    tensors = [tensor for tensor in stack.tensors if tensor.requires_grad]
    u = th.linspace(1.0, 2.0, h.numel(), dtype=h.dtype, device=h.device).view_as(h)
    gradient = th.autograd.grad(h, tensors, u, allow_unused=True, materialize_grads=True) if tensors else ()
    return [h.detach(), *gradient]


def computes_alike(found: list[th.Tensor] | None, stack: Stack, x: th.Tensor) -> bool:
    """
    Compare what functions compute with what was read from them, derivatives included.

    :param found: their :func:`outcome`
    :param stack: what was read
    :param x: the same features
    :return: whether all results agree up to rounding
    """
    expected = outcome([stack], stack, x)
    return found is not None and expected is not None and all(map(_is_close, found, expected))


def _is_close(one: th.Tensor, other: th.Tensor) -> bool:
    if one.shape != other.shape:
        return False
    return bool(_largest(one - other) <= ALIKE * (1.0 + _largest(other)))


def _largest(x: th.Tensor) -> th.Tensor:
    """Find the largest magnitude, in a tenth of the time of torch's norm."""
    smallest, largest = th.aminmax(x)
    return th.maximum(-smallest, largest)


def same_stacks(one: Stack | None, other: Stack | None) -> bool:
    """
    Compare what has been read.

    :param one: a stack, or ``None``
    :param other: the same
    :return: whether both have the same operations on the very same tensors, or both are ``None``
    """
    if one is None or other is None:
        return one is other
    return [*map(identity, one.layers)] == [*map(identity, other.layers)]


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
