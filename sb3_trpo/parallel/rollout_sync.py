"""
What the ranks of a run do together around rollouts and updates, so that each of them is in the state of the whole run.

One rank that is alone has a :class:`Solo`, which does nothing.
"""

from __future__ import annotations

import copy
import hashlib
import socket
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from operator import itemgetter
from typing import Any, NamedTuple

import torch as th
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    ConvertCallback,
    EvalCallback,
    EventCallback,
    ProgressBarCallback,
)
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from sb3_trpo.callbacks import RunKeeper, callback_tree
from sb3_trpo.parallel.communicator import Communicator, fingerprint
from sb3_trpo.parallel.running_statistics import Moments, added, merge, moments_of, monitor_files, statistics_of
from sb3_trpo.settings import CONSTANT_RULES, RULES, evaluate_schedule

FIRST_RANK_ONLY = (EvalCallback, CheckpointCallback, ProgressBarCallback)
"""Callbacks that evaluate, write or draw. A callback with an attribute ``first_rank_only`` says for itself."""
COMMON = ("normalize_advantage",)
"""Settings without a rule that all ranks must share; SB3 and the user may give them as they like."""


class Solo:
    """A rank that is alone."""

    def callbacks(self, root: MaybeCallback) -> MaybeCallback:
        """
        Choose the callbacks of this rank.

        :param root: what ``learn()`` was given
        :return: what this rank calls
        """
        return root

    @contextmanager
    def at_work(self, keeper: RunKeeper) -> Iterator[None]:
        """
        Accompany a call of ``learn()``.

        :param keeper: of the run, of the same kind on all ranks
        """
        yield

    def begin(self, total_timesteps: int) -> None:
        """
        Begin from the same state; environments have been reset.

        :param total_timesteps: where the run ends
        """

    def follow_resumption(self) -> None:
        """Take over what a checkpoint may have brought back."""

    def finish_rollout(self, is_complete: bool, root: BaseCallback) -> bool:
        """
        Put together what the ranks have collected.

        :param is_complete: whether this rank's rollout is
        :param root: all callbacks
        :return: whether all are
        """
        return is_complete

    def prove_agreement(self) -> None:
        """
        Compare policies.

        :raises RanksPartedError: if they are not the same, bit for bit
        """


class Report(NamedTuple):
    """What a rank has to tell of its rollout."""

    n_timesteps: int
    is_complete: bool
    episodes: list[Any]
    successes: list[Any]
    observed: list[Moments | None]
    digest: str
    settings: dict[str, Any]


class Crew(Solo, BaseCallback):
    """
    One of several ranks.

    It goes before all other callbacks, and has the model count the timesteps of all ranks: within a rollout, as if they were
    equally far in theirs.

    :param model: of this rank
    :param communicator: all of them
    """

    model: OnPolicyAlgorithm

    def __init__(self, model: OnPolicyAlgorithm, communicator: Communicator) -> None:
        super().__init__()
        self.model = model
        self._communicator = communicator
        self._env: VecEnv = model.env  # type: ignore[assignment]  # learn() has asked for one

    def callbacks(self, root: MaybeCallback) -> MaybeCallback:
        """Put this one first, and leave out what is for the first rank only if this is another."""
        given = root if isinstance(root, list) else [] if root is None else [root]
        members = [each if isinstance(each, BaseCallback) else ConvertCallback(each) for each in given]
        return [self, *(members if self._communicator.is_first else of_every_rank(members))]

    @contextmanager
    def at_work(self, keeper: RunKeeper) -> Iterator[None]:
        """Check that settings agree, take over the first rank's state, and fall silent on the others."""
        with self._communicator.together():
            self._communicator.compare({**self._settings(), "keeper of the run": type(keeper).__name__}, "settings")
            self._communicator.broadcast([*self.model.policy.state_dict().values()])
            self._share_optimizer()
            self._share_statistics()
            self._part_monitors()
            if not self._communicator.is_first:
                self.model.set_logger(Logger(folder=None, output_formats=[]))
            yield

    def _settings(self) -> dict[str, Any]:
        """Give what must be the same for the ranks to stay in step."""
        schedules = {name: evaluate_schedule(name, getattr(self.model, name), 1.0) for name in CONSTANT_RULES}
        n_statistics = {"VecNormalize's statistics": len(statistics_of(self._env))}
        return {
            **self._numbers(),
            **schedules,
            **n_statistics,
            "algorithm": type(self.model).__name__,
            **shapes_of(self.model.policy),
        }

    def _numbers(self) -> dict[str, Any]:
        """Give the settings that are plain numbers."""
        names = {name: getattr(self.model, name) for name in (*RULES, *CONSTANT_RULES, *COMMON)}
        return {name: value for name, value in names.items() if not callable(value)}

    def _share_optimizer(self) -> None:
        optimizer = self.model.policy.optimizer
        own = optimizer.state_dict()
        state = {
            index: {name: value.cpu() if isinstance(value, th.Tensor) else value for name, value in values.items()}
            for index, values in own["state"].items()
        }
        optimizer.load_state_dict(self._communicator.broadcast_object({**own, "state": state}))

    def _share_statistics(self) -> None:
        present = [moments_of(each) for each in statistics_of(self._env)]
        self._before = self._communicator.broadcast_object(present)
        for statistics, moments in zip(statistics_of(self._env), self._before, strict=True):
            statistics.mean, statistics.var, statistics.count = moments

    def _part_monitors(self) -> None:
        """Keep other ranks from writing into the first one's Monitor files."""
        monitors, host = monitor_files(self._env), socket.gethostname()
        first, *others = self._communicator.gather_objects((host, [*monitors]))
        shared = {path for there, paths in others for path in paths if there == first[0]} & {*first[1]}
        if self._communicator.is_first and shared:
            warnings.warn(
                f"Monitor writes to {min(shared)} on several ranks; from now on the first alone does. To have all episodes, "
                "give each rank a folder of its own, or make_vec_env(..., start_index=rank * n_envs).",
                UserWarning,
                stacklevel=2,
            )
        for path in shared & monitors.keys() if host == first[0] and not self._communicator.is_first else ():
            monitors[path].results_writer.close()
            monitors[path].results_writer = None

    def begin(self, total_timesteps: int) -> None:
        """Count the world's timesteps of a rollout, and merge the statistics of the first observations."""
        self._communicator.compare({"total_timesteps": total_timesteps}, "settings")
        self._n_of_rollout = self.model.rollout_buffer.buffer_size * self.model.n_envs
        self._n_of_all = int(self._communicator.sum(th.tensor(self._n_of_rollout)))
        self._merge(self._communicator.gather_objects(self._observed()))

    def follow_resumption(self) -> None:
        """Take the running statistics that are there for those that all ranks have."""
        self._before = [moments_of(each) for each in statistics_of(self._env)]

    def _observed(self) -> list[Moments | None]:
        pairs = zip(self._before, statistics_of(self._env), strict=True)
        return [added(before, moments_of(statistics)) for before, statistics in pairs]

    def _merge(self, observed: list[list[Moments | None]]) -> None:
        for index, (statistics, before) in enumerate(zip(statistics_of(self._env), self._before, strict=True)):
            merge(statistics, before, [of_rank[index] for of_rank in observed])
        self.follow_resumption()

    def _on_rollout_start(self) -> None:
        self._start, self._n_here = self.model.num_timesteps, 0
        self._episodes, self._successes = [*self._windows()[0]], [*self._windows()[1]]
        self._set_windows(self._episodes, self._successes, None)  # unbounded, so that what is new is what comes after

    def _on_step(self) -> bool:
        self._n_here += self._env.num_envs
        self.model.num_timesteps = self._start + self._n_here * self._n_of_all // self._n_of_rollout
        return True

    def finish_rollout(self, is_complete: bool, root: BaseCallback) -> bool:
        """Gather reports, and merge timesteps, episodes and running statistics."""
        episodes, successes = self._windows()
        new = [*episodes][len(self._episodes) :], [*successes][len(self._successes) :]
        digest = "" if self._start else self._digest()
        reports = self._communicator.gather_objects(
            Report(self._n_here, is_complete, *new, self._observed(), digest, self._numbers())
        )
        if digest:
            self._compare([report.digest for report in reports])
        for name, value in reports[0].settings.items():  # which a callback of the first rank may have changed
            setattr(self.model, name, value)
        n_timesteps = sum(report.n_timesteps for report in reports)
        self.model.num_timesteps = self._start + n_timesteps
        self._episodes += in_turn([report.episodes for report in reports])
        self._successes += in_turn([report.successes for report in reports])
        self._set_windows(self._episodes, self._successes, self.model._stats_window_size)
        self._merge([report.observed for report in reports])
        for each in callback_tree(root):
            if isinstance(each, ProgressBarCallback):
                each.pbar.update(n_timesteps - self._n_here)  # it counts this rank's steps by itself
        return all(report.is_complete for report in reports)

    def _digest(self) -> str:
        """Tell rollouts apart."""
        buffer = self.model.rollout_buffer
        return hashlib.sha256(buffer.actions.tobytes() + buffer.rewards.tobytes()).hexdigest()

    def _compare(self, digests: list[str]) -> None:
        """Notice ranks that waste their time; an env whose rewards and actions are always the same looks like that, too."""
        if self._communicator.is_first and len(set(digests)) < len(digests):
            warnings.warn(
                f"{len(digests)} ranks have collected {len(set(digests))} different rollouts, where each should have its own. "
                "Give the model a seed, from which each rank derives one, or seed envs and generators by rank.",
                UserWarning,
                stacklevel=2,
            )

    def _windows(self) -> tuple[Iterable[Any], Iterable[Any]]:
        return self.model.ep_info_buffer or (), self.model.ep_success_buffer or ()

    def _set_windows(self, episodes: list[Any], successes: list[Any], length: int | None) -> None:
        self.model.ep_info_buffer, self.model.ep_success_buffer = deque(episodes, length), deque(successes, length)

    def prove_agreement(self) -> None:
        """Gather the parameters' checksums."""
        state = self.model.policy.state_dict()
        checksums = self._communicator.gather(fingerprint(state.values()))
        if (checksums != checksums[0]).any():
            self._communicator.compare(
                dict(zip(state, checksums[self._communicator.rank].tolist(), strict=True)), "parameters"
            )


def shapes_of(policy: nn.Module) -> dict[str, list[int]]:
    """
    Describe a policy.

    :param policy: with parameters and buffers
    :return: shapes by name
    """
    return {name: [*tensor.shape] for name, tensor in policy.state_dict().items()}


def in_turn(lists: Iterable[list[Any]]) -> list[Any]:
    """
    Merge lists as if each had been filled at a steady rate over the same time.

    :param lists: one for each rank, which may have different lengths
    :return: all their items, of which the last ones are the last ones of all ranks
    """
    dated = [((index + 1) / len(items), rank, item) for rank, items in enumerate(lists) for index, item in enumerate(items)]
    return [item for *_, item in sorted(dated, key=itemgetter(0, 1))]


def of_every_rank(callbacks: Iterable[BaseCallback]) -> list[BaseCallback]:
    """
    Leave out callbacks that are for the first rank only, also where others hold them.

    :param callbacks: some
    :return: the others
    """
    return [*filter(None, map(_of_every_rank, callbacks))]


def _of_every_rank(callback: BaseCallback) -> BaseCallback | None:
    """Give a callback, or what is left of it, if anything is."""
    if getattr(callback, "first_rank_only", isinstance(callback, FIRST_RANK_ONLY)):
        return None
    if isinstance(callback, CallbackList):
        members = of_every_rank(callback.callbacks)
        unchanged = members == callback.callbacks
        return callback if unchanged else CallbackList(members) if members else None
    if isinstance(callback, EventCallback) and callback.callback is not None:
        held = _of_every_rank(callback.callback)
        if held is not callback.callback:
            callback = copy.copy(callback)
            callback.callback = held
        return callback if held is not None else None
    return callback


def crew_of(model: OnPolicyAlgorithm, communicator: Communicator) -> Solo:
    """
    Find out who works with a model.

    :param model: about to learn
    :param communicator: of the run
    :return: what it is to do with them
    """
    return Crew(model, communicator) if communicator.size > 1 else Solo()
