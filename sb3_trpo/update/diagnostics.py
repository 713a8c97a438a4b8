"""Records of an update as logger keys."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_trpo.distributions.base import DistributionKind
from sb3_trpo.distributions.registry import CORE_KINDS
from sb3_trpo.numerics.trust_region import Outcome, Step
from sb3_trpo.parallel.communicator import ALONE, Communicator
from sb3_trpo.rollouts.advantages import pooled_moments
from sb3_trpo.rollouts.batch import RolloutBatch
from sb3_trpo.update.critic import CriticFit

Value = float | None
"""A number, or nothing to log: loggers that average what they are given, as imitation's do, cannot take text."""


def step_diagnostics(step: Step, target_kl: float, entropy: float) -> dict[str, Value]:
    """
    List the log values of a trust-region step; ``README.md`` explains each key.

    :param step: the record
    :param target_kl: the radius it had
    :param entropy: mean joint entropy of the policy that acted, in nats
    :return: values by logger key, ``None`` for what the step did not reach
    """
    reached: dict[str, Value] = {}
    if step.solution is not None:
        reached |= {"train/cg_iterations": step.solution.iterations, "train/cg_residual": step.solution.relative_residual}
    if step.line_search is not None:
        reached |= {
            "train/line_search_steps": step.line_search.evaluations,
            "train/step_fraction": step.line_search.fraction,
        }
    return reached | {
        "train/policy_objective": step.surrogate,
        "train/kl_divergence_loss": step.kl,
        "train/is_line_search_success": float(step.outcome is Outcome.ACCEPTED),
        "train/target_kl": target_kl,
        "train/entropy": entropy,
        "train/gradient_norm": step.gradient_norm,
        "train/expected_improvement": step.expected_improvement,
        "train/improvement": step.improvement,
        "train/improvement_ratio": improvement_ratio(step),
    }


def improvement_ratio(step: Step) -> float | None:
    """
    Divide achieved by expected improvement: near 1 where the objective is linear over the step.

    :param step: the record
    :return: the ratio, ``None`` if there was no line search
    """
    if step.improvement is None or not step.expected_improvement:
        return None
    return step.improvement / step.expected_improvement


def critic_diagnostics(fit: CriticFit) -> dict[str, Value]:
    """
    List the log values of a critic fit.

    :param fit: the record
    :return: values by logger key
    """
    return {"train/value_loss": fit.loss}


def state_diagnostics(
    policy: ActorCriticPolicy,
    batch: RolloutBatch,
    n_rejected_steps: int,
    communicator: Communicator = ALONE,
    kinds: Sequence[DistributionKind] = CORE_KINDS,
) -> dict[str, Value]:
    """
    List the log values that belong to an update as a whole.

    :param policy: the policy after the update
    :param batch: what the update used
    :param n_rejected_steps: number of steps that were not accepted so far
    :param communicator: connects the ranks, each of which used another batch
    :param kinds: known kinds of distributions, each of which may report what only its policies have
    :return: values by logger key
    """
    return {
        "train/explained_variance": explained_variance(batch.values, batch.returns, communicator),
        "train/n_rejected_steps": n_rejected_steps,
        **{f"train/{name}": value for kind in kinds for name, value in kind.diagnostics(policy).items()},
    }


def explained_variance(values: np.ndarray, returns: np.ndarray, communicator: Communicator = ALONE) -> float:
    """
    Compute ``1 - Var(returns - values) / Var(returns)`` over all ranks.

    :param values: predictions of the critic, shape ``(n,)``
    :param returns: lambda-returns that it should have predicted, shape ``(n,)``
    :param communicator: connects the ranks, each of which has other ones
    :return: 1 for a perfect critic, 0 for one as good as a constant; NaN if the returns do not vary
    """
    unexplained = pooled_moments(returns - values, communicator).squares
    total = pooled_moments(returns, communicator).squares
    return math.nan if total == 0.0 else 1.0 - unexplained / total


def record(logger: Logger, values: Mapping[str, Value]) -> None:
    """
    Log what is known: an update that ended early leaves some keys out.

    :param logger: where to
    :param values: by key
    """
    for key, value in values.items():
        if value is not None:
            logger.record(key, value)


@contextmanager
def timed(logger: Logger, key: str) -> Iterator[None]:
    """
    Record how long something takes.

    :param logger: where to
    :param key: under which name, in seconds
    """
    start = time.perf_counter()
    yield
    logger.record(key, time.perf_counter() - start)
