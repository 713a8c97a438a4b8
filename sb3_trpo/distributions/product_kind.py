r"""
KL divergence, Fisher metric and head of a product distribution, by those of its parts.

With the symbols of ``product.py``, and P_j at the old policy:

    KL(old || new)  =  sum_j P_j KL_j(old || new)
    M               =  block-diagonal, with the block P_j M_j for part j

The first is the chain rule of the divergence (Cover & Thomas 2006, Elements of Information Theory, theorem 2.5.3). P_j does
not depend on the new policy, so the second, the Hessian of the first, follows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_trpo.distributions.base import DistributionKind, Head, HeadLinearization, Sampler
from sb3_trpo.distributions.product import ProductDistribution
from sb3_trpo.numerics.gauss_newton import Metric, Outputs, weighted


@dataclass(frozen=True)
class Product(DistributionKind):
    """
    Parts of an action that are independent given the choices between them; z is the parts' z, one after another.

    The instance in the registry knows no parts: :meth:`bound_to` makes the one for a product.

    :param kinds: the kind of each part
    :param product: a distribution of this kind, which tells what its parts are
    """

    distributions = (ProductDistribution,)
    kinds: tuple[DistributionKind, ...] = ()
    product: ProductDistribution | None = None

    def bound_to(self, distribution: object, find: Callable[[object], DistributionKind | None]) -> DistributionKind | None:
        """
        Find the kinds of the parts.

        :param distribution: the product
        :param find: finds the kind of a part
        :return: the kind of this product; ``None`` if that of a part is not known
        """
        assert isinstance(distribution, ProductDistribution)
        found = [find(part) for part in distribution.parts]
        kinds = tuple(kind for kind in found if kind is not None)
        return Product(kinds, distribution) if len(kinds) == len(found) else None

    def parameters(self, distribution: Distribution) -> Outputs:
        """Join the parts' z."""
        assert isinstance(distribution, ProductDistribution)
        parts = zip(self.kinds, distribution.parts, strict=True)
        return tuple(z for kind, part in parts for z in kind.parameters(part))

    def kl(self, old: Outputs, new: Outputs) -> th.Tensor:
        """Sum ``P_j KL_j`` over the parts, with P_j of the old policy."""
        sizes = self._n_tensors()
        olds, news = split(old, sizes), split(new, sizes)
        kls = [kind.kl(*pair) for kind, *pair in zip(self.kinds, olds, news, strict=True)]
        weights = self._probabilities(olds)
        terms = [kl if weight is None else weight * kl for kl, weight in zip(kls, weights, strict=True)]
        return th.stack(terms).sum(0)

    def fisher_metric(self, z: Outputs) -> Metric:
        """Multiply dz of part j by ``P_j M_j``."""
        sizes = self._n_tensors()
        parts = split(z, sizes)
        metrics = [
            kind.fisher_metric(own) if weight is None else weighted(kind.fisher_metric(own), weight)
            for kind, own, weight in zip(self.kinds, parts, self._probabilities(parts), strict=True)
        ]

        def metric(dz: Outputs) -> Outputs:
            own = zip(metrics, split(dz, sizes), strict=True)
            return tuple(product for of_part, d_part in own for product in of_part(d_part))

        return metric

    def _n_tensors(self) -> list[int]:
        """Count the tensors of each part's z."""
        assert self.product is not None
        return [len(kind.parameters(part)) for kind, part in zip(self.kinds, self.product.parts, strict=True)]

    def _probabilities(self, parts: Sequence[Outputs]) -> list[th.Tensor | None]:
        """Compute P_j of each part, shape ``(n,)``; ``None`` for 1. A choice's z are the log-probabilities of its options."""
        assert self.product is not None
        return [each and each.probability(parts[each.choice][0]) for each in self.product.activities]

    def head(self, policy: ActorCriticPolicy) -> Head | None:
        """Describe a product of parts that have heads, but not a subclass, which may compute anything."""
        action_dist: Any = policy.action_dist
        if type(action_dist) is not ProductDistribution:
            return None
        log_std = getattr(policy, "log_std", None)
        heads = []
        for kind, part in zip(self.kinds, action_dist.parts, strict=True):
            # A kind reads nothing else of a policy whose methods are known.
            alone: Any = SimpleNamespace(action_dist=part, log_std=log_std)
            heads.append(kind.head(alone))
        known = tuple(head for head in heads if head is not None and not head.needs_last_hidden)
        return ProductHead(action_dist, known, log_std) if len(known) == len(heads) else None

    def spread(self, distribution: Distribution) -> th.Tensor | None:
        """Join the standard deviations of the parts that have some to log."""
        assert isinstance(distribution, ProductDistribution)
        found = [kind.spread(part) for kind, part in zip(self.kinds, distribution.parts, strict=True)]
        known = [each for each in found if each is not None]
        return th.cat(known, dim=1) if known else None


def split(items: Sequence[Any], sizes: Sequence[int]) -> list[Any]:
    """
    Cut a sequence into pieces.

    :param items: the sequence
    :param sizes: length of each piece
    :return: the pieces, of the type of the sequence
    """
    ends = np.cumsum(sizes).tolist()
    return [items[end - size : end] for size, end in zip(sizes, ends, strict=True)]


@dataclass(frozen=True)
class ProductHead(Head):
    """
    The output holds that of each part, one after another.

    :param action_dist: the policy's distribution object
    :param heads: the head of each part, on parameters that are replaced when it is used
    :param log_std: psi, of all Gaussian parts, shape ``(n_std,)`` or ``(n_states, n_std)``; ``None`` if there are none
    """

    action_dist: ProductDistribution
    heads: tuple[Head, ...]
    log_std: th.Tensor | None

    @property
    def parameters(self) -> list[th.Tensor]:
        """The logarithms of the standard deviations."""
        return [] if self.log_std is None else [self.log_std]

    def with_parameters(self, parameters: Sequence[th.Tensor]) -> Head:
        """Build the same head on another ``log_std``."""
        return replace(self, log_std=parameters[0]) if parameters else self

    def _own_parameters(self, parameters: Sequence[th.Tensor]) -> list[list[th.Tensor]]:
        """Cut psi into that of each part. Not done once and for all: autograd has to see it."""
        if not parameters:
            return [[] for _ in self.heads]
        sizes = self.action_dist.n_std
        return [[own] if size else [] for own, size in zip(th.split(parameters[0], sizes, dim=-1), sizes, strict=True)]

    def _own_heads(self) -> list[Head]:
        parameters = self._own_parameters(self.parameters)
        return [head.with_parameters(own) for head, own in zip(self.heads, parameters, strict=True)]

    def _own_outputs(self, output: th.Tensor) -> Sequence[th.Tensor]:
        return th.split(output, self.action_dist.n_outputs, dim=1)

    def distribution(self, output: th.Tensor) -> Distribution:
        """Build the product."""
        return self.action_dist.proba_distribution(output, self.log_std)

    def linearize(self, output: th.Tensor) -> HeadLinearization:
        """Differentiate part by part."""
        pairs = zip(self._own_heads(), self._own_outputs(output), strict=True)
        derivatives = [head.linearize(own) for head, own in pairs]

        def d_parts(d_output: th.Tensor, d_parameters: Sequence[th.Tensor]) -> list[Outputs]:
            own = zip(derivatives, self._own_outputs(d_output), self._own_parameters(d_parameters), strict=True)
            return [derivative.jvp(d_own, d_psi) for derivative, d_own, d_psi in own]

        n_tensors = [*map(len, d_parts(output, [psi.detach() for psi in self.parameters]))]

        def jvp(d_output: th.Tensor, d_parameters: Sequence[th.Tensor]) -> Outputs:
            return tuple(dz for part in d_parts(d_output, d_parameters) for dz in part)

        def vjp(u: Outputs) -> tuple[th.Tensor, list[th.Tensor]]:
            own = zip(derivatives, split(u, n_tensors), strict=True)
            of_outputs, of_parameters = zip(*(derivative.vjp(of_part) for derivative, of_part in own), strict=True)
            of_log_std = [each for part in of_parameters for each in part]
            return th.cat(of_outputs, dim=1), [th.cat(of_log_std)] if of_log_std else []

        return HeadLinearization(jvp, vjp)

    def sampler(self, output: th.Tensor) -> ProductSampler:
        """Build a sampler."""
        pairs = zip(self._own_heads(), self._own_outputs(output), strict=True)
        return ProductSampler([head.sampler(own) for head, own in pairs], len(output))


class ProductSampler:
    """
    Samples the parts in their order.

    :param samplers: of each part
    :param n_envs: number of environments
    """

    def __init__(self, samplers: Sequence[Sampler], n_envs: int) -> None:
        self._samplers = samplers
        self._n_envs = n_envs

    def draw(self) -> None:
        """Draw the random numbers of all parts."""
        for sampler in self._samplers:
            sampler.draw()

    def actions(self) -> np.ndarray:
        """Join the parts' actions, shape ``(n_envs, n_dimensions)``, in float32."""
        columns = [np.asarray(sampler.actions(), np.float32).reshape(self._n_envs, -1) for sampler in self._samplers]
        return np.concatenate(columns, axis=1)
