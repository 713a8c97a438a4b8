"""Refusing operations of torch that do more than compute a new tensor from others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch as th

from sb3_trpo.numerics.torch_private import DispatchMode, effects_of


class SideEffectError(RuntimeError):
    """Something wants to draw a random number, or to write to a tensor, where it may not."""


class _NoSideEffects(DispatchMode):  # type: ignore[no-untyped-call]  # torch's, without types
    """
    Refuses operations that draw from torch's generators or write to a tensor from elsewhere, in this thread alone.

    Memory in use when the block begins is not given to a new tensor, so its address tells an old tensor from a new one.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # the same
        self.has_refused = False
        self._own_memory: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        written, is_new = effects_of(func)
        if th.Tag.nondeterministic_seeded in func.tags:
            self._refuse(f"{func} draws random numbers.")
        if written and any(not self._is_own(each) for each in _written_tensors(written, args, kwargs)):
            self._refuse(f"{func} writes to a tensor.")
        results = func(*args, **kwargs)
        if is_new:
            self._own_memory.update(map(_address, _tensors_in(results)))
        return results

    def _is_own(self, tensor: th.Tensor) -> bool:
        return tensor.numel() == 0 or _address(tensor) in self._own_memory

    def _refuse(self, reason: str) -> None:
        self.has_refused = True
        raise SideEffectError(reason)


def _written_tensors(written: Iterable[tuple[int, str]], args: Any, kwargs: Any) -> list[th.Tensor]:
    values = [args[i] if i < len(args) else kwargs.get(name) for i, name in written]
    return [tensor for value in values for tensor in _tensors_in(value)]


def _tensors_in(value: Any) -> list[th.Tensor]:
    """List the tensors of an argument or result, which is a tensor, a sequence of some, or anything else."""
    values = value if isinstance(value, list | tuple) else [value]
    return [each for each in values if isinstance(each, th.Tensor)]


def _address(tensor: th.Tensor) -> int:
    """Return the address of a tensor's memory, or -1 for one that is sparse."""
    return tensor.untyped_storage().data_ptr() if tensor.layout is th.strided else -1


def without_side_effects() -> _NoSideEffects:
    """
    Refuse to draw random numbers inside a block, and to write to tensors that were not made in it, before either happens.

    :return: the context manager, whose ``has_refused`` tells whether it had to; a draw from one of torch's generators, or such
        a write, raises a :class:`SideEffectError`
    """
    return _NoSideEffects()
