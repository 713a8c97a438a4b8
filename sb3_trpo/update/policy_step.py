"""
The policy's half of an update: one trust-region step (Schulman et al. 2015, arXiv:1502.05477, Section 6 and Appendix C).

1. L and its gradient g at the old parameters, over all transitions (``surrogate.py``).
2. The Fisher matrix F as an operator ``v -> F v``, over all states or every k-th of them.
3. Conjugate gradient for ``(F + lambda I) x = g``.
4. The full step ``s = sqrt(2 delta / x^T (F + lambda I) x) x``.
5. A backtracking line search along s that keeps every constraint, the first of which is ``mean KL(old || new) <= delta``.

Steps 3 to 5 are :func:`~sb3_trpo.numerics.trust_region.trust_region_step`, which knows nothing of policies. If costs are
limited, :mod:`~sb3_trpo.numerics.limited_step` replaces steps 3 and 4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_trpo.distributions.argument_checks import unvalidated
from sb3_trpo.distributions.base import DistributionKind
from sb3_trpo.networks.plain_network import Networks
from sb3_trpo.numerics.conjugate_gradient import ConjugateGradient
from sb3_trpo.numerics.limited_step import limited_step
from sb3_trpo.numerics.line_search import BacktrackingLineSearch
from sb3_trpo.numerics.trust_region import ROUNDING_SHARE, Step, natural_step, trust_region_step
from sb3_trpo.parallel.communicator import Communicator
from sb3_trpo.rollouts.advantages import standardization
from sb3_trpo.rollouts.batch import RolloutBatch
from sb3_trpo.rollouts.transitions import Chunks, default_chunk_size
from sb3_trpo.settings import Scheduled
from sb3_trpo.update.actor import NetworkActor, make_actor
from sb3_trpo.update.constraints import PolicyConstraint, cost_limit, mean_kl, state_kl
from sb3_trpo.update.surrogate import MISMATCH, PolicyObjective


@dataclass(frozen=True)
class PolicyStepSettings:
    """
    The settings of one step; :class:`~sb3_trpo.trpo.TRPO` documents them.

    :param target_kl: delta, evaluated for this update, in nats
    :param ent_coef: weight of the entropy in L, evaluated for this update
    :param max_state_kl: bound on the KL of single states, evaluated for this update, in nats; ``None`` for no bound
    :param cg_max_steps: largest number of Fisher-vector products
    :param cg_residual_tol: relative residual at which conjugate gradient stops
    :param cg_damping: lambda
    :param line_search_shrinking_factor: ratio of successive candidates
    :param line_search_max_iter: largest number of candidates
    :param state_kl_quantile: share of the states that must keep that bound
    :param sub_sampling_factor: k, where the step uses every k-th transition
    :param fisher_subsampling: k, where the Fisher matrix uses every k-th of those
    :param normalize_advantage: whether to standardize the advantages
    :param chunk_size: transitions to differentiate at a time, ``None`` to choose by observation size
    :param distribution_kinds: known kinds of action distributions
    """

    target_kl: float
    ent_coef: float
    max_state_kl: float | None
    cg_max_steps: int
    cg_residual_tol: float
    cg_damping: float
    line_search_shrinking_factor: float
    line_search_max_iter: int
    state_kl_quantile: float
    sub_sampling_factor: int
    fisher_subsampling: int
    normalize_advantage: bool
    chunk_size: int | None
    distribution_kinds: tuple[DistributionKind, ...]

    @classmethod
    def of(cls, model: object, now: Scheduled) -> PolicyStepSettings:
        """
        Read the settings of a model.

        :param model: the algorithm, which has the constant settings as attributes of the same names
        :param now: values of the schedules
        :return: the settings
        """
        constant = [field.name for field in fields(cls) if field.name not in now._fields]
        return cls(**now._asdict(), **{name: getattr(model, name) for name in constant})


class CostLimit(NamedTuple):
    """
    A limit on the expected cost of an episode.

    :param name: key of the cost
    :param excess: the estimated cost of an episode less its limit
    :param scale: what a mean over states is multiplied by to give the change of an episode's cost
    :param batch: the same transitions as the policy step's, with the cost's advantages
    """

    name: str
    excess: float
    scale: float
    batch: RolloutBatch


class PolicyStep(NamedTuple):
    """
    The record of a policy step.

    :param step: the record of its trust-region step
    :param constraints: what the step had to satisfy; the first is the bound on the mean KL
    :param entropy: mean joint entropy of the old policy, in nats
    :param log_prob_error: root mean square, in nats, by which the log-probabilities of the actions at the old parameters
        differ from those stored when the policy acted; 0 if rounding is the reason
    :param is_fast: whether the policy was differentiated layer by layer
    """

    step: Step
    constraints: Sequence[PolicyConstraint]
    entropy: float
    log_prob_error: float
    is_fast: bool


def policy_step(
    policy: ActorCriticPolicy,
    networks: Networks | None,
    parameters: Sequence[nn.Parameter],
    batch: RolloutBatch,
    settings: PolicyStepSettings,
    communicator: Communicator,
    limits: Sequence[CostLimit] = (),
) -> PolicyStep:
    """
    Improve the policy within its trust region, in place.

    Whatever happens, exceptions and interrupts included, the parameters end either at an accepted candidate or as they were,
    bit for bit.

    :param policy: the policy, in evaluation mode
    :param networks: its networks, ``None`` if it is not a plain stack and needs autograd
    :param parameters: theta, the parameters that its action distribution depends on
    :param batch: transitions that the policy has collected
    :param settings: the settings of the step
    :param communicator: connects the ranks; means are over the batches of all ranks
    :param limits: limits on costs
    :return: the record of the step
    """
    constraints = _constraints(settings)
    with unvalidated():
        actor = make_actor(policy, networks, parameters, settings.distribution_kinds)
        size = settings.chunk_size or default_chunk_size(policy.observation_space, actor.chunk_limits)
        chunks, fisher_chunks = _choose_transitions(batch, settings, size, communicator)
        if limits:
            of_costs = [_centered(limit.batch, settings, size, communicator) for limit in limits]
            chunks = chunks.with_cost_advantages(np.stack(of_costs, axis=1), size)
        objective = PolicyObjective(
            actor,
            parameters,
            chunks,
            constraints=constraints,
            fisher_chunks=fisher_chunks,
            ent_coef=settings.ent_coef,
            communicator=communicator,
            are_few=2 * batch.n_transitions <= size,  # twice, because of the padding between segments
            # An error up to this one is harmless even if all of it is rounding, so its cause need not be found.
            tolerance=min(MISMATCH, math.sqrt(ROUNDING_SHARE * settings.target_kl)),
            limits=[cost_limit(limit.name, index, limit.excess, limit.scale) for index, limit in enumerate(limits)],
        )
        model, entropy, log_prob_error = objective.local_model()
        step = trust_region_step(
            model,
            solver=ConjugateGradient(settings.cg_max_steps, settings.cg_residual_tol),
            line_search=BacktrackingLineSearch(settings.line_search_shrinking_factor, settings.line_search_max_iter),
            damping=settings.cg_damping,
            attempt=limited_step if limits else natural_step,
        )
    return PolicyStep(step, constraints, entropy, log_prob_error, isinstance(actor, NetworkActor))


def _constraints(settings: PolicyStepSettings) -> list[PolicyConstraint]:
    """List the constraints of the step; the first defines the trust region."""
    constraints = [mean_kl(settings.target_kl)]
    if settings.max_state_kl is not None:
        constraints.append(state_kl(settings.max_state_kl, settings.state_kl_quantile))
    return constraints


def _choose_transitions(
    batch: RolloutBatch, settings: PolicyStepSettings, size: int, communicator: Communicator
) -> tuple[Chunks, Chunks | None]:
    """Choose the transitions of the step, and those of the Fisher matrix unless they are the same."""
    every = settings.sub_sampling_factor
    chunks = batch.chunks(every, size)
    if settings.normalize_advantage:
        chunks = chunks.with_advantages(*standardization(chunks.advantages, batch.returns, communicator))
    if settings.fisher_subsampling == 1:
        return chunks, None
    return chunks, batch.chunks(every * settings.fisher_subsampling, size)


def _centered(batch: RolloutBatch, settings: PolicyStepSettings, size: int, communicator: Communicator) -> np.ndarray:
    """
    Read the advantages of a cost at the step's transitions, less their mean over all ranks.

    Advantages have mean 0 under the policy they belong to. With estimates that have it exactly, the surrogate of the cost is 0
    at the old parameters, and elsewhere it has less variance.
    """
    advantages = batch.chunks(settings.sub_sampling_factor, size).advantages.astype(np.float64)
    mean = communicator.mean(th.tensor([advantages.sum()], dtype=th.float64), float(len(advantages)))
    return advantages - float(mean)
