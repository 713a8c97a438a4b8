"""
Environments and buffer of a rollout, arranged so that the buffer keeps what the policy saw and did.

SB3's loop, and others like it, write an observation, its reward and its episode start into the buffer only after the next
step, and add to the rewards in place. This goes wrong if an environment returns the same array at every step, integer
rewards or a read-only array. So these loops are given copies.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from sb3_trpo.rollouts.collection.callback_locals import ReplacedLocals
from sb3_trpo.rollouts.floating_point import as_float32
from sb3_trpo.rollouts.plain_spaces import Observation, PlainSpaces, dict_of, map_parts
from sb3_trpo.rollouts.validation import require_finite_end

StepObserver = Callable[[list[dict[str, Any]], np.ndarray], None]
"""``(infos, dones)``: sees each step, before callbacks do."""


class RolloutEnv:
    """
    Vectorized environments that take plain actions; every other attribute is theirs.

    :param venv: the environments
    :param plain: their plain spaces, and the conversions
    :param observe: called after each step with its infos, which it must not keep or change, and dones; ``None`` for nobody
    """

    def __init__(self, venv: VecEnv, plain: PlainSpaces, observe: StepObserver | None = None) -> None:
        self.venv = venv
        self.plain = plain
        self.observe = observe

    def __getattr__(self, name: str) -> Any:
        if name == "venv":  # not set yet while this object is being copied or unpickled
            raise AttributeError(name)
        return getattr(self.venv, name)

    def step(self, actions: np.ndarray) -> Any:
        """
        Step the environments.

        :param actions: plain actions, shape ``(n_envs, *action_shape)``
        :return: observations, rewards, dones and infos, as the environments return them
        """
        return self.venv.step(self.plain.decode(actions))


class CopyingEnv(RolloutEnv):
    """
    Vectorized environments for SB3's loop: plain observations, rewards in float32, and copies of all arrays.

    :param venv: the environments
    :param plain: their plain spaces
    :param observe: called after each step with its infos and dones
    """

    def __init__(self, venv: VecEnv, plain: PlainSpaces, observe: StepObserver | None = None) -> None:
        super().__init__(venv, plain, observe)
        # SB3's loop holds the last and the present observations.
        self._copies: deque[tuple[Any, Observation]] = deque(maxlen=2)
        self._n_steps = 0
        self.infos: Any = ()
        """The infos of the last step, as the environments returned them."""

    def copy(self, observations: Observation) -> Any:
        """
        Copy observations and encode them in the plain space.

        :param observations: as the environments returned them
        :return: plain observations, which the loop may keep
        """
        own = map_parts(np.array, observations)  # kept too, for callbacks and for the algorithm after the rollout
        plain = self.plain.encode(own)
        self._copies.append((plain, own))
        return plain

    def original(self, plain: Any) -> Observation:
        """
        Undo :meth:`copy`.

        :param plain: one of its last two results, or observations that a callback got from the environments themselves
        :return: the observations in the environments' own space; the argument itself if it is no result of :meth:`copy`
        """
        return next((own for copied, own in self._copies if copied is plain), plain)

    def step(self, actions: np.ndarray) -> Any:
        """
        Step the environments.

        :param actions: plain actions, shape ``(n_envs, *action_shape)``
        :return: plain observations, rewards in float32, dones and infos
        :raises ValueError: if the last observation of an episode that a time limit cut off is not finite
        """
        observations, rewards, dones, infos = super().step(actions)
        for env_index in np.flatnonzero(dones):
            require_finite_end(infos[env_index], int(env_index), self._n_steps)
        self._n_steps += 1
        self.infos = infos
        if self.observe is not None:
            self.observe(infos, dones)
        return (
            self.copy(observations),
            as_float32(np.array(rewards)),
            np.array(dones),
            [self._with_plain_terminal_observation(info) for info in infos],
        )

    def _with_plain_terminal_observation(self, info: dict[str, Any]) -> dict[str, Any]:
        """Encode the last observation of an episode in the plain space, because SB3's loop computes its value."""
        last = info.get("terminal_observation")
        plain = None if last is None else self.plain.encode(last)
        return info if plain is last else {**info, "terminal_observation": plain}


class EnvLocals(ReplacedLocals):
    """
    A callback for a loop that steps a :class:`CopyingEnv`. It sees what the environments themselves returned.

    :param callback: the callback
    :param algorithm: the algorithm that collects
    :param env: the environments that the loop steps
    """

    def __init__(self, callback: BaseCallback, algorithm: OnPolicyAlgorithm, env: CopyingEnv) -> None:
        super().__init__(callback, self=algorithm, env=env.venv)
        self._algorithm = algorithm
        self._env = env
        self._start = callback.on_rollout_start
        self.on_rollout_start = self._start_rollout

    def _start_rollout(self) -> None:
        """Start, then copy the observations again: the callback may have reset the environments."""
        self._start()
        self._algorithm._last_obs = self._env.copy(self._env.original(self._algorithm._last_obs))

    def update_locals(self, known: dict[str, Any]) -> None:
        """Pass the loop's variables on, with the environments' own observations and infos."""
        if "new_obs" in known:
            known = {**known, "new_obs": self._env.original(known["new_obs"]), "infos": self._env.infos}
        super().update_locals(known)


def collect_by(
    loop: Callable[..., bool],
    algorithm: OnPolicyAlgorithm,
    env: RolloutEnv,
    callback: BaseCallback,
    buffer: RolloutBuffer,
    n_rollout_steps: int,
) -> bool:
    """
    Fill a buffer by SB3's loop, or by one like it.

    :param loop: ``collect_rollouts`` of an algorithm
    :param algorithm: the algorithm that collects; afterwards its last observations are the environments' own again
    :param env: the training environments
    :param callback: called at each step; finds the environments themselves in its ``locals``
    :param buffer: the rollout buffer to fill
    :param n_rollout_steps: number of steps per environment
    :return: ``True`` if the rollout is complete, ``False`` if the callback ended it
    """
    copying = CopyingEnv(env.venv, env.plain, env.observe)
    algorithm._last_obs = copying.copy(cast("Observation", algorithm._last_obs))
    algorithm._last_episode_starts = np.array(algorithm._last_episode_starts)
    try:
        return loop(copying, EnvLocals(callback, algorithm, copying), buffer, n_rollout_steps)
    finally:
        algorithm._last_obs = copying.original(algorithm._last_obs)


def widen_types(buffer: RolloutBuffer, observations: Observation) -> None:
    """
    Make a buffer keep actions and observations in types that can hold what the policy samples and sees.

    SB3's buffers use the types of the spaces. For a Box of integers that is an integer type, although a Gaussian samples real
    numbers and VecNormalize returns them.

    :param buffer: the rollout buffer to fill next; emptied if a type has to change
    :param observations: plain observations, shape ``(n_envs, ...)`` or a dict of such arrays
    """
    actions, seen = buffer.action_space, buffer.observation_space
    if isinstance(actions, spaces.Box) and not np.can_cast(np.float32, actions.dtype):
        actions = _of_floats(actions)
    if isinstance(seen, spaces.Dict) and isinstance(observations, dict):
        parts = {key: _holding(part, observations[key]) for key, part in seen.spaces.items()}
        seen = seen if all(part is seen[key] for key, part in parts.items()) else dict_of(parts)
    elif isinstance(observations, np.ndarray):
        seen = _holding(seen, observations)
    if actions is not buffer.action_space or seen is not buffer.observation_space:
        buffer.action_space, buffer.observation_space = actions, seen
        buffer.reset()


def _holding(space: spaces.Space[Any], observations: np.ndarray) -> spaces.Space[Any]:
    """Return the space itself if its type holds all that the policy sees, which is float32; otherwise a space of floats."""
    if not isinstance(space, spaces.Box) or holds(space.dtype, observations.dtype):
        return space
    return _of_floats(space)


def _of_floats(space: spaces.Box) -> spaces.Box:
    return spaces.Box(-np.inf, np.inf, space.shape, np.float32)


def holds(kept: np.dtype[Any], seen: np.dtype[Any]) -> bool:
    """
    Check whether a type can hold all of an observation that the policy sees.

    :param kept: type of the buffer's array
    :param seen: type of the observation, which the policy converts to float32
    :return: whether nothing is lost
    """
    return np.can_cast(seen, kept, "safe") or kept in (np.float32, np.float64)
