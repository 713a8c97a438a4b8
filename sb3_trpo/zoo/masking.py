"""Action masks for RL Zoo's scripts, which pass none to ``predict()``: models ask the environments for them."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv

from sb3_trpo.extras import CONTRIB, needs
from sb3_trpo.maskable import trpo as maskable
from sb3_trpo.maskable.collecting import SelfMaskingModel
from sb3_trpo.recurrent import trpo as recurrent

with needs(*CONTRIB):
    from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported

TEST_ENV: ContextVar[VecEnv | None] = ContextVar("TEST_ENV", default=None)
"""The environments that a script has created last to let a model act in; each thread has its own."""


class MaskableTRPO(maskable.MaskableTRPO):
    """
    MaskableTRPO for scripts that only load a model and call ``predict()``.

    It loads what :class:`sb3_trpo.maskable.MaskableTRPO` has saved, and has the same name, because RL Zoo writes that into the
    model cards that it uploads.
    """

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Choose actions, under the masks of the test environments if none are given.

        :param observation: a single observation, or one per environment
        :param state: state of a policy with memory, as the last call returned it
        :param episode_start: whether the observation starts an episode, shape ``(n_envs,)``
        :param deterministic: whether to take the most likely action rather than to sample one
        :param action_masks: flags of the allowed options, shape ``(n_options,)`` or ``(n_envs, n_options)``
        :return: actions, and the new state of a policy with memory
        """
        env = TEST_ENV.get()
        if action_masks is None and env is not None and is_masking_supported(env):
            action_masks = get_action_masks(env)
        return super().predict(observation, state, episode_start, deterministic, action_masks)


class MaskableRecurrentTRPO(MaskableTRPO, recurrent.MaskableRecurrentTRPO):
    """The same for :class:`sb3_trpo.recurrent.MaskableRecurrentTRPO`."""


PLAYERS: dict[str, type[MaskableTRPO]] = {"trpo_mask": MaskableTRPO, "trpo_mask_lstm": MaskableRecurrentTRPO}
"""What scripts that do not train load instead of the classes in :data:`~sb3_trpo.zoo.algorithms.ALGORITHMS`."""


def evaluate(model: BaseAlgorithm, env: VecEnv, *args: Any, **kwargs: Any) -> Any:
    """
    Evaluate a model, under the environments' masks if its algorithm uses them.

    :param model: the model
    :param env: the environments to evaluate it in
    :param args: further arguments of SB3's ``evaluate_policy``
    :param kwargs: keywords of ``evaluate_policy``
    :return: the result of ``evaluate_policy``
    """
    policy: Any = SelfMaskingModel(model, env) if isinstance(model, maskable.MaskableTRPO) else model
    return evaluate_policy(policy, env, *args, **kwargs)
