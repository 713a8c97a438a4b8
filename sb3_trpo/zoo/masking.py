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
"""The environments that a script created last to try a model in; each thread has its own."""


class MaskableTRPO(maskable.MaskableTRPO):
    """
    MaskableTRPO for scripts that only load a model and call ``predict()``.

    It loads what :class:`sb3_trpo.maskable.MaskableTRPO` has saved. It shares its name too, which RL Zoo writes into the model
    cards that it uploads.
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

        :param observation: one, or one per environment
        :param state: of a recurrent policy
        :param episode_start: whether an episode begins, shape ``(n_envs,)``
        :param deterministic: whether to take the most likely action instead of sampling
        :param action_masks: allowed actions, shape ``(n_options,)`` or ``(n_envs, n_options)``
        :return: the actions, and the state of a recurrent policy
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
    Evaluate a model; one of a masked algorithm acts under the environments' masks.

    :param model: the model
    :param env: the environments to evaluate it in
    :param args: further arguments of SB3's ``evaluate_policy``
    :param kwargs: its keywords
    :return: its result
    """
    policy: Any = SelfMaskingModel(model, env) if isinstance(model, maskable.MaskableTRPO) else model
    return evaluate_policy(policy, env, *args, **kwargs)
