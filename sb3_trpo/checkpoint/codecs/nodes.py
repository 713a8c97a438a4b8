"""
What recording and restoring share: the form of nodes, and what they know of types.

A *node* is JSON. Plain scalars are their own nodes; any other is a dict whose first key names its kind.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import types
from collections.abc import Callable, Iterable
from datetime import date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

Node = Any
"""None, bool, int, float, str, or ``{kind: content, ...}``."""
LIVE: Node = {"live": None}
"""Not recorded: whatever is there stays."""
INTEGERS = (f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
NUMBERS = frozenset(("bool", *INTEGERS, "float16", "float32", "float64"))
"""What NumPy and safetensors both know."""
BRAIN_FLOAT = "bfloat16"
"""The one dtype of torch's that NumPy lacks and policies use; its bits are kept as int16."""
FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, type)
ANSWER = "_answer_to_checkpoint"
"""Attribute with which an env in a worker process answers questions."""
NOT_STATE = frozenset((ANSWER, "spec", "_cached_spec", "render_mode", "metadata"))
"""Attributes of an env that describe it."""


class TextLike(NamedTuple):
    """An immutable type that a text says all about."""

    type: Any
    to_text: Callable[[Any], str]
    from_text: Callable[[str], Any]


def _range_of(text: str) -> range:
    return range(*map(int, text.split()))


def _timedelta_of(text: str) -> timedelta:
    days, seconds, microseconds = map(int, text.split())
    return timedelta(days, seconds, microseconds)


TEXT_LIKE = {
    "complex": TextLike(complex, repr, complex),
    "Decimal": TextLike(Decimal, str, Decimal),
    "Fraction": TextLike(Fraction, str, Fraction),
    "datetime": TextLike(datetime, datetime.isoformat, datetime.fromisoformat),
    "date": TextLike(date, date.isoformat, date.fromisoformat),
    "timedelta": TextLike(timedelta, lambda each: f"{each.days} {each.seconds} {each.microseconds}", _timedelta_of),
    "range": TextLike(range, lambda each: f"{each.start} {each.stop} {each.step}", _range_of),
}


def qualified_name(thing: Any) -> str:
    """Give the full name of a class or function; classes of some extension modules do not know their module."""
    return f"{getattr(thing, '__module__', None)}.{thing.__qualname__}"


def brings_own_state(value: Any) -> bool:
    """
    Tell whether an object's class has ``get_state()`` and ``set_state(state)``.

    MuJoCo's environments have a ``set_state`` that takes positions and velocities, which is not meant.

    :param value: the object
    :return: whether to leave its state to it
    """
    cls = type(value)
    try:
        inspect.signature(cls.get_state).bind(value)
        inspect.signature(cls.set_state).bind(value, None)
    except (AttributeError, TypeError, ValueError):
        return False
    return True


def owner_of(array: np.ndarray) -> np.ndarray:
    """
    Follow a view to the array whose memory it shows.

    :param array: perhaps a view
    :return: the owner; one with a base shows the memory of something that is not an array
    """
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def fits(value: np.ndarray, strides: Iterable[int]) -> bool:
    """
    Tell whether an array's memory, without gaps, holds its elements at given strides too.

    :param value: the array
    :param strides: bytes between neighbours along each axis
    :return: whether no element would lie outside
    """
    steps = [*strides]
    reach = sum(stride * (length - 1) for stride, length in zip(steps, value.shape, strict=True))
    return value.size > 0 and all(stride >= 0 for stride in steps) and reach + value.itemsize <= value.nbytes


def space_parts(space: gym.Space[Any]) -> list[Any]:
    """
    Give a space's generator, and the spaces that it is made of.

    :param space: any
    :return: the generator, or ``None``, and the parts
    """
    members = [part for value in vars(space).values() for part in _members(value) if isinstance(part, gym.Space)]
    return [space._np_random, *members]


def _members(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else (value,)


def fingerprint(node: Node, arrays: dict[str, np.ndarray]) -> str:
    """
    Digest a node and its arrays.

    :param node: to digest
    :param arrays: that it refers to
    :return: SHA-256, in hexadecimal digits
    """
    digest = hashlib.sha256(json.dumps(node).encode())
    for array in arrays.values():
        digest.update(array.tobytes())
    return digest.hexdigest()
