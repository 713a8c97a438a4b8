"""
TRPO that uses each rollout in several updates ("generalized" TRPO: Queeney, Paschalidis, Cassandras 2021, 2022).

The papers are arXiv:2111.00072 and arXiv:2206.13714. An update uses the M newest rollouts with equal weights. Collected by
pi_k, pi_{k-1}, ..., they are evaluated at pi_k, the policy that the update starts from:

1. ``rho = pi_k / pi_b`` for each action, where pi_b is the policy that acted.
2. Advantages A of pi_k by V-trace (:mod:`~benchmarks.reuse.v_trace`), or by GAE as they were when the rollout was collected.
3. The surrogate ``mean(pi / pi_b * A)`` over all transitions is ``mean(pi / pi_k * (rho A))``: a plain policy step with the
   advantages ``rho A`` and the log-probabilities of pi_k. Its KL is KL(pi_k || new) over the mixture of states.
4. The critic is fitted to the targets of all M rollouts, with as many steps as if there were one.

The first rollout is used only once. The radius is for the caller to choose, by :func:`radius_factor`.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from torch import nn

from benchmarks.reuse.rollouts import Evaluation, KeptRollout, by_step, copied, evaluate, steps_of, with_observations
from benchmarks.reuse.v_trace import v_trace
from sb3_trpo import TRPO
from sb3_trpo.distributions.argument_checks import unvalidated
from sb3_trpo.distributions.registry import kind_of
from sb3_trpo.networks.plain_network import Networks
from sb3_trpo.numerics.trust_region import Step
from sb3_trpo.rollouts.batch import RolloutBatch
from sb3_trpo.settings import Scheduled
from sb3_trpo.update.critic import CriticFit, FitSettings
from sb3_trpo.update.parameter_split import ParameterSplit

DRIFT_EVERY = 10
"""Updates between two measurements of how far the normalization of observations has drifted."""


def radius_factor(n_rollouts: int) -> float:
    """
    Scale the radius of one rollout for M of them, so that the same bound on the loss of return holds.

    With equal weights the bound on the total variation is multiplied by ``2 / (M + 1)`` (arXiv:2206.13714), and the KL goes
    with its square.

    :param n_rollouts: M
    :return: what ``target_kl`` is to be multiplied by
    """
    return (2.0 / (n_rollouts + 1)) ** 2


class WeightRecord(NamedTuple):
    """
    The weights rho of one update.

    :param timesteps: when it was
    :param mean: their mean, 1 but for chance
    :param largest: the largest of them
    :param effective_share: effective sample size ``sum(rho)^2 / sum(rho^2)`` over the number of transitions
    :param drift: mean KL between pi_k at the observations as they were normalized when it acted, and as they would be now;
        ``None`` if it was not measured
    """

    timesteps: int
    mean: float
    largest: float
    effective_share: float
    drift: float | None


class ReusingTRPO(TRPO):
    """
    TRPO that uses each rollout in several updates.

    For one process, and for observations that are arrays.

    :param args: the arguments of :class:`~sb3_trpo.TRPO`
    :param n_reused_rollouts: M - 1, number of earlier rollouts that an update uses; with 0 this is TRPO, bit for bit
    :param v_trace: whether to estimate the advantages of the newest policy, rather than use those of the policy that acted
    :param reuse_for_critic: whether to fit the critic to all M rollouts, in M times fewer epochs, rather than to the newest
    :param renormalize: whether to show policy and critic all observations as ``VecNormalize`` would normalize them now
    :param max_weight: bound on the weights rho in the surrogate; V-trace has its own, 1. Without a bound, a step that makes an
        action much more likely is followed by one that cares for this action most. With 1 the gradient is IMPALA's
        (arXiv:1802.01561, section 4.2)
    :param kwargs: the keywords of :class:`~sb3_trpo.TRPO`
    :raises ValueError: if observations are to be normalized again that never were
    """

    def __init__(
        self,
        *args: Any,
        n_reused_rollouts: int = 0,
        v_trace: bool = True,
        reuse_for_critic: bool = True,
        renormalize: bool = False,
        max_weight: float = math.inf,
        **kwargs: Any,
    ) -> None:
        self.n_reused_rollouts = n_reused_rollouts
        self.v_trace = v_trace
        self.reuse_for_critic = reuse_for_critic
        self.renormalize = renormalize
        self.max_weight = max_weight
        self.weight_records: list[WeightRecord] = []
        """One for each update that has used earlier rollouts or might have."""
        self._kept: deque[KeptRollout] = deque(maxlen=n_reused_rollouts + 1)
        self._originals: np.ndarray | None = None
        self._corrected: list[RolloutBuffer] = []
        super().__init__(*args, **kwargs)
        if renormalize and self._normalizer is None:
            raise ValueError("renormalize=True needs an environment in a VecNormalize that normalizes observations.")

    @property
    def _normalizer(self) -> VecNormalize | None:
        """What normalizes observations."""
        venv = self.get_vec_normalize_env()
        return venv if venv is not None and venv.norm_obs else None

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """
        Fill the buffer, and keep the observations before their normalization.

        :param env: training environments
        :param callback: called at each step
        :param rollout_buffer: buffer to fill
        :param n_rollout_steps: steps per environment
        :return: whether the rollout is complete, rather than ended by the callback
        """
        normalizer = self._normalizer
        if normalizer is None or not self.n_reused_rollouts:
            return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        originals = [normalizer.get_original_obs()]
        self._step_observer = lambda infos, dones: originals.append(normalizer.get_original_obs())
        try:
            is_complete = super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        finally:
            del self._step_observer
        self._originals = np.array(originals)
        return is_complete

    def _improve_policy(self, batch: RolloutBatch, networks: Networks | None, split: ParameterSplit, now: Scheduled) -> Step:
        if not self.n_reused_rollouts:
            return super()._improve_policy(batch, networks, split, now)
        self.policy.set_training_mode(False)
        if self._n_updates == 1:
            # VecNormalize scaled the first rewards by the spread of a few numbers, so they are many times those that follow.
            # The first step raises the probability of such actions most, and used again they would outweigh all others.
            self._kept.clear()
        last, ends = np.array(self._last_obs), np.array(self._last_episode_starts)
        self._kept.append(KeptRollout(copied(self.rollout_buffer), last, ends, self._originals))
        self._corrected = self._evaluated_at_newest()
        is_standardized, self.normalize_advantage = self.normalize_advantage, False  # they have been already
        try:
            return super()._improve_policy(RolloutBatch(self._corrected, self.rollout_reader), networks, split, now)
        finally:
            self.normalize_advantage = is_standardized

    def _fit_critic(self, batch: RolloutBatch, networks: Networks | None, split: ParameterSplit) -> None:
        if self.n_reused_rollouts:
            buffers = self._corrected if self.reuse_for_critic else self._corrected[-1:]
            batch = RolloutBatch(buffers, self.rollout_reader)
        super()._fit_critic(batch, networks, split)

    def _fit_values(
        self, networks: Networks | None, parameters: list[nn.Parameter], batch: RolloutBatch, settings: FitSettings
    ) -> CriticFit:
        n_epochs, batch_size, max_grad_norm = settings
        fewer = max(1, n_epochs // len(batch.readers))
        return super()._fit_values(networks, parameters, batch, (fewer, batch_size, max_grad_norm))

    def _evaluated_at_newest(self) -> list[RolloutBuffer]:
        """Make buffers with the policy pi_k in place of those that acted, the newest last."""
        rollouts = [self._renormalized(each) for each in self._kept] if self.renormalize else [*self._kept]
        with unvalidated():
            evaluations = [evaluate(self.policy, each, self.rollout_reader) for each in rollouts]
        rho = [weights(rollout.buffer, found) for rollout, found in zip(rollouts, evaluations, strict=True)]
        self._record_weights(np.concatenate(rho))
        buffers = [self._corrected_buffer(*each, found) for *each, found in zip(rollouts, rho, evaluations, strict=True)]
        bounded = [np.minimum(each, self.max_weight) for each in rho]
        shift, scale = self._standardization(buffers, bounded)
        for buffer, weight in zip(buffers, bounded, strict=True):
            buffer.advantages = flat(weight * (buffer.advantages - shift) * scale)
        return buffers

    def _corrected_buffer(self, rollout: KeptRollout, rho: np.ndarray, found: Evaluation) -> RolloutBuffer:
        """Make a buffer with the log-probabilities, advantages and targets of pi_k."""
        buffer = copied(rollout.buffer)
        buffer.log_probs = flat(found.log_probs)
        buffer.advantages = buffer.advantages.flatten().astype(np.float64)
        if self.v_trace:
            steps = steps_of(rollout, found.values)
            estimates = v_trace(steps, by_step(rho, buffer), self.gamma, self.gae_lambda)
            buffer.advantages, targets = (each.T.flatten() for each in estimates)
            buffer.returns = flat(targets)
        return buffer

    def _standardization(self, buffers: list[RolloutBuffer], bounded: list[np.ndarray]) -> tuple[float, float]:
        """Find shift b and scale c of ``(A - b) * c``, by the weighted mean and standard deviation of A: those under pi_k."""
        if not self.normalize_advantage:
            return 0.0, 1.0
        advantages, weight = np.concatenate([each.advantages for each in buffers]), np.concatenate(bounded)
        mean = float(np.average(advantages, weights=weight))
        variance = float(np.average(np.square(advantages - mean), weights=weight))
        return mean, 1.0 / (np.sqrt(variance) + 1e-8)

    def _renormalized(self, rollout: KeptRollout) -> KeptRollout:
        """Normalize the observations of a rollout by the present statistics."""
        assert self._normalizer is not None, "the constructor has checked it"
        assert rollout.originals is not None, "kept whenever there is a VecNormalize"
        return with_observations(rollout, np.asarray(self._normalizer.normalize_obs(rollout.originals)))

    def _record_weights(self, rho: np.ndarray) -> None:
        is_measured = self._normalizer is not None and self._n_updates % DRIFT_EVERY == 0
        share = rho.sum() ** 2 / (len(rho) * np.square(rho).sum())
        drift = self._normalization_drift() if is_measured else None
        numbers = float(rho.mean()), float(rho.max()), float(share)
        self.weight_records.append(WeightRecord(self.num_timesteps, *numbers, drift))

    @th.no_grad()
    def _normalization_drift(self) -> float:
        """Average the KL of pi_k at observations as they were normalized, from pi_k as they would be now."""
        divergences = []
        for rollout in self._kept:
            policies = []
            for seen in (rollout, self._renormalized(rollout)):
                (chunk,) = RolloutBatch([seen.buffer], self.rollout_reader).chunks(1, self.n_steps * self.n_envs)
                distribution = chunk.inputs.distribution(self.policy)
                kind = kind_of(distribution, self.distribution_kinds)
                policies.append(kind.parameters(distribution))
            divergences.append(float(kind.kl(*policies).mean()))
        return float(np.mean(divergences))


def weights(buffer: RolloutBuffer, found: Evaluation) -> np.ndarray:
    """
    Compute ``rho = pi_k / pi_b``.

    :param buffer: the rollout, with log pi_b
    :param found: log pi_k
    :return: shape ``(n_transitions,)``, flat as the buffer is, in float64
    """
    return np.exp(found.log_probs.astype(np.float64) - buffer.log_probs.flatten())


def flat(numbers: np.ndarray) -> np.ndarray:
    """
    Give numbers the shape and type of those in a flat buffer.

    :param numbers: one for each transition, in the buffer's order
    :return: shape ``(n_transitions, 1)``, in float32
    """
    return numbers.astype(np.float32).reshape(-1, 1)
