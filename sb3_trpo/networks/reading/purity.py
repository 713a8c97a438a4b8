"""
Running modules without a trace of it, and noticing if they do more than compute.

A module of the user's may keep what it has seen, count its calls, constrain its weights or draw random numbers. What it
computes is then no function of its input alone, so it is not read; and whatever it has changed is as it was before. Other
threads are not disturbed, and do not disturb: a draw from torch's generators, and a write to a tensor, is refused before it
happens, rather than undone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import torch as th
from torch import nn

from sb3_trpo.numerics.side_effects import SideEffectError, without_side_effects

DEPTH = 2
"""How far inside a module's attributes changes are looked for, such as in the tensors of a list, or the list of an object."""
MOST_ITEMS, MOST_BYTES = 10_000, 2**20
"""What is looked at and copied at most, each time: a module may hold a replay memory, or all that it has ever seen."""


class Purity:
    """Tells afterwards whether modules have changed anything; see :func:`undisturbed`."""

    is_kept = True


@contextmanager
def undisturbed(*modules: nn.Module) -> Iterator[Purity]:
    """
    Run modules, or parts of them, and restore what this has changed in attributes afterwards.

    Tensors, arrays and the usual collections in attributes are restored too, as are attributes of other objects in them.
    Only tensors that are made in the block may be written to.

    :param modules: the modules. Nothing else should hold what another thread changes meanwhile: a policy itself does, as its
        distribution object is set by ``predict``
    :return: tells, after the block, whether nothing had to be restored, or refused
    :raises SideEffectError: if a random number is drawn from a generator of torch's, or another tensor is written to; before
        the block, if there is too much to look at
    """
    purity, holders = Purity(), _holders(modules)
    if sum(holder.nbytes for holder in holders if isinstance(holder, np.ndarray)) > MOST_BYTES:
        raise SideEffectError("Arrays are too large to be copied.")
    kept = [(holder, _copied(holder)) for holder in holders]
    try:
        with without_side_effects() as refusing:
            yield purity
    finally:
        changed = [(holder, before) for holder, before in kept if not _is_same(holder, before)]
        purity.is_kept = not changed and not refusing.has_refused
        for holder, before in changed:
            _restore(holder, before)


def _holders(modules: Iterable[nn.Module]) -> list[Any]:
    """List what may be changed in place: the attributes of all modules, and what is in them."""
    found: dict[int, Any] = {}
    level: Iterable[Any] = [vars(each) for module in modules for each in module.modules()]
    for _ in range(1 + DEPTH):
        new = {id(holder): holder for holder in level if id(holder) not in found}
        found |= new
        if sum(map(len, filter(_is_collection, new.values()))) > MOST_ITEMS:
            raise SideEffectError("There is too much to look at.")
        level = [holder for above in new.values() for item in _items(above) if (holder := _holder(item)) is not None]
    return [*found.values()]


def _holder(thing: Any) -> Any:
    """Return what a thing keeps its state in, if that is known: itself, or the attributes of an object."""
    if isinstance(thing, th.Tensor):
        return thing if thing.layout is th.strided else None
    if isinstance(thing, dict | list | deque | set | np.ndarray):
        return thing
    attributes = getattr(thing, "__dict__", None)
    return attributes if isinstance(attributes, dict) and not isinstance(thing, ModuleType) else None


def _is_collection(holder: Any) -> bool:
    return isinstance(holder, dict | list | deque | set)


def _items(holder: Any) -> Iterable[Any]:
    if isinstance(holder, dict):
        return list(holder.values())
    return list(holder) if isinstance(holder, list | deque) else ()


def _copied(holder: Any) -> Any:
    """Copy what a holder holds, but not the things themselves; of a tensor, keep its memory, which nothing can write to."""
    if isinstance(holder, th.Tensor):
        return holder.data, holder.requires_grad, holder.grad if holder.is_leaf else None
    if isinstance(holder, dict | set):
        return dict(holder) if isinstance(holder, dict) else set(holder)
    return holder.copy() if isinstance(holder, np.ndarray) else list(holder)


def _is_same(holder: Any, before: Any) -> bool:
    """Compare items by identity: they may be tensors."""
    if isinstance(holder, th.Tensor):
        memory, requires_grad, gradient = before
        is_same_gradient = not holder.is_leaf or holder.grad is gradient
        return holder.is_set_to(memory) and holder.requires_grad is requires_grad and is_same_gradient
    if isinstance(holder, dict):
        return holder.keys() == before.keys() and all(holder[key] is item for key, item in before.items())
    if isinstance(holder, np.ndarray):
        return bool(holder.shape == before.shape and holder.tobytes() == before.tobytes())  # NaN is the same as NaN
    if isinstance(holder, set):
        return bool(holder == before)
    return len(holder) == len(before) and all(one is other for one, other in zip(holder, before, strict=True))


def _restore(holder: Any, before: Any) -> None:
    if isinstance(holder, th.Tensor):
        holder.data, requires_grad, gradient = before
        if holder.is_leaf:
            holder.requires_grad, holder.grad = requires_grad, gradient
    elif isinstance(holder, dict):
        for name in holder.keys() - before.keys():
            del holder[name]
        holder.update(before)
    elif isinstance(holder, np.ndarray):
        holder[...] = before
    else:
        holder.clear()
        (holder.update if isinstance(holder, set) else holder.extend)(before)
