"""
The environments and the buffer of a rollout, so that what is kept is what the policy saw and did.

Other loops than ours write an observation, its reward and its episode start into the buffer only after the next step, and add
to the rewards in place. An environment that returns the same array at every step, integers, or an array that may not be
written to would spoil that: these loops are given copies.
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

from sb3_trpo.distributions.floating_point import as_float32
from sb3_trpo.rollouts.callback_locals import OwnLocals
from sb3_trpo.rollouts.plain_spaces import Observation, PlainSpaces, dict_of, map_parts
from sb3_trpo.rollouts.validation import require_finite_end


class RolloutEnv:
    """
    Vectorised environments that take actions of their plain space; every other attribute is theirs.

    :param venv: the environments
    :param plain: their spaces
    """

    def __init__(self, venv: VecEnv, plain: PlainSpaces) -> None:
        self.venv = venv
        self.plain = plain

    def __getattr__(self, name: str) -> Any:
        if name == "venv":  # while this is being copied or unpickled
            raise AttributeError(name)
        return getattr(self.venv, name)

    def step(self, actions: np.ndarray) -> Any:
        """
        Step.

        :param actions: of the plain space, one for each environment
        :return: observations, rewards, dones and infos, as the environments have them
        """
        return self.venv.step(self.plain.decode(actions))


class CopyingEnv(RolloutEnv):
    """Vectorised environments as other loops need them: plain observations, rewards in float32, all of it copied."""

    def __init__(self, venv: VecEnv, plain: PlainSpaces) -> None:
        super().__init__(venv, plain)
        self._given: deque[tuple[Any, Observation]] = deque(maxlen=2)
        self._n_steps = 0
        self.infos: Any = ()
        """Of the last step, as the environments have them."""

    def copied(self, observations: Observation) -> Any:
        """
        Copy observations into the plain space.

        :param observations: as the environments have them
        :return: what the loop may keep
        """
        own = map_parts(np.array, observations)
        plain = self.plain.encode(own)
        self._given.append((plain, own))
        return plain

    def own_form(self, plain: Any) -> Observation:
        """
        Give observations as the environments have them.

        :param plain: one of the last two results of :meth:`copied`; anything else comes from the environments themselves
        :return: what it was made of
        """
        return next((own for given, own in self._given if given is plain), plain)

    def step(self, actions: np.ndarray) -> Any:
        """
        Step.

        :param actions: of the plain space, one for each environment
        :return: observations of the plain space, rewards in float32, dones and infos
        :raises ValueError: if the last observation of an episode that a time limit cut off is not finite
        """
        observations, rewards, dones, infos = super().step(actions)
        for env_index in np.flatnonzero(dones):
            require_finite_end(infos[env_index], int(env_index), self._n_steps)
        self._n_steps += 1
        self.infos = infos
        return (
            self.copied(observations),
            as_float32(np.array(rewards)),
            np.array(dones),
            [self._with_plain_end(info) for info in infos],
        )

    def _with_plain_end(self, info: dict[str, Any]) -> dict[str, Any]:
        """Bring the last observation of an episode into the plain space."""
        last = info.get("terminal_observation")
        plain = None if last is None else self.plain.encode(last)
        return info if plain is last else {**info, "terminal_observation": plain}


class EnvLocals(OwnLocals):
    """
    A callback for a loop that is given a :class:`CopyingEnv`: it sees what the environments gave.

    :param callback: the callback
    :param algorithm: whose policy acts
    :param env: what the loop is given
    """

    def __init__(self, callback: BaseCallback, algorithm: OnPolicyAlgorithm, env: CopyingEnv) -> None:
        super().__init__(callback, self=algorithm, env=env.venv)
        self._algorithm = algorithm
        self._env = env
        self._start = callback.on_rollout_start
        self.on_rollout_start = self._start_rollout

    def _start_rollout(self) -> None:
        """Start, and copy the observations again: a callback may have reset the environments."""
        self._start()
        self._algorithm._last_obs = self._env.copied(self._env.own_form(self._algorithm._last_obs))

    def update_locals(self, known: dict[str, Any]) -> None:
        """Pass the loop's variables on, with the environments' own observations and infos."""
        if "new_obs" in known:
            known = {**known, "new_obs": self._env.own_form(known["new_obs"]), "infos": self._env.infos}
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
    Fill a buffer by a loop that is not ours.

    :param loop: SB3's ``collect_rollouts``, or one like it
    :param algorithm: whose policy acts; its last observations end as the environments have them
    :param env: the training environments
    :param callback: called at each step; finds the environments themselves among its ``locals``
    :param buffer: what to fill
    :param n_rollout_steps: steps per environment
    :return: whether the rollout is complete, rather than ended by the callback
    """
    copying = CopyingEnv(env.venv, env.plain)
    algorithm._last_obs = copying.copied(cast("Observation", algorithm._last_obs))
    algorithm._last_episode_starts = np.array(algorithm._last_episode_starts)
    try:
        return loop(copying, EnvLocals(callback, algorithm, copying), buffer, n_rollout_steps)
    finally:
        algorithm._last_obs = copying.own_form(algorithm._last_obs)


def keep_as_seen(buffer: RolloutBuffer, observations: Observation) -> None:
    """
    Have a buffer keep actions and observations in a type that holds what the policy draws and sees.

    SB3's buffers take the types of the spaces: integers, for actions that a Gaussian draws in a Box of integers, and for
    normalised observations of one.

    :param buffer: about to be filled; emptied if it has to change
    :param observations: of the plain space, one for each environment
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
    """Choose the space to make room by: its own where that keeps as much as the policy sees, which is float32."""
    if not isinstance(space, spaces.Box) or holds(space.dtype, observations.dtype):
        return space
    return _of_floats(space)


def _of_floats(space: spaces.Box) -> spaces.Box:
    return spaces.Box(-np.inf, np.inf, space.shape, np.float32)


def holds(kept: np.dtype[Any], seen: np.dtype[Any]) -> bool:
    """
    Tell whether an array keeps as much of an observation as the policy sees.

    :param kept: type of the array
    :param seen: type of the observation, which the policy turns into float32
    :return: whether it does
    """
    return np.can_cast(seen, kept, "safe") or kept in (np.float32, np.float64)
