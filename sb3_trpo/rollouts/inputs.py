"""
What a policy acts on in n states, and its distribution and values there.

A plain policy acts on observations alone. Action masks (``maskable/``) and LSTM states (``recurrent/``) add to them. Code
that handles transitions sees only :class:`PolicyInputs` and works with all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch as th
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs


class PolicyInputs(Protocol):
    """What a policy acts on in n states."""

    @property
    def observations(self) -> PyTorchObs:
        """The observations alone, a tensor of shape ``(n, ...)`` or a dict of them."""
        ...

    def __len__(self) -> int:
        """Return n."""
        ...

    def distribution(self, policy: ActorCriticPolicy) -> Distribution:
        """
        Compute the policy's action distribution.

        :param policy: the policy that acts on these inputs
        :return: the distribution, one row per state, attached to autograd's graph
        """
        ...

    def values(self, policy: ActorCriticPolicy) -> th.Tensor:
        """
        Compute the critic's values.

        :param policy: the policy that holds the critic
        :return: the values, shape ``(n, 1)``, attached to autograd's graph
        """
        ...

    def restrict(self, distribution: Distribution) -> Distribution:
        """
        Exclude the actions that these inputs forbid.

        :param distribution: over all actions, one row per state; may be changed in place
        :return: the distribution over the allowed actions
        """
        ...


@dataclass(frozen=True, eq=False)
class ObservationInputs:
    """
    The inputs of a plain policy.

    :param observations: a tensor of shape ``(n, ...)`` or a dict of them
    """

    observations: PyTorchObs

    def __len__(self) -> int:
        """Return the number of states."""
        parts = self.observations
        return len(next(iter(parts.values())) if isinstance(parts, dict) else parts)

    def distribution(self, policy: ActorCriticPolicy) -> Distribution:
        """Compute the distribution by SB3's own method."""
        return policy.get_distribution(self.observations)

    def values(self, policy: ActorCriticPolicy) -> th.Tensor:
        """Compute the values by SB3's own method."""
        return policy.predict_values(self.observations)

    def restrict(self, distribution: Distribution) -> Distribution:
        """Return the distribution as it is: observations forbid nothing."""
        return distribution
