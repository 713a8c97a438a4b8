"""TODO."""

from __future__ import annotations

from typing import Any

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_trpo.extras import CONTRIB, needs
from sb3_trpo.maskable.masks import masks_from

with needs(*CONTRIB):
    from sb3_contrib.common.maskable.utils import get_action_masks


class MaskedBy:
    """
    A masked model for whoever gives its ``predict`` no masks: it asks the environments for them.

    :param model: the model; everything else is its own
    :param env: the environments that it acts in
    """

    def __init__(self, model: Any, env: VecEnv) -> None:
        self._model = model
        self._env = env

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Choose actions as the model does, among those allowed now."""
        return self._model.predict(*args, **{"action_masks": get_action_masks(self._env), **kwargs})


class MaskedPolicy:
    """
    A policy for the one who steps the environments: calling it acts under the masks of the present states.

    :param algorithm: whose policy it is, one that takes ``action_masks``; others who call it are not masked
    :param env: the training environments
    :param buffer: being filled, with ``action_masks`` of shape ``(n_steps, n_envs, n_options)``, which keep the masks
    :param callback: gets them among its ``locals``
    """

    def __init__(self, algorithm: Any, env: VecEnv, buffer: Any, callback: BaseCallback) -> None:
        self._algorithm = algorithm
        self._env = env
        self._buffer = buffer
        self._callback = callback

    def __getattr__(self, name: str) -> Any:
        return getattr(self._algorithm.policy, name)

    def __call__(self, *args: Any) -> Any:
        """Act."""
        masks = masks_from(self._env, self._buffer.action_space, self._buffer.pos)
        self._buffer.action_masks[self._buffer.pos] = masks
        self._callback.update_locals({"action_masks": masks})
        return self._algorithm.policy(*args, action_masks=masks)

    forward = __call__  # by which older versions of sb3-contrib call the policy


class Acting:
    """
    An algorithm whose collection loop calls another policy than everyone else.

    :param algorithm: the algorithm, whose every other attribute is read and written
    :param policy: for the loop
    """

    def __init__(self, algorithm: Any, policy: Any) -> None:
        vars(self).update(_algorithm=algorithm, policy=policy)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._algorithm, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._algorithm, name, value)
