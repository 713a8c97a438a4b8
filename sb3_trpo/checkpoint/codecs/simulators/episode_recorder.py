"""Record episodes while a run learns, so that they can be replayed; and what must be known of their simulators."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from sb3_trpo.checkpoint.codecs.inspection import qualified_name
from sb3_trpo.checkpoint.worker_rpc import call_all
from sb3_trpo.parallel.vec_env_layers import layers_of

LONGEST_EPISODE = 500_000
"""Number of steps after which actions are no longer recorded: replaying as many takes Atari half a minute."""
WRAPPED = ("reset", "step")


class ReplayedSimulator(ABC):
    """What must be known of a kind of environment to replay its episodes."""

    @abstractmethod
    def before_reset(self, env: Any) -> Any:
        """
        Read what a new episode will depend on, besides the environment's attributes, just before a reset.

        :param env: the environment itself
        :return: what :meth:`to_arrays` takes; ``None`` if it is not known
        """

    @abstractmethod
    def to_arrays(self, before: Any) -> dict[str, np.ndarray]:
        """
        Turn what :meth:`before_reset` has read into arrays, when a checkpoint is made.

        :param before: what it returned
        :return: arrays by name
        :raises ValueError: if it cannot be restored
        """

    @abstractmethod
    def prepare(self, env: Any, arrays: dict[str, np.ndarray]) -> None:
        """
        Restore what :meth:`before_reset` has read.

        :param env: the environment itself
        :param arrays: from :meth:`to_arrays`, or forged
        :raises ValueError: if they are not what the simulator has
        """

    @abstractmethod
    def evidence(self, env: Any) -> bytes:
        """
        Describe the state of the simulation, for the comparison of a replayed episode with the original.

        :param env: the environment itself
        :return: bytes that differ if two simulations do
        """

    @abstractmethod
    def settings(self, env: Any) -> dict[str, Any]:
        """
        Return what must be the same for an episode to come out the same.

        :param env: the environment itself
        :return: JSON values by name
        """

    @abstractmethod
    def steps_draw(self, env: Any) -> bool:
        """
        Check whether the environment's own steps draw from its generator.

        :param env: the environment itself
        :return: whether they do
        """


class EpisodeStart(NamedTuple):
    """What an episode began with: the generator, what its simulator knew, and the arguments of ``reset()``."""

    generator: Any
    simulator: Any
    seed: int | None
    options: dict[str, Any] | None


class EpisodeRecorder:
    """
    Records what an environment has done since its last reset, by replacing its ``reset()`` and ``step()``.

    :param env: the environment itself, inside all wrappers
    :param simulator: what is known of it
    """

    def __init__(self, env: gym.Env[Any, Any], simulator: ReplayedSimulator) -> None:
        self.env = env
        self.start: EpisodeStart | None = None
        """What the present episode began with; ``None`` if that is not known."""
        self.actions: list[Any] = []
        self.drawn: list[tuple[int, Any]] = []
        """States of the generator before steps, where a wrapper has drawn from it since the step before; by step."""
        self._last_generator: Any = None
        self._simulator = simulator
        self._steps_draw = simulator.steps_draw(env)
        self._own = {name: vars(env).get(name) for name in WRAPPED}
        self._reset, self._step = env.reset, env.step
        vars(env).update(reset=self.reset, step=self.step)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Record what the episode begins with, and reset the environment."""
        self.start = None
        start = EpisodeStart(generator_state(self.env), self._simulator.before_reset(self.env), seed, options)
        answer = self._reset(seed=seed, options=options)
        self.actions, self.drawn = [], []  # only now: the reset() of some environments takes a step
        is_usual = isinstance(self.env.np_random.bit_generator, np.random.PCG64)  # as in all of Gymnasium's
        if is_usual and start.simulator is not None:
            self.start, self._last_generator = start, generator_state(self.env)
        return answer

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Record the action, and step the environment."""
        if self.start is None or len(self.actions) >= LONGEST_EPISODE:
            self.start, self.actions, self.drawn = None, [], []
            return self._step(action)
        if self._steps_draw:
            self.drawn += self.just_drawn()
        self.actions.append(action.copy() if isinstance(action, np.ndarray) else action)
        answer = self._step(action)
        if self._steps_draw:
            self._last_generator = generator_state(self.env)
        return answer

    def just_drawn(self) -> list[tuple[int, Any]]:
        """
        Check whether a wrapper has drawn from the environment's generator since the last step.

        :return: the number of steps so far and the generator's state if so, or else nothing
        """
        state = generator_state(self.env)
        return [(len(self.actions), state)] if self._steps_draw and state != self._last_generator else []

    def remove(self) -> None:
        """Restore the environment's ``reset()`` and ``step()``."""
        for name, own in self._own.items():
            if own is None:
                vars(self.env).pop(name, None)
            else:
                vars(self.env)[name] = own


def generator_state(env: gym.Env[Any, Any]) -> Any:
    """
    Read the state of an environment's generator.

    :param env: the environment itself
    :return: the state, as NumPy has it
    """
    return env.np_random.bit_generator.state


def recorder_of(env: gym.Env[Any, Any]) -> EpisodeRecorder | None:
    """
    Find the recorder of an environment.

    :param env: the environment itself
    :return: its recorder, if it has one
    """
    recorder = getattr(vars(env).get("step"), "__self__", None)
    return recorder if isinstance(recorder, EpisodeRecorder) else None


def start_recording(env: gym.Env[Any, Any], simulators: Mapping[str, ReplayedSimulator]) -> None:
    """
    Record an environment's episodes from now on, if it is one that is restored by them.

    :param env: the outermost wrapper, or the environment itself
    :param simulators: environments that are restored by replaying episodes, by the name of their class
    """
    base = env.unwrapped
    simulator = simulators.get(qualified_name(type(base)))
    if simulator is not None and recorder_of(base) is None:
        EpisodeRecorder(base, simulator)


def stop_recording(env: gym.Env[Any, Any]) -> None:
    """
    Leave an environment as it was before :func:`start_recording`.

    :param env: the outermost wrapper, or the environment itself
    """
    recorder = recorder_of(env.unwrapped)
    if recorder is not None:
        recorder.remove()


@contextmanager
def episodes_recorded(vec_envs: Iterable[VecEnv], simulators: Mapping[str, ReplayedSimulator]) -> Iterator[None]:
    """
    Record episodes while this context is entered; enter it before the first reset.

    :param vec_envs: vectorized environments with all their wrappers
    :param simulators: environments that are restored by replaying episodes, by the name of their class
    """
    layers = {id(layer): layer for vec_env in vec_envs for layer in layers_of(vec_env)}
    bases = [layer for layer in layers.values() if isinstance(layer, (DummyVecEnv, SubprocVecEnv))]
    for base in bases:
        call_all(base, start_recording, simulators)
    try:
        yield
    finally:
        for base in bases:
            with suppress(OSError, EOFError):  # a worker has died, and learn() is ending because of that
                call_all(base, stop_recording)
