"""Generators of random numbers, and the spaces that have them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th

from sb3_trpo.checkpoint.codecs.codec import DECODING_ERRORS, Codec, Decoder, Encoded, Encoder, MismatchError

BIT_GENERATORS = ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")
MT19937_WORDS, PHILOX_WORDS = 624, 4
"""The number of words that these bit generators make at a time."""


def require_valid_position(state: dict[str, Any], path: str) -> dict[str, Any]:
    """
    Check the position of a NumPy generator among the numbers that it has made in advance.

    NumPy uses the position as an index without a check, so a forged one would read foreign memory.

    :param state: state of a bit generator
    :param path: the generator's path
    :return: the state
    :raises MismatchError: if the position is out of bounds
    """
    mt19937, philox = state["state"].get("pos", 0), state.get("buffer_pos", 0)
    if not (0 <= mt19937 <= MT19937_WORDS and 0 <= philox <= PHILOX_WORDS):
        raise MismatchError(f"{path} is at position {mt19937 or philox}, beyond its numbers")
    return state


def new_bit_generator(name: Any, path: str) -> np.random.BitGenerator:
    """
    Create one of NumPy's bit generators.

    :param name: name of its class, or something hostile
    :param path: path of the generator around it
    :return: the bit generator, in any state
    :raises MismatchError: if NumPy has none of this name
    """
    if name not in BIT_GENERATORS:
        raise MismatchError(f"{path} is a generator of the unknown kind {name!r}")
    made: np.random.BitGenerator = getattr(np.random, name)()
    return made


class NumpyGeneratorCodec(Codec):
    """NumPy's generators around a bit generator."""

    types = (np.random.Generator,)
    kinds = ("generator",)

    def encode(self, value: np.random.Generator, path: str, encoder: Encoder) -> Encoded:
        """Encode the state of the bit generator."""
        bits = value.bit_generator
        state = partial(encoder.encode, bits.state, f"{path}/state")
        return encoder.once(value, path, lambda: {"generator": type(bits).__name__, "state": state()})

    def decode(self, encoded: Encoded, live: Any, path: str, decoder: Decoder) -> np.random.Generator:
        """Set the state of the live generator; make a new one if it is of another kind, or has been set for another place."""
        fresh = new_bit_generator(encoded["generator"], path)
        made: np.random.Generator = live
        if not isinstance(live, np.random.Generator) or type(live.bit_generator) is not type(fresh) or decoder.is_filled(live):
            made = np.random.Generator(fresh)
        decoder.mark_filled(made)
        made.bit_generator.state = require_valid_position(decoder.decode(encoded["state"], None, f"{path}/state"), path)
        return made


class RandomStateCodec(Codec):
    """NumPy's legacy generators, which may have a bit generator of any kind, too."""

    types = (np.random.RandomState,)
    kinds = ("random_state",)

    def encode(self, value: np.random.RandomState, path: str, encoder: Encoder) -> Encoded:
        """Encode the state."""
        state = partial(encoder.encode, value.get_state(legacy=False), f"{path}/state")
        return encoder.once(value, path, lambda: {"random_state": state()})

    def decode(self, encoded: Encoded, live: Any, path: str, decoder: Decoder) -> np.random.RandomState:
        """Set the state of the live generator; make a new one if it is of another kind, or has been set for another place."""
        state = require_valid_position(decoder.decode(encoded["random_state"], None, f"{path}/state"), path)
        fresh = np.random.RandomState(new_bit_generator(state["bit_generator"], path))
        fits = isinstance(live, np.random.RandomState) and _kind_of(live) == _kind_of(fresh)
        made = live if fits and not decoder.is_filled(live) else fresh
        decoder.mark_filled(made)
        made.set_state(state)
        return made


def _kind_of(generator: np.random.RandomState) -> str:
    return str(generator.get_state(legacy=False)["bit_generator"])


class PythonRandomCodec(Codec):
    """Python's generators, except the system's, which has no state."""

    types = (random.Random,)
    kinds = ("random",)

    def encode(self, value: random.Random, path: str, encoder: Encoder) -> Encoded:
        """Encode the state."""
        if isinstance(value, random.SystemRandom):
            return encoder.reject(value, path)
        return encoder.once(value, path, lambda: {"random": encoder.encode(value.getstate(), f"{path}/state")})

    def decode(self, encoded: Encoded, live: Any, path: str, decoder: Decoder) -> random.Random:
        """Set the state of the live generator; make a new one if there is none, or it has been set for another place."""
        made = live if isinstance(live, random.Random) and not decoder.is_filled(live) else random.Random()
        decoder.mark_filled(made)
        made.setstate(decoder.decode(encoded["random"], None, f"{path}/state"))
        return made


class TorchGeneratorCodec(Codec):
    """Torch's generators."""

    types = (th.Generator,)
    kinds = ("torch_generator",)

    def encode(self, value: th.Generator, path: str, encoder: Encoder) -> Encoded:
        """Encode the state."""
        return encoder.once(value, path, lambda: {"torch_generator": encoder.encode(value.get_state(), f"{path}/state")})

    def decode(self, encoded: Encoded, live: Any, path: str, decoder: Decoder) -> th.Generator:
        """Set the state of the live generator; make a new one if there is none, or it has been set for another place."""
        made = live if isinstance(live, th.Generator) else th.Generator()
        made = th.Generator(made.device) if decoder.is_filled(made) else made
        decoder.mark_filled(made)
        made.set_state(decoder.decode(encoded["torch_generator"], None, f"{path}/state"))
        return made


class SpaceCodec(Codec):
    """Gymnasium's spaces: only their generators, since the script sets bounds and shapes."""

    types = (gym.Space,)
    kinds = ("space",)

    def encode(self, value: gym.Space[Any], path: str, encoder: Encoder) -> Encoded:
        """Encode the space's generator, if it has one yet, and the spaces that it is made of."""
        return encoder.once(value, path, lambda: {"space": encoder.encode_all(_parts_of(value), path)})

    def decode(self, encoded: Encoded, live: Any, path: str, decoder: Decoder) -> Any:
        """Set the live space's generators."""
        parts = _parts_of(live)
        if len(parts) != len(encoded["space"]):
            raise MismatchError(f"{path} has {len(parts)} parts, but had {len(encoded['space'])}")
        live._np_random, *_ = decoder.decode_all(encoded["space"], parts, path)
        return live


def _parts_of(space: gym.Space[Any]) -> list[Any]:
    """List a space's generator, or ``None``, and the spaces that it is made of."""
    members = [part for value in vars(space).values() for part in _members_of(value) if isinstance(part, gym.Space)]
    return [space._np_random, *members]


def _members_of(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else (value,)


def encode_global_generators(encoder: Encoder, with_cuda: bool = True) -> dict[str, Encoded]:
    """
    Encode the global generators of this process: Python's, NumPy's and torch's.

    :param encoder: stores the arrays
    :param with_cuda: whether to encode those of GPUs too. Reading them initializes CUDA, which takes GPU memory in each
        process
    :return: JSON by library
    """
    states: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),
        "torch": th.get_rng_state(),
    }
    if with_cuda and th.cuda.is_available():
        states["cuda"] = th.cuda.get_rng_state_all()
    return {name: encoder.encode(state, f"generators/{name}") for name, state in states.items()}


def decode_global_generators(encoded: dict[str, Encoded], decoder: Decoder) -> None:
    """
    Set the global generators of this process.

    :param encoded: from :func:`encode_global_generators`
    :param decoder: holds the arrays
    :raises MismatchError: if a state is malformed
    """
    setters: dict[str, Callable[[Any], None]] = {
        "python": random.setstate,
        "numpy": lambda state: np.random.set_state(require_valid_position(state, "generators/numpy")),
        "torch": th.set_rng_state,
    }
    if "cuda" in encoded and th.cuda.is_available():
        setters["cuda"] = _set_states_of_gpus
    for name, state in encoded.items():
        if name in setters:
            try:
                setters[name](decoder.decode(state, None, f"generators/{name}"))
            except DECODING_ERRORS as error:
                raise MismatchError(f"the generator of {name} cannot be restored: {error}") from error


def _set_states_of_gpus(states: list[th.Tensor]) -> None:
    """Set the generators of the GPUs that are here; the run may have had more, or fewer."""
    for device, state in zip(range(th.cuda.device_count()), states, strict=False):
        th.cuda.set_rng_state(state, device)
