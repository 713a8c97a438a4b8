"""Masks for callers that pass none: SB3's evaluation, and the collection loops of SB3 and sb3-contrib."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from sb3_trpo.extras import CONTRIB, needs
from sb3_trpo.maskable.masks import masks_from

with needs(*CONTRIB):
    from sb3_contrib.common.maskable.utils import get_action_masks


class BufferWithMasks(Protocol):
    """
    What a rollout buffer with action masks must have.

    :param pos: index of the step to be filled next
    :param action_space: the action space
    :param action_masks: shape ``(n_steps, n_envs, n_options)`` while the buffer is filled
    """

    pos: int
    action_space: spaces.Space[Any]
    action_masks: np.ndarray


class SelfMaskingModel:
    """
    A maskable model that asks the environments for masks when ``predict`` is called without them.

    :param model: the model; all other attributes are read from it
    :param env: the environments in which it acts
    """

    def __init__(self, model: BaseAlgorithm, env: VecEnv) -> None:
        self._model = model
        self._env = env

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Choose among the actions that the environments allow now, by the model's own method."""
        predict: Callable[..., Any] = self._model.predict
        return predict(*args, **{"action_masks": get_action_masks(self._env), **kwargs})


class CollectingPolicy:
    """
    The policy for a collection loop that knows no masks: each call asks for masks, applies them and stores them.

    Only the loop gets this object. Callbacks call the policy itself, which masks nothing unless they pass masks.

    :param algorithm: the algorithm that owns the policy; the policy must accept ``action_masks``
    :param env: the training environments
    :param buffer: the rollout buffer to fill
    :param callback: finds the masks in its ``locals``
    """

    def __init__(self, algorithm: OnPolicyAlgorithm, env: VecEnv, buffer: BufferWithMasks, callback: BaseCallback) -> None:
        self._algorithm = algorithm
        self._env = env
        self._buffer = buffer
        self._callback = callback

    def __getattr__(self, name: str) -> Any:
        return getattr(self._algorithm.policy, name)

    def __call__(self, *args: Any) -> Any:
        """Act under the masks of the present states."""
        masks = masks_from(self._env, self._buffer.action_space, self._buffer.pos)
        self._buffer.action_masks[self._buffer.pos] = masks
        self._callback.update_locals({"action_masks": masks})
        return self._algorithm.policy(*args, action_masks=masks)

    forward = __call__  # older versions of sb3-contrib call this


class AlgorithmWithPolicy:
    """
    A stand-in for an algorithm, with another policy. A collection loop gets it as ``self``.

    :param algorithm: the algorithm; all attributes but ``policy`` are read from it and written to it
    :param policy: the other policy
    """

    def __init__(self, algorithm: OnPolicyAlgorithm, policy: CollectingPolicy) -> None:
        # An assignment would go to the algorithm.
        vars(self).update(_algorithm=algorithm, policy=policy)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._algorithm, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._algorithm, name, value)
