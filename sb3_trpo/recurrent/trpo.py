"""
TRPO for recurrent policies, without and with action masks.

Gradients and Fisher products go through the LSTM over whole segments: episodes, or the parts of them that lie in the rollout.
"""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import numpy as np
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import BasePolicy
from torch import nn

from sb3_trpo.contrib_base import ContribTRPO
from sb3_trpo.extras import CONTRIB, needs
from sb3_trpo.maskable.trpo import MaskableTRPO
from sb3_trpo.networks.plain_network import Networks
from sb3_trpo.recurrent.buffers import MaskableRecurrentDictRolloutBuffer, MaskableRecurrentRolloutBuffer
from sb3_trpo.recurrent.collecting import MaskedRecurrentActingPolicy, RecurrentActingPolicy
from sb3_trpo.recurrent.networks import read_recurrent_networks
from sb3_trpo.recurrent.policies import (
    CnnLstmPolicy,
    MaskableCnnLstmPolicy,
    MaskableMlpLstmPolicy,
    MaskableMultiInputLstmPolicy,
    MaskableRecurrentActorCriticPolicy,
    MlpLstmPolicy,
    MultiInputLstmPolicy,
)
from sb3_trpo.recurrent.reader import MaskedSegmentReader, SegmentReader, fresh_states
from sb3_trpo.recurrent.regression import fit_recurrent_values
from sb3_trpo.rollouts.batch import RolloutBatch
from sb3_trpo.rollouts.collection.fast_collector import ActingPolicies
from sb3_trpo.rollouts.reader import RolloutReader
from sb3_trpo.update.critic import CriticFit, FitSettings
from sb3_trpo.update.parameter_split import ParameterSplit, PolicyTensors

with needs(*CONTRIB):
    from sb3_contrib import RecurrentPPO
    from sb3_contrib.common.recurrent.buffers import RecurrentDictRolloutBuffer, RecurrentRolloutBuffer
    from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy


class RecurrentTRPO(ContribTRPO):
    """
    Trust Region Policy Optimization of a recurrent policy.

    Takes the keywords of :class:`~sb3_trpo.TRPO`. Some of them work differently. ``sub_sampling_factor`` and
    ``fisher_subsampling`` use every k-th segment (an episode, or the part of one that lies in the rollout) instead of every
    k-th transition. ``chunk_size`` also limits the length of a segment: a longer one is cut, and gradients do not cross the
    cut. For the critic, ``batch_size`` sets this limit.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpLstmPolicy": MlpLstmPolicy,
        "CnnLstmPolicy": CnnLstmPolicy,
        "MultiInputLstmPolicy": MultiInputLstmPolicy,
    }
    policy_base: ClassVar[type[BasePolicy]] = RecurrentActorCriticPolicy
    buffer_classes: ClassVar[tuple[type[RolloutBuffer], type[RolloutBuffer]]] = (
        RecurrentRolloutBuffer,
        RecurrentDictRolloutBuffer,
    )
    rollout_reader: ClassVar[type[RolloutReader]] = SegmentReader
    acting_policies: ClassVar[ActingPolicies] = dict.fromkeys(buffer_classes, RecurrentActingPolicy)
    policy: RecurrentActorCriticPolicy
    _general_loop = RecurrentPPO.collect_rollouts  # carries the LSTM states along, and uses nothing that is PPO's

    def _setup_model(self) -> None:
        super()._setup_model()
        self._last_lstm_states = fresh_states(self.policy, self.n_envs)

    def _split(self, networks: PolicyTensors | None, batch: RolloutBatch) -> ParameterSplit:
        return super()._split(networks or read_recurrent_networks(self.policy, self.distribution_kinds), batch)

    def _fit_values(
        self, networks: Networks | None, parameters: list[nn.Parameter], batch: RolloutBatch, settings: FitSettings
    ) -> CriticFit:
        recurrent = read_recurrent_networks(self.policy, self.distribution_kinds)  # again, for dropout is switched on now
        fit = recurrent and fit_recurrent_values(self.policy, recurrent, parameters, batch, *settings, self._communicator)
        return fit or super()._fit_values(networks, parameters, batch, settings)

    def _buffer_settings(self, n_steps: int) -> dict[str, Any]:
        n_layers, _, n_hidden = self.policy.lstm_hidden_state_shape
        return {"hidden_state_shape": (n_steps, n_layers, self.n_envs, n_hidden)}


class MaskableRecurrentTRPO(MaskableTRPO, RecurrentTRPO):
    """
    Trust Region Policy Optimization of a recurrent policy, over the actions that the environment's masks allow.

    The notes on :class:`~sb3_trpo.maskable.MaskableTRPO` and on :class:`RecurrentTRPO` both apply.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpLstmPolicy": MaskableMlpLstmPolicy,
        "CnnLstmPolicy": MaskableCnnLstmPolicy,
        "MultiInputLstmPolicy": MaskableMultiInputLstmPolicy,
    }
    policy_base: ClassVar[type[BasePolicy]] = MaskableRecurrentActorCriticPolicy
    buffer_classes: ClassVar[tuple[type[RolloutBuffer], type[RolloutBuffer]]] = (
        MaskableRecurrentRolloutBuffer,
        MaskableRecurrentDictRolloutBuffer,
    )
    rollout_reader: ClassVar[type[RolloutReader]] = MaskedSegmentReader
    acting_policies: ClassVar[ActingPolicies] = dict.fromkeys(buffer_classes, MaskedRecurrentActingPolicy)

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Choose actions like :class:`~sb3_trpo.maskable.MaskableTRPO`; warn if the LSTM state is missing during an episode.

        :param observation: one observation, or one per environment
        :param state: state that the last call returned; ``None`` at first
        :param episode_start: whether an episode starts with the observation, shape ``(n_envs,)``
        :param deterministic: whether to take the most likely action instead of sampling
        :param action_masks: allowed actions, shape ``(n_options,)`` or ``(n_envs, n_options)``; ``None`` allows all
        :return: the actions and the new state
        """
        if state is None and episode_start is not None and not np.all(episode_start):
            warnings.warn(
                "predict() was given no state, though not every episode starts now: the policy acts without its memory. Pass "
                "the state that the last call returned. sb3-contrib's MaskableEvalCallback does not; use "
                "sb3_trpo.recurrent.MaskableRecurrentEvalCallback.",
                UserWarning,
                stacklevel=2,
            )
        return super().predict(observation, state, episode_start, deterministic, action_masks)
