"""
Live objects as plain data; :mod:`sb3_trpo.checkpoint.restoring` is the way back.

A :class:`Recorder` turns a value into a *node*: JSON, with arrays kept apart under their path. Plain scalars are their own
nodes; any other node is a dict whose first key names its kind.
"""

from __future__ import annotations

import enum
import hashlib
import inspect
import io
import json
import logging
import math
import os
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

Node = Any
"""None, bool, int, float, str, or ``{kind: content, ...}``."""
LIVE: Node = {"live": None}
"""Not recorded: whatever is there stays."""
PACKED_LENGTH = 8
"""From this length on, a list of numbers of one type is kept as an array."""
NUMBERS = frozenset(
    ("bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)), "float16", "float32", "float64")
)
"""What NumPy and safetensors both know."""
BRAIN_FLOAT = "bfloat16"
"""The one dtype of torch's that NumPy lacks; its bits are kept as int16."""
ANSWER = "_answer_to_checkpoint"
"""Attribute with which an env in a worker process answers questions."""
NOT_STATE = frozenset((ANSWER, "spec", "_cached_spec", "render_mode", "metadata"))
"""Attributes of an env that describe it."""
OF_NO_CONSEQUENCE = (
    *("pygame", "pyglet", "glfw", "OpenGL", "cv2", "PIL", "imageio", "moviepy", "matplotlib"),
    *("gymnasium.envs.mujoco.mujoco_rendering", "gymnasium.envs.registration"),
    *("threading", "_thread", "multiprocessing", "concurrent", "subprocess", "socket", "asyncio", "logging", "wandb", "tqdm"),
)
"""Modules of objects that draw, log or communicate: they do not belong to what is simulated."""


SIMULATORS: dict[str, Callable[[Any, Recorder, str], Node]] = {}
"""How to record objects of extension modules that may not be installed, by the name of their class."""


class _Bare:
    """An object with attributes and nothing else: what is larger has a part that attributes do not show."""


class Recorder:
    """
    Turns live values into nodes.

    :param descends: whether to look into objects; if not, they are left to whoever made them
    """

    def __init__(self, descends: bool = True) -> None:
        self.descends = descends
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
        """Make a container's node; without descending, one that holds what is not recorded is not either."""
        return LIVE if not self.descends and LIVE in children else {kind: items, **more}

    def array(self, value: np.ndarray, path: str) -> Node:
        """
        Keep an array, and how it lies in memory: a convolution of a transposed image rounds differently.

        :param value: the array
        :param path: where it is kept
        :return: the path, with the strides if they are not those of a new array
        """
        self.arrays[path] = np.asarray(value, order="C")
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
        Record an object's attributes, but for what stays as it is, and for paths in a file system.

        :param owner: the object
        :param path: where it is found
        :param skip: names to leave out
        :return: nodes by name
        """
        kept = {name: value for name, value in vars(owner).items() if name not in skip and not is_file_path(value)}
        nodes = {name: self.node(value, f"{path}/{name}") for name, value in kept.items()}
        return {name: node for name, node in nodes.items() if node != LIVE}


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


def qualified_name(thing: Any) -> str:
    """Give the full name of a class or function; classes of some extension modules do not know their module."""
    return f"{getattr(thing, '__module__', None)}.{thing.__qualname__}"


def is_file_path(value: Any) -> bool:
    """Tell whether a value looks like a place in a file system, which the user's script decides."""
    return isinstance(value, str) and any(separator in value for separator in ("/", os.sep))


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
    if not hasattr(value, "__dict__") or cls.__basicsize__ != _Bare.__basicsize__:
        return recorder.reject(value, path)
    return recorder.once(value, path, lambda: _record_object(value, recorder, path))


for stable in (
    *(types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType, type, partial, property, weakref.ref),
    *(EnvSpec, PurePath, np.dtype, np.ufunc, th.dtype, th.device, re.Pattern, logging.Logger, io.IOBase),
):
    record.register(stable, lambda value, recorder, path: LIVE)
for scalar in (type(None), bool, int, str):
    record.register(scalar, lambda value, recorder, path: value)


@record.register(float)
def _(value: float, recorder: Recorder, path: str) -> Node:
    return value if math.isfinite(value) else {"float": repr(value)}


@record.register(bytes)
@record.register(bytearray)
def _(value: bytes | bytearray, recorder: Recorder, path: str) -> Node:
    return {"bytes": recorder.array(np.frombuffer(value, np.uint8), path)}


@record.register(np.ndarray)
def _(value: np.ndarray, recorder: Recorder, path: str) -> Node:
    if value.dtype.name not in NUMBERS or type(value) is not np.ndarray:
        return recorder.reject(value, path)
    return recorder.once(value, path, lambda: {"array": recorder.array(value, path)})


@record.register(np.generic)
def _(value: np.generic, recorder: Recorder, path: str) -> Node:
    is_number = value.dtype.name in NUMBERS
    return {"scalar": recorder.array(np.asarray(value), path)} if is_number else recorder.reject(value, path)


@record.register(th.Tensor)
def _(value: th.Tensor, recorder: Recorder, path: str) -> Node:
    def make() -> Node:
        data, dtype = value.detach().cpu(), str(value.dtype).removeprefix("torch.")
        bits = data.view(th.int16) if dtype == BRAIN_FLOAT else data
        return {"tensor": recorder.array(bits.numpy(), path), "dtype": dtype}

    return recorder.once(value, path, make)


@record.register(list)
@record.register(tuple)
@record.register(set)
@record.register(frozenset)
@record.register(deque)
def _(value: Any, recorder: Recorder, path: str) -> Node:
    kind = next(base for base in (list, tuple, set, frozenset, deque) if isinstance(value, base))
    if type(value) is not kind and not hasattr(value, "_fields"):
        return recorder.reject(value, path)
    more = {"maxlen": value.maxlen} if isinstance(value, deque) else {}

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
        return recorder.container("dict", [[*pair] for pair in zip(keys, values, strict=True)], [*keys, *values])

    return recorder.once(value, path, make)


@record.register(np.random.Generator)
def _(value: np.random.Generator, recorder: Recorder, path: str) -> Node:
    bits = value.bit_generator
    state = partial(recorder.node, bits.state, f"{path}/state")
    return recorder.once(value, path, lambda: {"generator": type(bits).__name__, "state": state()})


@record.register(np.random.RandomState)
def _(value: np.random.RandomState, recorder: Recorder, path: str) -> Node:
    state = partial(recorder.node, value.get_state(legacy=False), f"{path}/state")
    return recorder.once(value, path, lambda: {"random_state": state()})


@record.register(random.Random)
def _(value: random.Random, recorder: Recorder, path: str) -> Node:
    return recorder.once(value, path, lambda: {"random": recorder.node(value.getstate(), f"{path}/state")})


@record.register(th.Generator)
def _(value: th.Generator, recorder: Recorder, path: str) -> Node:
    state = partial(recorder.node, value.get_state(), f"{path}/state")
    return recorder.once(value, path, lambda: {"torch_generator": state()})


@record.register(gym.Space)
def _(value: gym.Space[Any], recorder: Recorder, path: str) -> Node:
    """Record a space's generators; what it contains is the script's."""
    return recorder.once(value, path, lambda: {"space": recorder.nodes(space_parts(value), path)})


@record.register(th.nn.Module)
def _(value: th.nn.Module, recorder: Recorder, path: str) -> Node:
    return recorder.once(value, path, lambda: {"module": recorder.node(dict(value.state_dict()), path)})


@record.register(th.optim.Optimizer)
def _(value: th.optim.Optimizer, recorder: Recorder, path: str) -> Node:
    return recorder.once(value, path, lambda: {"optimizer": recorder.node(value.state_dict(), path)})


def space_parts(space: gym.Space[Any]) -> list[Any]:
    """Give a space's generator, and the spaces that it is made of."""
    members = [part for value in vars(space).values() for part in _members(value) if isinstance(part, gym.Space)]
    return [space._np_random, *members]


def _members(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else (value,)


ALWAYS_OURS = (gym.Env, gym.Space, np.random.Generator)
"""Attributes that are recorded even where the rest of an object's state is its own affair, or beyond reach."""


def _record_object(value: Any, recorder: Recorder, path: str) -> Node:
    """Record an object by its attributes; if one cannot be, by none but generators and what it wraps."""
    name, ours = qualified_name(type(value)), {each for each, part in vars(value).items() if isinstance(part, ALWAYS_OURS)}
    state = recorder.attributes(value, path, skip=vars(value).keys() - ours)
    if brings_own_state(value):
        return {"object": name, "state": state, "own": recorder.node(value.get_state(), f"{path}/own")}
    arrays, seen, opaque = dict(recorder.arrays), dict(recorder._seen), set(recorder.opaque)
    rest = recorder.attributes(value, path, skip=ours | NOT_STATE)
    if recorder.opaque.keys() - opaque:
        recorder.arrays, recorder._seen = arrays, seen
        rest = {}
    return {"object": name, "state": state | rest}
