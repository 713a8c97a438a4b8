"""
Environments that are restored by replaying their episode, where a simulator's own state cannot be written back.

Some simulators show only part of their state, or trust whatever is written into it. If everything that an episode depends on
is known when it begins, the actions since then bring a new environment to the same state, to the last bit. A checkpoint stores
the actions and the generator, which cannot harm the simulator.

A replayed episode is compared with the one that was recorded, by a digest, and refused if it has come out differently.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np

from sb3_trpo.checkpoint.codecs.arrays import load, store
from sb3_trpo.checkpoint.codecs.codec import LIVE, Decoder, Encoded, Encoder, MismatchError
from sb3_trpo.checkpoint.codecs.generators import require_valid_position
from sb3_trpo.checkpoint.codecs.inspection import fingerprint, qualified_name
from sb3_trpo.checkpoint.codecs.objects import ENV_DESCRIPTION, ObjectCodec
from sb3_trpo.checkpoint.codecs.simulators.episode_recorder import (
    WRAPPED,
    EpisodeRecorder,
    EpisodeStart,
    ReplayedSimulator,
    generator_state,
    recorder_of,
)

NOT_PLAIN = (*ENV_DESCRIPTION, *WRAPPED, "_np_random")
"""Attributes of an environment that are not encoded like the others."""


class ReplayedEnvCodec(ObjectCodec):
    """
    Environments that are restored by replaying their episode.

    :param simulators: what is known of them, by the name of their class
    """

    kinds = ("replayed",)

    def __init__(self, simulators: Mapping[str, ReplayedSimulator]) -> None:
        self.simulators = simulators

    def handles(self, cls: type) -> bool:
        """Handle the classes that are listed, but no subclasses: their steps may do more."""
        return qualified_name(cls) in self.simulators

    def encode(self, value: Any, path: str, encoder: Encoder) -> Encoded:
        """Encode an environment, once."""
        return encoder.once(value, path, lambda: self.encode_new(value, path, encoder))

    def encode_new(self, env: Any, path: str, encoder: Encoder) -> Encoded:
        """Encode the episode; if it is not known, the attributes, among which the simulator is reported as unsupported."""
        name, recorder = qualified_name(type(env)), recorder_of(env)
        simulator = self.simulators[name]
        try:
            start, actions, before = _beginning_of(recorder, simulator)
        except ValueError:
            return super().encode_new(env, path, encoder)
        assert recorder is not None, "it has recorded the actions"
        return {
            "replayed": name,
            "settings": simulator.settings(env),
            "state": _encode_plain_attributes(env, path, encoder),
            "generators": encoder.encode([start.generator, generator_state(env)], f"{path}/generators"),
            "drawn": encoder.encode(recorder.drawn + recorder.just_drawn(), f"{path}/drawn"),
            "simulator": {part: store(array, f"{path}/start/{part}", encoder) for part, array in before.items()},
            "arguments": encoder.encode({"seed": start.seed, "options": start.options}, f"{path}/start/arguments"),
            "actions": store(actions, f"{path}/actions", encoder),
            "digest": _digest(env, simulator, encoder),
        }

    def decode(self, encoded: Encoded, live: Any, path: str, decoder: Decoder) -> Any:
        """Replay the episode in the live environment."""
        name = qualified_name(type(live))
        if name != encoded["replayed"] or name not in self.simulators:
            raise MismatchError(f"{path} was a {encoded['replayed']}, but is a {name}")
        simulator = self.simulators[name]
        _require_same_settings(encoded["settings"], simulator.settings(live), path)
        generator_state(live)  # an env that was never reset makes its generator now, and notes the seed as an attribute
        decoder.decode_attributes(live, encoded["state"], path, skip=NOT_PLAIN)
        try:
            _replay(live, simulator, encoded, path, decoder)
        except Exception as error:  # the environment may raise anything
            raise MismatchError(f"{path}: its episode cannot be played again: {error}") from error
        if _digest(live, simulator, Encoder(decoder.codecs)) != encoded["digest"]:
            n_steps = len(decoder.arrays[encoded["actions"]])
            raise MismatchError(f"{path}: its episode of {n_steps:,} steps came out differently")
        return live


def _beginning_of(
    recorder: EpisodeRecorder | None, simulator: ReplayedSimulator
) -> tuple[EpisodeStart, np.ndarray, dict[str, np.ndarray]]:
    """Return what an episode began with, and its actions; a ``ValueError`` means that they are not known."""
    if recorder is None or recorder.start is None:
        raise ValueError("the beginning of the episode is not known")
    actions = np.array(recorder.actions)
    if actions.dtype.kind not in "iuf":
        raise ValueError("the actions are not numbers")
    return recorder.start, actions, simulator.to_arrays(recorder.start.simulator)


def _encode_plain_attributes(env: gym.Env[Any, Any], path: str, encoder: Encoder) -> dict[str, Encoded]:
    """Encode the attributes that are no part of the simulator: those that can be encoded in full."""
    encoded = {}
    for name, value in vars(env).items():
        if name not in NOT_PLAIN:
            trial = encoder.empty()
            trial.once(env, path, lambda: LIVE)  # an attribute that refers to the env does not lead back into it
            attribute = trial.encode(value, f"{path}/{name}")
            if attribute != LIVE and not trial.unsupported:
                encoder.merge(trial.arrays, {})
                encoded[name] = attribute
    return encoded


def _digest(env: gym.Env[Any, Any], simulator: ReplayedSimulator, encoder: Encoder) -> str:
    """Compute a digest of the simulation and of all attributes but spaces, which others sample from as well."""
    encoder = encoder.empty()
    attributes = _encode_plain_attributes(env, "env", encoder)
    spaces = {name for name in attributes if isinstance(getattr(env, name), gym.Space)}
    arrays = {path: array for path, array in encoder.arrays.items() if path.split("/")[1] not in spaces}
    played = fingerprint(sorted((name, each) for name, each in attributes.items() if name not in spaces), arrays)
    generator = str(generator_state(env)) if simulator.steps_draw(env) else ""
    return hashlib.sha256(f"{played} {generator}".encode() + simulator.evidence(env)).hexdigest()


def _require_same_settings(saved: dict[str, Any], live: dict[str, Any], path: str) -> None:
    pairs = {name: (saved.get(name), now) for name, now in live.items()}
    differing = [f"{name} was {before!r}, but is {now!r}" for name, (before, now) in pairs.items() if before != now]
    if differing:
        raise MismatchError(f"{path}: {'; '.join(differing)}")


def _replay(live: Any, simulator: ReplayedSimulator, encoded: Encoded, path: str, decoder: Decoder) -> None:
    """Replay an episode in an environment."""
    first, last = decoder.decode(encoded["generators"], None, f"{path}/generators")
    drawn = dict(decoder.decode(encoded["drawn"], None, f"{path}/drawn"))
    simulator.prepare(live, {part: decoder.arrays[array] for part, array in encoded["simulator"].items()})
    _set_generator(live, first)
    live.reset(**decoder.decode(encoded["arguments"], None, f"{path}/start/arguments"))
    for number, action in enumerate(load(encoded["actions"], decoder)):
        if number in drawn:  # a wrapper drew from the env's generator before this step
            _set_generator(live, drawn[number])
        live.step(action)
    # Wrappers may have drawn after the last step, too. If steps do not draw, the last state is all that matters.
    if not simulator.steps_draw(live) or len(decoder.arrays[encoded["actions"]]) in drawn:
        _set_generator(live, last)


def _set_generator(env: gym.Env[Any, Any], state: Any) -> None:
    env.np_random.bit_generator.state = require_valid_position(state, "the generator of an env")
