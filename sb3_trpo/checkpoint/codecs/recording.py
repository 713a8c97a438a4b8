"""
Live objects as plain data; :mod:`sb3_trpo.checkpoint.codecs.restoring` is the way back.

A :class:`Recorder` turns a value into a node, with arrays kept apart under their path.
"""

from __future__ import annotations

import enum
import io
import logging
import math
import random
import re
import types
import weakref
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Container, Iterable
from functools import partial, singledispatch
from pathlib import PurePath
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium.envs.registration import EnvSpec

from sb3_trpo.checkpoint.codecs.file_paths import Places, Verdict
from sb3_trpo.checkpoint.codecs.nodes import (
    LIVE,
    NOT_STATE,
    TEXT_LIKE,
    Node,
    brings_own_state,
    fits,
    qualified_name,
)

PACKED_LENGTH = 8
"""From this length on, a list of numbers of one type is kept as an array."""
LONGEST_INT = 2**13
"""Bits; Python refuses to read much longer ones from text."""
OF_NO_CONSEQUENCE = tuple(
    f"{module}."
    for module in (
        *(f"pygame.{part}" for part in ("surface", "time", "font", "mixer", "display", "window", "joystick", "event")),
        *("pyglet", "glfw", "OpenGL", "moviepy", "matplotlib"),
        *("gymnasium.envs.mujoco.mujoco_rendering", "gymnasium.envs.registration"),
        *("threading", "_thread", "logging", "wandb", "tqdm"),
    )
)
"""Modules of objects that draw, log or lock: they do not belong to what is simulated."""
SIMULATORS: dict[str, Callable[[Any, Recorder, str], Node]] = {}
"""How to record objects of extension modules that may not be installed, by the name of their class."""


class _Bare:
    """An object with attributes and nothing else: what is larger has a part that attributes do not show."""


class Recorder:
    """
    Turns live values into nodes.

    :param descends: whether to look into objects; if not, they are left to whoever made them
    :param places: what is known of paths in a file system; if nothing is, they all are the script's
    """

    def __init__(self, descends: bool = True, places: Places | None = None) -> None:
        self.descends = descends
        self.places = places or Places()
        self.arrays: dict[str, np.ndarray] = {}
        self.opaque: dict[str, str] = {}
        """Paths of what cannot be recorded, with its type."""
        self._seen: dict[int, tuple[str | None, Any]] = {}

    def node(self, value: Any, path: str) -> Node:
        """
        Record a value.

        :param value: anything
        :param path: where it is found, unique
        :return: its node
        """
        if isinstance(value, enum.Flag):
            return {"flag": value.value}
        if isinstance(value, enum.Enum):
            return {"enum": value.name}
        return record(value, self, path)

    def nodes(self, values: Iterable[Any], path: str) -> list[Node]:
        """Record several values under one path."""
        return [self.node(value, f"{path}/{index}") for index, value in enumerate(values)]

    def once(self, value: Any, path: str, make: Callable[[], Node]) -> Node:
        """Record a mutable value, or say where it has been met before."""
        if id(value) in self._seen:
            first, _ = self._seen[id(value)]
            return LIVE if first is None else {"same": first}
        self._seen[id(value)] = (path, value)  # kept, so that no other object gets its id
        node = make()
        if node == LIVE:
            self._seen[id(value)] = (None, value)
        return node

    def container(self, kind: str, items: Node, children: Iterable[Node], **more: Any) -> Node:
        """Make a container's node; one that holds nothing that is recorded is not either, without descending, nor in part."""
        unrecorded = [child == LIVE for child in children]
        return LIVE if unrecorded and (all(unrecorded) or (any(unrecorded) and not self.descends)) else {kind: items, **more}

    def array(self, value: np.ndarray, path: str) -> Node:
        """
        Keep an array, and how it lies in memory: a convolution of a transposed image rounds differently.

        :param value: the array
        :param path: where it is kept
        :return: the path, with the strides if they are not those of a new array
        """
        self.arrays[path] = np.array(value, order="C")
        usual = value.itemsize * np.cumprod([1, *value.shape[:0:-1]])[::-1]
        return path if value.strides == (*usual[: value.ndim],) or not fits(value, value.strides) else [path, [*value.strides]]

    def reject(self, value: Any, path: str) -> Node:
        """Note that a value cannot be recorded."""
        self.opaque[path] = qualified_name(type(value))
        return LIVE

    def absorb(self, arrays: dict[str, np.ndarray], opaque: dict[str, str], prefix: str = "") -> None:
        """Take over what another recorder has."""
        self.arrays |= {prefix + path: array for path, array in arrays.items()}
        self.opaque |= {prefix + path: name for path, name in opaque.items()}

    def attributes(self, owner: Any, path: str, skip: Container[str] = ()) -> dict[str, Node]:
        """
        Record an object's attributes, but for what stays as it is, and for paths that are the script's.

        :param owner: the object
        :param path: where it is found
        :param skip: names to leave out
        :return: nodes by name
        """
        kept = {name: value for name, value in vars(owner).items() if name not in skip}
        nodes = {name: self.attribute(name, value, f"{path}/{name}") for name, value in kept.items()}
        return {name: node for name, node in nodes.items() if node != LIVE}

    def attribute(self, name: str, value: Any, path: str) -> Node:
        """
        Record one attribute of an object.

        :param name: of the attribute
        :param value: of it
        :param path: where it is found
        :return: its node
        """
        verdict = self.places.judge(path, name, value)
        node = LIVE if verdict is Verdict.LEFT else self.node(value, path)
        return {"changed": node} if verdict is Verdict.CHANGED and node != LIVE else node


@singledispatch
def record(value: Any, recorder: Recorder, path: str) -> Node:
    """
    Record a value; dispatches on its type.

    :param value: anything
    :param recorder: keeps arrays
    :param path: where it is found
    :return: its node
    """
    cls = type(value)
    name = qualified_name(cls)
    if name in SIMULATORS:
        return recorder.once(value, path, lambda: SIMULATORS[name](value, recorder, path))
    if name.startswith(OF_NO_CONSEQUENCE) or not recorder.descends:
        return LIVE
    if not is_open(value):
        return recorder.reject(value, path)
    return recorder.once(value, path, lambda: record_object(value, recorder, path))


def is_open(value: Any) -> bool:
    """
    Tell whether an object is known by its attributes.

    :param value: anything
    :return: whether it has attributes, and no part that they do not show
    """
    cls = type(value)
    is_other = record.dispatch(cls) is not record.dispatch(object) or isinstance(value, enum.Enum)
    is_bare = hasattr(value, "__dict__") and cls.__basicsize__ == _Bare.__basicsize__
    return is_bare and not is_other and not qualified_name(cls).startswith(OF_NO_CONSEQUENCE)


for stable in (
    *(type, types.ModuleType, property, weakref.ref),
    *(EnvSpec, PurePath, np.dtype, np.ufunc, th.dtype, th.device, re.Pattern, logging.Logger, io.IOBase),
):
    record.register(stable, lambda value, recorder, path: LIVE)
for scalar in (type(None), bool, str):
    record.register(scalar, lambda value, recorder, path: value)


def _record_text_like(value: Any, recorder: Recorder, path: str) -> Node:
    known = TEXT_LIKE.get(type(value).__name__)
    return (
        {type(value).__name__: known.to_text(value)} if known and known.type is type(value) else recorder.reject(value, path)
    )


for text_like in TEXT_LIKE.values():
    record.register(text_like.type, _record_text_like)


@record.register(int)
def _(value: int, recorder: Recorder, path: str) -> Node:
    return value if value.bit_length() <= LONGEST_INT else recorder.reject(value, path)


@record.register(types.FunctionType)
@record.register(types.MethodType)
def _(value: types.FunctionType | types.MethodType, recorder: Recorder, path: str) -> Node:
    """Note which function it is: one of several may say what phase an env is in."""
    return {"function": qualified_name(value)} if recorder.descends else LIVE


@record.register(types.BuiltinFunctionType)
def _(value: types.BuiltinFunctionType, recorder: Recorder, path: str) -> Node:
    """Leave a function that belongs to a module, or to what is filled in place; a list's method would keep the old list."""
    is_steady = isinstance(value.__self__, (types.ModuleType, type(None), type, *DRAWING))
    return LIVE if is_steady or not recorder.descends else recorder.reject(value, path)


@record.register(partial)
def _(value: partial[Any], recorder: Recorder, path: str) -> Node:
    """Leave a function with arguments that stay or are filled in place; containers would be replaced behind its back."""
    has_container = any(isinstance(each, CONTAINERS) for each in (*value.args, *value.keywords.values()))
    return recorder.reject(value, path) if has_container and recorder.descends else LIVE


@record.register(float)
def _(value: float, recorder: Recorder, path: str) -> Node:
    return value if math.isfinite(value) else {"float": repr(value)}


@record.register(bytes)
@record.register(bytearray)
def _(value: bytes | bytearray, recorder: Recorder, path: str) -> Node:
    data = np.frombuffer(bytes(value), np.uint8)
    return recorder.once(value, path, lambda: {type(value).__name__: recorder.array(data, path)})


@record.register(list)
@record.register(tuple)
@record.register(set)
@record.register(frozenset)
@record.register(deque)
def _(value: Any, recorder: Recorder, path: str) -> Node:
    kind = next(base for base in (list, tuple, set, frozenset, deque) if isinstance(value, base))
    if type(value) is not kind and not hasattr(value, "_fields"):
        return recorder.reject(value, path)
    more: dict[str, Any] = {"maxlen": value.maxlen} if isinstance(value, deque) else {}
    if type(value) is not kind:
        more["fields"] = [*value._fields]

    def make() -> Node:
        items = _record_items(value, recorder, path)
        return recorder.container(kind.__name__, items, items if isinstance(items, list) else (), **more)

    return recorder.once(value, path, make)


def _record_items(values: Any, recorder: Recorder, path: str) -> Node:
    """Record items, packed into an array where they are many numbers of one type."""
    for number, dtype in ((float, np.float64), (int, np.int64)):
        if len(values) >= PACKED_LENGTH and all(type(each) is number for each in values):
            try:
                return recorder.array(np.array([*values], dtype), path)
            except OverflowError:  # integers beyond 64 bits
                break
    return recorder.nodes(values, path)


@record.register(dict)
def _(value: dict[Any, Any], recorder: Recorder, path: str) -> Node:
    if type(value) not in (dict, OrderedDict, defaultdict, Counter):
        return recorder.reject(value, path)

    def make() -> Node:
        keys, values = recorder.nodes(value, f"{path}/key"), recorder.nodes(value.values(), path)
        return recorder.container("dict", [[*pair] for pair in zip(keys, values, strict=True)], values)

    return recorder.once(value, path, make)


CONTAINERS = (list, dict, set, deque, bytearray)
DRAWING = (np.random.Generator, np.random.RandomState, random.Random)
ALWAYS_OURS = (gym.Env, gym.Space, np.random.Generator)
"""Attributes that are recorded even where the rest of an object's state is its own affair, or beyond reach."""


def record_object(value: Any, recorder: Recorder, path: str) -> Node:
    """
    Record an object by its attributes; if one cannot be, by none but generators and what it wraps.

    :param value: the object
    :param recorder: keeps arrays, and notes what cannot be recorded
    :param path: where it is found
    :return: its node
    """
    name, ours = qualified_name(type(value)), {each for each, part in vars(value).items() if isinstance(part, ALWAYS_OURS)}
    state = recorder.attributes(value, path, skip=vars(value).keys() - ours)
    arrays, seen, opaque = dict(recorder.arrays), dict(recorder._seen), set(recorder.opaque)
    if brings_own_state(value):
        more: Node = {"own": recorder.node(value.get_state(), f"{path}/own")}
    else:
        more = {"state": state | recorder.attributes(value, path, skip=ours | NOT_STATE)}
    if recorder.opaque.keys() - opaque:
        recorder.arrays, recorder._seen = arrays, seen
        more = {}
    return {"object": name, "state": state, **more}
