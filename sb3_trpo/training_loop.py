"""
SB3's on-policy algorithm, with what surrounds an update: spaces, ranks, the loop around rollouts, checkpoints and callbacks.

The update itself, ``train()``, is left to the subclass :class:`~sb3_trpo.trpo.TRPO`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback
from stable_baselines3.common.utils import update_learning_rate
from stable_baselines3.common.vec_env import VecEnv

from sb3_trpo.callbacks import lifecycle_of
from sb3_trpo.distributions.base import DistributionKind
from sb3_trpo.distributions.registry import CORE_KINDS
from sb3_trpo.extras import require_for_learning
from sb3_trpo.parallel.consistency import require_same, shapes_of
from sb3_trpo.parallel.distributed import connect
from sb3_trpo.parallel.rollout_sync import NoSync, make_rollout_sync
from sb3_trpo.parallel.sharding import first_numbers, seed_of_rank, steps_of_rank
from sb3_trpo.policies import (
    CnnPolicy,
    MlpPolicy,
    MultiInputPolicy,
    check_default_type,
    check_hybrid_policy,
    check_policy_class,
    check_policy_fits,
    unknown_policy_error,
)
from sb3_trpo.rollouts.collection.environment import RolloutEnv, StepObserver
from sb3_trpo.rollouts.collection.fast_collector import CORE_ACTING_POLICIES, ActingPolicies, FastCollector, collect
from sb3_trpo.rollouts.hybrid_space import BASIC_SPACES, COMPOSITE_SPACES
from sb3_trpo.rollouts.plain_spaces import PlainSpaces, check_spaces_of
from sb3_trpo.rollouts.reader import RolloutReader, TransitionReader
from sb3_trpo.settings import (
    SCHEDULES,
    Scheduled,
    check_batch,
    check_settings,
    evaluate_schedule,
    parse_total_timesteps,
    warn_about_batch_size,
)
from sb3_trpo.update.advice import AdvisingAlgorithm
from sb3_trpo.update.diagnostics import path_diagnostics, record, timed

SelfTrainingLoop = TypeVar("SelfTrainingLoop", bound="TrainingLoop")


class TrainingLoop(AdvisingAlgorithm):
    """An on-policy algorithm that runs on any supported space, alone or as one of several ranks, and can be resumed."""

    action_spaces: ClassVar[tuple[type[spaces.Space[Any]], ...]] = (*BASIC_SPACES, *COMPOSITE_SPACES)
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    rollout_reader: ClassVar[type[RolloutReader]] = TransitionReader
    """How an update reads the rollout buffer."""
    acting_policies: ClassVar[ActingPolicies] = CORE_ACTING_POLICIES
    """How the policy acts in the fast rollout loop, by type of buffer; other buffers are filled by the general loop."""
    distribution_kinds: ClassVar[tuple[DistributionKind, ...]] = CORE_KINDS
    """Known kinds of action distributions; a subclass may add its own."""
    batch_size: int
    distributed: bool | None
    distributed_timeout: float
    sub_sampling_factor: int
    fisher_subsampling: int
    normalize_advantage: bool
    _general_loop = OnPolicyAlgorithm.collect_rollouts
    """Collects rollouts that the fast loop cannot; a variant may have another one."""
    _step_observer: StepObserver | None = None
    """Sees each step of a rollout."""

    def _run(
        self,
        total_timesteps: float,
        callback: MaybeCallback,
        log_interval: int | None,
        tb_log_name: str,
        reset_num_timesteps: bool,
        progress_bar: bool,
    ) -> None:
        """Alternate rollouts and updates until ``total_timesteps``; the arguments are those of ``learn()``."""
        total_timesteps = parse_total_timesteps(total_timesteps)
        require_for_learning(progress_bar, None if self._custom_logger else self.tensorboard_log)
        self._check_settings()
        self._check_batch()  # not on loading: a model trained with many environments may be evaluated on one
        assert self.env is not None, "a model that was loaded without an environment needs set_env() to learn"
        lifecycle, sync = lifecycle_of(callback), make_rollout_sync(self, self._communicator)
        with sync.session(lifecycle), lifecycle.training(self, callback):
            total_timesteps, callback = self._setup_learn(
                total_timesteps,  # type: ignore[arg-type]  # SB3 takes infinity too
                sync.callbacks(callback),
                reset_num_timesteps,
                tb_log_name,
                progress_bar and self._communicator.is_first,
            )
            sync.after_reset(total_timesteps)
            self._n_iterations = iteration = 0  # SB3's learn() has a local of this name, which callbacks may read
            lifecycle.before_training_start(callback)
            callback.on_training_start(locals(), globals())
            lifecycle.after_training_start(callback)
            sync.after_resume()
            while self.num_timesteps < total_timesteps:
                if not (self._iterate(sync, callback, log_interval) and lifecycle.after_iteration()):
                    break
            callback.on_training_end()

    def _iterate(self, sync: NoSync, callback: BaseCallback, log_interval: int | None) -> bool:
        """Collect a rollout and update; return False if a callback has ended the training instead."""
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

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """
        Fill the buffer, by the fast loop if it knows the policy and the buffer, else by SB3's.

        :param env: training environments
        :param callback: called at each step
        :param rollout_buffer: buffer to fill
        :param n_rollout_steps: steps per environment
        :return: whether the rollout is complete, rather than ended by the callback
        :raises ValueError: if the policy cannot act on an observation, because it is not finite or has another shape
        """
        with timed(self.logger, "time/collect_seconds"):
            seen = RolloutEnv(env, self._plain, self._step_observer)
            collector = FastCollector(self, seen, rollout_buffer, self.acting_policies, self.distribution_kinds)
            is_complete, is_fast = collect(collector, callback, n_rollout_steps, self._general_loop)
        record(self.logger, path_diagnostics(self.verbose, rollout=is_fast))
        return is_complete

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Choose actions.

        :param observation: a single observation, or one per environment
        :param state: state of a policy with memory, as the last call returned it
        :param episode_start: whether the observation starts an episode, shape ``(n_envs,)``
        :param deterministic: whether to take the most likely action, or the mean of a Beta distribution, rather than to sample
        :return: actions, and the new state of a policy with memory
        """
        actions, state = super().predict(self._plain.encode(observation), state, episode_start, deterministic)
        return self._plain.decode(actions), state

    @classmethod
    def from_checkpoint(
        cls: type[SelfTrainingLoop], path: str | Path, env: GymEnv, device: th.device | str = "auto", **settings: Any
    ) -> SelfTrainingLoop:
        """
        Load the model of a checkpoint for evaluation. To continue training, run the training script again.

        No code from the checkpoint is executed: classes that are not SB3's or torch's have to be given as ``settings``.

        :param path: folder of a :class:`~sb3_trpo.checkpoint.ResumableCheckpoint`, for its newest intact checkpoint, or the
            folder of one checkpoint
        :param env: environment of the model. A ``VecNormalize`` in it gets the statistics of the run
        :param device: device of the networks
        :param settings: keywords of the constructor that replace those in the checkpoint
        :return: the model
        :raises ValueError: if there is no intact checkpoint, or it does not fit the environment
        """
        from sb3_trpo.checkpoint.loading import load_model

        return load_model(cls, Path(path), env, device, settings)

    def set_random_seed(self, seed: int | None = None) -> None:
        """
        Seed all random generators, including those of the environments.

        :param seed: seed of the run, from which each rank derives its own; ``None`` leaves the generators alone
        """
        super().set_random_seed(seed_of_rank(seed, self._communicator))

    def _setup_model(self) -> None:
        check_default_type()
        self._check_settings()
        self._communicator = connect(self.distributed, self.device, self.distributed_timeout)
        check_policy_fits(self.policy_class, self.observation_space, self.policy_aliases, self.policy_kwargs)
        self._plain = PlainSpaces(self.observation_space, self.action_space)
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        self.policy = self._make_policy().to(self.device)
        check_hybrid_policy(self.policy, self._plain.action_space)
        self.rollout_buffer = self._make_buffer(steps_of_rank(self.n_steps, self._communicator))
        self._maybe_recommend_cpu()

    def _make_policy(self) -> ActorCriticPolicy:
        """Make the policy, on plain spaces."""
        check_policy_class(self.policy_class, ActorCriticPolicy)
        policy: ActorCriticPolicy = self.policy_class(
            self._plain.observation_space,
            self._plain.action_space,
            self.lr_schedule,
            use_sde=self.use_sde,
            **self.policy_kwargs,
        )  # type: ignore[assignment]  # it has been checked
        return policy

    def _make_buffer(self, n_steps: int) -> RolloutBuffer:
        """Make the rollout buffer, on plain spaces."""
        if self.rollout_buffer_class is None:
            is_dict = isinstance(self.observation_space, spaces.Dict)
            self.rollout_buffer_class = DictRolloutBuffer if is_dict else RolloutBuffer  # SB3 stores its choice, too
        return self.rollout_buffer_class(
            n_steps,
            self._plain.observation_space,
            self._plain.action_space,
            device=self.device,
            gamma=self.gamma,
            gae_lambda=self.gae_lambda,
            n_envs=self.n_envs,
            **self.rollout_buffer_kwargs,
        )

    def _setup_new_model(self) -> None:
        """Set the model up, with the first rank's weights on all ranks."""
        self._setup_model()
        require_same(shapes_of(self.policy), "the policy's tensors", self._communicator)
        self._communicator.broadcast([*self.policy.state_dict().values()])
        n_transitions = self._check_batch()
        if self._communicator.is_first:
            warn_about_batch_size(n_transitions, self.batch_size)

    def _check_settings(self) -> None:
        check_settings(vars(self))
        for name in SCHEDULES:
            evaluate_schedule(name, getattr(self, name), progress_remaining=1.0)

    def _check_batch(self) -> int:
        """Check that a rollout is large enough for an update; return its number of transitions on all ranks."""
        own = self.rollout_buffer.buffer_size * self.n_envs
        n_transitions = int(self._communicator.sum(th.tensor(own)))
        check_batch(n_transitions, self.sub_sampling_factor, self.fisher_subsampling, self.normalize_advantage)
        return n_transitions

    def _evaluate_schedules(self) -> Scheduled:
        """Set the learning rate, and return the other scheduled settings. All ranks take the first one's values."""
        schedules = {**{name: getattr(self, name) for name in SCHEDULES}, "learning_rate": self.lr_schedule}
        own = [evaluate_schedule(name, each, self._current_progress_remaining) for name, each in schedules.items()]
        values: dict[str, Any] = dict(zip(schedules, first_numbers(own, self._communicator), strict=True))
        self._update_learning_rate(self.policy.optimizer)  # SB3's method, which records the rate but knows only this rank's
        update_learning_rate(self.policy.optimizer, values.pop("learning_rate"))
        return Scheduled(**values)

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        check_spaces_of(env)  # before SB3 wraps it: some wrappers fail on unsupported spaces
        wrapped = OnPolicyAlgorithm._wrap_env(env, verbose, monitor_wrapper)
        check_spaces_of(wrapped)
        return wrapped

    def _get_policy_from_name(self, policy_name: str) -> type[BasePolicy]:
        if policy_name not in self.policy_aliases:
            raise unknown_policy_error(policy_name, type(self).__name__, self.policy_aliases)
        return super()._get_policy_from_name(policy_name)

    def _excluded_save_params(self) -> list[str]:
        # They belong to this process: a loaded model may run on other ranks, and its user has not seen the advice.
        return [*super()._excluded_save_params(), "_advised", "distributed", "_communicator", "_plain"]

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        # The last rollout may overshoot the total, but schedules must not fall below 0.
        super()._update_current_progress_remaining(min(num_timesteps, total_timesteps), total_timesteps)

    def _maybe_recommend_cpu(self, mlp_class_name: str = MlpPolicy.__name__) -> None:
        super()._maybe_recommend_cpu(mlp_class_name)  # SB3 compares with the name of its own class
