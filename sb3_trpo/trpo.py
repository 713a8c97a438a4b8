"""Trust Region Policy Optimization (Schulman et al. 2015, arXiv:1502.05477) as a Stable-Baselines3 algorithm."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from torch import nn

from sb3_trpo.networks.plain_network import Networks, read_networks
from sb3_trpo.numerics.trust_region import Step
from sb3_trpo.parallel.faults import check_on_all_ranks
from sb3_trpo.policies import check_policy
from sb3_trpo.rollouts.batch import RolloutBatch
from sb3_trpo.rollouts.plain_spaces import check_env
from sb3_trpo.rollouts.validation import require_finite
from sb3_trpo.settings import Scheduled, explains_unknown_keywords
from sb3_trpo.training_loop import TrainingLoop
from sb3_trpo.update.critic import CriticFit, FitSettings
from sb3_trpo.update.diagnostics import (
    critic_diagnostics,
    path_diagnostics,
    record,
    state_diagnostics,
    step_diagnostics,
    timed,
)
from sb3_trpo.update.flat_critic import fit_values
from sb3_trpo.update.modes import critic_mode, update_statistics
from sb3_trpo.update.parameter_split import ParameterSplit, PolicyTensors, split_of
from sb3_trpo.update.policy_step import CostLimit, PolicyStepSettings, policy_step

SelfTRPO = TypeVar("SelfTRPO", bound="TRPO")


class TRPO(TrainingLoop):
    """
    Trust Region Policy Optimization: natural-gradient steps that keep the mean KL(old || new) within ``target_kl``.

    The keywords up to ``_init_setup_model`` are those of ``sb3_contrib.TRPO``, with the same defaults except for
    ``n_critic_updates``. The others are new.

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"``, ``"MultiInputPolicy"`` or a subclass of SB3's ``ActorCriticPolicy``
    :param env: environment, vectorized or not, or its registered name
    :param learning_rate: learning rate of the critic's optimizer, or a schedule: a function of the progress remaining, 1 to 0
    :param n_steps: steps per environment and update, shared by all ranks: an update uses ``n_steps * n_envs`` transitions
    :param batch_size: transitions in a minibatch of the critic, of all ranks together
    :param gamma: discount factor
    :param cg_max_steps: largest number of Fisher-vector products per update. The paper uses 10 (Appendix C)
    :param cg_damping: lambda, added to the diagonal of the Fisher matrix, which may be singular; the number is sb3-contrib's
    :param line_search_shrinking_factor: ratio of successive step sizes that the line search tries, in (0, 1)
    :param line_search_max_iter: largest number of step sizes that the line search tries
    :param n_critic_updates: epochs of the critic per update. sb3-contrib uses 10; 20 was better on five of seven tasks and
        worse on Hopper, in the mean of four seeds (``benchmarks/learning/plans/defaults.yml``)
    :param gae_lambda: bias-variance trade-off of generalized advantage estimation (arXiv:1506.02438)
    :param use_sde: whether to explore with generalized state-dependent noise (gSDE, arXiv:2005.05719); Box actions only
    :param sde_sample_freq: steps between two samples of the gSDE noise matrix; -1 samples once per rollout
    :param rollout_buffer_class: class of the rollout buffer, ``None`` for SB3's
    :param rollout_buffer_kwargs: further keywords of the rollout buffer
    :param normalize_advantage: whether to standardize the advantages over the batch
    :param target_kl: largest mean KL(old || new) of the joint action, in nats, or a schedule; 0.01 as in the paper (App. E)
    :param sub_sampling_factor: k: the policy step uses only every k-th transition, for the bound on the KL too
    :param stats_window_size: number of episodes over which rollout statistics are averaged
    :param tensorboard_log: folder of TensorBoard logs, ``None`` for no log
    :param policy_kwargs: further keywords of the policy
    :param verbose: 0 for no output, 1 for training information, 2 for debug messages
    :param seed: seed of all random generators
    :param device: device of the networks
    :param _init_setup_model: whether the constructor builds the networks
    :param fisher_subsampling: k: the Fisher matrix uses only every k-th of those transitions, which makes its products k times
        cheaper. The paper uses 10 (Appendix C.1); 1 is exact
    :param cg_residual_tol: relative residual at which conjugate gradient stops; sb3-contrib has 1e-5, absolute
    :param ent_coef: weight of the joint entropy in the surrogate, or a schedule. 0 as in the paper
    :param max_grad_norm: bound on the norm of the critic's gradient; ``None`` or 0 for no bound, as in sb3-contrib
    :param chunk_size: transitions differentiated at a time, to bound memory; ``None`` chooses (``rollouts/transitions.py``)
    :param max_state_kl: largest KL(old || new) at any state of the rollout, in nats, or a schedule: a second bound, on the
        quantity of the paper's Theorem 1. ``None`` sets no bound; ``math.inf`` only measures and logs the largest KL
    :param state_kl_quantile: share of the states that must keep ``max_state_kl``, in (0, 1]. 1, every state, as in the theorem
    :param distributed: whether to train together with the other processes of a launcher such as ``torchrun``. ``None`` does so
        if there are any (``WORLD_SIZE > 1``, or a process group)
    :param distributed_timeout: seconds until ranks notice that a machine has vanished; 60 outlives short faults of a network
    :raises TypeError: if a keyword is unknown; the message names the right one
    :raises ValueError: if a setting is not allowed, or nothing in the policy's distribution can be trained
    :raises AssertionError: if the action space is not supported, or a single transition is to be normalized, as in SB3
    """

    _limits: Sequence[CostLimit] = ()

    @explains_unknown_keywords
    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-3,
        n_steps: int = 2048,
        batch_size: int = 128,
        gamma: float = 0.99,
        cg_max_steps: int = 15,
        cg_damping: float = 0.1,
        line_search_shrinking_factor: float = 0.8,
        line_search_max_iter: int = 10,
        n_critic_updates: int = 20,
        gae_lambda: float = 0.95,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        normalize_advantage: bool = True,
        target_kl: float | Schedule = 0.01,
        sub_sampling_factor: int = 1,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
        *,
        fisher_subsampling: int = 1,
        cg_residual_tol: float = 1e-5,
        ent_coef: float | Schedule = 0.0,
        max_grad_norm: float | None = None,
        chunk_size: int | None = None,
        max_state_kl: float | Schedule | None = None,
        state_kl_quantile: float = 1.0,
        distributed: bool | None = None,
        distributed_timeout: float = 60.0,
    ) -> None:
        check_policy(policy)
        check_env(env, _init_setup_model)
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            gamma=gamma,
            gae_lambda=gae_lambda,
            ent_coef=ent_coef,  # a schedule is evaluated by train()
            vf_coef=0.0,  # the critic has its own regression
            max_grad_norm=max_grad_norm,  # None clips nothing
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            rollout_buffer_class=rollout_buffer_class,
            rollout_buffer_kwargs=rollout_buffer_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            supported_action_spaces=self.action_spaces,
            _init_setup_model=False,
        )
        self.batch_size = batch_size
        self.normalize_advantage = normalize_advantage
        self.cg_max_steps = cg_max_steps
        self.cg_damping = cg_damping
        self.cg_residual_tol = cg_residual_tol
        self.line_search_shrinking_factor = line_search_shrinking_factor
        self.line_search_max_iter = line_search_max_iter
        self.n_critic_updates = n_critic_updates
        self.target_kl = target_kl
        self.sub_sampling_factor = sub_sampling_factor
        self.fisher_subsampling = fisher_subsampling
        self.chunk_size = chunk_size
        self.distributed, self.distributed_timeout = distributed, distributed_timeout
        self.max_state_kl, self.state_kl_quantile = max_state_kl, state_kl_quantile
        if _init_setup_model:
            self._setup_new_model()

    def train(self) -> None:
        """
        Improve the policy within its trust region, regress the critic on the returns, and record both.

        :raises ValueError: if a rollout, on any rank, or a schedule is not finite, before anything has changed
        """
        check_on_all_ranks(self._check_rollout, self._communicator)
        now, batch = self._evaluate_schedules(), RolloutBatch([self.rollout_buffer], self.rollout_reader)
        networks = read_networks(self.policy, self.distribution_kinds)
        split = self._split(networks, batch)
        self._improve_policy(batch, networks, split, now)
        self._fit_critic(batch, networks, split)
        self._finish_update(batch)

    def _check_rollout(self) -> None:
        """Raise if the rollout would spoil the update."""
        require_finite(self.rollout_buffer, self._last_obs)

    def _split(self, networks: PolicyTensors | None, batch: RolloutBatch) -> ParameterSplit:
        """Find out what the action distribution depends on."""
        return split_of(self.policy, networks, batch, self.chunk_size, self._communicator, self.distribution_kinds)

    def _improve_policy(self, batch: RolloutBatch, networks: Networks | None, split: ParameterSplit, now: Scheduled) -> Step:
        """Take one trust-region step."""
        self.policy.set_training_mode(False)  # with dropout the old policy would not be one distribution
        settings, parameters = PolicyStepSettings.of(self, now), list(split.policy.values())
        with timed(self.logger, "time/policy_step_seconds"):
            done = policy_step(self.policy, networks, parameters, batch, settings, self._communicator, self._limits)
        step = done.step
        self._n_rejected_steps += not step.outcome.is_accepted
        self._compare_log_probs(done.log_prob_error)
        self.policy_outcome = step.outcome
        self._count(step.outcome, step.outcome.name.lower(), step.description)
        record(self.logger, step_diagnostics(step, done.constraints, done.entropy))
        record(self.logger, path_diagnostics(self.verbose, policy_step=done.is_fast))
        return step

    def _fit_critic(self, batch: RolloutBatch, networks: Networks | None, split: ParameterSplit) -> None:
        """Regress the values on the returns, in parameters that the policy does not depend on."""
        parameters, settings = list(split.critic.values()), (self.n_critic_updates, self.batch_size, self.max_grad_norm)
        with critic_mode(self.policy), timed(self.logger, "time/critic_seconds"):
            fit = self._fit_values(networks, parameters, batch, settings)
        self.critic_outcome = fit.outcome
        self._count(fit.outcome, f"critic_{fit.outcome.name.lower()}", fit.outcome.value)
        record(self.logger, critic_diagnostics(fit, self.verbose))

    def _fit_values(
        self, networks: Networks | None, parameters: list[nn.Parameter], batch: RolloutBatch, settings: FitSettings
    ) -> CriticFit:
        """Fit the critic, in whichever way is the fastest for it."""
        return fit_values(self.policy, networks, parameters, batch, *settings, self._communicator)

    def _finish_update(self, batch: RolloutBatch) -> None:
        """Update running statistics such as batch norm's, and record what concerns the update as a whole."""
        update_statistics(self.policy, batch, self.chunk_size, self._communicator)
        self._n_updates += 1
        context = self._n_rejected_steps, self._communicator, self.distribution_kinds
        record(self.logger, state_diagnostics(self.policy, batch, *context))
        record(self.logger, {f"outcomes/{name}": count for name, count in self._outcome_counts.items()})
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def learn(
        self: SelfTRPO,
        total_timesteps: float,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "TRPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfTRPO:
        """
        Train.

        :param total_timesteps: environment steps to take, of all ranks together; a float such as ``1e6`` is fine. With
            ``math.inf`` a callback has to end the training, and schedules stay at their initial value
        :param callback: a callback or a list of callbacks
        :param log_interval: updates between two dumps of the log
        :param tb_log_name: name of the run in TensorBoard
        :param reset_num_timesteps: whether to count timesteps from 0 rather than continue counting
        :param progress_bar: whether to show a progress bar
        :return: the model itself
        :raises ValueError: if ``total_timesteps`` is not a number, or a setting is not allowed
        """
        self._run(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)
        return self

    def save(self, path: Any, exclude: Iterable[str] | None = None, include: Iterable[str] | None = None) -> None:
        """
        Save what SB3's models save, on the first rank only.

        :param path: path of the zip file, or a file object
        :param exclude: names of further attributes to leave out
        :param include: names of attributes to save although they are usually left out
        """
        if self._communicator.is_first:
            super().save(path, exclude, include)

    def _setup_model(self) -> None:
        super()._setup_model()
        any_state = [self.rollout_reader.any_inputs(self.policy)]
        networks = read_networks(self.policy, self.distribution_kinds)
        split_of(self.policy, networks, any_state, kinds=self.distribution_kinds).warn_about_detached()

    def _excluded_save_params(self) -> list[str]:
        # They describe updates of this process, not the model.
        return [*super()._excluded_save_params(), "policy_outcome", "critic_outcome"]
