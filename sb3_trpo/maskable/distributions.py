"""sb3-contrib's maskable distributions: choices in which some options are forbidden."""

from __future__ import annotations

from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_trpo.distributions.base import DistributionKind, Head
from sb3_trpo.distributions.categorical import Categorical, CategoricalHead
from sb3_trpo.extras import CONTRIB, needs
from sb3_trpo.numerics.gauss_newton import Outputs

with needs(*CONTRIB):
    from sb3_contrib.common.maskable.distributions import (
        MaskableBernoulliDistribution,
        MaskableCategoricalDistribution,
        MaskableMultiCategoricalDistribution,
    )
    from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy


class MaskedCategorical(Categorical):
    """
    Independent choices, one or several; bits are choices between two options.

    The logit of a masked option is so low that its probability is exactly 0. So it adds nothing to KL, metric or entropy.
    ``reader.MaskedInputs`` applies the rollout's masks, for the gradient, the KL and the Fisher products alike.
    """

    distributions = (MaskableCategoricalDistribution, MaskableMultiCategoricalDistribution)
    policies = (MaskableActorCriticPolicy,)

    def parameters(self, distribution: Distribution) -> Outputs:
        """Read the normalized log-probabilities of each choice."""
        if isinstance(distribution, MaskableCategoricalDistribution):
            return (distribution.distribution.logits,)
        assert isinstance(distribution, MaskableMultiCategoricalDistribution)
        return tuple(choice.logits for choice in distribution.distributions)

    def head(self, policy: ActorCriticPolicy) -> Head | None:
        """Describe sb3-contrib's three distributions, but not subclasses, which may compute something else."""
        action_dist: Distribution = policy.action_dist
        if type(action_dist) is MaskableCategoricalDistribution:
            return CategoricalHead(action_dist, (action_dist.action_dim,))
        if type(action_dist) in (MaskableMultiCategoricalDistribution, MaskableBernoulliDistribution):
            assert isinstance(action_dist, MaskableMultiCategoricalDistribution)
            return CategoricalHead(action_dist, tuple(action_dist.action_dims))
        return None


MASKED_KINDS: tuple[DistributionKind, ...] = (MaskedCategorical(),)
"""Kinds of sb3-contrib's distributions."""
