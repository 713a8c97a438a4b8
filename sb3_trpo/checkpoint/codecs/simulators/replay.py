"""
Episodes that are restored by playing them again, where a simulator's own state cannot be written back.

Some simulators show only part of their state, or trust blindly what is written into it. If all that an episode depends on is
known when it begins, the actions since then bring a new environment to the same place, to the last bit. A :class:`Tape` keeps
them while a run learns. What is stored is the actions and the generator: nothing that could harm the simulator.

An episode that was played again is compared with the one that was recorded, and refused if it has come out differently.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from sb3_trpo.checkpoint.codecs.generators import checked
from sb3_trpo.checkpoint.codecs.nodes import LIVE, NOT_STATE, Node, fingerprint, qualified_name
from sb3_trpo.checkpoint.codecs.recording import SIMULATORS, Recorder, record_object
from sb3_trpo.checkpoint.codecs.restoring import MAKERS, MismatchError, Restorer

LONGEST = 500_000
"""Steps of an episode from which on its actions are no longer kept: playing Atari's at their limit takes half a minute."""
HOOKED = ("reset", "step")
APART = (*NOT_STATE, *HOOKED, "_np_random")
"""Attributes of an env that are not recorded as the others are."""


class Simulator(NamedTuple):
    """
    What has to be known of a simulator, besides its env's attributes, to play its episodes again.

    :param before: reads, just before a reset, what of the simulator the new episode will depend on; None if that cannot be
    :param pack: turns that into arrays, when a checkpoint is made; a ValueError says that it is beyond reach
    :param prepare: brings a simulator to where it was before the reset, given these arrays
    :param evidence: bytes that differ if two simulations do
    :param settings: what must be the same for an episode to come out the same
    :param draws: whether the env's own steps draw from its generator
    """

    before: Callable[[Any], Any]
    pack: Callable[[Any], dict[str, np.ndarray]]
    prepare: Callable[[Any, dict[str, np.ndarray]], None]
    evidence: Callable[[Any], bytes]
    settings: Callable[[Any], dict[str, Any]]
    draws: Callable[[Any], bool]


REPLAYED: dict[str, Simulator] = {}
"""Envs whose episodes are played again, by the name of their class."""


class Start(NamedTuple):
    """What an episode began with: the env's generator, what its simulator knew, and the arguments of ``reset()``."""

    generator: Any
    simulator: Any
    seed: int | None
    options: dict[str, Any] | None


class Tape:
    """
    Keeps what an env is asked to do from each reset on, in place of the env's own two methods.

    :param env: the env itself, inside all wrappers
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        self.env = env
        self.start: Start | None = None
        """Of the episode under way; None if it is not known."""
        self.actions: list[Any] = []
        self.drawn: list[tuple[int, Any]] = []
        """States of the env's generator before those steps before which a wrapper has drawn from it."""
        self._last: Any = None
        self._simulator = REPLAYED[qualified_name(type(env))]
        self._draws = self._simulator.draws(env)
        self._own = {name: vars(env).get(name) for name in HOOKED}
        self._reset, self._step = env.reset, env.step
        vars(env).update(reset=self.reset, step=self.step)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Note what the episode begins with, and reset the env."""
        self.start = None
        start = Start(generator_of(self.env), self._simulator.before(self.env), seed, options)
        answer = self._reset(seed=seed, options=options)
        self.actions, self.drawn = [], []  # some envs take a step of their own in reset()
        is_usual = isinstance(self.env.np_random.bit_generator, np.random.PCG64)  # as all of Gymnasium's are
        if is_usual and start.simulator is not None:
            self.start, self._last = start, generator_of(self.env)
        return answer

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Note the action, and take the step."""
        if self.start is None or len(self.actions) >= LONGEST:
            self.start, self.actions, self.drawn = None, [], []
            return self._step(action)
        if self._draws:
            self.drawn += self.just_drawn()
        self.actions.append(action.copy() if isinstance(action, np.ndarray) else action)
        answer = self._step(action)
        if self._draws:
            self._last = generator_of(self.env)
        return answer

    def just_drawn(self) -> list[tuple[int, Any]]:
        """
        Find out whether a wrapper has drawn from the env's generator since the last step.

        :return: the number of steps so far and the generator's state if so, else nothing
        """
        state = generator_of(self.env)
        return [(len(self.actions), state)] if self._draws and state != self._last else []

    def remove(self) -> None:
        """Give the env its own methods back."""
        for name, own in self._own.items():
            if own is None:
                vars(self.env).pop(name, None)
            else:
                vars(self.env)[name] = own


def generator_of(env: gym.Env[Any, Any]) -> Any:
    """
    Read the state of an env's generator, from which wrappers may draw too.

    :param env: the env itself
    :return: the state, as NumPy has it
    """
    return env.np_random.bit_generator.state


def _set_generator(env: gym.Env[Any, Any], state: Any) -> None:
    env.np_random.bit_generator.state = checked(state, "the generator of an env")


def tape_of(env: gym.Env[Any, Any]) -> Tape | None:
    """
    Find the tape of an env.

    :param env: the env itself
    :return: its tape, if it has one
    """
    tape = getattr(vars(env).get("step"), "__self__", None)
    return tape if isinstance(tape, Tape) else None


def start_tape(env: gym.Env[Any, Any]) -> None:
    """
    Keep an env's actions from now on, if that is how its episodes are restored.

    :param env: outermost wrapper, or the env itself
    """
    base = env.unwrapped
    if qualified_name(type(base)) in REPLAYED and tape_of(base) is None:
        Tape(base)


def stop_tape(env: gym.Env[Any, Any]) -> None:
    """
    Leave an env as it was before :func:`start_tape`.

    :param env: outermost wrapper, or the env itself
    """
    tape = tape_of(env.unwrapped)
    if tape is not None:
        tape.remove()


def register(name: str, simulator: Simulator) -> None:
    """
    Have the episodes of a class of envs played again.

    :param name: of the class, with its module
    :param simulator: what has to be known of it
    """
    REPLAYED[name] = simulator
    SIMULATORS[name] = _record_replayed


def _plain_attributes(env: gym.Env[Any, Any], recorder: Recorder, path: str) -> dict[str, Node]:
    """Record those attributes that are no part of the simulator."""
    nodes = {}
    for name, value in vars(env).items():
        if name not in APART:
            trial = Recorder()
            trial.once(env, path, lambda: LIVE)  # what knows the env does not lead back into it
            node = trial.node(value, f"{path}/{name}")
            if node != LIVE and not trial.opaque:
                recorder.absorb(trial.arrays, {})
                nodes[name] = node
    return nodes


def _digest(env: gym.Env[Any, Any]) -> str:
    """Digest what playing an episode leads to: the simulation, and all attributes but spaces, which others draw from."""
    recorder = Recorder()
    nodes = _plain_attributes(env, recorder, "env")
    spaces = {name for name in nodes if isinstance(getattr(env, name), gym.Space)}
    arrays = {path: array for path, array in recorder.arrays.items() if path.split("/")[1] not in spaces}
    played = fingerprint(sorted((name, node) for name, node in nodes.items() if name not in spaces), arrays)
    simulator = REPLAYED[qualified_name(type(env))]
    generator = str(generator_of(env)) if simulator.draws(env) else ""
    return hashlib.sha256(f"{played} {generator}".encode() + simulator.evidence(env)).hexdigest()


def _record_replayed(env: gym.Env[Any, Any], recorder: Recorder, path: str) -> Node:
    tape, name = tape_of(env), qualified_name(type(env))
    try:
        start, actions, packed = _beginning(tape, REPLAYED[name])
    except ValueError:
        return record_object(env, recorder, path)  # which reports the simulator as beyond reach
    assert tape is not None, "it has kept the actions"
    return {
        "replayed": name,
        "settings": REPLAYED[name].settings(env),
        "state": _plain_attributes(env, recorder, path),
        "generators": recorder.node([start.generator, generator_of(env)], f"{path}/generators"),
        "drawn": recorder.node(tape.drawn + tape.just_drawn(), f"{path}/drawn"),
        "simulator": {part: recorder.array(array, f"{path}/start/{part}") for part, array in packed.items()},
        "arguments": recorder.node({"seed": start.seed, "options": start.options}, f"{path}/start/arguments"),
        "actions": recorder.array(actions, f"{path}/actions"),
        "digest": _digest(env),
    }


def _beginning(tape: Tape | None, simulator: Simulator) -> tuple[Start, np.ndarray, dict[str, np.ndarray]]:
    """Give what an episode began with and its actions; a ValueError says that they are not known."""
    if tape is None or tape.start is None:
        raise ValueError("the beginning of the episode is not known")
    actions = np.array(tape.actions)
    if actions.dtype.kind not in "iuf":
        raise ValueError("the actions are not numbers")
    return tape.start, actions, simulator.pack(tape.start.simulator)


def _make_replayed(restorer: Restorer, node: Node, live: Any, path: str) -> Any:
    name = qualified_name(type(live))
    if name != node["replayed"] or name not in REPLAYED:
        raise MismatchError(f"{path} was a {node['replayed']}, but is a {name}")
    settings = REPLAYED[name].settings(live)
    differing = [f"{key} was {node['settings'].get(key)!r}, but is {settings[key]!r}" for key in settings]
    differing = [text for text, key in zip(differing, settings, strict=True) if node["settings"].get(key) != settings[key]]
    if differing:
        raise MismatchError(f"{path}: {'; '.join(differing)}")
    generator_of(live)  # an env that was never reset makes one now, and notes its seed
    restorer.attributes(live, node["state"], path, skip=APART)
    try:
        _play(restorer, node, live, path)
    except Exception as error:  # which the env may raise for reasons of its own
        raise MismatchError(f"{path}: its episode cannot be played again: {error}") from error
    if _digest(live) != node["digest"]:
        raise MismatchError(f"{path}: its episode of {len(restorer.arrays[node['actions']]):,} steps came out differently")
    return live


def _play(restorer: Restorer, node: Node, live: Any, path: str) -> None:
    """Take the env through its episode."""
    simulator = REPLAYED[node["replayed"]]
    first, last = restorer.value(node["generators"], None, f"{path}/generators")
    drawn = dict(restorer.value(node["drawn"], None, f"{path}/drawn"))
    simulator.prepare(live, {part: restorer.arrays[key] for part, key in node["simulator"].items()})
    _set_generator(live, first)
    live.reset(**restorer.value(node["arguments"], None, f"{path}/start/arguments"))
    for number, action in enumerate(restorer.array(node["actions"])):
        if number in drawn:
            _set_generator(live, drawn[number])
        live.step(action)
    if not simulator.draws(live) or len(restorer.arrays[node["actions"]]) in drawn:
        _set_generator(live, last)


MAKERS["replayed"] = _make_replayed
