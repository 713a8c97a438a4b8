"""
What the trust region needs to know of SB3's action distributions, dispatched on their type.

A family gives three things: the parameters z of a distribution as tensors, the joint KL(old || new), and the Fisher metric
M(z), the Hessian of that KL in z. All sum over action dimensions. Another distribution joins by
``family.register(MyDistribution)(lambda distribution: MyFamily())``.
"""

from __future__ import annotations

from functools import singledispatch
from typing import Any, Protocol

import torch as th
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    MultiCategoricalDistribution,
    StateDependentNoiseDistribution,
)
from torch.nn.functional import logsigmoid

from sb3_trpo.numerics.gauss_newton import Metric, Outputs


class Family(Protocol):
    """The parameters, divergence and metric shared by all distributions of one kind."""

    def parameters(self, distribution: Any) -> Outputs:
        """
        Read z from a distribution, with its graph.

        :param distribution: an SB3 distribution of this family
        :return: tensors whose first dimension counts states
        """
        ...

    def kl(self, old: Outputs, new: Outputs) -> th.Tensor:
        """
        Compute KL(old || new) of the joint action at each state.

        :param old: z of the old policy
        :param new: z of the new policy
        :return: shape ``(n_states,)``, in nats
        """
        ...

    def fisher_metric(self, z: Outputs) -> Metric:
        """
        Make ``dz -> M(z) dz``.

        :param z: where to take the metric
        :return: the product, one tensor for each in ``z``
        """
        ...


class DiagonalGaussian:
    """Independent normal actions, ``z = (mean, std)``, each of shape ``(n_states, n_actions)``."""

    def parameters(self, distribution: DiagGaussianDistribution | StateDependentNoiseDistribution) -> Outputs:
        """Read mean and standard deviation; squashing by tanh changes neither KL nor metric, being a bijection."""
        return distribution.distribution.mean, distribution.distribution.stddev

    def kl(self, old: Outputs, new: Outputs) -> th.Tensor:
        """
        Sum ``(exp(2 rho) - 1 - 2 rho) / 2 + ((mean_old - mean_new) / std_new)^2 / 2`` with ``rho = log(std_old / std_new)``.

        ``expm1`` keeps the digits that ``std_old^2 / std_new^2 - 1`` would cancel for the small steps of a trust region.
        """
        (old_mean, old_std), (new_mean, new_std) = old, new
        double_rho = 2.0 * (old_std / new_std).log()
        shift = (old_mean - new_mean) / new_std
        return 0.5 * (double_rho.expm1() - double_rho + shift.square()).flatten(1).sum(1)

    def fisher_metric(self, z: Outputs) -> Metric:
        """Scale by ``1 / std^2`` for the mean and ``2 / std^2`` for the standard deviation."""
        precision = z[1].pow(-2)
        return lambda dz: (precision * dz[0], 2.0 * precision * dz[1])


class ProductOfCategoricals:
    """Independent choices, one or several; z holds the log-probabilities of each, shape ``(n_states, n_choices)``."""

    def parameters(self, distribution: CategoricalDistribution | MultiCategoricalDistribution) -> Outputs:
        """Read the normalised log-probabilities of each choice."""
        choices = distribution.distribution
        return tuple(choice.logits for choice in (choices if isinstance(choices, list) else [choices]))

    def kl(self, old: Outputs, new: Outputs) -> th.Tensor:
        """Sum ``p_old (log p_old - log p_new)`` over the options of every choice; an impossible option adds nothing."""
        choices = zip(old, new, strict=True)
        return th.stack([_relative_entropy(old_log, new_log).sum(-1) for old_log, new_log in choices]).sum(0)

    def fisher_metric(self, z: Outputs) -> Metric:
        """Multiply each choice by ``diag(p) - p p^T``."""
        probabilities = [log_probability.exp() for log_probability in z]

        def metric(dz: Outputs) -> Outputs:
            return tuple(p * (d - (p * d).sum(-1, keepdim=True)) for p, d in zip(probabilities, dz, strict=True))

        return metric


class ProductOfBernoullis:
    """Independent bits, ``z = (logits,)`` of shape ``(n_states, n_bits)``."""

    def parameters(self, distribution: BernoulliDistribution) -> Outputs:
        """Read the logits."""
        return (distribution.distribution.logits,)

    def kl(self, old: Outputs, new: Outputs) -> th.Tensor:
        """Sum ``p (log p_old - log p_new) + (1 - p) (log(1 - p_old) - log(1 - p_new))`` with ``p = p_old``."""
        (old_logits,), (new_logits,) = old, new
        one = _relative_entropy(logsigmoid(old_logits), logsigmoid(new_logits))
        zero = _relative_entropy(logsigmoid(-old_logits), logsigmoid(-new_logits))
        return (one + zero).flatten(1).sum(1)

    def fisher_metric(self, z: Outputs) -> Metric:
        """Scale by ``p (1 - p)``."""
        variance = z[0].sigmoid() * (-z[0]).sigmoid()
        return lambda dz: (variance * dz[0],)


def _relative_entropy(old_log: th.Tensor, new_log: th.Tensor) -> th.Tensor:
    """
    Give each option's term ``p_old (log p_old - log p_new) - p_old + p_new``; the last two sum to 0 over the options.

    With ``d = log p_new - log p_old`` this is ``p_old (expm1(d) - d)``, never negative, and rounding errors of d enter times d
    only: the small steps of a trust region keep their digits. Where ``p_old`` is 0, so is all but ``p_new``.
    """
    old, difference = old_log.exp(), new_log - old_log
    return th.where(old > 0.0, old * (difference.expm1() - difference), new_log.exp())


@singledispatch
def family(distribution: object) -> Family:
    """
    Find the family of a distribution by its type.

    :param distribution: what ``policy.get_distribution`` returned
    :return: its family
    :raises TypeError: if the type, and every base of it, is unknown
    """
    known = ", ".join(sorted(cls.__name__ for cls in family.registry if cls is not object))
    raise TypeError(
        f"No Fisher metric is known for {type(distribution).__name__}; known distributions are {known} and their subclasses. "
        "Register yours with sb3_trpo.distributions.kinds.family.register."
    )


@family.register(DiagGaussianDistribution)
@family.register(StateDependentNoiseDistribution)
def _(distribution: object) -> Family:
    return DiagonalGaussian()


@family.register(CategoricalDistribution)
@family.register(MultiCategoricalDistribution)
def _(distribution: object) -> Family:
    return ProductOfCategoricals()


@family.register(BernoulliDistribution)
def _(distribution: object) -> Family:
    return ProductOfBernoullis()
