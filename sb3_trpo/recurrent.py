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
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import Schedule

from sb3_trpo.extras import CONTRIB, needs
from sb3_trpo.maskable import MaskableTRPO
from sb3_trpo.masks import Masked, MaskedBy, options_of, require_masks
from sb3_trpo.policies import SeparateExtractors
from sb3_trpo.sequences import fresh_states, inputs_at
from sb3_trpo.variants import Variant

with needs(*CONTRIB):
    from sb3_contrib import RecurrentPPO
    from sb3_contrib.common.maskable.distributions import MaskableDistribution, MaybeMasks, make_masked_proba_distribution
    from sb3_contrib.common.recurrent.buffers import RecurrentDictRolloutBuffer, RecurrentRolloutBuffer
    from sb3_contrib.common.recurrent.policies import (
        RecurrentActorCriticCnnPolicy,
        RecurrentActorCriticPolicy,
        RecurrentMultiInputActorCriticPolicy,
    )


class _LstmPolicy(SeparateExtractors, RecurrentActorCriticPolicy):
    """
    A recurrent policy that remembers from the beginning, and whose settings survive ``policy.save``.

    Shares a features extractor only if it shares the LSTM.

    :param forget_bias: added to the bias of the LSTMs' forget gates, which are half closed without it: of what went in ten
        steps ago a thousandth is left then, and hardly a gradient finds it. 1 is the value of Jozefowicz et al. 2015 ("An
        Empirical Exploration of Recurrent Network Architectures", section 2); sb3-contrib adds nothing
    """

    def __init__(self, *args: Any, forget_bias: float = 1.0, **kwargs: Any) -> None:
        shared = kwargs.get("shared_lstm", False)
        unknown = {"bidirectional", "batch_first", "proj_size"}.intersection(kwargs.get("lstm_kwargs") or {})
        if unknown:
            raise ValueError(
                f"lstm_kwargs has {', '.join(sorted(unknown))}, but a policy that acts step by step cannot use it."
            )
        super().__init__(*args, **{"share_features_extractor": shared, "enable_critic_lstm": not shared, **kwargs})
        self.forget_bias = forget_bias
        for lstm in filter(None, (self.lstm_actor, self.lstm_critic)):
            for layer in range(lstm.num_layers if lstm.bias else 0):
                _, forget, _, _ = getattr(lstm, f"bias_ih_l{layer}").detach().chunk(4)
                forget += forget_bias

    def _get_constructor_parameters(self) -> dict[str, Any]:
        n_layers, _, n_hidden = self.lstm_hidden_state_shape
        return {
            **super()._get_constructor_parameters(),
            "lstm_hidden_size": n_hidden,
            "n_lstm_layers": n_layers,
            "shared_lstm": self.shared_lstm,
            "enable_critic_lstm": self.enable_critic_lstm,
            "lstm_kwargs": self.lstm_kwargs,
            "forget_bias": self.forget_bias,
        }


class MlpLstmPolicy(_LstmPolicy):
    """sb3-contrib's ``RecurrentActorCriticPolicy``: an LSTM on flattened observations, and fully connected layers."""


class CnnLstmPolicy(_LstmPolicy, RecurrentActorCriticCnnPolicy):
    """sb3-contrib's ``RecurrentActorCriticCnnPolicy``: an LSTM on what convolutions make of images."""


class MultiInputLstmPolicy(_LstmPolicy, RecurrentMultiInputActorCriticPolicy):
    """sb3-contrib's ``RecurrentMultiInputActorCriticPolicy``: an LSTM on Dict observations."""


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


class MaskableRecurrentActorCriticPolicy(_LstmPolicy):
    """A recurrent policy whose actions can be masked, by sb3-contrib's distributions."""

    action_dist: MaskableDistribution
    _action_masks: MaybeMasks = None

    def forward(self, *args: Any, action_masks: MaybeMasks = None, **kwargs: Any) -> Any:
        """
        Act, as the recurrent policy does.

        :param args: its arguments
        :param action_masks: what is allowed, shape ``(n_envs, n_options)``; ``None`` allows everything
        :param kwargs: its keywords
        :return: actions, values, log-probabilities, states
        """
        with self._restricted_to(action_masks):
            return super().forward(*args, **kwargs)

    def evaluate_actions(self, *args: Any, action_masks: MaybeMasks = None, **kwargs: Any) -> Any:
        """
        Look at actions, as the recurrent policy does.

        :param args: its arguments
        :param action_masks: what was allowed, one row per transition
        :param kwargs: its keywords
        :return: values, log-probabilities, entropy
        """
        with self._restricted_to(action_masks):
            return super().evaluate_actions(*args, **kwargs)

    def predict(self, *args: Any, action_masks: MaybeMasks = None, **kwargs: Any) -> Any:
        """
        Choose actions, as the recurrent policy does.

        :param args: its arguments
        :param action_masks: what is allowed, shape ``(n_envs, n_options)``; ``None`` allows everything
        :param kwargs: its keywords
        :return: actions and states
        """
        with self._restricted_to(action_masks):
            return super().predict(*args, **kwargs)

    @contextmanager
    def _restricted_to(self, action_masks: MaybeMasks) -> Iterator[None]:
        try:
            self._action_masks = action_masks
            yield
        finally:
            self._action_masks = None

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        self.action_dist = make_masked_proba_distribution(self.action_space)
        self.action_net = self.action_dist.proba_distribution_net(self.mlp_extractor.latent_dim_pi)
        if self.ortho_init:
            self.action_net.apply(partial(self.init_weights, gain=0.01))  # SB3's gain, for nearly uniform first actions

    def _get_action_dist_from_latent(self, latent_pi: th.Tensor) -> Any:
        distribution = self.action_dist.proba_distribution(action_logits=self.action_net(latent_pi))
        distribution.apply_masking(self._action_masks)
        return distribution


class MaskableMlpLstmPolicy(MaskableRecurrentActorCriticPolicy):
    """An LSTM on flattened observations, with masked actions."""


class MaskableCnnLstmPolicy(MaskableRecurrentActorCriticPolicy, RecurrentActorCriticCnnPolicy):
    """An LSTM on what convolutions make of images, with masked actions."""


class MaskableMultiInputLstmPolicy(MaskableRecurrentActorCriticPolicy, RecurrentMultiInputActorCriticPolicy):
    """An LSTM on Dict observations, with masked actions."""


class _KeepsMasks(RolloutBuffer):
    """Adds action masks to a buffer."""

    action_masks: np.ndarray

    def reset(self) -> None:
        super().reset()
        self.action_masks = np.ones((self.buffer_size, self.n_envs, sum(options_of(self.action_space))), dtype=bool)

    def get(self, batch_size: int | None = None) -> Any:
        if self.full and not self.generator_ready:
            self.action_masks = self.swap_and_flatten(self.action_masks)
        yield from super().get(batch_size)


class MaskableRecurrentRolloutBuffer(_KeepsMasks, RecurrentRolloutBuffer):
    """sb3-contrib's ``RecurrentRolloutBuffer`` with action masks."""


class MaskableRecurrentDictRolloutBuffer(_KeepsMasks, RecurrentDictRolloutBuffer):
    """sb3-contrib's ``RecurrentDictRolloutBuffer`` with action masks."""


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


class MaskableRecurrentEvalCallback(EvalCallback):
    """SB3's ``EvalCallback`` with masks. sb3-contrib's has masks too, but gives the policy no memory from step to step."""

    def _init_callback(self) -> None:
        require_masks(self.eval_env)
        super()._init_callback()

    def _on_step(self) -> bool:
        model = self.model
        self.model = MaskedBy(model, self.eval_env)  # type: ignore[assignment]  # for all that evaluation asks, it is the model
        try:
            return super()._on_step()
        finally:
            self.model = model
