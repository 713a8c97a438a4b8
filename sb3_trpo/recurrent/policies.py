"""The policies of ``RecurrentTRPO`` and ``MaskableRecurrentTRPO``, which can be chosen by name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch as th
from stable_baselines3.common.type_aliases import Schedule

from sb3_trpo.extras import CONTRIB, needs
from sb3_trpo.policies import ChosenDistribution, SeparateExtractors

with needs(*CONTRIB):
    from sb3_contrib.common.maskable.distributions import MaskableDistribution, MaybeMasks, make_masked_proba_distribution
    from sb3_contrib.common.recurrent.policies import (
        RecurrentActorCriticCnnPolicy,
        RecurrentActorCriticPolicy,
        RecurrentMultiInputActorCriticPolicy,
    )


class _LstmPolicy(SeparateExtractors, ChosenDistribution, RecurrentActorCriticPolicy):
    """
    A recurrent policy whose LSTMs start with open forget gates, and which ``policy.save`` saves completely.

    Policy and critic share a features extractor only if they share the LSTM.

    :param forget_bias: added to the biases of the LSTMs' forget gates. Without it the gates start half closed: of an input ten
        steps ago a thousandth is left, and hardly any gradient gets that far. 1 is the value of Jozefowicz et al. 2015 ("An
        Empirical Exploration of Recurrent Network Architectures", section 2); sb3-contrib adds nothing
    :raises ValueError: if ``lstm_kwargs`` makes an LSTM that cannot act step by step
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
                # torch stacks the gates as input, forget, cell, output. The chunks are views, so the bias itself changes.
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
    """sb3-contrib's ``RecurrentActorCriticCnnPolicy``: an LSTM on convolutional features of images."""


class MultiInputLstmPolicy(_LstmPolicy, RecurrentMultiInputActorCriticPolicy):
    """sb3-contrib's ``RecurrentMultiInputActorCriticPolicy``: an LSTM on Dict observations."""


class MaskableRecurrentActorCriticPolicy(_LstmPolicy):
    """A recurrent policy whose actions can be masked, by sb3-contrib's distributions."""

    action_dist: MaskableDistribution
    _action_masks: MaybeMasks = None

    def forward(self, *args: Any, action_masks: MaybeMasks = None, **kwargs: Any) -> Any:
        """
        Act like the recurrent policy, by allowed actions only.

        :param args: arguments of the recurrent policy
        :param action_masks: allowed actions, shape ``(n_envs, n_options)``; ``None`` allows all
        :param kwargs: keywords of the recurrent policy
        :return: actions, values, log-probabilities, LSTM states
        """
        with self._restricted_to(action_masks):
            return super().forward(*args, **kwargs)

    def evaluate_actions(self, *args: Any, action_masks: MaybeMasks = None, **kwargs: Any) -> Any:
        """
        Evaluate actions like the recurrent policy.

        :param args: arguments of the recurrent policy
        :param action_masks: actions that were allowed, shape ``(n, n_options)``; ``None`` for all
        :param kwargs: keywords of the recurrent policy
        :return: values, log-probabilities, entropy
        """
        with self._restricted_to(action_masks):
            return super().evaluate_actions(*args, **kwargs)

    def predict(self, *args: Any, action_masks: MaybeMasks = None, **kwargs: Any) -> Any:
        """
        Choose actions like the recurrent policy, among the allowed ones.

        :param args: arguments of the recurrent policy
        :param action_masks: allowed actions, shape ``(n_envs, n_options)``; ``None`` allows all
        :param kwargs: keywords of the recurrent policy
        :return: actions and LSTM states
        """
        with self._restricted_to(action_masks):
            return super().predict(*args, **kwargs)

    @contextmanager
    def _restricted_to(self, action_masks: MaybeMasks) -> Iterator[None]:
        # The methods of the base class take no masks, so they reach _get_action_dist_from_latent() through an attribute.
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
    """An LSTM on convolutional features of images, with masked actions."""


class MaskableMultiInputLstmPolicy(MaskableRecurrentActorCriticPolicy, RecurrentMultiInputActorCriticPolicy):
    """An LSTM on Dict observations, with masked actions."""
