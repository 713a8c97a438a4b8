"""
Inputs of a maskable policy, and the reader of sb3-contrib's maskable rollout buffers.

The masks travel with the inputs: whatever computes a distribution from them, for the gradient, the KL or a Fisher product,
gets the masked one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast

import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs, RolloutBufferSamples

from sb3_trpo.extras import CONTRIB, needs
from sb3_trpo.rollouts.inputs import PolicyInputs
from sb3_trpo.rollouts.reader import TransitionReader

with needs(*CONTRIB):
    from sb3_contrib.common.maskable.buffers import (
        MaskableDictRolloutBuffer,
        MaskableRolloutBuffer,
        MaskableRolloutBufferSamples,
    )
    from sb3_contrib.common.maskable.distributions import MaskableDistribution


@dataclass(frozen=True, eq=False)
class MaskedInputs:
    """
    Inputs of a policy, and the actions that were allowed.

    :param unmasked: the inputs without masks: observations, with or without LSTM states
    :param action_masks: one flag per option of each choice, shape ``(n, n_options)``; 0 forbids the option
    """

    unmasked: PolicyInputs
    action_masks: th.Tensor

    @property
    def observations(self) -> PyTorchObs:
        """The observations alone."""
        return self.unmasked.observations

    def __len__(self) -> int:
        """Return the number of states."""
        return len(self.unmasked)

    def distribution(self, policy: ActorCriticPolicy) -> Distribution:
        """Compute the distribution over the allowed actions."""
        return self.restrict(self.unmasked.distribution(policy))

    def values(self, policy: ActorCriticPolicy) -> th.Tensor:
        """Compute the values, which do not depend on masks."""
        return self.unmasked.values(policy)

    def restrict(self, distribution: Distribution) -> Distribution:
        """Mask the distribution, in place."""
        assert isinstance(distribution, MaskableDistribution)
        distribution.apply_masking(self.action_masks)
        return distribution


class MaskedTransitionReader(TransitionReader):
    """Reads transitions with their action masks."""

    direct_buffers: ClassVar[tuple[type[RolloutBuffer], ...]] = (MaskableRolloutBuffer, MaskableDictRolloutBuffer)

    def _inputs(self, samples: RolloutBufferSamples) -> PolicyInputs:
        masks = cast("MaskableRolloutBufferSamples", samples).action_masks
        return MaskedInputs(super()._inputs(samples), masks)
