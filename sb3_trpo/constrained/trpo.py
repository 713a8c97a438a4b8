"""TRPO under limits on the expected costs of an episode (Achiam et al. 2017, arXiv:1705.10528)."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from itertools import starmap
from numbers import Real
from typing import Any, ClassVar, TypeVar, cast

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.utils import update_learning_rate
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from sb3_trpo.constrained.critics import cost_buffer, in_order
from sb3_trpo.constrained.estimates import StepCosts, covering, episode_costs, mean_length, newest
from sb3_trpo.constrained.feedback import Feedback
from sb3_trpo.constrained.recording import CostRecorder, follow, no_episodes
from sb3_trpo.networks.plain_network import Networks, read_networks
from sb3_trpo.numerics.linear_limits import MOST_LIMITS
from sb3_trpo.numerics.trust_region import Outcome, Step
from sb3_trpo.parallel.consistency import require_same
from sb3_trpo.parallel.rollout_sync import interleave
from sb3_trpo.rollouts.batch import RolloutBatch
from sb3_trpo.settings import Rule, Scheduled, check_setting, is_probability
from sb3_trpo.trpo import TRPO
from sb3_trpo.update.critic import FitOutcome
from sb3_trpo.update.diagnostics import explained_variance, record
from sb3_trpo.update.flat_critic import fit_values
from sb3_trpo.update.modes import critic_mode, evaluation_mode
from sb3_trpo.update.parameter_split import ParameterSplit
from sb3_trpo.update.policy_step import CostLimit

COST_RULES = {
    "cost_limits": Rule(
        lambda v: isinstance(v, Mapping) and 0 < len(v) <= MOST_LIMITS and all(map(_is_limit, v.items())),
        f"a dict of 1 to {MOST_LIMITS} finite numbers by key of info",
        'For example cost_limits={"cost": 25.0}.',
    ),
    "cost_gamma": Rule(is_probability, "a number, in [0, 1]", "The default is 0.99."),
    "cost_gae_lambda": Rule(is_probability, "a number, in [0, 1]", "The default is 0.5."),
}
"""Rules of the settings that :class:`~sb3_trpo.TRPO` does not have."""


RECURRENT = ("RecurrentActorCriticPolicy", "RecurrentTRPO")
"""Names of sb3-contrib's policy with memory and of the algorithm for it, which need the extra ``[contrib]``."""


def _is_limit(item: tuple[object, object]) -> bool:
    key, limit = item
    return isinstance(key, str) and isinstance(limit, Real) and not isinstance(limit, bool) and math.isfinite(limit)


def refuse_memory(policy: Any, algorithm: type[Any]) -> None:
    """
    Refuse policies with an LSTM: the critics of costs do not carry its states along.

    :param policy: the constructor's argument
    :param algorithm: class of the algorithm
    :raises ValueError: if the policy or the algorithm has a memory
    """
    bases = {each.__name__ for owner in (policy, algorithm) if isinstance(owner, type) for each in owner.__mro__}
    if (isinstance(policy, str) and "lstm" in policy.lower()) or not bases.isdisjoint(RECURRENT):
        name = policy.__name__ if isinstance(policy, type) else repr(policy)
        raise ValueError(
            f"policy is {name}, but {algorithm.__name__} takes no policy with a memory (LSTM). Use MlpPolicy, CnnPolicy or "
            "MultiInputPolicy on the last few observations, stacked by SB3's VecFrameStack(env, n_stack=4); or use "
            "sb3_trpo.recurrent.RecurrentTRPO, and subtract the cost from the reward."
        )


SelfConstrainedTRPO = TypeVar("SelfConstrainedTRPO", bound="ConstrainedTRPO")


class ConstrainedTRPO(TRPO):
    """
    Constrained policy optimization: TRPO that keeps expected costs of an episode below limits.

    The environment reports costs in ``info`` at every step. Takes the keywords of :class:`~sb3_trpo.TRPO` as well.

    :param args: the arguments of :class:`~sb3_trpo.TRPO`
    :param cost_limits: for each key of a cost in ``info`` the largest expected sum over an episode, not discounted
    :param cost_gamma: discount factor of the costs' advantages; OmniSafe's
    :param cost_gae_lambda: bias-variance trade-off of the costs' advantages. OmniSafe has 0.95; a lower one
        gives them less variance, so that a step, which overshoots its limit by fitting noise, fits less of it
    :param kwargs: the keywords of :class:`~sb3_trpo.TRPO`
    :raises ValueError: if there are no limits, a setting is not allowed, or the policy has a memory
    """

    own_settings: ClassVar[tuple[str, ...]] = tuple(COST_RULES)
    """Settings that :class:`~sb3_trpo.TRPO` does not have; they must be the same on all ranks."""

    def __init__(
        self,
        *args: Any,
        cost_limits: Mapping[str, float] | None = None,
        cost_gamma: float = 0.99,
        cost_gae_lambda: float = 0.5,
        **kwargs: Any,
    ) -> None:
        self.cost_limits: dict[str, float] = dict(cost_limits) if isinstance(cost_limits, Mapping) else cost_limits  # type: ignore[assignment]  # checked below
        self.cost_gamma = cost_gamma
        self.cost_gae_lambda = cost_gae_lambda
        self.cost_estimates: dict[str, float] = {}
        """Expected cost of an episode by key, as the last update has estimated it."""
        self._critic_keys: list[str] = []
        self._recorder: CostRecorder | None = None
        self._recent_lengths: list[int] = []
        self._recent_costs: list[tuple[float, tuple[float, ...], int]] = []
        self._was_out_of_reach = False
        self._measured: list[CostLimit] = []
        self._ended: list[tuple[int, tuple[float, ...]]] = []
        self._last_episodes = no_episodes(0, 0)
        self._feedback: list[Feedback] = []
        refuse_memory(kwargs.get("policy", args[0] if args else None), type(self))
        super().__init__(*args, **kwargs)
        self._episode_costs: deque[tuple[float, ...]] = deque(maxlen=self._stats_window_size)

    def _check_settings(self) -> None:
        super()._check_settings()
        self._check_limits()

    def _check_limits(self) -> None:
        """Check the settings of costs, which may have changed since the critics were made."""
        for name, rule in COST_RULES.items():
            check_setting(name, getattr(self, name), rule)
        self.cost_limits = in_order(self.cost_limits, self._critic_keys)

    def _setup_model(self) -> None:
        super()._setup_model()
        self._critic_keys = [*self.cost_limits]
        critics = [self._make_policy().to(self.device) for _ in self.cost_limits]
        self.cost_critics = nn.ModuleList(critics)
        """Policies of which only the critic is used, one for each cost."""
        self._feedback = self._feedback or [Feedback() for _ in self.cost_limits]  # a loaded model has its own

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """
        Fill the buffer, and read the costs.

        :param env: training environments
        :param callback: called at each step
        :param rollout_buffer: buffer to fill
        :param n_rollout_steps: steps per environment
        :return: whether the rollout is complete, rather than ended by the callback
        :raises ValueError: if an info lacks a cost, a limit is not allowed, or the policy cannot act on an observation
        """
        self._check_limits()  # a callback may have set others
        starts = np.array(self._last_episode_starts, bool)
        recorder = self._step_observer = CostRecorder([*self.cost_limits], rollout_buffer, self._plain)
        try:
            is_complete = super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        finally:
            del self._step_observer
        self._recorder = recorder if is_complete else None
        self._follow_episodes(recorder, starts, rollout_buffer)
        return is_complete

    def _follow_episodes(self, recorder: CostRecorder, starts: np.ndarray, buffer: RolloutBuffer) -> None:
        """Add the rollout's steps to the present episodes, which may have been reset since the last one."""
        n, now = buffer.pos, self._last_episodes
        if now.lengths.shape != starts.shape:
            now = no_episodes(self.n_envs, len(self.cost_limits))
        now.lengths[starts], now.costs[starts] = 0, 0.0
        dones = np.concatenate((buffer.episode_starts, np.asarray(self._last_episode_starts)[None]))[1 : n + 1].astype(bool)
        episodes, self._last_episodes = follow(now, recorder.costs[:, :n], dones)
        self._ended += zip(episodes.lengths.tolist(), map(tuple, episodes.costs.tolist()), strict=True)

    def _check_rollout(self) -> None:
        super()._check_rollout()
        assert self._recorder is not None, "collect_rollouts() has filled the buffer"
        self._recorder.require_finite()

    def _improve_policy(self, batch: RolloutBatch, networks: Networks | None, split: ParameterSplit, now: Scheduled) -> Step:
        self._limits = self._measured = self._measure_costs()
        step = super()._improve_policy(batch, networks, split, now)
        self._was_out_of_reach = step.outcome is Outcome.RECOVERED
        self._record_costs(step)
        return step

    def _record_costs(self, step: Step) -> None:
        for key, change, multiplier in zip(self.cost_limits, step.limited_changes, step.multipliers, strict=False):
            record(self.logger, {f"cost/{key}/change": change, f"cost/{key}/multiplier": multiplier})
        for key, costs in zip(self.cost_limits, zip(*self._episode_costs, strict=True), strict=False):
            record(self.logger, {f"cost/{key}/episode_mean": float(np.mean(costs))})

    def _measure_costs(self) -> list[CostLimit]:
        """Estimate costs and their advantages."""
        assert self._recorder is not None, "_check_rollout() has run before"
        costs, length = self._estimate_costs(self._recorder)
        last = self._plain.encode(self._last_obs), np.asarray(self._last_episode_starts)
        limits = []
        for index, (key, bound) in enumerate(self.cost_limits.items()):
            critic = cast("ActorCriticPolicy", self.cost_critics[index])
            with evaluation_mode(critic):
                view = cost_buffer(
                    critic,
                    self.rollout_buffer,
                    self._recorder.costs[index],
                    self._recorder.truncated,
                    last,
                    (self.cost_gamma, self.cost_gae_lambda),
                )
            estimate = self.cost_estimates[key] = float(costs[index])
            self._feedback[index].observe(estimate, bound, self._was_out_of_reach)
            excess = self._feedback[index].excess(estimate, bound)
            record(self.logger, {f"cost/{key}/estimate": estimate, f"cost/{key}/limit": bound, f"cost/{key}/excess": excess})
            limits.append(CostLimit(key, excess, length, RolloutBatch([view], self.rollout_reader)))
        return limits

    def _estimate_costs(self, recorder: CostRecorder) -> tuple[np.ndarray, float]:
        """Estimate the expected costs of an episode, and its length, from the rollouts of all ranks."""
        ended = interleave(self._communicator.gather_objects(self._ended))
        self._ended = []
        self._episode_costs += [each for _, each in ended if np.isfinite(each).all()]  # a rollout may have been refused
        self._recent_lengths = newest([*self._recent_lengths, *(length for length, _ in ended)], len(ended))
        _, n_steps, n_envs = recorder.costs.shape
        own = [n_steps * n_envs, *recorder.costs.sum((1, 2)), self._last_episodes.lengths.sum(), n_envs]
        n_transitions, *totals, underway, n_of_all = self._communicator.sum(th.tensor(own, dtype=th.float64)).tolist()
        length = mean_length(self._recent_lengths, [underway / n_of_all])
        newest_rollout = StepCosts(n_transitions, tuple(totals), n_steps)
        rollouts = covering([*starmap(StepCosts, self._recent_costs), newest_rollout], length)
        self._recent_costs = [(each.n_steps, each.totals, each.duration) for each in rollouts]
        return episode_costs(rollouts, length), length

    def _fit_critic(self, batch: RolloutBatch, networks: Networks | None, split: ParameterSplit) -> None:
        super()._fit_critic(batch, networks, split)
        for index, (key, limit) in enumerate(zip(self.cost_limits, self._measured, strict=True)):
            self._fit_cost_critic(key, cast("ActorCriticPolicy", self.cost_critics[index]), limit.batch)
        self._limits, self._measured, self._recorder = (), [], None

    def _fit_cost_critic(self, key: str, critic: ActorCriticPolicy, batch: RolloutBatch) -> None:
        """Regress a cost critic on the cost's returns."""
        settings = self.n_critic_updates, self.batch_size, self.max_grad_norm
        update_learning_rate(critic.optimizer, self.policy.optimizer.param_groups[0]["lr"])
        parameters = [parameter for parameter in critic.parameters() if parameter.requires_grad]
        with critic_mode(critic):
            networks = read_networks(critic, self.distribution_kinds)
            fit = fit_values(critic, networks, parameters, batch, *settings, self._communicator)
        if fit.outcome is FitOutcome.DIVERGED:
            self._count(fit.outcome, f"critic_of_{key}_diverged", f"{fit.outcome.value} (critic of {key})")
        variance = explained_variance(batch.values, batch.returns, self._communicator)
        record(self.logger, {f"cost/{key}/value_loss": fit.loss, f"cost/{key}/explained_variance": variance})

    def learn(
        self: SelfConstrainedTRPO,
        total_timesteps: float,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "ConstrainedTRPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfConstrainedTRPO:
        """
        Train; the arguments are those of :meth:`sb3_trpo.TRPO.learn`.

        :param total_timesteps: environment steps to take
        :param callback: a callback or a list of callbacks
        :param log_interval: updates between two dumps of the log
        :param tb_log_name: name of the run in TensorBoard
        :param reset_num_timesteps: whether to count timesteps from 0
        :param progress_bar: whether to show a progress bar
        :return: the model itself
        """
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)

    def _setup_new_model(self) -> None:
        super()._setup_new_model()
        # Before tensors are sent: with other limits, ranks may have other numbers of critics, and would wait for each other.
        require_same({name: getattr(self, name) for name in self.own_settings}, "settings", self._communicator)
        self._communicator.broadcast([*self.cost_critics.state_dict().values()])

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        names, tensors = super()._get_torch_save_params()
        own = [f"cost_critics.{index}" for index in range(len(self.cost_limits))]
        return [*names, *own, *(f"{name}.optimizer" for name in own)], tensors

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "cost_critics", "_limits", "_measured", "_recorder", "_step_observer"]
