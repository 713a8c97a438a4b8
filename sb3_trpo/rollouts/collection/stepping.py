"""
Stepping environments in this process without the deep copy of all infos that SB3's ``DummyVecEnv`` makes at each step.

Hardly anybody reads infos of steps that end no episode, and copying them takes as long as stepping a small environment. So
they are copied when a callback reads them. Only SB3's own classes are stepped this way, as they are: what a subclass or a
wrapper of somebody else's does with infos is not known.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any, cast

import numpy as np
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecEnv,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
)

from sb3_trpo.networks.originals import are_original
from sb3_trpo.networks.plain_network import is_patched
from sb3_trpo.rollouts.collection.normalizing import NORMALIZING_METHODS, Stepped, normalize_step, normalizes_arrays

KEEP_NO_INFOS = (VecFrameStack, VecMonitor, VecNormalize, VecTransposeImage)
"""SB3's wrappers that change at most the infos of ended episodes, and keep none."""
METHODS = frozenset({"step", "step_async", "step_wait"})
"""What is replaced here, or called in two parts."""
METHODS_ABOVE = METHODS | NORMALIZING_METHODS
"""The same for environments whose rewards and observations are normalized here, too."""

Infos = list[dict[str, Any]]


class Stepper:
    """
    Steps vectorized environments.

    :param venv: the environments
    """

    def __init__(self, venv: VecEnv) -> None:
        self._venv = venv
        self._bottom = dummy_below(venv)
        self._without_copies = None if self._bottom is None else partial(step_without_copies, self._bottom)
        is_normalized = isinstance(venv, VecNormalize) and self._bottom is not None and normalizes_arrays(venv)
        self._below = Stepper(venv.venv) if is_normalized else None  # type: ignore[attr-defined]  # a wrapper

    def step(self, actions: np.ndarray, meanwhile: Callable[[], object] = lambda: None) -> Stepped:
        """
        Step the environments.

        :param actions: shape ``(n_envs, *action_shape)``
        :param meanwhile: called before the environments step, or while they do so in other processes
        :return: observations, rewards, dones and infos. Infos of steps that end no episode may be the environments' own, which
            :meth:`copy_of` copies before anybody else sees them
        """
        if self._bottom is None and steps_elsewhere(self._venv):
            self._venv.step_async(actions)
            meanwhile()
            return cast("Stepped", self._venv.step_wait())
        meanwhile()
        return self._step(actions)

    def _step(self, actions: np.ndarray) -> Stepped:
        bottom = self._bottom
        if bottom is None or not METHODS.isdisjoint(vars(bottom)):  # a callback may have patched it since
            return cast("Stepped", self._venv.step(actions))
        if self._below is not None and METHODS_ABOVE.isdisjoint(vars(self._venv)):
            return normalize_step(self._venv, self._below._step(actions))  # type: ignore[arg-type]  # a VecNormalize
        if bottom is self._venv:
            bottom.step_async(actions)
            return step_without_copies(bottom)
        bottom.step_wait = self._without_copies  # type: ignore[method-assign, assignment]  # in this call alone
        try:
            return cast("Stepped", self._venv.step(actions))
        finally:
            vars(bottom).pop("step_wait", None)  # another thread may have removed it

    def copy_of(self, infos: Infos) -> Infos:
        """
        Copy infos, if :meth:`step` has not.

        :param infos: the last result
        :return: what SB3's ``DummyVecEnv`` would have returned
        """
        return infos if self._bottom is None else deepcopy(infos)


def innermost(venv: VecEnv) -> VecEnv:
    """
    Look below SB3's own wrappers.

    :param venv: vectorized environments
    :return: what they wrap; the first wrapper of somebody else's, or patched one, if there is any
    """
    while type(venv) in KEEP_NO_INFOS and not is_patched(venv):
        venv = venv.venv  # type: ignore[attr-defined]  # a wrapper
    return venv


def dummy_below(venv: VecEnv) -> DummyVecEnv | None:
    """
    Find the ``DummyVecEnv`` that steps the environments, if nothing can tell whether its infos are copies.

    :param venv: vectorized environments
    :return: SB3's own class, with none but SB3's own wrappers around it; ``None`` if there is anything else
    """
    bottom = innermost(venv)
    is_known = (
        type(bottom) is DummyVecEnv and not is_patched(bottom) and are_original(DummyVecEnv, (*METHODS, "_obs_from_buf"))
    )
    return cast("DummyVecEnv", bottom) if is_known else None


def steps_elsewhere(venv: VecEnv) -> bool:
    """
    Check whether environments run in other processes, so that there is time for other work while they step.

    :param venv: vectorized environments
    :return: whether it is SB3's ``SubprocVecEnv``, with none but SB3's own wrappers around it
    """
    bottom = innermost(venv)
    return type(bottom) is SubprocVecEnv and not is_patched(bottom) and are_original(SubprocVecEnv, METHODS)


def step_without_copies(venv: DummyVecEnv) -> Stepped:
    """
    Step each environment once, as ``DummyVecEnv.step_wait`` does.

    :param venv: the environments; the actions are set
    :return: observations, rewards, dones and infos; infos are copies only where an episode has ended
    """
    rewards, dones, infos = venv.buf_rews, venv.buf_dones, venv.buf_infos
    for index, env in enumerate(venv.envs):
        observation, rewards[index], terminated, truncated, info = env.step(venv.actions[index])
        dones[index] = is_done = terminated or truncated
        info["TimeLimit.truncated"] = truncated and not terminated
        if is_done:
            info["terminal_observation"] = observation
            observation, venv.reset_infos[index] = env.reset()
            info = deepcopy(info)  # wrappers write to this one
        infos[index] = info
        venv._save_obs(index, observation)
    return observations_of(venv), rewards.copy(), dones.copy(), infos.copy()


def observations_of(venv: DummyVecEnv) -> Any:
    """
    Copy the present observations out of the environments' buffer.

    :param venv: the environments
    :return: what they return, an array in most cases
    """
    if venv.keys == [None]:
        return next(iter(venv.buf_obs.values())).copy()
    return venv._obs_from_buf()
