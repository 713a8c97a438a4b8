"""The state of callbacks: what has changed since ``learn()`` began. The rest is what the script has given them."""

from __future__ import annotations

import random
import warnings
from collections import Counter
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ProgressBarCallback
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.vec_env import VecEnv

from sb3_trpo.callbacks import RunKeeper, callback_tree
from sb3_trpo.checkpoint.codecs.file_paths import Places
from sb3_trpo.checkpoint.codecs.nodes import FUNCTIONS, LIVE, Node, brings_own_state, fingerprint, qualified_name
from sb3_trpo.checkpoint.codecs.recording import Recorder, record
from sb3_trpo.checkpoint.codecs.restoring import MismatchError, Restorer
from sb3_trpo.parallel.rollout_sync import RolloutSync

CALLBACK_SKIPPED = frozenset(("model", "parent", "locals", "globals", "verbose"))
"""Attributes of callbacks that are not their own."""
for known in (BaseAlgorithm, BaseCallback, Logger, KVWriter):
    record.register(known, lambda value, recorder, path: LIVE)

UNTOLD = (VecEnv, gym.Env, np.random.Generator, np.random.RandomState, random.Random, th.Generator)
"""Attributes of callbacks that may differ from one start of a script to the next without having changed."""


@dataclass
class Marks:
    """
    What was there when ``learn()`` began: what has changed since is state, the rest is the script's.

    :param settings: fingerprints of the algorithm's settings, with those that are functions themselves
    :param callbacks: fingerprints of callbacks' attributes, by callback
    :param places: paths in a file system
    """

    settings: dict[str, tuple[str, Any]] = field(default_factory=dict)
    callbacks: dict[str, dict[str, str]] = field(default_factory=dict)
    places: Places = field(default_factory=Places)


def mark_settings(settings: dict[str, Any]) -> dict[str, tuple[str, Any]]:
    """
    Take the fingerprints of settings. Functions are not called: they may be costly, or count their calls.

    :param settings: of an algorithm, by name
    :return: fingerprints, with those that are functions themselves
    """
    marks = {}
    for name, value in settings.items():
        node, recorder = _record_attribute(name, value, f"settings/{name}", Places())
        text = value if isinstance(value, str) else node  # also one that looks like a path
        marks[name] = fingerprint(text, recorder.arrays), value if callable(value) else None
    return marks


def changed_settings(settings: dict[str, Any], marks: Marks) -> list[str]:
    """
    Name the settings that are not what they were.

    :param settings: of an algorithm, by name
    :param marks: of the time when ``learn()`` began
    :return: their names
    """
    now = mark_settings(settings)
    return [name for name, mark in now.items() if name not in marks.settings or not _is_same(mark, marks.settings[name])]


def _is_same(one: tuple[str, Any], other: tuple[str, Any]) -> bool:
    # A method is bound again at each look.
    is_same_function = one[1] is other[1] or (isinstance(one[1], FUNCTIONS) and one[1] == other[1])
    return one[0] == other[0] and is_same_function


def mark_callbacks(root: BaseCallback) -> dict[str, dict[str, str]]:
    """
    Take the fingerprints of all callbacks' attributes.

    :param root: all callbacks
    :return: fingerprints by callback and attribute
    """
    return {
        key: {name: fingerprint(node, recorder.arrays) for name, node, recorder in _attributes_of(callback, key, Places())}
        for key, callback in named_callbacks(root)
    }


def named_callbacks(root: BaseCallback) -> Iterator[tuple[str, BaseCallback]]:
    """
    Name callbacks by their class and how many of it came before: lists and progress bars around them do not matter.

    :param root: all callbacks
    :return: pairs of name and callback
    """
    met: Counter[str] = Counter()
    for callback in callback_tree(root):
        name = qualified_name(type(callback))
        if not isinstance(callback, (RunKeeper, CallbackList, ProgressBarCallback, RolloutSync)):
            yield f"{name}#{met[name]}", callback
            met[name] += 1


def _attributes_of(callback: BaseCallback, key: str, places: Places) -> Iterator[tuple[str, Node, Recorder]]:
    for name, value in vars(callback).items():
        if name not in CALLBACK_SKIPPED:
            node, recorder = _record_attribute(name, value, f"callbacks/{key}/{name}", places)
            if node != LIVE:
                yield name, node, recorder


def _record_attribute(name: str, value: Any, path: str, places: Places) -> tuple[Node, Recorder]:
    """Record a value with all objects that belong to it, if there are no others; otherwise without objects."""
    recorder = Recorder(places=places)
    try:
        node = recorder.attribute(name, value, path)
        if not recorder.opaque or isinstance(value, (VecEnv, gym.Env)):
            return node, recorder
    except RecursionError:
        pass
    shallow = Recorder(descends=False, places=places)
    return shallow.attribute(name, value, path), shallow


def record_callbacks(root: BaseCallback, marks: Marks, recorder: Recorder) -> dict[str, Node]:
    """
    Record what has changed in callbacks.

    :param root: all callbacks
    :param marks: of the time when ``learn()`` began
    :param recorder: keeps the arrays
    :return: nodes by callback
    """
    nodes: dict[str, Node] = {}
    shared = Recorder(places=marks.places)  # callbacks may share objects
    for key, callback in named_callbacks(root):
        if brings_own_state(callback):
            nodes[key] = {"own": recorder.node(callback.get_state(), f"callbacks/{key}")}  # type: ignore[attr-defined]  # it is there
            continue
        state = {}
        for name, node, part in _attributes_of(callback, key, marks.places):
            value, mark_of_it = getattr(callback, name), marks.callbacks.get(key, {}).get(name)  # some come only later
            if isinstance(value, UNTOLD) or fingerprint(node, part.arrays) != mark_of_it:
                state[name] = shared.attribute(name, value, f"callbacks/{key}/{name}") if part.descends else node
                recorder.absorb(part.arrays if not part.descends else {}, {})
        nodes[key] = {"state": state}
    recorder.absorb(shared.arrays, {})
    return nodes


def restore_callbacks(root: BaseCallback, nodes: dict[str, Node], restorer: Restorer) -> None:
    """
    Bring callbacks to where they were; one that cannot be must not keep the run from going on.

    :param root: all callbacks
    :param nodes: from :func:`record_callbacks`
    :param restorer: has the arrays
    """
    there = dict(named_callbacks(root))
    for key, node in nodes.items():
        if key not in there:
            warnings.warn(f"The checkpoint holds the state of a {key.split('#')[0]}, which this run has not.", stacklevel=2)
            continue
        if "own" in node:
            _restore_own(there[key], restorer, node["own"], f"callbacks/{key}")
        else:
            restore_attributes(there[key], node["state"], restorer, f"callbacks/{key}", CALLBACK_SKIPPED)


def record_attributes(owner: Any, recorder: Recorder, path: str, skip: Container[str]) -> dict[str, Node]:
    """
    Record an object's attributes, without objects among them if these go too deep.

    :param owner: the object
    :param recorder: keeps the arrays
    :param path: where the object is found
    :param skip: names to leave out
    :return: nodes by name
    """
    try:
        return recorder.attributes(owner, path, skip=skip)
    except RecursionError:
        recorder.opaque[f"{path}/(a chain of objects)"] = "RecursionError"
        shallow = Recorder(descends=False, places=recorder.places)
        nodes = shallow.attributes(owner, path, skip=skip)
        recorder.absorb(shallow.arrays, {})
        return nodes


def _restore_own(callback: BaseCallback, restorer: Restorer, node: Node, path: str) -> None:
    try:
        callback.set_state(restorer.value(node, None, path))  # type: ignore[attr-defined]  # it has had get_state()
    except Exception as error:  # which the user has written
        warnings.warn(f"A callback's state could not be restored, and the run goes on without: {error}", stacklevel=2)


def restore_attributes(owner: Any, nodes: dict[str, Node], restorer: Restorer, path: str, skip: Container[str]) -> None:
    """
    Restore attributes one by one: one that cannot be must not keep the run from going on.

    :param owner: the object
    :param nodes: from :func:`record_attributes`
    :param restorer: has the arrays
    :param path: where the object is found
    :param skip: names to leave alone
    """
    for name, node in nodes.items():
        try:
            restorer.attributes(owner, {name: node}, path, skip)
        except MismatchError as error:
            warnings.warn(f"An attribute could not be restored, and the run goes on with what is there: {error}", stacklevel=2)
