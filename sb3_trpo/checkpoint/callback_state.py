"""
The state of callbacks: what has changed since ``learn()`` began. Everything else was set by the script.

Fingerprints computed when ``learn()`` begins are compared at each checkpoint. So a run may continue with other settings of a
callback, such as another log folder, and still keep what the callback has counted.
"""

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
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ProgressBarCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_trpo.callbacks import TrainingLifecycle, callback_tree
from sb3_trpo.checkpoint.codecs.codec import LIVE, Decoder, Encoded, Encoder, MismatchError
from sb3_trpo.checkpoint.codecs.file_paths import FilePaths
from sb3_trpo.checkpoint.codecs.inspection import FUNCTIONS, fingerprint, has_own_state, qualified_name
from sb3_trpo.checkpoint.codecs.registry import CODECS
from sb3_trpo.parallel.rollout_sync import RolloutSync

FROM_OUTSIDE = frozenset(("model", "parent", "locals", "globals", "verbose"))
"""Attributes that callbacks are given; they are not state."""
ALWAYS_STATE = (VecEnv, gym.Env, np.random.Generator, np.random.RandomState, random.Random, th.Generator)
"""Types of attributes that are state even if they have not changed: an unseeded generator differs at each start."""


@dataclass
class Baseline:
    """
    What was there when ``learn()`` began; whatever differs from it at a checkpoint is state.

    :param settings: fingerprint of each setting of the algorithm, with the setting itself if it is a function
    :param callbacks: fingerprints of attributes, by name of the callback and of the attribute
    :param file_paths: file paths among the attributes of environments, callbacks and the model
    """

    settings: dict[str, tuple[str, Any]] = field(default_factory=dict)
    callbacks: dict[str, dict[str, str]] = field(default_factory=dict)
    file_paths: FilePaths = field(default_factory=FilePaths)


def fingerprint_settings(settings: dict[str, Any]) -> dict[str, tuple[str, Any]]:
    """
    Compute the fingerprints of settings.

    Functions are compared by identity and not called: they may be costly, or count their calls.

    :param settings: settings of an algorithm, by name
    :return: fingerprints by name, each with the setting itself if it is a function
    """
    prints = {}
    for name, value in settings.items():
        encoded, encoder = _encode_attribute(name, value, f"settings/{name}", FilePaths())
        text = value if isinstance(value, str) else encoded  # the encoder would leave out one that looks like a file path
        prints[name] = fingerprint(text, encoder.arrays), value if callable(value) else None
    return prints


def changed_settings(settings: dict[str, Any], baseline: Baseline) -> list[str]:
    """
    List the settings that are not what they were when ``learn()`` began.

    :param settings: settings of an algorithm, by name
    :param baseline: what was there when ``learn()`` began
    :return: their names
    """
    before = baseline.settings
    now = fingerprint_settings(settings)
    return [name for name, each in now.items() if name not in before or not _is_same(each, before[name])]


def _is_same(one: tuple[str, Any], other: tuple[str, Any]) -> bool:
    # Functions are also compared by ==, since looking up a method makes a new object each time.
    is_same_function = one[1] is other[1] or (isinstance(one[1], FUNCTIONS) and one[1] == other[1])
    return one[0] == other[0] and is_same_function


def fingerprint_callbacks(root: BaseCallback) -> dict[str, dict[str, str]]:
    """
    Compute the fingerprints of all callbacks' attributes.

    :param root: the callback that calls all others
    :return: fingerprints by callback and attribute
    """
    return {
        key: {name: fingerprint(each, encoder.arrays) for name, each, encoder in _attributes_of(callback, key, FilePaths())}
        for key, callback in named_callbacks(root)
    }


def named_callbacks(root: BaseCallback) -> Iterator[tuple[str, BaseCallback]]:
    """
    Name callbacks by their class and a number, so that lists and progress bars around them make no difference.

    :param root: the callback that calls all others
    :return: pairs of name and callback
    """
    n_met: Counter[str] = Counter()
    for callback in callback_tree(root):
        name = qualified_name(type(callback))
        if not isinstance(callback, (TrainingLifecycle, CallbackList, ProgressBarCallback, RolloutSync)):
            yield f"{name}#{n_met[name]}", callback
            n_met[name] += 1


def _attributes_of(callback: BaseCallback, key: str, file_paths: FilePaths) -> Iterator[tuple[str, Encoded, Encoder]]:
    for name, value in vars(callback).items():
        if name not in FROM_OUTSIDE:
            encoded, encoder = _encode_attribute(name, value, f"callbacks/{key}/{name}", file_paths)
            if encoded != LIVE:
                yield name, encoded, encoder


def _encode_attribute(name: str, value: Any, path: str, file_paths: FilePaths) -> tuple[Encoded, Encoder]:
    """
    Encode an attribute with all objects that belong to it, or without any object if one of them cannot be encoded.

    A callback may hold anything, such as figures, or a chain of objects longer than Python can follow. Its counts and lists
    are still worth keeping.
    """
    encoder = Encoder(CODECS, file_paths=file_paths)
    try:
        encoded = encoder.encode_attribute(name, value, path)
        if not encoder.unsupported or isinstance(value, (VecEnv, gym.Env)):
            return encoded, encoder
    except RecursionError:
        pass
    shallow = Encoder(CODECS, deep=False, file_paths=file_paths)
    return shallow.encode_attribute(name, value, path), shallow


def encode_callbacks(root: BaseCallback, baseline: Baseline, encoder: Encoder) -> dict[str, Encoded]:
    """
    Encode what has changed in callbacks.

    :param root: the callback that calls all others
    :param baseline: what was there when ``learn()`` began
    :param encoder: stores the arrays
    :return: JSON by callback
    """
    encoded: dict[str, Encoded] = {}
    common = encoder.empty(file_paths=baseline.file_paths)  # one for all callbacks, which may share objects
    for key, callback in named_callbacks(root):
        if has_own_state(callback):
            own = callback.get_state()  # type: ignore[attr-defined]  # has_own_state() has found it
            encoded[key] = {"own": encoder.encode(own, f"callbacks/{key}")}
            continue
        before, state = baseline.callbacks.get(key, {}), {}  # a callback or an attribute may be new
        for name, attribute, part in _attributes_of(callback, key, baseline.file_paths):
            value = getattr(callback, name)
            if isinstance(value, ALWAYS_STATE) or fingerprint(attribute, part.arrays) != before.get(name):
                path = f"callbacks/{key}/{name}"
                state[name] = common.encode_attribute(name, value, path) if part.deep else attribute
                encoder.merge(part.arrays if not part.deep else {}, {})
        encoded[key] = {"state": state}
    encoder.merge(common.arrays, {})
    return encoded


def decode_callbacks(root: BaseCallback, encoded: dict[str, Encoded], decoder: Decoder) -> None:
    """
    Restore callbacks. A callback that cannot be restored does not stop the run.

    :param root: the callback that calls all others
    :param encoded: from :func:`encode_callbacks`
    :param decoder: holds the arrays
    """
    live = dict(named_callbacks(root))
    for key, each in encoded.items():
        if key not in live:
            warnings.warn(
                f"The checkpoint holds the state of a {key.split('#')[0]}, a callback that this run does not have.",
                stacklevel=2,
            )
        elif "own" in each:
            _decode_own(live[key], each["own"], f"callbacks/{key}", decoder)
        else:
            decode_attributes(live[key], each["state"], f"callbacks/{key}", decoder, FROM_OUTSIDE)


def _decode_own(callback: BaseCallback, encoded: Encoded, path: str, decoder: Decoder) -> None:
    try:
        callback.set_state(decoder.decode(encoded, None, path))  # type: ignore[attr-defined]  # it had get_state()
    except Exception as error:  # the user's method may raise anything
        warnings.warn(f"A callback's state could not be restored, and the run continues without it: {error}", stacklevel=2)


def encode_attributes(owner: Any, path: str, encoder: Encoder, skip: Container[str]) -> dict[str, Encoded]:
    """
    Encode an object's attributes; leave out all objects if they form a chain longer than Python can follow.

    :param owner: the object
    :param path: the object's path
    :param encoder: stores the arrays
    :param skip: names of attributes to leave out
    :return: JSON by name
    """
    try:
        return encoder.encode_attributes(owner, path, skip=skip)
    except RecursionError:
        encoder.unsupported[f"{path}/(a chain of objects)"] = "RecursionError"
        shallow = encoder.empty(deep=False, file_paths=encoder.file_paths)
        encoded = shallow.encode_attributes(owner, path, skip=skip)
        encoder.merge(shallow.arrays, {})
        return encoded


def decode_attributes(owner: Any, encoded: dict[str, Encoded], path: str, decoder: Decoder, skip: Container[str]) -> None:
    """
    Restore attributes one by one. An attribute that cannot be restored does not stop the run.

    :param owner: the object
    :param encoded: from :func:`encode_attributes`
    :param path: the object's path
    :param decoder: holds the arrays
    :param skip: names of attributes to leave alone
    """
    for name, each in encoded.items():
        try:
            decoder.decode_attributes(owner, {name: each}, path, skip)
        except MismatchError as error:
            warnings.warn(
                f"An attribute could not be restored, and the run continues with what is there: {error}", stacklevel=2
            )
