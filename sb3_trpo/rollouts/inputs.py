"""
What a policy acts on in some states, and how it is asked there.

A plain policy acts on observations alone. Action masks (``maskable/``) and memory (``recurrent/``) add to them. Code that
handles transitions sees :class:`PolicyInputs` and needs to know neither.
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
        """The observations alone, a tensor or a dict of tensors of shape ``(n, ...)``."""
        ...

    def __len__(self) -> int:
        """Return n."""
        ...

    def distribution(self, policy: ActorCriticPolicy) -> Distribution:
        """
        Compute the policy's action distribution.

        :param policy: the policy to ask
        :return: one row per state, with the graph of its computation
        """
        ...

    def values(self, policy: ActorCriticPolicy) -> th.Tensor:
        """
        Compute the critic's values.

        :param policy: the policy that holds the critic
        :return: shape ``(n, 1)``, with the graph of their computation
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

    :param observations: a tensor or a dict of tensors of shape ``(n, ...)``
    """

    observations: PyTorchObs

    def __len__(self) -> int:
        """Return the number of states."""
        parts = self.observations
        return len(next(iter(parts.values())) if isinstance(parts, dict) else parts)

    def distribution(self, policy: ActorCriticPolicy) -> Distribution:
        """Ask the policy by SB3's own method."""
        return policy.get_distribution(self.observations)

    def values(self, policy: ActorCriticPolicy) -> th.Tensor:
        """Ask the critic by SB3's own method."""
        return policy.predict_values(self.observations)

    def restrict(self, distribution: Distribution) -> Distribution:
        """Return the distribution as it is: observations forbid nothing."""
        return distribution
