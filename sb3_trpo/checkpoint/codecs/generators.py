"""Generators of random numbers, and the spaces that have them: how they are recorded and brought back."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th

from sb3_trpo.checkpoint.codecs.nodes import Node, space_parts
from sb3_trpo.checkpoint.codecs.recording import Recorder, record
from sb3_trpo.checkpoint.codecs.restoring import MAKERS, MismatchError, Restorer

BIT_GENERATORS = ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")
TWISTER_LENGTH, PHILOX_LENGTH = 624, 4
"""How many numbers MT19937 and Philox make at a time."""


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
    if isinstance(value, random.SystemRandom):
        return recorder.reject(value, path)
    return recorder.once(value, path, lambda: {"random": recorder.node(value.getstate(), f"{path}/state")})


@record.register(th.Generator)
def _(value: th.Generator, recorder: Recorder, path: str) -> Node:
    state = partial(recorder.node, value.get_state(), f"{path}/state")
    return recorder.once(value, path, lambda: {"torch_generator": state()})


@record.register(gym.Space)
def _(value: gym.Space[Any], recorder: Recorder, path: str) -> Node:
    """Record a space's generators; what it contains is the script's."""
    return recorder.once(value, path, lambda: {"space": recorder.nodes(space_parts(value), path)})


def _make_generator(restorer: Restorer, node: Node, live: Any, path: str) -> Any:
    name = node["generator"]
    if name not in BIT_GENERATORS:
        raise MismatchError(f"{path} is a generator of the unknown kind {name!r}")
    is_fit = isinstance(live, np.random.Generator) and type(live.bit_generator).__name__ == name
    if not is_fit or id(live) in restorer._filled:
        live = np.random.Generator(getattr(np.random, name)())
    restorer._filled[id(live)] = live
    live.bit_generator.state = checked(restorer.value(node["state"], None, f"{path}/state"), path)
    return live


def _make_random_state(restorer: Restorer, node: Node, live: Any, path: str) -> np.random.RandomState:
    made = live if isinstance(live, np.random.RandomState) else np.random.RandomState()
    made.set_state(checked(restorer.value(node["random_state"], None, f"{path}/state"), path))
    return made


def checked(state: dict[str, Any], path: str) -> dict[str, Any]:
    """
    Check positions in buffers of random numbers, which NumPy uses as they are.

    :param state: of a bit generator
    :param path: where it is found
    :return: the state
    :raises MismatchError: if it is at a position that it has not
    """
    twister, philox = state["state"].get("pos", 0), state.get("buffer_pos", 0)
    if not (0 <= twister <= TWISTER_LENGTH and 0 <= philox <= PHILOX_LENGTH):
        raise MismatchError(f"{path} is at position {twister or philox}, beyond its numbers")
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


def record_global_generators(recorder: Recorder, with_cuda: bool = True) -> dict[str, Node]:
    """
    Record the generators of this process: Python's, NumPy's and torch's.

    :param recorder: keeps the arrays
    :param with_cuda: whether to ask GPUs too; a worker that has not touched them should not begin to
    :return: nodes by name
    """
    states: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),
        "torch": th.get_rng_state(),
    }
    if with_cuda and th.cuda.is_available():
        states["cuda"] = th.cuda.get_rng_state_all()
    return {name: recorder.node(state, f"generators/{name}") for name, state in states.items()}


def restore_global_generators(nodes: dict[str, Node], restorer: Restorer) -> None:
    """
    Bring the generators of this process to where they were.

    :param nodes: from :func:`record_global_generators`
    :param restorer: has their arrays
    :raises MismatchError: if a state is not one
    """
    setters: dict[str, Callable[[Any], None]] = {
        "python": random.setstate,
        "numpy": lambda state: np.random.set_state(checked(state, "generators/numpy")),
        "torch": th.set_rng_state,
    }
    if "cuda" in nodes and th.cuda.is_available():
        setters["cuda"] = th.cuda.set_rng_state_all
    for name, node in nodes.items():
        if name in setters:
            try:
                setters[name](restorer.value(node, None, f"generators/{name}"))
            except (TypeError, ValueError, KeyError, RuntimeError, AttributeError, OverflowError) as error:
                raise MismatchError(f"the generator of {name} cannot be restored: {error}") from error


MAKERS |= {
    "generator": _make_generator,
    "random_state": _make_random_state,
    "random": _make_random,
    "torch_generator": _make_torch_generator,
    "space": _make_space,
}
