"""
Plain data back into live objects: the way back from :mod:`sb3_trpo.checkpoint.codecs.recording`.

A :class:`Restorer` makes the value of a node in the likeness of what is there: objects are filled in place, everything else is
made anew. No class is looked up and nothing is called by a name that a node gives: a node from a stranger cannot run code.
"""

from __future__ import annotations

import copy
import enum
from collections import deque
from collections.abc import Callable, Container
from typing import Any

import numpy as np
from stable_baselines3.common.monitor import ResultsWriter

from sb3_trpo.checkpoint.codecs.file_paths import is_file_path, points_away
from sb3_trpo.checkpoint.codecs.nodes import (
    FUNCTIONS,
    NOT_STATE,
    TEXT_LIKE,
    Node,
    brings_own_state,
    fits,
    qualified_name,
)
from sb3_trpo.checkpoint.codecs.recording import is_open


class MismatchError(ValueError):
    """What is there is not what a node was made of."""


class Restorer:
    """
    Makes values of nodes.

    :param arrays: by path
    """

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self.arrays = arrays
        self.failed: list[str] = []
        """What could not be restored, where the run can go on without."""
        self._made: dict[str, Any] = {}
        self._filled: dict[int, Any] = {}

    def value(self, node: Node, live: Any, path: str) -> Any:
        """
        Make a value.

        :param node: of the value
        :param live: what is there now
        :param path: where that is
        :return: what should be there
        :raises MismatchError: if what is there cannot become that
        """
        if not isinstance(node, dict):
            return node
        kind = next(iter(node), "")
        if kind not in MAKERS:
            raise MismatchError(f"{path} is of the unknown kind {kind!r}")
        try:
            self._made[path] = MAKERS[kind](self, node, live, path)
        except MismatchError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RuntimeError) as error:
            raise MismatchError(f"{path} cannot be restored: {error}") from error
        return self._made[path]

    def array(self, reference: Node) -> np.ndarray:
        """Give an array of its own, laid out in memory as the one that was recorded."""
        if isinstance(reference, str):
            return self.arrays[reference].copy()
        path, strides = reference
        saved = self.arrays[path]
        if not fits(saved, strides):
            raise ValueError(f"an array of shape {saved.shape} cannot have the strides {strides}")
        made = np.lib.stride_tricks.as_strided(np.empty(saved.size, saved.dtype), saved.shape, strides)
        made[...] = saved
        return made

    def to_fill(self, live: Any) -> Any:
        """Give an object to fill; one that has been filled for another place, where it was not the same, is copied."""
        mine = copy.copy(live) if id(live) in self._filled else live
        self._filled[id(mine)] = mine
        return mine

    def values(self, nodes: list[Node], live: Any, path: str) -> list[Any]:
        """Make several values; what is there may be fewer, or nothing."""
        there = [*live] if isinstance(live, (list, tuple, deque, set, frozenset)) else []
        filler = there[0] if there and isinstance(there[0], enum.Enum) else None  # its class is enough
        there += [filler] * (len(nodes) - len(there))
        return [self.value(node, there[index], f"{path}/{index}") for index, node in enumerate(nodes)]

    def attributes(self, owner: Any, nodes: dict[str, Node], path: str, skip: Container[str] = ()) -> None:
        """
        Set an object's attributes.

        :param owner: the object
        :param nodes: by name
        :param path: where it is found
        :param skip: names to leave alone
        :raises MismatchError: if a value does not fit
        """
        there = vars(owner)
        for name, node in nodes.items():
            live = there.get(name)
            stays = node is None and isinstance(live, ResultsWriter)  # the script has begun to log episodes
            if name in skip or stays or _is_the_scripts(name, node, live):
                continue
            hides = callable(getattr(type(owner), name, None)) or isinstance(live, FUNCTIONS)
            stays_function = isinstance(live, FUNCTIONS) and isinstance(node, dict) and "function" in node
            if not name.isidentifier() or name.startswith("__") or (hides and not stays_function):
                raise MismatchError(f"{path}/{name} would hide a method of {qualified_name(type(owner))}")
            made = self.value(node, live, f"{path}/{name}")
            if not (_was_changed(node) and points_away(made)):
                there[name] = made

    def items(self, content: Any, live: Any, path: str) -> list[Any]:
        """Make the items of a list or its like."""
        if isinstance(content, str):
            packed: list[Any] = self.arrays[content].tolist()
            return packed
        return self.values(content, live, path)


def _is_the_scripts(name: str, node: Node, live: Any) -> bool:
    """Tell whether an attribute is a path to leave alone; one that the run has changed is not."""
    return not _was_changed(node) and (is_file_path(name, node) or is_file_path(name, live))


def _was_changed(node: Node) -> bool:
    return isinstance(node, dict) and "changed" in node


def _make_function(restorer: Restorer, node: Node, live: Any, path: str) -> Any:
    if not isinstance(live, FUNCTIONS) or qualified_name(live) != node["function"]:
        raise MismatchError(f"{path} was the function {node['function']}, and is another now")
    return live


def _make_tuple(restorer: Restorer, node: Node, live: Any, path: str) -> Any:
    items = restorer.items(node["tuple"], live, path)
    if "fields" not in node:
        return tuple(items)
    if getattr(live, "_fields", None) != (*node["fields"],):
        raise MismatchError(f"{path} was a tuple with the fields {node['fields']}, which is not there now")
    return type(live)(*items)


def _make_dict(restorer: Restorer, node: Node, live: Any, path: str) -> dict[Any, Any]:
    made = copy.copy(live) if isinstance(live, dict) else {}  # a defaultdict keeps its factory
    there = dict(made)
    made.clear()
    keys = [*there]
    for index, (key_node, value_node) in enumerate(node["dict"]):
        key = restorer.value(key_node, keys[index % len(keys)] if keys else None, f"{path}/key/{index}")
        made[key] = restorer.value(value_node, there.get(key), f"{path}/{index}")
    return made


def _make_enum(restorer: Restorer, node: Node, live: Any, path: str) -> Any:
    if not isinstance(live, enum.Enum):
        raise MismatchError(f"{path} was {node['enum']} of an enumeration, but is {live!r}")
    return type(live)[node["enum"]]


def _make_flag(restorer: Restorer, node: Node, live: Any, path: str) -> Any:
    if not isinstance(live, enum.Flag):
        raise MismatchError(f"{path} was a flag, but is {live!r}")
    return type(live)(node["flag"])


def _make_list(restorer: Restorer, node: Node, live: Any, path: str) -> list[Any]:
    made: list[Any] = []
    restorer._made[path] = made  # it may hold itself
    made += restorer.items(node["list"], live, path)
    return made


def _make_live(restorer: Restorer, node: Node, live: Any, path: str) -> Any:
    if live is None:
        raise MismatchError(f"{path} held something that cannot be recorded, and is not there now")
    return live


def _make_object(restorer: Restorer, node: Node, live: Any, path: str) -> Any:
    if qualified_name(type(live)) != node["object"] or not is_open(live) or ("own" in node and not brings_own_state(live)):
        raise MismatchError(f"{path} was a {node['object']}, but is a {qualified_name(type(live))}")
    restorer._made[path] = live = restorer.to_fill(live)  # its parts may know it
    restorer.attributes(live, node["state"], path, skip=NOT_STATE)
    if "own" in node:
        live.set_state(restorer.value(node["own"], None, f"{path}/own"))
    return live


def _make_text_like(restorer: Restorer, node: Node, live: Any, path: str) -> Any:
    (kind,) = node
    return TEXT_LIKE[kind].from_text(node[kind])


MAKERS: dict[str, Callable[[Restorer, Node, Any, str], Any]] = {
    **dict.fromkeys(TEXT_LIKE, _make_text_like),
    "live": _make_live,
    "changed": lambda restorer, node, live, path: restorer.value(node["changed"], live, path),
    "float": lambda restorer, node, live, path: float(node["float"]),
    "enum": _make_enum,
    "flag": _make_flag,
    "bytes": lambda restorer, node, live, path: restorer.arrays[node["bytes"]].tobytes(),
    "bytearray": lambda restorer, node, live, path: bytearray(restorer.arrays[node["bytearray"]].tobytes()),
    "function": _make_function,
    "list": _make_list,
    "tuple": _make_tuple,
    "set": lambda restorer, node, live, path: set(restorer.items(node["set"], live, path)),
    "frozenset": lambda restorer, node, live, path: frozenset(restorer.items(node["frozenset"], live, path)),
    "deque": lambda restorer, node, live, path: deque(restorer.items(node["deque"], live, path), node["maxlen"]),
    "dict": _make_dict,
    "same": lambda restorer, node, live, path: restorer._made[node["same"]],
    "object": _make_object,
}
