"""
The policy's surrogate, KL divergence and Fisher matrix over one rollout: what the trust-region step is given.

Equations are those of Schulman et al. 2015, arXiv:1502.05477. Every quantity is a sum over states divided by their number; it
is accumulated over chunks, so that memory is bounded by one chunk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch as th
from stable_baselines3.common.distributions import Distribution

from sb3_trpo.distributions.base import DistributionKind
from sb3_trpo.numerics.flat import assign, flatten
from sb3_trpo.numerics.gauss_newton import Curvature, Mean, Outputs, fisher_operator, weighted
from sb3_trpo.numerics.line_search import Candidate
from sb3_trpo.numerics.trust_region import LocalModel
from sb3_trpo.parallel.communicator import ALONE
from sb3_trpo.rollouts.batch import Chunk, Transitions
from sb3_trpo.update.actor import Actor, LocalPolicy

KEPT_BYTES = 2**27
"""What the derivatives of all chunks may hold together between Fisher products."""
MISMATCH = 0.01
"""Root mean square, in nats, beyond which log-probabilities are not those of the policy that acted; rounding gives 1e-6."""


@dataclass(frozen=True)
class PolicyObjective:
    """
    The trust-region problem of one rollout.

    :param actor: the policy
    :param parameters: those that the step moves
    :param chunks: transitions for the surrogate, its gradient and the KL
    :param fisher_chunks: transitions for the Fisher matrix only, possibly fewer; ``None`` for the same ones
    :param ent_coef: weight of the entropy in the surrogate
    :param mean: the one reduction, over the ranks
    :param are_few: whether all chunks together are no more than may be differentiated at a time
    :param tolerance: root mean square by which log-probabilities may differ from those of the policy that acted, in nats
    """

    actor: Actor
    parameters: Sequence[th.nn.Parameter]
    chunks: Sequence[Chunk]
    fisher_chunks: Sequence[Chunk] | None = None
    ent_coef: float = 0.0
    mean: Mean = ALONE.mean
    are_few: bool = False
    tolerance: float = MISMATCH

    def local_model(self) -> PolicyModel:
        """
        Describe the problem at the current parameters, which become the old ones.

        :return: the model, with the policy's entropy beside it
        """
        gradient = th.zeros_like(flatten(self.parameters))
        sums, weight = gradient.new_zeros(3), 0.0
        snapshots: list[Outputs] = []
        of_fisher = self.chunks if self.fisher_chunks is None else self.fisher_chunks
        curvatures = CurvatureStore(self.actor, of_fisher, self.are_few)
        for read in self.chunks:
            chunk = read()
            z, chunk_sums, chunk_gradient = self._differentiate(chunk, curvatures)
            snapshots.append(z)
            sums = sums + chunk_sums
            gradient += chunk_gradient
            weight += chunk.weight
        mean_surrogate, mean_entropy, squared_error = self.mean(sums, weight).tolist()
        error = math.sqrt(squared_error)
        # Of the same order; large differences are no measure of each other, but rounding must not cause them at all.
        is_rounding = error > self.tolerance and self._rounding_error(snapshots) > min(error, 1.0) / 4.0
        model = LocalModel(
            self.parameters,
            mean_surrogate,
            self.mean(gradient, weight),
            fisher_operator(curvatures, self.mean),
            lambda: self.evaluate(snapshots),
            squared_error if is_rounding else 0.0,
        )
        return PolicyModel(model, mean_entropy, 0.0 if is_rounding else error)

    @th.no_grad()
    def _rounding_error(self, snapshots: Sequence[Outputs]) -> float:
        """
        Estimate by how much rounding may change log-probabilities: move every parameter to the next number above it.

        Rounding errors of a sum are like changes of its terms in their last digit (Higham 2002, Accuracy and Stability of
        Numerical Algorithms, section 3.1). ``KL = E[(d log p)^2] / 2`` for small changes turns a divergence into their size.
        Whatever happens, interrupts included, the parameters end as they were, bit for bit.

        :param snapshots: z at the present parameters, a tuple for each chunk
        :return: root mean square, in nats; infinite if the policy becomes NaN
        """
        old = [parameter.detach().clone() for parameter in self.parameters]
        places = [parameter.data for parameter in self.parameters]  # autograd counts no writes there: its graphs stay valid
        try:
            assign(places, [th.nextafter(value, th.full_like(value, math.inf)) for value in old])
            kl = self.evaluate(snapshots).kl
            assign(places, old)
        except BaseException:  # an interrupt, too, even one in the midst of the lines above
            assign(places, old)
            raise
        return math.inf if math.isnan(kl) else math.sqrt(2.0 * max(0.0, kl))

    def _differentiate(self, chunk: Transitions, curvatures: CurvatureStore) -> tuple[Outputs, th.Tensor, th.Tensor]:
        """
        Give z, three sums and the surrogate's gradient; let go of all else that is not kept.

        The sums are those of the surrogate, of the entropy and of the squared errors of the log-probabilities.
        """
        local = self.actor.local(chunk.inputs)
        z = _snapshot(local.kind, local.distribution)
        is_kept = self.fisher_chunks is None and curvatures.offer(local, z, chunk)
        log_ratio = log_ratios(local.distribution, chunk)
        surrogate = chunk.total(surrogate_terms(log_ratio, local.distribution, chunk, self.ent_coef))
        with th.no_grad():
            entropy, errors = entropy_terms(local.distribution, chunk), log_ratio.square()
            sums = th.stack((surrogate, chunk.total(entropy), chunk.total(errors)))
        return z, sums, local.gradient(surrogate, is_kept)

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
            distribution = self.actor.distribution(chunk.inputs)
            kind = self.actor.kind_of(distribution)
            kl = kind.kl(old, kind.parameters(distribution))
            surrogate = surrogate_terms(log_ratios(distribution, chunk), distribution, chunk, self.ent_coef)
            sums = sums + th.stack((chunk.total(surrogate), chunk.total(kl)))
            weight += chunk.weight
        return Candidate(*self.mean(sums, weight).tolist())


class CurvatureStore:
    """
    The curvature of every chunk, for as many products as wanted.

    The first ones are kept as long as memory allows; a single one in any case, and a few small ones. The others are built anew
    for each product, one after the other, so that memory stays bounded.

    :param actor: the policy, at the old parameters
    :param chunks: the transitions
    :param are_few: whether all together are no more than may be differentiated at a time
    """

    def __init__(self, actor: Actor, chunks: Sequence[Chunk], are_few: bool) -> None:
        self._actor = actor
        self._chunks = chunks
        self._keeps_all = are_few or len(chunks) == 1
        self._kept: list[Curvature] = []
        self._n_bytes = 0.0

    def __call__(self) -> Iterator[Curvature]:
        """Give the chunks' curvatures, in order."""
        yield from self._kept
        for read in self._chunks[len(self._kept) :]:
            yield self._build(read)

    def _build(self, read: Chunk) -> Curvature:
        chunk = read()
        local = self._actor.local(chunk.inputs)
        z = _snapshot(local.kind, local.distribution)
        return self._kept[-1] if self.offer(local, z, chunk) else _curvature(local, z, chunk)

    def offer(self, local: LocalPolicy, z: Outputs, chunk: Transitions) -> bool:
        """
        Keep the next chunk's curvature if there is room.

        :param local: the policy at the chunk's inputs
        :param z: parameters of its distribution
        :param chunk: the chunk
        :return: whether it is kept
        """
        self._n_bytes += local.n_bytes
        is_kept = self._keeps_all or self._n_bytes <= KEPT_BYTES
        if is_kept:
            self._kept.append(_curvature(local, z, chunk))
        return is_kept


def _curvature(local: LocalPolicy, z: Outputs, chunk: Transitions) -> Curvature:
    metric = local.kind.fisher_metric(z)
    return Curvature(local.linearise(), metric if chunk.weights is None else weighted(metric, chunk.weights), chunk.weight)


def _snapshot(kind: DistributionKind, distribution: Distribution) -> Outputs:
    """Read z without its graph."""
    return tuple(z.detach() for z in kind.parameters(distribution))


class PolicyModel(NamedTuple):
    """
    The local model of a policy's objective, and what else is seen on the way.

    :param model: the local model
    :param entropy: mean joint entropy of the policy, in nats
    :param log_prob_error: root mean square, in nats, by which the log-probabilities of the actions at the old parameters
        differ from those stored when the policy acted; 0 if rounding is the reason
    """

    model: LocalModel
    entropy: float
    log_prob_error: float


def log_ratios(distribution: Distribution, chunk: Transitions) -> th.Tensor:
    """
    Compute ``log pi(a|s) - log pi_old(a|s)`` at each state.

    :param distribution: of the policy at the chunk's inputs
    :param chunk: the transitions
    :return: shape ``(n,)``, in nats, with its graph
    """
    return distribution.log_prob(chunk.actions) - chunk.old_log_prob


def surrogate_terms(log_ratio: th.Tensor, distribution: Distribution, chunk: Transitions, ent_coef: float) -> th.Tensor:
    """
    Compute ``pi(a|s) / pi_old(a|s) * A`` (eq. 14), plus ``ent_coef`` times the entropy, at each state.

    :param log_ratio: logarithm of the quotient, shape ``(n,)``
    :param distribution: of the policy at the chunk's inputs
    :param chunk: the transitions
    :param ent_coef: weight of the entropy
    :return: shape ``(n,)``, with its graph
    """
    terms = log_ratio.exp() * chunk.advantages
    return terms + ent_coef * entropy_terms(distribution, chunk) if ent_coef else terms


def entropy_terms(distribution: Distribution, chunk: Transitions) -> th.Tensor:
    """
    Compute the joint entropy at each state, or estimate it by ``-pi / pi_old * log pi`` where it has no closed form.

    :param distribution: of the policy at the chunk's inputs
    :param chunk: the transitions
    :return: shape ``(n,)``, in nats, with its graph
    """
    entropy = distribution.entropy()
    if entropy is not None:
        return entropy
    log_prob = distribution.log_prob(chunk.actions)
    return -(log_prob - chunk.old_log_prob).exp() * log_prob
