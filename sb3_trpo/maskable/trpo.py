"""
TRPO with action masks.

Surrogate, KL divergence, Fisher metric and entropy are those of the masked distribution, with the masks that were in force
when the policy acted.
"""

from __future__ import annotations

import warnings
from typing import Any, ClassVar, cast

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import VecEnv

from sb3_trpo.contrib_base import ContribTRPO
from sb3_trpo.distributions.base import DistributionKind
from sb3_trpo.extras import CONTRIB, needs
from sb3_trpo.maskable.collecting import AlgorithmWithPolicy, BufferWithMasks, CollectingPolicy
from sb3_trpo.maskable.distributions import MASKED_KINDS
from sb3_trpo.maskable.masks import IMPOSSIBLE, checked_masks, masks_from, require_masks
from sb3_trpo.maskable.policies import CnnPolicy, MlpPolicy, MultiInputPolicy
from sb3_trpo.maskable.reader import MaskedTransitionReader
from sb3_trpo.rollouts.collection.acting import ActingPolicy
from sb3_trpo.rollouts.collection.callback_locals import ReplacedLocals
from sb3_trpo.rollouts.collection.fast_collector import ActingPolicies
from sb3_trpo.rollouts.inputs import ObservationInputs
from sb3_trpo.rollouts.reader import RolloutReader

with needs(*CONTRIB):
    from sb3_contrib.common.maskable.buffers import MaskableDictRolloutBuffer, MaskableRolloutBuffer
    from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy


class MaskedActingPolicy(ActingPolicy):
    """The policy in the fast rollout loop, with masked actions."""

    def _mask(self, output: np.ndarray) -> dict[str, Any]:
        buffer = cast("BufferWithMasks", self._buffer)
        masks = masks_from(self._env.venv, buffer.action_space, buffer.pos)
        buffer.action_masks[buffer.pos] = masks
        output[~masks] = IMPOSSIBLE
        return {"action_masks": masks}


class MaskableTRPO(ContribTRPO):
    """
    Trust Region Policy Optimization over the actions that the environment's masks allow.

    Takes the keywords of :class:`~sb3_trpo.TRPO`, for Discrete, MultiDiscrete and MultiBinary actions.

    :raises ValueError: during collection, if an environment has no masks or a mask is not valid
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    policy_base: ClassVar[type[BasePolicy]] = MaskableActorCriticPolicy
    buffer_classes: ClassVar[tuple[type[RolloutBuffer], type[RolloutBuffer]]] = (
        MaskableRolloutBuffer,
        MaskableDictRolloutBuffer,
    )
    rollout_reader: ClassVar[type[RolloutReader]] = MaskedTransitionReader
    action_spaces = (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
    acting_policies: ClassVar[ActingPolicies] = dict.fromkeys(
        (MaskableRolloutBuffer, MaskableDictRolloutBuffer), MaskedActingPolicy
    )
    distribution_kinds: ClassVar[tuple[DistributionKind, ...]] = (*ContribTRPO.distribution_kinds, *MASKED_KINDS)

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """
        Fill the buffer, masks included.

        :param env: the training environments
        :param callback: called at each step; finds ``action_masks`` in its ``locals``
        :param rollout_buffer: the buffer to fill
        :param n_rollout_steps: number of steps per environment
        :return: ``True`` if the rollout is complete, ``False`` if the callback ended it
        :raises ValueError: if an environment has no masks, or if a mask has the wrong size or allows nothing
        """
        require_masks(env)
        return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Choose actions.

        :param observation: one observation, or one per environment
        :param state: state of a recurrent policy that the last call returned
        :param episode_start: whether an episode starts with the observation, shape ``(n_envs,)``
        :param deterministic: whether to take the most likely action instead of sampling
        :param action_masks: allowed actions, shape ``(n_options,)`` or ``(n_envs, n_options)``; ``None`` allows all
        :return: the actions, and the state of a recurrent policy
        :raises ValueError: if a mask has the wrong size or allows nothing
        """
        plain = self._plain.encode(observation)
        if action_masks is None:
            warnings.warn(
                "predict() was given no action_masks, so the policy may choose forbidden actions. Pass get_action_masks(env); "
                "evaluate with MaskableEvalCallback instead of EvalCallback.",
                UserWarning,
                stacklevel=2,
            )
        else:
            tensors, _ = self.policy.obs_to_tensor(plain)
            n_observations = len(ObservationInputs(tensors))
            rows: Any = [action_masks] if n_observations == 1 and np.ndim(action_masks[0]) == 0 else action_masks
            if len(rows) != n_observations:
                raise ValueError(
                    f"action_masks has {len(rows)} rows, but must have one for each of {n_observations} observations."
                )
            action_masks = checked_masks(rows, self.action_space, "given to predict()")
        actions, state = self.policy.predict(plain, state, episode_start, deterministic, action_masks=action_masks)  # type: ignore[call-arg]  # SB3's policies have no masks
        return self._plain.decode(actions), state

    def _general_loop(self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int) -> bool:
        # The loop of the base class knows no masks. It is called on a stand-in for this algorithm, so that the policy that it
        # finds there masks its actions, while callbacks still see the algorithm and policy themselves.
        loop: Any = super()._general_loop
        algorithm = AlgorithmWithPolicy(self, CollectingPolicy(self, env, cast("BufferWithMasks", rollout_buffer), callback))
        return bool(loop.__func__(algorithm, env, ReplacedLocals(callback, self=self), rollout_buffer, n_rollout_steps))

    def _policy_settings(self) -> dict[str, Any]:
        return self.policy_kwargs  # without use_sde, which sb3-contrib's maskable policies do not take
