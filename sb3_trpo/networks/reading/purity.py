"""
Running modules without a trace of it, and noticing if they do more than compute.

A module of the user's may keep what it has seen, count its calls or draw random numbers. What it computes is then no function
of its input alone, so it is not read; and whatever it has changed is as it was before.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch as th
from torch import nn


class Purity:
    """Tells afterwards whether modules have changed anything; see :func:`undisturbed`."""

    is_kept = True


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[Purity]:
    """
    Run a module, or parts of it, and restore afterwards what that has changed: attributes and random generators.

    Lists and dicts in attributes are restored too, but not what they contain, nor objects of other kinds.

    :param module: the module
    :return: tells, after the block, whether nothing had to be restored
    """
    purity = Purity()
    attributes = [(vars(each), _copied(vars(each))) for each in module.modules()]
    generators = _generator_states()
    try:
        yield purity
    finally:
        now = _generator_states()
        changed = [(own, before) for own, before in attributes if not _same(own, before)]
        purity.is_kept = not changed and all(map(_equal, generators, now))
        for own, before in changed:
            _restore(own, before)
        _set_generators(generators)


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


def _generator_states() -> list[Any]:
    """Read the states of the global generators: torch's, NumPy's and Python's."""
    of_gpu = [th.cuda.get_rng_state()] if th.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    return [th.get_rng_state(), np.random.get_state(legacy=False), random.getstate(), *of_gpu]


def _equal(before: Any, after: Any) -> bool:
    if isinstance(before, th.Tensor):
        return th.equal(before, after)
    if isinstance(before, dict):
        return before.keys() == after.keys() and all(map(_equal, before.values(), after.values()))
    return bool(np.array_equal(before, after)) if isinstance(before, np.ndarray) else bool(before == after)


def _set_generators(states: list[Any]) -> None:
    of_torch, of_numpy, of_python, *of_gpu = states
    th.set_rng_state(of_torch)
    np.random.set_state(of_numpy)
    random.setstate(of_python)
    for state in of_gpu:
        th.cuda.set_rng_state(state)
