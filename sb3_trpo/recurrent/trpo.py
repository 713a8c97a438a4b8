"""
TRPO for policies with memory, alone and with action masks; needs the extra ``[contrib]``.

    from sb3_trpo.recurrent import MaskableRecurrentTRPO, RecurrentTRPO
    model = RecurrentTRPO("MlpLstmPolicy", "PendulumNoVel-v1")
    model.learn(1e6)
    action, state = model.predict(obs, state=state, episode_start=episode_start)

Gradients and Fisher products go through the LSTM over whole episodes, or what of them is in the rollout.
"""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import numpy as np
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import BasePolicy

from sb3_trpo.contrib_base import Variant
from sb3_trpo.extras import CONTRIB, needs
from sb3_trpo.maskable.masks import Masked
from sb3_trpo.maskable.trpo import MaskableTRPO
from sb3_trpo.recurrent.buffers import MaskableRecurrentDictRolloutBuffer, MaskableRecurrentRolloutBuffer, _KeepsMasks
from sb3_trpo.recurrent.policies import (
    CnnLstmPolicy,
    MaskableCnnLstmPolicy,
    MaskableMlpLstmPolicy,
    MaskableMultiInputLstmPolicy,
    MaskableRecurrentActorCriticPolicy,
    MlpLstmPolicy,
    MultiInputLstmPolicy,
)
from sb3_trpo.recurrent.segments import fresh_states, inputs_at

with needs(*CONTRIB):
    from sb3_contrib import RecurrentPPO
    from sb3_contrib.common.recurrent.buffers import RecurrentDictRolloutBuffer, RecurrentRolloutBuffer
    from sb3_contrib.common.recurrent.policies import (
        RecurrentActorCriticPolicy,
    )


class RecurrentTRPO(Variant):
    """
    Trust Region Policy Optimization of a policy with memory.

    Takes the keywords of :class:`~sb3_trpo.TRPO`. What differs: ``sub_sampling_factor`` and ``fisher_subsampling`` use every
    k-th sequence (an episode, or what of it is in the rollout) instead of every k-th transition. ``chunk_size`` bounds the
    length of a sequence too: a longer one is cut, and gradients do not cross the cut. ``batch_size`` bounds it for the critic.
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
    policy: RecurrentActorCriticPolicy
    _general_loop = RecurrentPPO.collect_rollouts  # carries the LSTMs' states along, and asks nothing of PPO

    def _build(self) -> None:
        super()._build()
        self._last_lstm_states = fresh_states(self.policy, self.n_envs)

    def _buffer_settings(self) -> dict[str, Any]:
        n_layers, _, n_hidden = self.policy.lstm_hidden_state_shape
        return {"hidden_state_shape": (self.n_steps, n_layers, self.n_envs, n_hidden)}


@inputs_at.register
def _(buffer: _KeepsMasks, rows: np.ndarray, starts: np.ndarray) -> Masked:
    return Masked(inputs_at.dispatch(object)(buffer, rows, starts), buffer.to_torch(buffer.action_masks[rows]))


class MaskableRecurrentTRPO(MaskableTRPO, RecurrentTRPO):
    """
    Trust Region Policy Optimization of a policy with memory over the actions that the environment's masks allow.

    What is said of :class:`~sb3_trpo.maskable.MaskableTRPO` and :class:`RecurrentTRPO` holds for both together.
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

    def predict(self, observation: Any, state: Any = None, episode_start: Any = None, *args: Any, **kwargs: Any) -> Any:
        """
        Choose actions, as :class:`~sb3_trpo.maskable.MaskableTRPO` does; warns if memory gets lost amid an episode.

        :param observation: one, or one per environment
        :param state: what the last call returned; ``None`` at the beginning
        :param episode_start: where it starts anew
        :param args: ``deterministic`` and ``action_masks``
        :param kwargs: likewise
        :return: the actions and the state
        """
        if state is None and episode_start is not None and not np.all(episode_start):
            warnings.warn(
                "predict() was given no state, though not every episode starts: the policy acts without its memory. Give it "
                "what the last call returned. sb3-contrib's MaskableEvalCallback does not; take "
                "sb3_trpo.recurrent.MaskableRecurrentEvalCallback.",
                UserWarning,
                stacklevel=2,
            )
        return super().predict(observation, state, episode_start, *args, **kwargs)
