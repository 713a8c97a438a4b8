"""
Running modules without a trace of it, and noticing if they do more than compute.

A module of the user's may keep what it has seen, count its calls or draw random numbers. What it computes is then no function
of its input alone, so it is not read; and whatever it has changed is as it was before. Other threads are not disturbed, and do
not disturb: a draw from torch's generators is refused before it happens, rather than undone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from sb3_trpo.numerics.torch_private import without_random_numbers


class Purity:
    """Tells afterwards whether modules have changed anything; see :func:`undisturbed`."""

    is_kept = True


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[Purity]:
    """
    Run a module, or parts of it, and restore attributes that this has changed afterwards.

    Lists and dicts in attributes are restored too, but not what they contain, nor objects of other kinds.

    :param module: the module
    :return: tells, after the block, whether nothing had to be restored
    :raises RandomNumberError: if a random number is drawn from a generator of torch's
    """
    purity = Purity()
    attributes = [(vars(each), _copied(vars(each))) for each in module.modules()]
    try:
        with without_random_numbers():
            yield purity
    finally:
        changed = [(own, before) for own, before in attributes if not _same(own, before)]
        purity.is_kept = not changed
        for own, before in changed:
            _restore(own, before)


def _copied(own: dict[str, Any]) -> dict[str, Any]:
    """Copy attributes, with lists and dicts one level deep. Those of torch, such as the parameters, change with the module."""
    return {name: (value, value.copy() if isinstance(value, list | dict) else None) for name, value in own.items()}


def _same(own: dict[str, Any], before: dict[str, Any]) -> bool:
    return own.keys() == before.keys() and all(
        value is before[name][0] and _has_same_items(value, before[name][1]) for name, value in own.items()
    )


def _has_same_items(value: Any, items: Any) -> bool:
    """Compare by identity: items may be tensors."""
    if items is None:
        return True
    if isinstance(items, dict):
        return value.keys() == items.keys() and all(value[key] is item for key, item in items.items())
    return len(value) == len(items) and all(one is other for one, other in zip(value, items, strict=True))


def _restore(own: dict[str, Any], before: dict[str, Any]) -> None:
    for name in own.keys() - before.keys():
        del own[name]
    for name, (value, items) in before.items():
        own[name] = value
        if isinstance(items, dict):
            value.clear()
            value.update(items)
        elif items is not None:
            value[:] = items
