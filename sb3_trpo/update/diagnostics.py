"""
What an update logs, under which key.

To add a key, return it from one of the functions below, and explain it in ``docs/guide/log.md``; a test
compares the two.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch as th
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_trpo.distributions.base import DistributionKind
from sb3_trpo.distributions.registry import CORE_KINDS, find_kind
from sb3_trpo.numerics.trust_region import Step
from sb3_trpo.parallel.communicator import ALONE, Communicator
from sb3_trpo.rollouts.advantages import moments, pooled
from sb3_trpo.rollouts.batch import RolloutBatch
from sb3_trpo.update.constraints import PolicyConstraint
from sb3_trpo.update.critic import CriticFit
from sb3_trpo.update.modes import evaluation_mode

Value = float | None
"""A number, or ``None`` for nothing to log. No text: some loggers average what they are given, such as imitation's."""
STD_STATES = 256
"""States for the mean standard deviation: the error of a mean is then 6 % of the differences between states."""


def step_diagnostics(step: Step, constraints: Sequence[PolicyConstraint], entropy: float) -> dict[str, Value]:
    """
    List what to log about a trust-region step; ``docs/guide/log.md`` explains each key.

    :param step: the record of the step
    :param constraints: its constraints; the first is the bound on the mean KL
    :param entropy: mean joint entropy of the policy before the step, in nats
    :return: values by logger key; what the step did not reach is ``None`` or left out
    """
    reached: dict[str, Value] = {}
    if step.solution is not None:
        reached |= {"train/cg_iterations": step.solution.iterations, "train/cg_residual": step.solution.relative_residual}
    if step.line_search is not None:
        reached |= {
            "train/line_search_steps": step.line_search.evaluations,
            "train/step_fraction": step.line_search.fraction,
        }
    # A step that is not accepted leaves the policy where it was, so every divergence is 0.
    values = step.values or (0.0,) * len(constraints)
    measured = {each.log_key: value for each, value in zip(constraints, values, strict=True) if each.log_key is not None}
    known = {
        "train/policy_objective": step.surrogate,
        "train/is_line_search_success": float(step.outcome.is_accepted),
        "train/target_kl": constraints[0].bound,
        "train/entropy": entropy,
        "train/gradient_norm": step.gradient_norm,
        "train/expected_improvement": step.expected_improvement,
        "train/improvement": step.improvement,
        "train/improvement_ratio": improvement_ratio(step),
    }
    return reached | measured | known


def improvement_ratio(step: Step) -> float | None:
    """
    Divide the improvement by the expected one: the ratio is near 1 if the surrogate is nearly linear along the step.

    :param step: the record of the step
    :return: the ratio, ``None`` if there was no line search or no improvement was expected
    """
    if step.improvement is None or not step.expected_improvement:
        return None
    return step.improvement / step.expected_improvement


def critic_diagnostics(fit: CriticFit, verbose: int) -> dict[str, Value]:
    """
    List what to log about a critic fit.

    :param fit: the record of the fit
    :param verbose: the model's
    :return: values by logger key
    """
    return {"train/value_loss": fit.loss, **path_diagnostics(verbose, critic=fit.is_fast)}


def path_diagnostics(verbose: int, **is_fast: bool) -> dict[str, Value]:
    """
    List which parts of an iteration were fast rather than general, for those who ask for details.

    :param verbose: the model's; less than 2 lists nothing
    :param is_fast: whether a part was fast, by its name
    :return: 1 or 0 by logger key
    """
    return {f"train/fast_{part}": float(value) for part, value in is_fast.items()} if verbose >= 2 else {}


def state_diagnostics(
    policy: ActorCriticPolicy,
    batch: RolloutBatch,
    n_rejected_steps: int,
    communicator: Communicator = ALONE,
    kinds: Sequence[DistributionKind] = CORE_KINDS,
) -> dict[str, Value]:
    """
    List what to log about an update as a whole.

    :param policy: the policy after the update
    :param batch: the rollout that the update used
    :param n_rejected_steps: number of steps since the start of training that were not accepted
    :param communicator: connects the ranks, each with its own batch
    :param kinds: known kinds of distributions, each of which may add what only its policies have
    :return: values by logger key
    """
    return {
        "train/explained_variance": explained_variance(batch.values, batch.returns, communicator),
        "train/n_rejected_steps": n_rejected_steps,
        **{f"train/{name}": value for kind in kinds for name, value in kind.diagnostics(policy).items()},
        **state_dependent_std(policy, batch, communicator, kinds),
    }


@th.no_grad()
def state_dependent_std(
    policy: ActorCriticPolicy, batch: RolloutBatch, communicator: Communicator, kinds: Sequence[DistributionKind]
) -> dict[str, Value]:
    """
    Average the standard deviation of actions over some states of all ranks, if it differs from state to state.

    :param policy: the policy after the update
    :param batch: the rollout that the update used
    :param communicator: connects the ranks
    :param kinds: known kinds of distributions
    :return: the mean by logger key; nothing for distributions without it
    """
    kind = find_kind(policy.action_dist, kinds)
    if kind is None or type(kind).spread is DistributionKind.spread:
        return {}
    with evaluation_mode(policy):
        std = kind.spread(batch.spread_inputs(STD_STATES).distribution(policy))
    return {} if std is None else {"train/std": float(communicator.mean(std.mean()[None], 1.0))}


def explained_variance(values: np.ndarray, returns: np.ndarray, communicator: Communicator = ALONE) -> float:
    """
    Compute ``1 - Var(returns - values) / Var(returns)`` over all ranks.

    :param values: the critic's predictions, shape ``(n,)``
    :param returns: the lambda-returns that they should match, shape ``(n,)``
    :param communicator: connects the ranks, each with its own values and returns
    :return: 1 for a perfect critic, 0 for one no better than a constant; NaN if the returns do not vary
    """
    own = moments(returns - values), moments(returns)
    of_ranks = communicator.gather(th.tensor(own, dtype=th.float64)).numpy()
    unexplained, total = pooled(of_ranks[:, 0]).squares, pooled(of_ranks[:, 1]).squares
    return math.nan if total == 0.0 else 1.0 - unexplained / total


def record(logger: Logger, values: Mapping[str, Value]) -> None:
    """
    Log what is known: an update that ended early leaves some keys out.

    :param logger: the logger to write to
    :param values: values by logger key; ``None`` is not logged
    """
    for key, value in values.items():
        if value is not None:
            logger.record(key, value)


@contextmanager
def timed(logger: Logger, key: str) -> Iterator[None]:
    """
    Log how long the block takes; a block that raises logs nothing.

    :param logger: the logger to write to
    :param key: logger key of the duration, in seconds
    """
    start = time.perf_counter()
    yield
    logger.record(key, time.perf_counter() - start)
