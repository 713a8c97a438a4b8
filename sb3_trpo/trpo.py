"""Trust Region Policy Optimization (Schulman et al. 2015, arXiv:1502.05477) as a Stable-Baselines3 algorithm."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import update_learning_rate
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from sb3_trpo.callbacks import keeper_of
from sb3_trpo.distributions.argument_checks import unvalidated
from sb3_trpo.distributions.base import DistributionKind
from sb3_trpo.distributions.registry import CORE_KINDS
from sb3_trpo.extras import require_for_learning
from sb3_trpo.networks.plain_network import Networks, read_networks
from sb3_trpo.numerics.conjugate_gradient import ConjugateGradient
from sb3_trpo.numerics.line_search import BacktrackingLineSearch
from sb3_trpo.numerics.trust_region import ROUNDING_SHARE, Outcome, trust_region_step
from sb3_trpo.parallel.communicator import ALONE, Communicator
from sb3_trpo.parallel.consistency import require_same, shapes_of
from sb3_trpo.parallel.distributed import connect
from sb3_trpo.parallel.faults import check_on_all_ranks
from sb3_trpo.parallel.rollout_sync import NoSync, make_rollout_sync
from sb3_trpo.parallel.sharding import seed_of_rank, shard_minibatches, steps_of_rank
from sb3_trpo.policies import (
    CnnPolicy,
    MlpPolicy,
    MultiInputPolicy,
    check_default_type,
    check_policy,
    check_policy_class,
    check_policy_fits,
)
from sb3_trpo.rollouts.advantages import as_they_are, standardisation
from sb3_trpo.rollouts.batch import GRAPH_LIMITS, ChunkLimits, default_chunk_size, inputs_of, split_rollout, spread_inputs
from sb3_trpo.rollouts.environment import RolloutEnv, collect_by, keep_as_seen
from sb3_trpo.rollouts.fast_collector import CORE_ACTING_POLICIES, ActingPolicies, FastCollector
from sb3_trpo.rollouts.inputs import minibatches_of
from sb3_trpo.rollouts.plain_spaces import PlainSpaces, check_spaces_of
from sb3_trpo.rollouts.validation import require_finite, unfit_observation, unfit_type
from sb3_trpo.settings import (
    check_batch,
    check_settings,
    evaluate_schedule,
    explains_unknown_keywords,
    parse_total_timesteps,
    warn_about_batch_size,
)
from sb3_trpo.update.actor import make_actor
from sb3_trpo.update.advice import ADVICE
from sb3_trpo.update.constraints import mean_kl
from sb3_trpo.update.critic import FitOutcome, fit_critic
from sb3_trpo.update.diagnostics import critic_diagnostics, record, state_diagnostics, step_diagnostics, timed
from sb3_trpo.update.flat_critic import fit_stack, plain_regression
from sb3_trpo.update.modes import critic_mode, follow_statistics, statistical_layers
from sb3_trpo.update.parameter_split import ParameterSplit, Read, agree, split_by_structure, split_parameters
from sb3_trpo.update.surrogate import MISMATCH, PolicyObjective

SelfTRPO = TypeVar("SelfTRPO", bound="TRPO")


class TRPO(OnPolicyAlgorithm):
    """
    Trust Region Policy Optimization: natural-gradient steps that keep the mean joint KL(old || new) within ``target_kl``.

    Keywords up to ``_init_setup_model`` are those of ``sb3_contrib.TRPO``, with its defaults but for ``n_critic_updates``;
    later ones are new.

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"``, ``"MultiInputPolicy"`` or a subclass of SB3's ``ActorCriticPolicy``
    :param env: the environment, vectorised or not, or its registered name
    :param learning_rate: of the critic's optimizer; a number or a function of the progress remaining (1 to 0)
    :param n_steps: steps per environment and update, which ranks share; the batch holds ``n_steps * n_envs`` transitions
    :param batch_size: transitions per minibatch of the critic, of all ranks together
    :param gamma: discount factor
    :param cg_max_steps: Fisher-vector products per update at most; the paper uses 10 (Appendix C), sb3-contrib 15
    :param cg_damping: what is added to the Fisher matrix's eigenvalues; sb3-contrib's value
    :param line_search_shrinking_factor: ratio of successive steps tried, in (0, 1); sb3-contrib's value
    :param line_search_max_iter: number of steps tried; sb3-contrib's value
    :param n_critic_updates: passes over the rollout to fit the critic; sb3-contrib makes 10, 20 were better on five of seven
        tasks and worse on Hopper, in the mean of four seeds (``benchmarks/plans/defaults.yml``)
    :param gae_lambda: bias-variance trade-off of generalised advantage estimation (arXiv:1506.02438)
    :param use_sde: explore by generalised state-dependent noise (gSDE, arXiv:2005.05719), for Box actions
    :param sde_sample_freq: steps between draws of the gSDE noise matrix; -1 draws once per rollout
    :param rollout_buffer_class: buffer to use instead of SB3's
    :param rollout_buffer_kwargs: its further arguments
    :param normalize_advantage: whether to standardise the advantages over the batch
    :param target_kl: largest mean KL(old || new) of the joint action, in nats; a number or a function of the progress
        remaining. The paper uses 0.01 (Appendix E)
    :param sub_sampling_factor: use only every k-th transition in the policy's update, the bound on the KL included
    :param stats_window_size: number of episodes that rollout statistics average over
    :param tensorboard_log: folder for TensorBoard, ``None`` for no log
    :param policy_kwargs: further arguments of the policy
    :param verbose: 0 prints nothing, 1 training information, 2 debugging messages too
    :param seed: of every random generator
    :param device: where the networks live
    :param _init_setup_model: whether to build the networks at once
    :param fisher_subsampling: use only every k-th of the update's states in the Fisher matrix, whose products then cost a
        k-th; gradient and line search use all. The paper takes 10 (Appendix C.1); 1 is exact
    :param cg_residual_tol: relative residual at which conjugate gradient stops. sb3-contrib stops at an absolute 1e-5; here it
        does not depend on the reward's scale
    :param ent_coef: weight of the joint entropy in the surrogate; a number or a function of the progress remaining
    :param max_grad_norm: bound on the norm of the critic's gradients; ``None`` or 0, which sb3-contrib saves, for no bound
    :param chunk_size: transitions differentiated at a time, which bounds memory; ``None`` chooses by observation size
    :param distributed: whether to share the run with the other processes of a launcher such as ``torchrun``; ``None`` does if
        there are any (``WORLD_SIZE > 1``, or a process group is there)
    :raises TypeError: if a keyword is unknown, with what takes its place
    :raises ValueError: if a setting is not allowed, or nothing in the policy's distribution can be trained
    :raises AssertionError: if the action space is unsupported, or one transition is to be normalised, as in SB3
    """

    action_spaces: ClassVar[tuple[type[spaces.Space[Any]], ...]] = (
        spaces.Box,
        spaces.Discrete,
        spaces.MultiDiscrete,
        spaces.MultiBinary,
    )
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    distribution_kinds: ClassVar[tuple[DistributionKind, ...]] = CORE_KINDS
    """Known kinds of action distributions; a subclass may add its own."""
    acting_policies: ClassVar[ActingPolicies] = CORE_ACTING_POLICIES
    """How the policy acts in the fast rollout loop, by type of buffer."""
    _communicator: Communicator = ALONE
    _general_loop = OnPolicyAlgorithm.collect_rollouts  # for what the fast loop does not know; a variant may have another

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
        distributed: bool | None = None,
    ) -> None:
        check_policy(policy)
        if env is None and _init_setup_model:
            raise ValueError(
                "env is None, but a new model needs an environment: give one, or its registered name. To use a saved model "
                "without any, TRPO.load(path)."
            )
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            gamma=gamma,
            gae_lambda=gae_lambda,
            ent_coef=ent_coef,  # type: ignore[arg-type]  # a schedule is evaluated by train()
            vf_coef=0.0,  # the critic has its own regression
            max_grad_norm=max_grad_norm,  # type: ignore[arg-type]  # None clips nothing
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
        self.distributed = distributed
        self._n_iterations = 0
        self._n_rejected_steps = 0
        self.policy_outcome: Outcome | None = None
        """How the last policy step ended."""
        self.critic_outcome: FitOutcome | None = None
        """How the last critic fit ended."""
        self._outcome_counts: dict[str, int] = {}
        self._advised: set[str] = set()
        if _init_setup_model:
            self._setup_model()
            require_same(shapes_of(self.policy), "the policy's tensors", self._communicator)
            self._communicator.broadcast([*self.policy.state_dict().values()])
            n_transitions = self._check_batch()
            if self._communicator.is_first:
                warn_about_batch_size(n_transitions, self.batch_size)

    def train(self) -> None:
        """
        Improve the policy within its trust region, fit the critic to the returns, record both.

        :raises ValueError: if the rollout or a schedule is not finite, before anything is changed; on all ranks if on one
        """
        check_on_all_ranks(partial(require_finite, self.rollout_buffer, self._last_obs), self._communicator)
        progress = self._current_progress_remaining
        names = {"target_kl": self.target_kl, "ent_coef": self.ent_coef, "learning_rate": self.lr_schedule}
        present = [evaluate_schedule(name, setting, progress) for name, setting in names.items()]
        target_kl, ent_coef, learning_rate = self._communicator.gather(th.tensor(present, dtype=th.float64))[0].tolist()
        self._update_learning_rate(self.policy.optimizer)  # which records it, too
        update_learning_rate(self.policy.optimizer, learning_rate)
        networks = read_networks(self.policy, self.distribution_kinds)
        split = self._split_parameters(networks, self._input_chunks())
        split = split if networks else agree(split, self.policy, self._communicator)

        self.policy.set_training_mode(False)
        self._improve_policy(networks, list(split.policy.values()), target_kl, ent_coef)
        self._fit_critic(networks, list(split.critic.values()))
        self._follow_statistics()

        self._n_updates += 1
        what = self.policy, self.rollout_buffer, self._n_rejected_steps, self._communicator, self.distribution_kinds
        record(self.logger, state_diagnostics(*what))
        record(self.logger, {f"outcomes/{name}": count for name, count in self._outcome_counts.items()})
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _improve_policy(
        self, networks: Networks | None, parameters: list[nn.Parameter], target_kl: float, ent_coef: float
    ) -> None:
        """Take one trust-region step."""
        with unvalidated(), timed(self.logger, "time/policy_step_seconds"):
            actor = make_actor(self.policy, networks, parameters, self.distribution_kinds)
            size, every = self._chunk_size(actor.chunk_limits), self.sub_sampling_factor
            are_few = bool(2 * self._n_transitions <= size)  # twice, for sequences may be filled up to that
            standardise = (
                partial(standardisation, communicator=self._communicator) if self.normalize_advantage else as_they_are
            )
            chunks, fisher_chunks = split_rollout(self.rollout_buffer, every, size, standardise), None
            if self.fisher_subsampling > 1:
                every *= self.fisher_subsampling
                fisher_chunks = split_rollout(self.rollout_buffer, every, size)
            tolerance = min(MISMATCH, math.sqrt(ROUNDING_SHARE * target_kl))
            objective = PolicyObjective(
                actor,
                parameters,
                chunks,
                [mean_kl(target_kl)],
                fisher_chunks,
                ent_coef,
                self._communicator.mean,
                are_few,
                tolerance,
            )
            model, entropy, log_prob_error = objective.local_model()
            solver = ConjugateGradient(self.cg_max_steps, self.cg_residual_tol)
            line_search = BacktrackingLineSearch(self.line_search_shrinking_factor, self.line_search_max_iter)
            step = trust_region_step(model, solver, line_search, self.cg_damping)
        self._n_rejected_steps += step.outcome is not Outcome.ACCEPTED
        self._warn_of_mismatch(log_prob_error)
        self.policy_outcome = step.outcome
        self._count(step.outcome, step.outcome.name.lower())
        record(self.logger, step_diagnostics(step, target_kl, entropy))

    def _fit_critic(self, networks: Networks | None, parameters: list[nn.Parameter]) -> None:
        """Regress the values on the returns, in what the policy does not depend on."""
        with critic_mode(self.policy), timed(self.logger, "time/critic_seconds"):
            shard = shard_minibatches(self.batch_size, self._n_transitions, self._communicator)
            batch_size = self.batch_size if shard is None else shard.batch_size
            buffer, how = self.rollout_buffer, (self.n_critic_updates, self.max_grad_norm, self._communicator, shard)
            regression = networks and plain_regression(self.policy, networks, parameters, buffer, batch_size)
            if regression:
                fit = fit_stack(regression, *how)
            else:
                fit = fit_critic(self.policy, parameters, partial(minibatches_of, buffer, batch_size), *how)
        self.critic_outcome = fit.outcome
        self._count(fit.outcome, f"critic_{fit.outcome.name.lower()}")
        record(self.logger, critic_diagnostics(fit))

    def _follow_statistics(self) -> None:
        """Show batch norms and their like, if there are any, one chunk spread evenly over the rollout."""
        if statistical_layers(self.policy):
            size = max(2, self._chunk_size(GRAPH_LIMITS))  # a variance needs two
            follow_statistics(self.policy, spread_inputs(self.rollout_buffer, size), self._communicator)

    def _input_chunks(self) -> Iterator[Read]:
        """Read what the policy acted on, in chunks."""
        size = self._chunk_size(GRAPH_LIMITS)
        for chunk in split_rollout(self.rollout_buffer, every=1, chunk_size=size):
            yield partial(inputs_of, chunk)

    @property
    def _n_transitions(self) -> int:
        """Of this rank, in a rollout."""
        return int(self.rollout_buffer.buffer_size * self.n_envs)

    def _chunk_size(self, limits: ChunkLimits) -> int:
        return self.chunk_size or default_chunk_size(self._plain.observation_space, limits)

    def _count(self, outcome: Outcome | FitOutcome, name: str) -> None:
        """Count an outcome under a name for the log, and tell what to do about an unwanted one the first time it comes up."""
        self._outcome_counts[name] = self._outcome_counts.get(name, 0) + 1
        if outcome in (Outcome.ACCEPTED, FitOutcome.FITTED):
            return
        if outcome is Outcome.EMPTY_REGION and self._current_progress_remaining == 0.0 and self._n_iterations > 1:
            return  # a schedule of target_kl that ends at 0 has nothing to mend, unless its end is all there was
        if self._is_first_time(outcome.value):
            advice = f"{type(self).__name__}, update {self._n_updates + 1}: {outcome.value}. {ADVICE[outcome]}"
            if outcome is Outcome.LOST_IN_ROUNDING:  # nothing will be learned, whatever verbose is
                warnings.warn(advice, UserWarning, stacklevel=2)
            elif self.verbose >= 1:
                print(advice)

    def _warn_of_mismatch(self, log_prob_error: float) -> None:
        """Warn if the rollout is not what the policy saw and did."""
        if log_prob_error > MISMATCH and self._is_first_time("mismatch"):
            warnings.warn(
                f"The policy gives the rollout's actions log-probabilities that differ by {log_prob_error:.2g} nats (root "
                "mean square) from those that they were drawn with: the update uses other data than the policy acted on. "
                "Likely causes: an environment or wrapper that writes into arrays it has returned; weights that have changed "
                "since; a rollout buffer or policy of your own that changes observations or actions on the way, or that draws "
                "random numbers; squashed actions at their bounds.",
                UserWarning,
                stacklevel=2,
            )

    def _is_first_time(self, what: str) -> bool:
        """Tell whether something is to be said that has not been said before, by the rank that speaks."""
        is_new = what not in self._advised
        self._advised.add(what)
        return is_new and self._communicator.is_first

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """
        Fill the buffer, by SB3's loop or with the same result by ours.

        :param env: the training environments
        :param callback: called at each step
        :param rollout_buffer: what to fill
        :param n_rollout_steps: steps per environment
        :return: whether the rollout is complete, rather than ended by the callback
        :raises ValueError: if the policy could not act because an observation was not finite or of another shape
        """
        assert self._last_obs is not None, "SB3 resets the environments before it collects"
        inner, general = RolloutEnv(env, self._plain), partial(collect_by, self._general_loop, self)
        try:
            with timed(self.logger, "time/collect_seconds"):
                keep_as_seen(rollout_buffer, self._plain.encode(self._last_obs))
                collector = FastCollector(self, inner, rollout_buffer, self.acting_policies, self.distribution_kinds)
                if collector.can_collect(n_rollout_steps):
                    return collector.collect(callback, general)
                return general(inner, callback, rollout_buffer, n_rollout_steps)
        except (TypeError, ValueError, RuntimeError):
            fault = unfit_observation(self._last_obs, self.observation_space, self.n_envs, rollout_buffer.pos)
            fault = fault or unfit_type(self.policy)
            if fault is None:
                raise
            raise fault from None

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Choose actions.

        :param observation: one, or one per environment
        :param state: of a policy with memory, what the last call returned
        :param episode_start: which episodes start with the observation, shape ``(n_envs,)``
        :param deterministic: whether to take the likeliest action rather than to draw
        :return: the actions, and the state of a policy with memory
        """
        actions, state = super().predict(self._plain.encode(observation), state, episode_start, deterministic)
        return self._plain.decode(actions), state

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
            ``math.inf`` a callback has to end the training, and schedules stay at their beginning
        :param callback: one callback or a list of them
        :param log_interval: updates between two dumps of the log
        :param tb_log_name: name of the run in TensorBoard
        :param reset_num_timesteps: whether to start counting anew, rather than to continue
        :param progress_bar: whether to show one
        :return: the model itself
        :raises ValueError: if ``total_timesteps`` is not a number, or a setting is not allowed
        """
        total_timesteps = parse_total_timesteps(total_timesteps)
        require_for_learning(progress_bar, None if self._custom_logger else self.tensorboard_log)
        self._check_settings()
        self._check_batch()  # not on loading: a model trained with many environments may be evaluated on one
        assert self.env is not None, "a model that was loaded without an environment needs set_env() to learn"
        keeper, sync = keeper_of(callback), make_rollout_sync(self, self._communicator)
        with sync.session(keeper), keeper.session(self, callback):
            total_timesteps, callback = self._setup_learn(
                total_timesteps,  # type: ignore[arg-type]  # SB3 takes infinity too
                sync.callbacks(callback),
                reset_num_timesteps,
                tb_log_name,
                progress_bar and self._communicator.is_first,
            )
            sync.after_reset(total_timesteps)
            self._n_iterations = iteration = 0
            keeper.announce(callback)
            callback.on_training_start(locals(), globals())
            keeper.resume(callback)
            sync.after_resume()
            while (
                self.num_timesteps < total_timesteps and self._iterate(sync, callback, log_interval) and keeper.at_boundary()
            ):
                continue
            callback.on_training_end()
        return self

    def _iterate(self, sync: NoSync, callback: BaseCallback, log_interval: int | None) -> bool:
        """Collect a rollout and learn from it, unless a callback ends the training."""
        assert self.env is not None
        is_complete = self.collect_rollouts(self.env, callback, self.rollout_buffer, self.rollout_buffer.buffer_size)
        if not sync.after_rollout(is_complete, callback):
            return False
        self._n_iterations += 1
        self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
        if log_interval is not None and self._n_iterations % log_interval == 0:
            self.dump_logs(self._n_iterations)
        self.train()
        sync.after_update()
        return True

    @classmethod
    def from_checkpoint(
        cls: type[SelfTRPO], path: str | Path, env: GymEnv, device: th.device | str = "auto", **settings: Any
    ) -> SelfTRPO:
        """
        Make the model of a checkpoint, for evaluation. To continue training, run the training script again.

        No code of the checkpoint's is run: classes that are neither SB3's nor torch's must be given anew.

        :param path: folder of a :class:`~sb3_trpo.checkpoint.ResumableCheckpoint`, whose newest intact checkpoint is taken, or
            one of the checkpoints in it
        :param env: for the model. A ``VecNormalize`` in it gets the statistics of the run
        :param device: where the networks live
        :param settings: keywords of the constructor, in place of those in the checkpoint
        :return: the model
        :raises ValueError: if there is no intact checkpoint, or it does not fit the env
        """
        from sb3_trpo.checkpoint.loading import load_model

        return load_model(cls, Path(path), env, device, settings)

    def save(self, path: Any, exclude: Iterable[str] | None = None, include: Iterable[str] | None = None) -> None:
        """
        Save all that SB3's models save, on the first rank only.

        :param path: to the file, or a file object
        :param exclude: names of attributes to leave out
        :param include: names of attributes to keep that are otherwise left out
        """
        if self._communicator.is_first:
            super().save(path, exclude, include)

    def set_random_seed(self, seed: int | None = None) -> None:
        """
        Seed all random generators, the envs' too.

        :param seed: of the run; each rank derives its own
        """
        super().set_random_seed(seed_of_rank(seed, self._communicator))

    def _setup_model(self) -> None:
        check_default_type()
        self._check_settings()
        self._communicator = connect(self.distributed, self.device)
        check_policy_fits(self.policy_class, self.observation_space, self.policy_aliases)
        self._plain = PlainSpaces(self.observation_space, self.action_space)
        given = self.n_steps, self.observation_space, self.action_space
        try:
            self.n_steps = steps_of_rank(self.n_steps, self._communicator)
            self.observation_space, self.action_space = self._plain.observation_space, self._plain.action_space
            self._build()
        finally:
            self.n_steps, self.observation_space, self.action_space = given
        detached = self._split_parameters(read_networks(self.policy, self.distribution_kinds)).detached
        if detached:
            warnings.warn(
                f"The policy's distribution depends on {', '.join(detached)}, but through a detach() that stops gradients. "
                "They stay as they are: the step cannot move them, and the critic must not.",
                UserWarning,
                stacklevel=2,
            )

    def _build(self) -> None:
        """Make policy and buffer."""
        check_policy_class(self.policy_class, ActorCriticPolicy)
        super()._setup_model()

    def _check_settings(self) -> None:
        check_settings(vars(self))
        for name in ("target_kl", "ent_coef", "learning_rate"):
            evaluate_schedule(name, getattr(self, name), progress_remaining=1.0)

    def _check_batch(self) -> int:
        """Count the transitions of all ranks in a rollout; raise if they are too few."""
        n_transitions = int(self._communicator.sum(th.tensor(self._n_transitions)))
        check_batch(n_transitions, self.sub_sampling_factor, self.fisher_subsampling, self.normalize_advantage)
        return n_transitions

    def _split_parameters(self, networks: Networks | None, batches: Iterable[Read] = ()) -> ParameterSplit:
        """Find out what the policy depends on; anew each time, for users freeze and replace parts between updates."""
        if networks is None:
            split = split_parameters(self.policy, list(batches), self.distribution_kinds)
        else:
            split = split_by_structure(self.policy, networks)
        if not split.policy:
            raise ValueError(
                f"No trainable parameter changes the action distribution of {type(self.policy).__name__}: there is nothing "
                "for TRPO to improve. Set requires_grad=True on some, or check for a detach() in get_distribution()."
            )
        return split

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        check_spaces_of(env)  # before SB3's wrappers, which stumble over some
        wrapped = OnPolicyAlgorithm._wrap_env(env, verbose, monitor_wrapper)
        check_spaces_of(wrapped)
        return wrapped

    def _get_policy_from_name(self, policy_name: str) -> type[BasePolicy]:
        if policy_name not in self.policy_aliases:
            raise ValueError(
                f"policy is {policy_name!r}, but {type(self).__name__} knows {', '.join(self.policy_aliases)}. Policies with "
                "an LSTM are for sb3_trpo.recurrent.RecurrentTRPO; other classes of policies are given as such."
            )
        return super()._get_policy_from_name(policy_name)

    def _excluded_save_params(self) -> list[str]:
        # Whoever loads the model has not read the advice, and may be another process among others.
        return [
            *super()._excluded_save_params(),
            "_advised",
            "policy_outcome",
            "critic_outcome",
            "distributed",
            "_communicator",
            "_plain",
        ]

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        # The last rollout may overshoot the total; schedules end at 0 all the same.
        super()._update_current_progress_remaining(min(num_timesteps, total_timesteps), total_timesteps)

    def _maybe_recommend_cpu(self, mlp_class_name: str = MlpPolicy.__name__) -> None:
        super()._maybe_recommend_cpu(mlp_class_name)  # SB3 goes by the class's name, and ours has another
