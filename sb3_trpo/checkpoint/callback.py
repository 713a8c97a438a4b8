"""The callback that saves a run and continues it."""

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

from sb3_trpo.callbacks import TrainingLifecycle, callback_tree
from sb3_trpo.checkpoint.callback_state import Baseline, fingerprint_callbacks, fingerprint_settings
from sb3_trpo.checkpoint.codecs.codec import Encoded
from sb3_trpo.checkpoint.codecs.registry import REPLAYED
from sb3_trpo.checkpoint.codecs.simulators.episode_recorder import episodes_recorded
from sb3_trpo.checkpoint.identity import differences, identity, present_settings, versions
from sb3_trpo.checkpoint.limits import CheckpointTooLargeError
from sb3_trpo.checkpoint.loading import encode_settings
from sb3_trpo.checkpoint.run import (
    describe_progress,
    describe_total,
    encode_run,
    explain_lost,
    explain_unrestorable,
    restore_on_other_ranks,
    restore_run,
    total_as_json,
)
from sb3_trpo.checkpoint.run_folder import Found, find, folder_of_rank, keep_newest, sole_owner
from sb3_trpo.checkpoint.schedules import schedule_differences, schedule_digests
from sb3_trpo.checkpoint.signals import StopRequest
from sb3_trpo.checkpoint.storage import Checkpoint, name_of, write
from sb3_trpo.parallel.communicator import ALONE
from sb3_trpo.parallel.faults import check_on_all_ranks
from sb3_trpo.settings import Rule, check_setting, is_integer_from

RULES = {
    "every": Rule(is_integer_from(1), "an integer >= 1", "It counts timesteps; the default is 50_000."),
    "keep": Rule(is_integer_from(1), "an integer >= 1", "The default is 2: the newest, and one in case that gets damaged."),
}


class ResumableCheckpoint(TrainingLifecycle):
    """
    Saves a run as it goes, and continues it, bit for bit, when the same script is run again.

    If the folder contains an intact checkpoint, ``learn()`` continues from it towards its total; otherwise it starts from the
    beginning. Checkpoints are made between two iterations, hold everything that the rest of the run depends on, and replace
    each other atomically. Use one folder for each call of ``learn()``.

    :param folder: folder for the run's checkpoints; ``{env}`` and ``{seed}`` in it stand for the environment's name and the
        model's seed
    :param every: timesteps between two checkpoints; each is made at the end of an iteration. 50,000 timesteps take ten
        seconds or more, a checkpoint some hundredths of a second (``benchmarks/checkpoint``)
    :param keep: number of newest checkpoints that stay
    :param on_signal: whether, on SIGTERM, SIGINT and SIGUSR1, the run finishes its rollout and update, saves and leaves
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
        self._last_saved = self._next_at = 0
        self._warned: set[str] = set()
        self._baseline = Baseline()
        self._identity: dict[str, Any] = {}
        self._schedules: dict[str, str] = {}

    @contextmanager
    def training(self, model: OnPolicyAlgorithm, root: MaybeCallback) -> Iterator[None]:
        """
        Own the folder and listen for signals while the model learns.

        :param model: the model
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
            # The first rank also owns the run's folder, so that a run with another number of ranks is kept out.
            for owned in {folder, self.path} if self._communicator.is_first else {self.path}:
                stack.enter_context(sole_owner(owned))
            settings = present_settings(model)  # callbacks may change them later
            self._baseline = Baseline(settings=fingerprint_settings(settings))
            self._identity, self._schedules = identity(model), schedule_digests(settings)
            self._found = find(folder, self._communicator)
            if self._found is not None:
                check_on_all_ranks(partial(self._refuse_another_run, self._found.checkpoint), self._communicator)
            attributes = [value for callback in callback_tree(root) for value in vars(callback).values()]
            vec_envs = [value for value in (*attributes, model.env) if isinstance(value, VecEnv)]
            stack.enter_context(episodes_recorded(vec_envs, REPLAYED))
            if self.on_signal:
                self._stop = stack.enter_context(StopRequest(vec_envs))
            yield
        if self._stop is not None:  # a signal may come after the last iteration, or when a callback ends the run
            self.stopped_by = self.stopped_by or self._stop.received

    def _env_name(self) -> str:
        """Return the name of the environment if the folder has a placeholder for it."""
        env = self.model.env
        spec = env.get_attr("spec", indices=0)[0] if env is not None and "{env}" in str(self.folder) else None
        return "env" if spec is None else str(spec.id)

    def folder_of(self, env_name: str, seed: int | None) -> Path:
        """
        Fill in the folder's placeholders.

        :param env_name: name of the environment in Gymnasium's registry
        :param seed: seed of the model
        :return: the folder
        """
        return Path(str(self.folder).replace("{env}", env_name.replace("/", "-")).replace("{seed}", str(seed)))

    def _refuse_another_run(self, checkpoint: Checkpoint) -> None:
        texts = schedule_differences(checkpoint.state.get("schedules", {}), self._schedules)  # 0.1.0 kept five values only
        texts += differences(checkpoint.state["identity"], self._identity)
        differing = {text.partition(":")[0]: text for text in texts}.values()  # each aspect once
        if differing:
            raise ValueError(
                f"The checkpoint {checkpoint.path} is of another run:\n  " + "\n  ".join(differing) + "\n"
                "Give this run its own folder, or undo these changes."
            )
        changed = differences(checkpoint.versions, versions())
        if changed:
            self._warn(f"The run continues from {checkpoint.path}, but perhaps not bit for bit:\n  " + "\n  ".join(changed))

    def before_training_start(self, root: BaseCallback) -> None:
        """
        Set the model's number of timesteps, which callbacks may read when training starts.

        :param root: the callback that calls all others
        """
        self._root, self._baseline.callbacks = root, fingerprint_callbacks(root)
        if self._found is not None:
            self.model.num_timesteps = self._found.checkpoint.n_timesteps

    def after_training_start(self, root: BaseCallback) -> None:
        """
        Continue the run that was found, if there is one.

        :param root: the callback that calls all others
        """
        run = self._encode()[0]["run"]  # if this fails, better before there is work to lose
        found, self._found = self._found, None
        self._baseline.file_paths.begin_training(found.checkpoint.state["run"].get("changed_places", ()) if found else ())
        self._warned.clear()
        self._last_saved, self._next_at = 0, self.every
        if run["left_out"]:
            names = ", ".join(run["left_out"])
            warnings.warn(f"No checkpoint holds these attributes of the model: {names}", stacklevel=2)
        self._warn_once("lost", explain_lost(run["lost"] or (found.checkpoint.state["run"]["lost"] if found else {})))
        if found is not None:
            self._continue_from(found, root)

    def _continue_from(self, found: Found, root: BaseCallback) -> None:
        checkpoint, n_ranks = found
        self._last_saved, self._next_at = checkpoint.n_timesteps, checkpoint.n_timesteps + self.every
        if n_ranks == self._communicator.size:
            restore_run(self.model, root, checkpoint.state["run"], checkpoint.arrays)
        else:
            self._warn(
                f"The checkpoint {checkpoint.path} is of {n_ranks} rank(s), and the run continues on "
                f"{self._communicator.size}. Restored: policy, optimizer, counters, VecNormalize's statistics, and the first "
                "rank's log and callbacks. Not exact: the present episodes start again, and all random generators are seeded "
                "again, from a recorded seed."
            )
            restore_on_other_ranks(self.model, root, checkpoint.state["run"], checkpoint.arrays, self._communicator)
        self._compare_totals(checkpoint)
        reached = describe_progress(checkpoint.n_timesteps, self.model._total_timesteps)
        if checkpoint.n_timesteps >= self.model._total_timesteps:
            self._print(1, f"Already finished: {reached}, checkpoint {checkpoint.path}")
        else:
            self._print(1, f"Continuing from {checkpoint.path}, {reached}")

    def _compare_totals(self, checkpoint: Checkpoint) -> None:
        before, now = checkpoint.state["total_timesteps"], total_as_json(self.model._total_timesteps)
        if before != now:
            warnings.warn(
                f"The checkpoint {checkpoint.path} was made on the way to {describe_total(before)}, and this run goes to "
                f"{describe_total(now)}: schedules follow the new total. Use one folder for each call of learn().",
                stacklevel=2,
            )

    def after_iteration(self) -> bool:
        """
        Save a checkpoint if one is due, and end the run if a signal has been received.

        :return: whether to continue
        """
        received = self._communicator.gather_objects(self._stop.received if self._stop is not None else None)
        stopped_by = next(filter(None, received), None)  # a signal to one rank stops all
        n_timesteps = self.model.num_timesteps
        is_last = stopped_by is not None or n_timesteps >= self.model._total_timesteps
        if n_timesteps >= self._next_at or (is_last and n_timesteps > self._last_saved):
            self._save()
        if stopped_by is not None:
            self.stopped_by = stopped_by
            outlook = f"run the same script to continue from {self._last_saved:,}"
            outlook = outlook if self._last_saved else "there is no checkpoint to continue from"
            self._print(1, f"Stopped by {stopped_by} at {n_timesteps:,} timesteps; {outlook}")
        return stopped_by is None

    def _save(self) -> None:
        """Write a checkpoint; if that fails, training goes on, and the next iteration tries again."""
        n_timesteps = self.model.num_timesteps
        error = next(filter(None, self._communicator.gather_objects(_error_of(self._write))), None)
        if error is None:
            self._last_saved, self._next_at = n_timesteps, n_timesteps + self.every
            self._warned.discard("writing")
            self._print(2, f"Saved {self.path / name_of(n_timesteps)}")
            self._remove_older()  # only now: every rank has written its own
            return
        is_too_large = error.startswith(CheckpointTooLargeError.__name__)  # the next one will be, too
        self._next_at = n_timesteps + self.every if is_too_large else 0
        when = f"after {self.every:,} more" if is_too_large else "after each iteration"
        self._warn_once(
            "writing",
            f"No checkpoint could be written at {n_timesteps:,} timesteps: {error}. Training goes on, the last one stays, and "
            f"writing is tried again {when}. Look at {self.path}.",
        )

    def _write(self) -> None:
        state, arrays = self._encode()
        self._warn_once("lost", explain_lost(state["run"]["lost"]))  # this may turn out late in a run
        self._warn_once("file paths", explain_unrestorable(self._baseline.file_paths.unrestorable()))
        write(self.path, self.model.num_timesteps, versions(), state, arrays)

    def _remove_older(self) -> None:
        """Remove older checkpoints; other ranks need not know if one cannot be removed."""
        errors: dict[Path, OSError] = {}
        error = _error_of(lambda: errors.update(keep_newest(self.path / name_of(self.model.num_timesteps), self.keep)))
        for path, fault in errors.items():
            error = error or f"{path} ({type(fault).__name__}: {fault})"
        if error is None:
            self._warned.discard("removing")
            return
        self._warn_once(
            "removing",
            f"The checkpoint at {self.model.num_timesteps:,} timesteps is written, but an older one could not be removed: "
            f"{error}. Training goes on, and each checkpoint tries again. Check who may write there and which programs have "
            "files of it open, or remove it by hand; its name may begin with 'removing-' by now.",
        )

    def _encode(self) -> tuple[dict[str, Encoded], dict[str, np.ndarray]]:
        """Encode the run, what distinguishes it from others, and what it takes to make its model again."""
        run, arrays = encode_run(self.model, self._root, self._baseline)
        state = {"identity": self._identity, "schedules": self._schedules, "settings": encode_settings(self.model), "run": run}
        return {**state, "total_timesteps": total_as_json(self.model._total_timesteps)}, arrays

    def _warn_once(self, topic: str, text: str | None) -> None:
        if text is not None and topic not in self._warned:
            self._warned.add(topic)
            warnings.warn(text, stacklevel=3)

    def _warn(self, text: str) -> None:
        if self._communicator.is_first:
            warnings.warn(text, stacklevel=3)

    def _print(self, level: int, message: str) -> None:
        if self.verbose >= level and self._communicator.is_first:
            print(message)


def _error_of(act: Callable[[], None]) -> str | None:
    """Call a function that must not end the run, and describe the error if it raises one."""
    try:
        act()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None
