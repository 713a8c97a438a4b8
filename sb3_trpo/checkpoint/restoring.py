"""
Plain data back into live objects: the way back from :mod:`sb3_trpo.checkpoint.recording`.

A :class:`Restorer` makes the value of a node in the likeness of what is there: objects are filled in place, everything else is
made anew. No class is looked up and nothing is called by a name that a node gives: a node from a stranger cannot run code.
"""

from __future__ import annotations

import copy
import enum
import random
from collections import deque
from collections.abc import Callable, Container
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.monitor import ResultsWriter

from sb3_trpo.checkpoint.nodes import (
    BRAIN_FLOAT,
    FUNCTIONS,
    NOT_STATE,
    NUMBERS,
    Node,
    brings_own_state,
    fits,
    is_file_path,
    owner_of,
    qualified_name,
    space_parts,
)
from sb3_trpo.checkpoint.recording import is_open

BIT_GENERATORS = ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")


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

    def own(self, live: Any) -> Any:
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
            if name in skip or stays or is_file_path(name, node) or is_file_path(name, live):
                continue
            is_function = isinstance(live, FUNCTIONS) and not (isinstance(node, dict) and "function" in node)
            if not name.isidentifier() or name.startswith("__") or callable(getattr(type(owner), name, None)) or is_function:
                raise MismatchError(f"{path}/{name} would hide a method of {qualified_name(type(owner))}")
            there[name] = self.value(node, live, f"{path}/{name}")

    def items(self, content: Any, live: Any, path: str) -> list[Any]:
        """Make the items of a list or its like."""
        if isinstance(content, str):
            packed: list[Any] = self.arrays[content].tolist()
            return packed
        return self.values(content, live, path)


def _in_place(saved: np.ndarray, live: Any, path: str) -> np.ndarray:
    """Write into a window on a simulator's memory; anything else is replaced."""
    if not isinstance(live, np.ndarray) or owner_of(live).base is None or not live.flags.writeable:
        return saved
    if live.shape != saved.shape or live.dtype != saved.dtype:
        raise MismatchError(f"{path} has shape {live.shape}, but had {saved.shape}")
    live[...] = saved
    return live


def _make_array(restorer: Restorer, node: Node, live: Any, path: str) -> np.ndarray:
    return _in_place(restorer.array(node["array"]), live, path)


def _make_view(restorer: Restorer, node: Node, live: Any, path: str) -> np.ndarray:
    owner = restorer.value(node["view"], None, f"{path}/owner")
    if node["dtype"] not in NUMBERS or not isinstance(owner, np.ndarray):
        raise MismatchError(f"{path} is no view of numbers")
    return np.ndarray(node["shape"], node["dtype"], owner, node["offset"], node["strides"])  # which checks the bounds


def _make_text_array(restorer: Restorer, node: Node, live: Any, path: str) -> np.ndarray:
    dtype = np.dtype(node["dtype"])
    if dtype.kind not in "SU" or min(node["shape"], default=0) < 0:
        raise MismatchError(f"{path} is no array of texts")
    texts: np.ndarray = restorer.array(node["text_array"]).view(dtype)
    return texts.reshape(node["shape"])


def _make_function(restorer: Restorer, node: Node, live: Any, path: str) -> Any:
    if not isinstance(live, FUNCTIONS) or qualified_name(live) != node["function"]:
        raise MismatchError(f"{path} was the function {node['function']}, and is another now")
    return live


def _make_scalar(restorer: Restorer, node: Node, live: Any, path: str) -> Any:
    return restorer.arrays[node["scalar"]][()]


def _make_tensor(restorer: Restorer, node: Node, live: Any, path: str) -> th.Tensor:
    data = th.from_numpy(restorer.array(node["tensor"]))
    if node["dtype"] == BRAIN_FLOAT:
        data = data.view(th.bfloat16)
    return data.to(live.device) if isinstance(live, th.Tensor) else data


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


def _make_generator(restorer: Restorer, node: Node, live: Any, path: str) -> Any:
    name = node["generator"]
    if name not in BIT_GENERATORS:
        raise MismatchError(f"{path} is a generator of the unknown kind {name!r}")
    is_fit = isinstance(live, np.random.Generator) and type(live.bit_generator).__name__ == name
    if not is_fit or id(live) in restorer._filled:
        live = np.random.Generator(getattr(np.random, name)())
    restorer._filled[id(live)] = live
    live.bit_generator.state = _checked(restorer.value(node["state"], None, f"{path}/state"), path)
    return live


def _make_random_state(restorer: Restorer, node: Node, live: Any, path: str) -> np.random.RandomState:
    made = live if isinstance(live, np.random.RandomState) else np.random.RandomState()
    made.set_state(_checked(restorer.value(node["random_state"], None, f"{path}/state"), path))
    return made


def _checked(state: dict[str, Any], path: str) -> dict[str, Any]:
    """Check positions in buffers of random numbers, which NumPy uses as they are."""
    positions = [(state["state"]["pos"], state["state"]["key"])] if "pos" in state["state"] else []
    positions += [(state["buffer_pos"], state["buffer"])] if "buffer_pos" in state else []
    for position, buffer in positions:
        if not 0 <= position <= len(buffer):
            raise MismatchError(f"{path} is at position {position} of {len(buffer)}")
    return state


def _make_random(restorer: Restorer, node: Node, live: Any, path: str) -> random.Random:
    made = live if isinstance(live, random.Random) else random.Random()
    made.setstate(restorer.value(node["random"], None, f"{path}/state"))
    return made


def _make_torch_generator(restorer: Restorer, node: Node, live: Any, path: str) -> th.Generator:
    made = live if isinstance(live, th.Generator) else th.Generator()
    made.set_state(restorer.value(node["torch_generator"], None, f"{path}/state"))
    return made


def _make_space(restorer: Restorer, node: Node, live: Any, path: str) -> Any:
    parts = space_parts(live)
    if len(parts) != len(node["space"]):
        raise MismatchError(f"{path} has {len(parts)} parts, but had {len(node['space'])}")
    live._np_random, *_ = restorer.values(node["space"], parts, path)
    return live


def _make_module(restorer: Restorer, node: Node, live: Any, path: str) -> th.nn.Module:
    live.load_state_dict(restorer.value(node["module"], None, path))
    return live  # type: ignore[no-any-return]  # what else would have load_state_dict fails there


def _make_object(restorer: Restorer, node: Node, live: Any, path: str) -> Any:
    if qualified_name(type(live)) != node["object"] or not is_open(live) or ("own" in node and not brings_own_state(live)):
        raise MismatchError(f"{path} was a {node['object']}, but is a {qualified_name(type(live))}")
    restorer._made[path] = live = restorer.own(live)  # its parts may know it
    restorer.attributes(live, node["state"], path, skip=NOT_STATE)
    if "own" in node:
        live.set_state(restorer.value(node["own"], None, f"{path}/own"))
    return live


def _make_optimizer(restorer: Restorer, node: Node, live: Any, path: str) -> th.optim.Optimizer:
    live.load_state_dict(restorer.value(node["optimizer"], None, path))
    return live  # type: ignore[no-any-return]  # as above


MAKERS: dict[str, Callable[[Restorer, Node, Any, str], Any]] = {
    "live": _make_live,
    "float": lambda restorer, node, live, path: float(node["float"]),
    "enum": _make_enum,
    "flag": _make_flag,
    "bytes": lambda restorer, node, live, path: restorer.arrays[node["bytes"]].tobytes(),
    "bytearray": lambda restorer, node, live, path: bytearray(restorer.arrays[node["bytearray"]].tobytes()),
    "function": _make_function,
    "array": _make_array,
    "view": _make_view,
    "text_array": _make_text_array,
    "scalar": _make_scalar,
    "tensor": _make_tensor,
    "list": _make_list,
    "tuple": _make_tuple,
    "set": lambda restorer, node, live, path: set(restorer.items(node["set"], live, path)),
    "frozenset": lambda restorer, node, live, path: frozenset(restorer.items(node["frozenset"], live, path)),
    "deque": lambda restorer, node, live, path: deque(restorer.items(node["deque"], live, path), node["maxlen"]),
    "dict": _make_dict,
    "same": lambda restorer, node, live, path: restorer._made[node["same"]],
    "generator": _make_generator,
    "random_state": _make_random_state,
    "random": _make_random,
    "torch_generator": _make_torch_generator,
    "space": _make_space,
    "module": _make_module,
    "optimizer": _make_optimizer,
    "object": _make_object,
}
