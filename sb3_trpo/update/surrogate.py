"""
The trust-region problem of one rollout: the policy's surrogate, its constraints and its Fisher matrix.

Equations are those of Schulman et al. 2015, arXiv:1502.05477. Every quantity is a mean over states. Sums are accumulated chunk
by chunk, so one chunk bounds the memory.
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
from sb3_trpo.numerics.gauss_newton import Curvature, GaussNewtonOperator, Outputs, weighted
from sb3_trpo.numerics.line_search import Candidate
from sb3_trpo.numerics.linear_limits import Limit
from sb3_trpo.numerics.trust_region import LocalModel
from sb3_trpo.parallel.communicator import ALONE, Communicator
from sb3_trpo.rollouts.transitions import Transitions
from sb3_trpo.update.actor import Actor, LocalPolicy
from sb3_trpo.update.constraints import Comparison, PolicyConstraint

KEPT_BYTES = 2**27
"""Memory that the derivatives of all chunks together may hold between Fisher products."""
MISMATCH = 0.01
"""Root mean square error, in nats, beyond which log-probabilities are not those of the acting policy; rounding gives 1e-6."""


@dataclass(frozen=True)
class PolicyObjective:
    """
    The trust-region problem of one rollout.

    :param actor: the policy
    :param parameters: the parameters that the step changes
    :param chunks: transitions for the surrogate, its gradient and the constraints; read one chunk at a time
    :param constraints: the mean KL(old || new), whose Hessian is the Fisher matrix, and any further ones
    :param limits: constraints whose gradients the direction of the step heeds; 0 at the current parameters
    :param fisher_chunks: transitions for the Fisher matrix, possibly fewer; ``None`` for ``chunks``
    :param ent_coef: weight of the entropy in the surrogate
    :param communicator: connects the ranks, each with its own chunks
    :param are_few: whether all chunks together are small enough to be differentiated at once
    :param tolerance: root mean square error of the log-probabilities, in nats, up to which they count as the acting policy's
    """

    actor: Actor
    parameters: Sequence[th.nn.Parameter]
    chunks: Sequence[Transitions]
    constraints: Sequence[PolicyConstraint]
    fisher_chunks: Sequence[Transitions] | None = None
    ent_coef: float = 0.0
    communicator: Communicator = ALONE
    are_few: bool = False
    tolerance: float = MISMATCH
    limits: Sequence[PolicyConstraint] = ()

    def local_model(self) -> PolicyModel:
        """
        Describe the problem at the current parameters, which become the old ones.

        :return: the problem, with what the same pass over the rollout shows about the policy
        """
        theta = flatten(self.parameters).detach()
        n_gradients = len(theta) * (1 + len(self.limits))
        totals, weight = theta.new_zeros(n_gradients + 3), 0.0
        gradients, sums = th.split(totals, [n_gradients, 3])  # views: one message carries both
        snapshots: list[Outputs] = []
        fisher_chunks = self.chunks if self.fisher_chunks is None else self.fisher_chunks
        curvatures = CurvatureStore(self.actor, fisher_chunks, self.are_few)
        for chunk in self.chunks:
            z, chunk_sums, chunk_gradients = self._differentiate(chunk, curvatures)
            snapshots.append(z)
            sums += chunk_sums
            gradients += chunk_gradients
            weight += chunk.weight
        mean_gradients, means = th.split(self.communicator.mean(totals, weight), [n_gradients, 3])
        gradient, *of_limits = th.split(mean_gradients, len(theta))
        mean_surrogate, mean_entropy, squared_error = means.tolist()
        error = math.sqrt(squared_error)
        is_rounding = self._is_rounding(error, snapshots)
        model = LocalModel(
            self.parameters,
            surrogate=mean_surrogate,
            gradient=gradient,
            fisher=GaussNewtonOperator(theta, curvatures, self.communicator.mean),
            constraints=self.constraints,
            evaluate=lambda: self.evaluate(snapshots),
            # For small changes of log-probabilities, KL is half their mean square. If rounding and the step are independent,
            # rounding therefore adds a number of this order to the KL of the step.
            rounding=squared_error if is_rounding else 0.0,
            limits=[Limit(each.name, -each.bound, of_it) for each, of_it in zip(self.limits, of_limits, strict=True)],
        )
        return PolicyModel(model, mean_entropy, 0.0 if is_rounding else error)

    def _is_rounding(self, error: float, snapshots: Sequence[Outputs]) -> bool:
        """
        Decide whether rounding explains why log-probabilities differ from those of the policy that acted.

        It does if the estimated rounding error is of the same order of magnitude. Beyond 1 nat neither number is precise, but
        rounding that changes log-probabilities by so much is reason enough.

        :param error: root mean square of the differences, in nats
        :param snapshots: z at the current parameters, a tuple for each chunk
        :return: whether the differences are beyond the tolerance and due to rounding
        """
        return error > self.tolerance and self._rounding_error(snapshots) > min(error, 1.0) / 4.0

    @th.no_grad()
    def _rounding_error(self, snapshots: Sequence[Outputs]) -> float:
        """
        Estimate how much rounding may change log-probabilities: move every parameter to the next larger number.

        Rounding errors in a sum have the effect of changes in the last digit of its terms (Higham 2002, Accuracy and Stability
        of Numerical Algorithms, section 3.1). For small changes ``KL = E[(d log p)^2] / 2``, so the KL gives their size.
        Whatever happens, interrupts included, the parameters end as they were, bit for bit.

        :param snapshots: z at the current parameters, a tuple for each chunk
        :return: root mean square change, in nats; infinite if the policy becomes NaN
        """
        old = [parameter.detach().clone() for parameter in self.parameters]
        storage = [parameter.data for parameter in self.parameters]  # autograd does not notice writes here: graphs stay valid
        try:
            assign(storage, [th.nextafter(value, th.full_like(value, math.inf)) for value in old])
            kl = self.evaluate(snapshots).kl
            assign(storage, old)
        except BaseException:  # interrupts too, even one that comes between the lines above
            assign(storage, old)
            raise
        return math.inf if math.isnan(kl) else math.sqrt(2.0 * max(0.0, kl))

    def _differentiate(self, chunk: Transitions, curvatures: CurvatureStore) -> tuple[Outputs, th.Tensor, th.Tensor]:
        """
        Compute what one chunk contributes, and keep its curvature if there is room.

        :param chunk: the transitions
        :param curvatures: where to keep the curvature
        :return: z; the sums of the surrogate, the entropy and the squared errors of log-probabilities; the gradient of the
            first, followed by those of the limits
        """
        local = self.actor.local(chunk.inputs)
        z = _snapshot(local.kind, local.distribution)
        is_kept = self.fisher_chunks is None and curvatures.offer(local, z, chunk)
        policies = Comparison(local.kind, z, local.distribution, log_ratios(local.distribution, chunk), chunk)
        surrogate = chunk.total(surrogate_terms(policies, self.ent_coef))
        with th.no_grad():
            entropy, errors = entropy_terms(policies), policies.log_ratio.square()
            sums = th.stack((surrogate, chunk.total(entropy), chunk.total(errors)))
        of_limits = [chunk.total(each.terms(policies)) for each in self.limits]
        gradients = [local.gradient(total, True) for total in of_limits]
        gradient = local.gradient(surrogate, is_kept)
        return z, sums, th.cat([gradient, *gradients]) if gradients else gradient

    @th.no_grad()
    def evaluate(self, snapshots: Sequence[Outputs]) -> Candidate:
        """
        Measure the policy at its current parameters against the old one.

        :param snapshots: z of the old policy, a tuple for each chunk
        :return: the surrogate (eq. 14), and the values of the constraints and limits
        """
        constraints = (*self.constraints, *self.limits)
        sums, weight = snapshots[0][0].new_zeros(1 + len(constraints)), 0.0
        on_quantiles = [(i, each.level) for i, each in enumerate(constraints) if each.level is not None]
        kept: dict[int, list[th.Tensor]] = {i: [] for i, _ in on_quantiles}
        for chunk, old in zip(self.chunks, snapshots, strict=True):
            distribution = self.actor.distribution(chunk.inputs)
            kind = self.actor.kind_of(distribution)
            policies = Comparison(kind, old, distribution, log_ratios(distribution, chunk), chunk)
            bounded = [constraint.terms(policies) for constraint in constraints]
            sums = sums + th.stack([chunk.total(terms) for terms in (surrogate_terms(policies, self.ent_coef), *bounded)])
            weight += chunk.weight
            for i, terms in kept.items():
                terms.append(chunk.without_padding(bounded[i]))
        surrogate_mean, *values = self.communicator.mean(sums, weight).tolist()
        for i, level in on_quantiles:
            values[i] = self.communicator.quantile(th.cat(kept[i]), level)
        return Candidate(surrogate_mean, tuple(values))


class CurvatureStore:
    """
    The curvature of every chunk, for any number of Fisher products.

    The first ones are kept while they fit into :data:`KEPT_BYTES`: all of them if there is a single chunk, or if all chunks
    together are small. The others are rebuilt for each product, one after another, so memory stays bounded.

    :param actor: the policy, at the old parameters
    :param chunks: the transitions
    :param are_few: whether all chunks together are small enough to be differentiated at once
    """

    def __init__(self, actor: Actor, chunks: Sequence[Transitions], are_few: bool) -> None:
        self._actor = actor
        self._chunks = chunks
        self._keeps_all = are_few or len(chunks) == 1
        self._kept: list[Curvature] = []
        self._n_bytes = 0.0

    def __call__(self) -> Iterator[Curvature]:
        """Yield the chunks' curvatures, in order."""
        yield from self._kept
        for index in range(len(self._kept), len(self._chunks)):
            yield self._build(self._chunks[index])

    def _build(self, chunk: Transitions) -> Curvature:
        local = self._actor.local(chunk.inputs)
        z = _snapshot(local.kind, local.distribution)
        return self._kept[-1] if self.offer(local, z, chunk) else _curvature(local, z, chunk)

    def offer(self, local: LocalPolicy, z: Outputs, chunk: Transitions) -> bool:
        """
        Keep the next chunk's curvature if there is room.

        :param local: the policy at the chunk's inputs
        :param z: parameters of its distribution, without a graph
        :param chunk: the transitions
        :return: whether it is kept
        """
        self._n_bytes += local.n_bytes
        is_kept = self._keeps_all or self._n_bytes <= KEPT_BYTES
        if is_kept:
            self._kept.append(_curvature(local, z, chunk))
        return is_kept


def _curvature(local: LocalPolicy, z: Outputs, chunk: Transitions) -> Curvature:
    """Combine J of the policy with M of its distribution, weighted if some of the chunk is padding."""
    metric = local.kind.fisher_metric(z)
    return Curvature(local.linearize(), metric if chunk.weights is None else weighted(metric, chunk.weights), chunk.weight)


def _snapshot(kind: DistributionKind, distribution: Distribution) -> Outputs:
    """Read z without its graph, before the policy reuses its distribution object for other states."""
    return tuple(z.detach() for z in kind.parameters(distribution))


class PolicyModel(NamedTuple):
    """
    The trust-region problem, with what the same pass over the rollout shows about the policy.

    :param model: the problem
    :param entropy: mean joint entropy of the policy, in nats
    :param log_prob_error: root mean square difference, in nats, between the log-probabilities of the actions at the old
        parameters and those stored when the policy acted; 0 if rounding explains it
    """

    model: LocalModel
    entropy: float
    log_prob_error: float


def log_ratios(distribution: Distribution, chunk: Transitions) -> th.Tensor:
    """
    Compute ``log pi(a|s) - log pi_old(a|s)`` for each transition.

    :param distribution: the policy's distribution at the chunk's inputs
    :param chunk: the transitions
    :return: shape ``(n,)``, in nats, with its graph
    """
    return distribution.log_prob(chunk.actions) - chunk.old_log_prob


def surrogate_terms(policies: Comparison, ent_coef: float) -> th.Tensor:
    """
    Compute ``pi(a|s) / pi_old(a|s) * A`` (eq. 14), plus ``ent_coef`` times the entropy, for each transition.

    :param policies: the policies, and the transitions
    :param ent_coef: weight of the entropy
    :return: shape ``(n,)``, with its graph
    """
    terms = policies.log_ratio.exp() * policies.chunk.advantages
    return terms + ent_coef * entropy_terms(policies) if ent_coef else terms


def entropy_terms(policies: Comparison) -> th.Tensor:
    """
    Compute the joint entropy at each state, or estimate it by ``-pi / pi_old * log pi`` where there is no closed form.

    :param policies: the policies, and the transitions
    :return: shape ``(n,)``, in nats, with its graph
    """
    entropy = policies.distribution.entropy()
    if entropy is not None:
        return entropy
    return -policies.log_ratio.exp() * policies.distribution.log_prob(policies.chunk.actions)
