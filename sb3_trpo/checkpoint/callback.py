"""The callback that makes a run survive."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_trpo.callbacks import RunKeeper, callback_tree
from sb3_trpo.checkpoint.callback_state import Marks, mark_callbacks, mark_settings
from sb3_trpo.checkpoint.codecs.environments import taped
from sb3_trpo.checkpoint.codecs.nodes import Node
from sb3_trpo.checkpoint.identity import (
    differences,
    identity,
    present_settings,
    schedule_differences,
    schedule_digests,
    versions,
)
from sb3_trpo.checkpoint.limits import CheckpointTooLargeError
from sb3_trpo.checkpoint.loading import settings
from sb3_trpo.checkpoint.ranks import Found, find, folder_of_rank
from sb3_trpo.checkpoint.run import (
    continue_run,
    describe_progress,
    describe_total,
    lost_parts,
    plain_total,
    record_run,
    restore_run,
)
from sb3_trpo.checkpoint.signals import StopRequest
from sb3_trpo.checkpoint.storage import Checkpoint, keep_newest, name_of, sole_owner, write
from sb3_trpo.parallel.communicator import ALONE
from sb3_trpo.parallel.faults import check_on_all_ranks
from sb3_trpo.settings import Rule, check_setting, is_integer_from

RULES = {
    "every": Rule(is_integer_from(1), "an integer >= 1", "It counts timesteps; the default is 50_000."),
    "keep": Rule(is_integer_from(1), "an integer >= 1", "The default is 2: the newest, and one in case that it gets damaged."),
}


class ResumableCheckpoint(RunKeeper):
    """
    Saves a run as it goes, and continues it, bit for bit, when the same script is run again.

    If the folder holds an intact checkpoint, ``learn()`` goes on from it towards its total; otherwise it starts. Checkpoints
    are made between two iterations, hold everything that the rest of the run depends on, and replace each other atomically.
    Use one folder for each call of ``learn()``.

    :param folder: of the run's checkpoints; ``{env}`` and ``{seed}`` in it stand for the env's name and the model's seed
    :param every: timesteps between two checkpoints; each is made at the next rollout boundary. 50,000 timesteps take ten
        seconds and more, a checkpoint some hundredths of one (``benchmarks/checkpoint.py``)
    :param keep: how many of the newest checkpoints stay
    :param on_signal: whether SIGTERM, SIGINT and SIGUSR1 let the run finish its rollout and update, save and leave
        ``learn()``; ``stopped_by`` then names the signal. A second SIGINT interrupts at once
    :param verbose: 0 prints nothing, 1 where a run continues and why it stops, 2 each checkpoint too
    :raises ValueError: if a keyword is not allowed
    """

    model: OnPolicyAlgorithm

    def __init__(
        self, folder: str | Path, *, every: int = 50_000, keep: int = 2, on_signal: bool = True, verbose: int = 1
    ) -> None:
        super().__init__(verbose)
        for name, value in {"every": every, "keep": keep}.items():
            check_setting(name, value, RULES[name])
        self.folder = folder
        self.path = Path(folder)
        self.every = every
        self.keep = keep
        self.on_signal = on_signal
        self.stopped_by: str | None = None
        self._stop: StopRequest | None = None
        self._found: Found | None = None
        self._communicator = ALONE
        self._last_saved = self._due = 0
        self._is_failing = self._is_cluttered = False
        self._has_told_lost = self._has_told_beyond = False
        self._marks = Marks()
        self._identity: dict[str, Any] = {}
        self._schedules: dict[str, str] = {}

    @contextmanager
    def session(self, model: OnPolicyAlgorithm, root: MaybeCallback) -> Iterator[None]:
        """
        Own the folder and listen for signals while the model learns.

        :param model: that learns
        :param root: all its callbacks
        :raises OSError: if the folder cannot be written to
        :raises RuntimeError: if another process writes to it
        :raises ValueError: if its checkpoint is of another run
        """
        self.model, self.stopped_by, self._stop = model, None, None
        self._communicator = getattr(model, "_communicator", ALONE)
        folder = self.folder_of(self._env_name(), model.seed)
        self.path = folder_of_rank(folder, self._communicator)
        with ExitStack() as stack:
            for owned in {folder, self.path} if self._communicator.is_first else {self.path}:
                stack.enter_context(sole_owner(owned))
            settings = present_settings(model)  # a callback may change them later
            self._marks = Marks(settings=mark_settings(settings))
            self._identity, self._schedules = identity(model), schedule_digests(settings)
            self._found = find(folder, self._communicator)
            if self._found is not None:
                check_on_all_ranks(partial(self._refuse_another_run, self._found.checkpoint), self._communicator)
            venvs = [value for each in callback_tree(root) for value in vars(each).values() if isinstance(value, VecEnv)]
            venvs += filter(None, [model.env])
            stack.enter_context(taped(venvs))
            if self.on_signal:
                self._stop = stack.enter_context(StopRequest(venvs))
            yield

    def _env_name(self) -> str:
        """Ask for the env's name where it is needed."""
        env = self.model.env
        spec = env.get_attr("spec", indices=0)[0] if env is not None and "{env}" in str(self.folder) else None
        return "env" if spec is None else str(spec.id)

    def folder_of(self, env_name: str, seed: int | None) -> Path:
        """
        Fill in the folder's placeholders.

        :param env_name: as Gymnasium knows it
        :param seed: of the model
        :return: the folder
        """
        return Path(str(self.folder).replace("{env}", env_name.replace("/", "-")).replace("{seed}", str(seed)))

    def _refuse_another_run(self, found: Checkpoint) -> None:
        texts = schedule_differences(found.state.get("schedules", {}), self._schedules)  # 0.1.0 kept five values alone
        texts += differences(found.state["identity"], self._identity)
        differing = {text.partition(":")[0]: text for text in texts}.values()  # once each
        if differing:
            raise ValueError(
                f"The checkpoint {found.path} is of another run:\n  " + "\n  ".join(differing) + "\n"
                "Give this run a folder of its own, or make it as it was."
            )
        changed = differences(found.versions, versions())
        if changed and self._communicator.is_first:
            warnings.warn(
                f"The run goes on from {found.path}, but perhaps not bit for bit:\n  " + "\n  ".join(changed), stacklevel=2
            )

    def announce(self, root: BaseCallback) -> None:
        """
        Let callbacks know at the start how far the run is.

        :param root: all callbacks
        """
        self._root, self._marks.callbacks = root, mark_callbacks(root)
        if self._found is not None:
            self.model.num_timesteps = self._found.checkpoint.n_timesteps

    def resume(self, root: BaseCallback) -> None:
        """
        Continue the run that was found, if there is one.

        :param root: all callbacks
        """
        run = self._record()[0]["run"]  # what goes wrong here does so before there is work to lose
        if run["left_out"]:
            warnings.warn(f"No checkpoint holds these attributes of the model: {', '.join(run['left_out'])}", stacklevel=2)
        found, self._found = self._found, None
        self._marks.places.follow(found.checkpoint.state["run"].get("changed_places", ()) if found is not None else ())
        self._has_told_lost, self._has_told_beyond, self._last_saved = False, False, 0
        self._is_failing, self._is_cluttered, self._due = False, False, self.every
        if found is None:
            self._tell_lost(run["lost"])
            return
        checkpoint, n_ranks = found
        self._tell_lost(run["lost"] or checkpoint.state["run"]["lost"])
        self._last_saved, self._due = checkpoint.n_timesteps, checkpoint.n_timesteps + self.every
        if n_ranks == self._communicator.size:
            restore_run(self.model, root, checkpoint.state["run"], checkpoint.arrays)
        else:
            self._tell_inexact(found)
            continue_run(self.model, root, checkpoint.state["run"], checkpoint.arrays, self._communicator)
        self._compare_totals(checkpoint)
        reached = describe_progress(checkpoint.n_timesteps, self.model._total_timesteps)
        if checkpoint.n_timesteps >= self.model._total_timesteps:
            self._tell(1, f"Already finished: {reached}, checkpoint {checkpoint.path}")
        else:
            self._tell(1, f"Continuing from {checkpoint.path}, {reached}")

    def _tell_inexact(self, found: Found) -> None:
        if self._communicator.is_first:
            warnings.warn(
                f"The checkpoint {found.checkpoint.path} is of {found.n_ranks} rank(s), and {self._communicator.size} go on. "
                "As they were: policy, optimizer, counters, VecNormalize's statistics, and the first rank's log and "
                "callbacks. Not exact: the episodes under way begin again, and all random generators are seeded again, from a "
                "recorded seed.",
                stacklevel=2,
            )

    def _tell_lost(self, lost: dict[str, str]) -> None:
        """Say once that an env cannot be restored; it may turn out as late as in the midst of a run."""
        if lost and not self._has_told_lost:
            self._has_told_lost = True
            warnings.warn(
                f"The simulator's state cannot be saved: {lost_parts(lost)} is beyond reach. After a restart the episodes "
                "under way begin anew, from a recorded seed; everything else continues exactly. An env with get_state() and "
                "set_state(state) of its own can be restored.",
                stacklevel=2,
            )

    def _tell_beyond(self) -> None:
        """Say once that the run has changed a path that no checkpoint restores."""
        beyond = self._marks.places.beyond()
        if beyond and not self._has_told_beyond:
            self._has_told_beyond = True
            warnings.warn(
                f"The run has changed a path that is absolute, goes up or is a pathlib object, {', '.join(beyond[:3])}, and a "
                "checkpoint does not choose where files are: after a restart it is what the script makes it. If it is no path "
                "or matters for training, keep it in a list, or let its owner have get_state() and set_state(state).",
                stacklevel=2,
            )

    def _compare_totals(self, found: Checkpoint) -> None:
        before, now = found.state["total_timesteps"], plain_total(self.model._total_timesteps)
        if before != now:
            warnings.warn(
                f"The checkpoint {found.path} was made on the way to {describe_total(before)}, and this run goes to "
                f"{describe_total(now)}: schedules follow the new total. Each call of learn() wants a folder of its own.",
                stacklevel=2,
            )

    def at_boundary(self) -> bool:
        """
        Save if it is time to, and end the run if a signal has asked for it.

        :return: whether to go on
        """
        heard = self._communicator.gather_objects(self._stop.received if self._stop is not None else None)
        stopped_by = next(filter(None, heard), None)  # one rank's signal stops all
        n_timesteps = self.model.num_timesteps
        is_last = stopped_by is not None or n_timesteps >= self.model._total_timesteps
        if n_timesteps >= self._due or (is_last and n_timesteps > self._last_saved):
            self._save()
        if stopped_by is not None:
            self.stopped_by = stopped_by
            self._tell(1, f"Stopped by {stopped_by} at {self.model.num_timesteps:,} timesteps; {self._prospect()}")
        return stopped_by is None

    def _prospect(self) -> str:
        saved = self._last_saved
        return f"run the same script to continue from {saved:,}" if saved else "there is no checkpoint to continue from"

    def _save(self) -> None:
        """Write a checkpoint; if that fails, the run goes on, and tries again."""
        n_timesteps = self.model.num_timesteps
        told = next(filter(None, self._communicator.gather_objects(_fault_of(self._write))), None)
        if told is None:
            self._last_saved, self._due = n_timesteps, n_timesteps + self.every
            self._tell(2, f"Saved {self.path / name_of(n_timesteps)}")
            self._remove_older()  # not before every rank has written
        else:
            is_too_large = told.startswith(CheckpointTooLargeError.__name__)  # then it will be next time, too
            self._due = n_timesteps + self.every if is_too_large else 0
            self._tell_failure(told, f"after {self.every:,} more" if is_too_large else "after each iteration")
        self._is_failing = told is not None

    def _write(self) -> None:
        state, arrays = self._record()
        self._tell_lost(state["run"]["lost"])
        self._tell_beyond()
        write(self.path, self.model.num_timesteps, versions(), state, arrays)

    def _tell_failure(self, told: str, when: str) -> None:
        """Say once that a checkpoint could not be written."""
        if not self._is_failing:
            warnings.warn(
                f"No checkpoint could be written at {self.model.num_timesteps:,} timesteps: {told}. Training goes on, the "
                f"last one stays, and writing is tried again {when}. Look at {self.path}.",
                stacklevel=2,
            )

    def _remove_older(self) -> None:
        """Remove older checkpoints; say once that one cannot be removed. That is no matter for other ranks."""
        faults: dict[Path, OSError] = {}
        told = _fault_of(lambda: faults.update(keep_newest(self.path / name_of(self.model.num_timesteps), self.keep)))
        for path, error in faults.items():
            told = told or f"{path} ({type(error).__name__}: {error})"
        if told is not None and not self._is_cluttered:
            warnings.warn(
                f"The checkpoint at {self.model.num_timesteps:,} timesteps is written, but an older one could not be removed: "
                f"{told}. Training goes on, and each checkpoint tries again. Look at who may write there and at what has "
                "files of it open, or remove it by hand; its name may begin with 'removing-' by now.",
                stacklevel=2,
            )
        self._is_cluttered = told is not None

    def _record(self) -> tuple[dict[str, Node], dict[str, np.ndarray]]:
        """Record the run, and what it takes to tell it from others and to make its model again."""
        run, arrays = record_run(self.model, self._root, self._marks)
        state = {"identity": self._identity, "schedules": self._schedules, "settings": settings(self.model), "run": run}
        return {**state, "total_timesteps": plain_total(self.model._total_timesteps)}, arrays

    def _tell(self, level: int, message: str) -> None:
        if self.verbose >= level and self._communicator.is_first:
            print(message)


def _fault_of(act: Callable[[], None]) -> str | None:
    """Do something that must not end the run, whatever it raises; say what it was."""
    try:
        act()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None
