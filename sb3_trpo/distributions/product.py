"""
The distribution of a hybrid action: a product of SB3's own distributions, one for each part of the action.

The parts are independent given the observation. A part may be *active* only where a choice, another part, takes certain
options: the speed of a jump matters only if the choice is to jump. What such an action does depends on the choice and on the
active parts alone, and so does its probability:

========  ==============================================================
k         the option of the choice that an action takes
p(k)      its probability
a_j       the numbers of part j in the action
P_j       probability that part j is active, the sum of p(k) over its options; 1 for a part that always is
========  ==============================================================

    log p(a)  =  sum of log p_j(a_j) over the parts that are active in a
    H         =  sum_j P_j H_j

The second is the chain rule of the entropy (Cover & Thomas 2006, Elements of Information Theory, theorem 2.2.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any, NamedTuple

import torch as th
from stable_baselines3.common.distributions import CategoricalDistribution, DiagGaussianDistribution, Distribution
from torch import nn


class Activity(NamedTuple):
    """
    When a part is active.

    :param choice: index of the part that decides, a CategoricalDistribution
    :param options: for each of its options, whether the part is active where the choice takes it
    """

    choice: int
    options: tuple[bool, ...]

    def mask(self, like: th.Tensor) -> th.Tensor:
        """
        Make a tensor of the options.

        :param like: on the device that the result is to be on
        :return: booleans, shape ``(n_options,)``
        """
        return th.tensor(self.options, device=like.device)

    def probability(self, log_probabilities: th.Tensor) -> th.Tensor:
        """
        Sum the probabilities of the options that activate the part.

        :param log_probabilities: normalized log-probabilities of the choice's options, shape ``(n, n_options)``
        :return: P_j, shape ``(n,)``
        """
        return log_probabilities[:, self.mask(log_probabilities)].exp().sum(1)


class ProductDistribution(Distribution):
    """
    Independent distributions of the parts of an action.

    Actions are flat: the numbers of all parts, one part after another, in floats. So is the output of the network: what each
    part's own last layer would return. The standard deviations of all Gaussian parts are one parameter.

    :param parts: SB3's distribution of each part
    :param n_numbers: how many numbers of the flat action are each part's
    :param activities: when each part is active, ``None`` for always; the parts that choose must always be
    :param log_std_init: initial logarithm of the standard deviations, 0 as in SB3
    """

    def __init__(
        self,
        parts: Sequence[Distribution],
        n_numbers: Sequence[int],
        activities: Sequence[Activity | None] | None = None,
        log_std_init: float = 0.0,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # SB3's, without types
        self.parts = tuple(parts)
        self.n_numbers = list(n_numbers)
        self.activities = (None,) * len(self.parts) if activities is None else tuple(activities)
        self.log_std_init = log_std_init
        self.n_outputs: list[int] = []
        """How many outputs of the last layer are each part's; known when the layer has been made."""

    @property
    def n_std(self) -> list[int]:
        """How many entries of ``log_std`` are each part's."""
        return [part.action_dim if isinstance(part, DiagGaussianDistribution) else 0 for part in self.parts]

    def proba_distribution_net(self, latent_dim: int) -> nn.Module | tuple[nn.Module, nn.Parameter]:
        """
        Make the last layer of the policy.

        :param latent_dim: size of the layer below
        :return: the layer, with the weights that each part's own layer would have; and ``log_std``, if a part is Gaussian
        """
        made: list[Any] = [part.proba_distribution_net(latent_dim=latent_dim) for part in self.parts]
        layers = [each[0] if isinstance(each, tuple) else each for each in made]
        self.n_outputs = [layer.out_features for layer in layers]
        joint = nn.Linear(latent_dim, sum(self.n_outputs))
        with th.no_grad():
            joint.weight.copy_(th.cat([layer.weight for layer in layers]))
            joint.bias.copy_(th.cat([layer.bias for layer in layers]))
        if not sum(self.n_std):
            return joint
        return joint, nn.Parameter(th.full((sum(self.n_std),), float(self.log_std_init)))

    def proba_distribution(self, output: th.Tensor, log_std: th.Tensor | None = None) -> ProductDistribution:
        """
        Set the parameters of all parts.

        :param output: output of the last layer, shape ``(n, n_outputs)``
        :param log_std: of all Gaussian parts, shape ``(n_std,)`` or ``(n, n_std)``; ``None`` if there are none
        :return: the distribution itself
        """
        outputs = th.split(output, self.n_outputs, dim=1)
        stds = [None] * len(self.parts) if log_std is None else th.split(log_std, self.n_std, dim=-1)
        # New objects, so that a shallow copy of this one keeps its own.
        parts: list[Any] = [copy(part) for part in self.parts]
        self.parts = tuple(
            part.proba_distribution(own, std) if n_std else part.proba_distribution(own)
            for part, own, std, n_std in zip(parts, outputs, stds, self.n_std, strict=True)
        )
        self._dtype = output.dtype
        return self

    def log_prob(self, actions: th.Tensor) -> th.Tensor:
        """
        Sum the log-probabilities of the parts that are active in each action.

        :param actions: flat actions, shape ``(n, n_dimensions)``
        :return: shape ``(n,)``, in nats
        """
        numbers = th.split(actions, self.n_numbers, dim=1)
        total = actions.new_zeros(len(actions), dtype=self._dtype)
        for part, own, activity in zip(self.parts, numbers, self.activities, strict=True):
            own_log_prob = part.log_prob(own.long().flatten() if isinstance(part, CategoricalDistribution) else own)
            if activity is not None:
                is_active = activity.mask(actions)[numbers[activity.choice].long().flatten()]
                own_log_prob = th.where(is_active, own_log_prob, th.zeros_like(own_log_prob))
            total = total + own_log_prob
        return total

    def entropy(self) -> th.Tensor | None:
        """
        Weigh the entropy of each part by the probability that it is active.

        :return: shape ``(n,)``, in nats; ``None`` if a part has no closed form
        """
        total: th.Tensor | None = None
        for part, activity in zip(self.parts, self.activities, strict=True):
            own = part.entropy()
            if own is None:
                return None
            if activity is not None:
                choice: Any = self.parts[activity.choice]
                own = activity.probability(choice.distribution.logits) * own
            total = own if total is None else total + own
        return total

    def sample(self) -> th.Tensor:
        """Sample each part, in their order; shape ``(n, n_dimensions)``."""
        return self._joined([part.sample() for part in self.parts])

    def mode(self) -> th.Tensor:
        """Take the mode of each part; shape ``(n, n_dimensions)``."""
        return self._joined([part.mode() for part in self.parts])

    def get_actions(self, deterministic: bool = False) -> th.Tensor:
        """Sample each part, or take what it does without chance; shape ``(n, n_dimensions)``."""
        return self._joined([part.get_actions(deterministic) for part in self.parts])

    def _joined(self, actions: Sequence[th.Tensor]) -> th.Tensor:
        return th.cat([each.reshape(len(each), -1).to(self._dtype) for each in actions], dim=1)

    def actions_from_params(
        self, output: th.Tensor, log_std: th.Tensor | None = None, deterministic: bool = False
    ) -> th.Tensor:
        """
        Set the parameters and sample.

        :param output: output of the last layer
        :param log_std: of all Gaussian parts
        :param deterministic: whether each part acts without chance
        :return: flat actions
        """
        return self.proba_distribution(output, log_std).get_actions(deterministic=deterministic)

    def log_prob_from_params(self, output: th.Tensor, log_std: th.Tensor | None = None) -> tuple[th.Tensor, th.Tensor]:
        """
        Set the parameters, sample, and evaluate the sample.

        :param output: output of the last layer
        :param log_std: of all Gaussian parts
        :return: flat actions and their log-probabilities
        """
        actions = self.actions_from_params(output, log_std)
        return actions, self.log_prob(actions)
