"""
What ranks do around rollouts and updates so that each of them holds the state of the whole run.

Each rank collects its own rollout. Timesteps, episode statistics and running statistics are those of all ranks together, and
the policy is the same everywhere. The hooks are called in the order in which :class:`NoSync` lists them.
"""

from __future__ import annotations

import hashlib
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from operator import itemgetter
from typing import Any, NamedTuple, TypeVar

import torch as th
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback, ProgressBarCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import MaybeCallback

from sb3_trpo.callbacks import callback_tree
from sb3_trpo.parallel.communicator import Communicator
from sb3_trpo.parallel.consistency import policies_of, require_same, require_same_parameters, shapes_of
from sb3_trpo.parallel.faults import leaving_on_error
from sb3_trpo.parallel.first_rank import callbacks_of_other_ranks, leave_monitor_files_to_first_rank
from sb3_trpo.parallel.running_statistics import Moments, StatisticsSync
from sb3_trpo.settings import CONSTANT_RULES, RULES, evaluate_schedule

OTHER_SETTINGS = ("normalize_advantage",)
"""Settings without a rule that must also be the same on all ranks."""
T = TypeVar("T")


class NoSync:
    """Hooks of a rank that is alone. They do nothing."""

    @contextmanager
    def session(self, checkpoint: BaseCallback) -> Iterator[None]:
        """
        Enclose a call of ``learn()``.

        :param checkpoint: the callback that acts between iterations, of the same type on every rank
        :raises RanksPartedError: if settings differ between ranks
        """
        yield

    def callbacks(self, root: MaybeCallback) -> MaybeCallback:
        """
        Choose the callbacks of this rank.

        :param root: the argument ``callback`` of ``learn()``
        :return: the callbacks that this rank calls
        """
        return root

    def after_reset(self, total_timesteps: int) -> None:
        """
        Make the ranks start from the same state, after the environments have been reset.

        :param total_timesteps: timesteps of all ranks together at which the run ends
        :raises RanksPartedError: if it differs between ranks
        """

    def after_resume(self) -> None:
        """Adopt what a checkpoint has restored, if there was one."""

    def after_rollout(self, is_complete: bool, root: BaseCallback) -> bool:
        """
        Combine what the ranks have collected.

        :param is_complete: whether this rank's rollout is complete, rather than ended by a callback
        :param root: root of this rank's callbacks
        :return: whether the rollouts of all ranks are complete
        """
        return is_complete

    def after_update(self) -> None:
        """
        Check that all ranks have the same policy.

        :raises RanksPartedError: if they differ in any bit
        """


class RolloutReport(NamedTuple):
    """
    What a rank reports to the others about its rollout.

    :param n_timesteps: timesteps of its environments together
    :param is_complete: whether the rollout is complete, rather than ended by a callback
    :param episodes: new entries of ``ep_info_buffer``
    :param successes: new entries of ``ep_success_buffer``
    :param observed: moments of observations and returns, for each of the running statistics
    :param digest: hash of actions and rewards in the first rollout of a run; ``None`` for later ones
    :param settings: constant settings by name; all ranks adopt the first one's
    """

    n_timesteps: int
    is_complete: bool
    episodes: list[Any]
    successes: list[Any]
    observed: list[Moments | None]
    digest: str | None
    settings: dict[str, object]


class RolloutSync(NoSync, BaseCallback):
    """
    Hooks of one of several ranks.

    It is also a callback, called before the user's, that makes ``num_timesteps`` count the timesteps of all ranks: within a
    rollout it assumes that the others have come equally far.

    :param model: model of this rank
    :param communicator: connects this rank to the others
    """

    model: OnPolicyAlgorithm

    def __init__(self, model: OnPolicyAlgorithm, communicator: Communicator) -> None:
        super().__init__()
        assert model.env is not None, "learn() has checked that there is one"
        self.model = model
        self._communicator = communicator
        self._env = model.env
        self._statistics = StatisticsSync(model.env, communicator)

    @contextmanager
    def session(self, checkpoint: BaseCallback) -> Iterator[None]:
        """Check that settings agree, take over the first rank's state, and switch off the others' loggers."""
        with leaving_on_error(self._communicator):
            settings = {**self._settings(), "checkpoint callback": type(checkpoint).__name__}
            require_same(settings, "settings", self._communicator)
            for policy in policies_of(self.model):
                self._communicator.broadcast([*policy.state_dict().values()])
                self._broadcast_optimizer(policy.optimizer)
            self._statistics.take_from_first_rank()
            leave_monitor_files_to_first_rank(self._env, self._communicator)
            if not self._communicator.is_first:
                self.model.set_logger(Logger(folder=None, output_formats=[]))
            yield

    def _settings(self) -> dict[str, object]:
        """Collect what must be the same on all ranks for them to stay in step."""
        return {
            **self._constant_settings(),
            **{name: evaluate_schedule(name, getattr(self.model, name), 1.0) for name in CONSTANT_RULES},
            "VecNormalize's statistics": len(self._statistics),
            "algorithm": type(self.model).__name__,
            **shapes_of(self.model.policy),
        }

    def _constant_settings(self) -> dict[str, object]:
        """Collect the settings that are not schedules."""
        names = *RULES, *CONSTANT_RULES, *OTHER_SETTINGS, *getattr(self.model, "own_settings", ())
        values = {name: getattr(self.model, name) for name in names}
        return {name: value for name, value in values.items() if not callable(value)}

    def _broadcast_optimizer(self, optimizer: th.optim.Optimizer) -> None:
        own = optimizer.state_dict()
        state = {  # on the CPU, for the first rank's GPU need not be this rank's
            index: {name: value.cpu() if isinstance(value, th.Tensor) else value for name, value in values.items()}
            for index, values in own["state"].items()
        }
        optimizer.load_state_dict(self._communicator.broadcast_object({**own, "state": state}))

    def callbacks(self, root: MaybeCallback) -> MaybeCallback:
        """Put this callback first; on other ranks, leave out those for the first rank only."""
        given = root if isinstance(root, list) else [] if root is None else [root]
        members = [each if isinstance(each, BaseCallback) else ConvertCallback(each) for each in given]
        return [self, *(members if self._communicator.is_first else callbacks_of_other_ranks(members))]

    def after_reset(self, total_timesteps: int) -> None:
        """Count the timesteps of a rollout of all ranks, and merge the statistics of the first observations."""
        require_same({"total_timesteps": total_timesteps}, "settings", self._communicator)
        self._n_of_rollout = self.model.rollout_buffer.buffer_size * self.model.n_envs
        self._n_of_all = int(self._communicator.sum(th.tensor(self._n_of_rollout)))
        self._statistics.merge(self._communicator.gather_objects(self._statistics.observed()))

    def after_resume(self) -> None:
        """Start from the restored running statistics, which are the same in the checkpoints of all ranks."""
        self._statistics.mark_agreed()

    def _on_rollout_start(self) -> None:
        self._start, self._n_here = self.model.num_timesteps, 0
        self._episodes, self._successes = [*self._windows()[0]], [*self._windows()[1]]
        self._set_windows(self._episodes, self._successes, None)  # unbounded, so that the new entries are those at the end

    def _on_step(self) -> bool:
        self._n_here += self._env.num_envs
        self.model.num_timesteps = self._start + self._n_here * self._n_of_all // self._n_of_rollout
        return True

    def after_rollout(self, is_complete: bool, root: BaseCallback) -> bool:
        """Exchange reports, and merge timesteps, episodes and running statistics."""
        reports = self._communicator.gather_objects(self._report(is_complete))
        self._warn_of_equal_rollouts([report.digest for report in reports])
        for name, value in reports[0].settings.items():  # a callback of the first rank may have changed them
            setattr(self.model, name, value)
        n_timesteps = sum(report.n_timesteps for report in reports)
        self.model.num_timesteps = self._start + n_timesteps
        self._episodes += interleave([report.episodes for report in reports])
        self._successes += interleave([report.successes for report in reports])
        self._set_windows(self._episodes, self._successes, self.model._stats_window_size)
        self._statistics.merge([report.observed for report in reports])
        for each in callback_tree(root):
            if isinstance(each, ProgressBarCallback):
                each.pbar.update(n_timesteps - self._n_here)  # it has counted this rank's steps by itself
        return all(report.is_complete for report in reports)

    def _report(self, is_complete: bool) -> RolloutReport:
        episodes, successes = self._windows()
        return RolloutReport(
            n_timesteps=self._n_here,
            is_complete=is_complete,
            episodes=[*episodes][len(self._episodes) :],
            successes=[*successes][len(self._successes) :],
            observed=self._statistics.observed(),
            digest=None if self._start else self._digest(),
            settings=self._constant_settings(),
        )

    def _digest(self) -> str:
        buffer = self.model.rollout_buffer
        return hashlib.sha256(buffer.actions.tobytes() + buffer.rewards.tobytes()).hexdigest()

    def _warn_of_equal_rollouts(self, digests: list[str | None]) -> None:
        """Warn if ranks collect the same data. Environments with constant rewards and actions may do so for good reason."""
        n_different = len(set(digests))
        if self._communicator.is_first and None not in digests and n_different < len(digests):
            warnings.warn(
                f"{len(digests)} ranks have collected {n_different} different rollouts, where each should have its own. "
                "Give the model a seed, from which each rank derives its own, or seed environments and generators by rank.",
                UserWarning,
                stacklevel=2,
            )

    def _windows(self) -> tuple[Iterable[Any], Iterable[Any]]:
        return self.model.ep_info_buffer or (), self.model.ep_success_buffer or ()

    def _set_windows(self, episodes: list[Any], successes: list[Any], length: int | None) -> None:
        self.model.ep_info_buffer, self.model.ep_success_buffer = deque(episodes, length), deque(successes, length)

    def after_update(self) -> None:
        """Compare checksums."""
        for policy in policies_of(self.model):
            require_same_parameters(policy, self._communicator)


def interleave(lists: Iterable[list[T]]) -> list[T]:
    """
    Merge lists as if each had been filled at a steady rate over the same time.

    :param lists: one for each rank, of any lengths
    :return: all items; its end holds the last items of all ranks, in proportion to their numbers
    """
    dated = [((index + 1) / len(items), rank, item) for rank, items in enumerate(lists) for index, item in enumerate(items)]
    return [item for *_, item in sorted(dated, key=itemgetter(0, 1))]


def make_rollout_sync(model: OnPolicyAlgorithm, communicator: Communicator) -> NoSync:
    """
    Choose what a rank does around its rollouts.

    :param model: a model that is about to learn
    :param communicator: connects this rank to the others
    :return: the hooks
    """
    return RolloutSync(model, communicator) if communicator.size > 1 else NoSync()
