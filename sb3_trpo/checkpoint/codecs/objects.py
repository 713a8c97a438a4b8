"""Objects by their attributes; and functions, classes, modules and the like, which stay as the script has made them."""

from __future__ import annotations

import io
import logging
import random
import re
import weakref
from collections import deque
from functools import partial
from pathlib import PurePath
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger

from sb3_trpo.checkpoint.codecs.codec import LIVE, Codec, Decoder, Encoded, Encoder, MismatchError
from sb3_trpo.checkpoint.codecs.inspection import FUNCTIONS, has_own_state, qualified_name
from sb3_trpo.checkpoint.worker_rpc import ANSWER

ENV_DESCRIPTION = frozenset((ANSWER, "spec", "_cached_spec", "render_mode", "metadata"))
"""Attributes that describe an environment; they are not state."""
ALWAYS_ENCODED = (gym.Env, gym.Space, np.random.Generator)
"""Attributes that are encoded even if the rest of an object has its own ``get_state()``, or cannot be encoded."""
FILLED_IN_PLACE = (np.random.Generator, np.random.RandomState, random.Random)
REPLACED = (list, dict, set, deque, bytearray)
"""Containers that decoding replaces with new ones."""


class LeftToScriptCodec(Codec):
    """Objects that a run does not change, or that are stored elsewhere in a checkpoint: the live object stays."""

    types = (
        *(type, ModuleType, property, weakref.ref, EnvSpec, PurePath, np.dtype, np.ufunc, th.dtype, th.device),
        *(re.Pattern, logging.Logger, io.IOBase, BaseAlgorithm, BaseCallback, Logger, KVWriter),
    )
    kinds = ("live",)

    def encode(self, value: Any, path: str, encoder: Encoder) -> Encoded:
        """Leave the object to the script."""
        return LIVE

    def decode(self, encoded: Encoded, live: Any, path: str, decoder: Decoder) -> Any:
        """Return the live object, which must be there, as in a list of functions."""
        if live is None:
            raise MismatchError(f"{path} held something that cannot be recorded, and is not there now")
        return live


class IgnoredModuleCodec(Codec):
    """Objects that draw, log or lock: they are no part of the simulation."""

    prefixes = tuple(
        f"{module}."
        for module in (
            *(f"pygame.{part}" for part in ("surface", "time", "font", "mixer", "display", "window", "joystick", "event")),
            *("pyglet", "glfw", "OpenGL", "moviepy", "matplotlib"),
            *("gymnasium.envs.mujoco.mujoco_rendering", "gymnasium.envs.registration"),
            *("threading", "_thread", "logging", "wandb", "tqdm"),
        )
    )

    def handles(self, cls: type) -> bool:
        """Check the module that a class comes from."""
        return qualified_name(cls).startswith(self.prefixes)

    def encode(self, value: Any, path: str, encoder: Encoder) -> Encoded:
        """Leave the object to the script."""
        return LIVE


class FunctionCodec(Codec):
    """Python functions and methods, by name: an env's phase may be the function that an attribute holds."""

    types = (FunctionType, MethodType)
    kinds = ("function",)

    def encode(self, value: Any, path: str, encoder: Encoder) -> Encoded:
        """Encode the name."""
        return {"function": qualified_name(value)} if encoder.deep else LIVE

    def decode(self, encoded: Encoded, live: Any, path: str, decoder: Decoder) -> Any:
        """Return the live function, which must be the same; a name from a checkpoint is not looked up."""
        if not isinstance(live, FUNCTIONS) or qualified_name(live) != encoded["function"]:
            raise MismatchError(f"{path} was the function {encoded['function']}, and is another now")
        return live


class BuiltinFunctionCodec(Codec):
    """Functions and methods from extension modules."""

    types = (BuiltinFunctionType,)

    def encode(self, value: BuiltinFunctionType, path: str, encoder: Encoder) -> Encoded:
        """Leave a function to the script; but the method of a list would still refer to the list that has been replaced."""
        stays = isinstance(value.__self__, (ModuleType, type(None), type, *FILLED_IN_PLACE))
        return LIVE if stays or not encoder.deep else encoder.reject(value, path)


class PartialCodec(Codec):
    """Functions with some of their arguments."""

    types = (partial,)

    def encode(self, value: partial[Any], path: str, encoder: Encoder) -> Encoded:
        """Leave a function to the script, unless it would still refer to a container that has been replaced."""
        has_container = any(isinstance(each, REPLACED) for each in (*value.args, *value.keywords.values()))
        return encoder.reject(value, path) if has_container and encoder.deep else LIVE


class _Plain:
    """An object with attributes and nothing else, for its size in memory."""


def has_only_attributes(value: Any) -> bool:
    """
    Check whether an object is its attributes and nothing else.

    One with slots, or of a class from an extension module, takes more memory than a ``__dict__`` does.

    :param value: the object
    :return: whether it is
    """
    return hasattr(value, "__dict__") and type(value).__basicsize__ == _Plain.__basicsize__


class ObjectCodec(Codec):
    """All other objects, by their attributes, or by their own ``get_state()`` and ``set_state(state)``."""

    kinds = ("object",)

    def handles(self, cls: type) -> bool:
        """Handle what no other codec does."""
        return True

    def encode(self, value: Any, path: str, encoder: Encoder) -> Encoded:
        """Encode an object; a shallow encoder leaves it to the script."""
        if not encoder.deep:
            return LIVE
        if not has_only_attributes(value):
            return encoder.reject(value, path)
        return encoder.once(value, path, lambda: self.encode_new(value, path, encoder))

    def encode_new(self, value: Any, path: str, encoder: Encoder) -> Encoded:
        """
        Encode an object that has not been met before.

        If any attribute cannot be encoded, only generators, spaces and a wrapped environment are: half of an object's
        attributes would not fit together, but what is wrapped may still be restorable.
        """
        always = {name for name, part in vars(value).items() if isinstance(part, ALWAYS_ENCODED)}
        state = encoder.encode_attributes(value, path, skip=vars(value).keys() - always)
        progress, unsupported = encoder.save_progress(), set(encoder.unsupported)
        if has_own_state(value):
            more: Encoded = {"own": encoder.encode(value.get_state(), f"{path}/own")}
        else:
            more = {"state": state | encoder.encode_attributes(value, path, skip=always | ENV_DESCRIPTION)}
        if encoder.unsupported.keys() - unsupported:
            encoder.roll_back(progress)
            more = {}
        return {"object": qualified_name(type(value)), "state": state, **more}

    def decode(self, encoded: Encoded, live: Any, path: str, decoder: Decoder) -> Any:
        """Fill the live object, which must be of the same class: no class is looked up by name."""
        cls = type(live)
        fits = qualified_name(cls) == encoded["object"] and isinstance(decoder.codecs.of_class(cls), ObjectCodec)
        if not fits or not has_only_attributes(live) or ("own" in encoded and not has_own_state(live)):
            raise MismatchError(f"{path} was a {encoded['object']}, but is a {qualified_name(cls)}")
        decoder.decoded[path] = live = decoder.to_fill(live)  # its parts may refer to it
        decoder.decode_attributes(live, encoded["state"], path, skip=ENV_DESCRIPTION)
        if "own" in encoded:
            live.set_state(decoder.decode(encoded["own"], None, f"{path}/own"))
        return live
