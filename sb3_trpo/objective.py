"""
The policy's surrogate, KL divergence and Fisher matrix over one rollout: what the trust-region step is given.

Equations are those of Schulman et al. 2015, arXiv:1502.05477. Every quantity is a sum over states divided by their number; it
is accumulated over chunks, so that memory is bounded by one chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch as th
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_trpo.distributions import family
from sb3_trpo.numerics.fisher import Curvature, Mean, Outputs, fisher_operator, linearise
from sb3_trpo.numerics.flat import flatten
from sb3_trpo.numerics.line_search import Candidate
from sb3_trpo.numerics.trust_region import LocalModel
from sb3_trpo.rollout import Chunk, Transitions


def local_mean(total: th.Tensor, weight: float) -> th.Tensor:
    """
    Divide a sum over states by their weight: the mean when there is one process.

    :param total: the sum
    :param weight: what was summed over
    :return: ``total / weight``
    """
    return total / weight


@dataclass(frozen=True)
class PolicyObjective:
    """
    The trust-region problem of one rollout.

    :param policy: in evaluation mode
    :param parameters: those that the step moves
    :param chunks: transitions for the surrogate, its gradient and the KL
    :param fisher_chunks: transitions for the Fisher matrix only, possibly fewer
    :param ent_coef: weight of the entropy in the surrogate
    :param mean: the one reduction
    """

    policy: ActorCriticPolicy
    parameters: Sequence[th.nn.Parameter]
    chunks: Sequence[Chunk]
    fisher_chunks: Sequence[Chunk]
    ent_coef: float = 0.0
    mean: Mean = local_mean

    def local_model(self) -> PolicyModel:
        """
        Describe the problem at the current parameters, which become the old ones.

        :return: the model, with the policy's entropy beside it
        """
        gradient = th.zeros_like(flatten(self.parameters))
        sums, weight = gradient.new_zeros(2), 0.0
        snapshots: list[Outputs] = []
        for read in self.chunks:
            chunk = read()
            distribution = self.policy.get_distribution(chunk.observations)
            snapshots.append(tuple(z.detach() for z in family(distribution).parameters(distribution)))
            surrogate = surrogate_terms(distribution, chunk, self.ent_coef).sum()
            gradient = gradient + flatten(th.autograd.grad(surrogate, self.parameters, materialize_grads=True))
            with th.no_grad():
                sums = sums + th.stack((surrogate, entropy_terms(distribution, chunk).sum()))
            weight += len(chunk.advantages)

        mean_surrogate, mean_entropy = self.mean(sums, weight).tolist()
        fisher = fisher_operator(self._curvature_source(), self.mean)
        model = LocalModel(
            self.parameters, mean_surrogate, self.mean(gradient, weight), fisher, lambda: self.evaluate(snapshots)
        )
        return PolicyModel(model, mean_entropy)

    @th.no_grad()
    def evaluate(self, snapshots: Sequence[Outputs]) -> Candidate:
        """
        Measure the policy at its current parameters against the old one.

        :param snapshots: z of the old policy, a tuple for each chunk
        :return: the surrogate (eq. 14) and the mean KL(old || current) that bounds it (eq. 12)
        """
        sums, weight = snapshots[0][0].new_zeros(2), 0.0
        for read, old in zip(self.chunks, snapshots, strict=True):
            chunk = read()
            distribution = self.policy.get_distribution(chunk.observations)
            kind = family(distribution)
            kl = kind.kl(old, kind.parameters(distribution))
            sums = sums + th.stack((surrogate_terms(distribution, chunk, self.ent_coef).sum(), kl.sum()))
            weight += len(chunk.advantages)
        return Candidate(*self.mean(sums, weight).tolist())

    def _curvature_source(self) -> Callable[[], Iterable[Curvature]]:
        """Keep the graph of a single chunk for all products; rebuild those of several, which memory need not hold."""
        if len(self.fisher_chunks) > 1:
            return self._curvatures
        return cache(lambda: list(self._curvatures()))

    def _curvatures(self) -> Iterator[Curvature]:
        for read in self.fisher_chunks:
            chunk = read()
            distribution = self.policy.get_distribution(chunk.observations)
            kind = family(distribution)
            z = kind.parameters(distribution)
            metric = kind.fisher_metric(tuple(part.detach() for part in z))
            yield Curvature(linearise(z, self.parameters), metric, len(chunk.advantages))


class PolicyModel(NamedTuple):
    """The local model of a policy's objective, and the policy's mean joint entropy in nats."""

    model: LocalModel
    entropy: float


def surrogate_terms(distribution: Distribution, chunk: Transitions, ent_coef: float) -> th.Tensor:
    """
    Compute ``pi(a|s) / pi_old(a|s) * A`` (eq. 14), plus ``ent_coef`` times the entropy, at each state.

    :param distribution: of the policy at the chunk's observations
    :param chunk: the transitions
    :param ent_coef: weight of the entropy
    :return: shape ``(n,)``, with its graph
    """
    ratio = (distribution.log_prob(chunk.actions) - chunk.old_log_prob).exp()
    terms = ratio * chunk.advantages
    return terms + ent_coef * entropy_terms(distribution, chunk) if ent_coef else terms


def entropy_terms(distribution: Distribution, chunk: Transitions) -> th.Tensor:
    """
    Compute the joint entropy at each state, or estimate it by ``-pi / pi_old * log pi`` where it has no closed form.

    :param distribution: of the policy at the chunk's observations
    :param chunk: the transitions
    :return: shape ``(n,)``, in nats, with its graph
    """
    entropy = distribution.entropy()
    if entropy is not None:
        return entropy
    log_prob = distribution.log_prob(chunk.actions)
    return -(log_prob - chunk.old_log_prob).exp() * log_prob
