"""What only the first rank does: evaluate, show a progress bar, and write files that ranks would otherwise share."""

from __future__ import annotations

import copy
import os
import socket
import warnings
from collections.abc import Iterable
from typing import Any, Protocol

import gymnasium as gym
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    EventCallback,
    ProgressBarCallback,
)
from stable_baselines3.common.monitor import ResultsWriter
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_trpo.parallel.communicator import Communicator
from sb3_trpo.parallel.vec_env_layers import layers_of

FIRST_RANK_ONLY = (EvalCallback, CheckpointCallback, ProgressBarCallback)
"""Callbacks that evaluate, write or show progress. A callback's attribute ``first_rank_only`` takes precedence."""


def callbacks_of_other_ranks(callbacks: Iterable[BaseCallback]) -> list[BaseCallback]:
    """
    Leave out callbacks that are for the first rank only, also inside other callbacks.

    :param callbacks: the callbacks of the run
    :return: those for every rank
    """
    return [*filter(None, map(_for_other_ranks, callbacks))]


def _for_other_ranks(callback: BaseCallback) -> BaseCallback | None:
    """Return a callback without the parts that are for the first rank only, ``None`` if nothing is left."""
    if getattr(callback, "first_rank_only", isinstance(callback, FIRST_RANK_ONLY)):
        return None
    if isinstance(callback, CallbackList):
        members = callbacks_of_other_ranks(callback.callbacks)
        unchanged = members == callback.callbacks
        return callback if unchanged else CallbackList(members) if members else None
    if isinstance(callback, EventCallback) and callback.callback is not None:
        held = _for_other_ranks(callback.callback)
        if held is not callback.callback:
            callback = copy.copy(callback)  # the user's object stays unchanged
            callback.callback = held
        return callback if held is not None else None
    return callback


def leave_monitor_files_to_first_rank(vec_env: VecEnv, communicator: Communicator) -> None:
    """
    Keep other ranks from writing into the first rank's Monitor files, and warn that they no longer do.

    :param vec_env: environments of this rank
    :param communicator: connects this rank to the others
    """
    monitors, host = monitors_by_file(vec_env), socket.gethostname()
    (first_host, first_paths), *others = communicator.gather_objects((host, [*monitors]))
    shared = {path for there, paths in others for path in paths if there == first_host} & {*first_paths}
    if communicator.is_first and shared:
        warnings.warn(
            f"Monitor writes to {min(shared)} on several ranks; from now on only the first rank does. To log all episodes, "
            "give each rank its own folder, or use make_vec_env(..., start_index=rank * n_envs).",
            UserWarning,
            stacklevel=2,
        )
    if host == first_host and not communicator.is_first:
        for path in shared & monitors.keys():
            writer, monitors[path].results_writer = monitors[path].results_writer, None
            if writer is not None:
                writer.close()


class EpisodeLogger(Protocol):
    """``Monitor`` and ``VecMonitor``: without a writer they still report episodes in ``infos``, but write no file."""

    results_writer: ResultsWriter | None


def monitors_by_file(vec_env: VecEnv) -> dict[str, EpisodeLogger]:
    """
    Find what logs episodes to files: ``Monitor`` around environments of this process, and ``VecMonitor``.

    :param vec_env: the outermost wrapper
    :return: the wrappers, by the absolute path of their file
    """
    wrappers: list[Any] = []
    for layer in layers_of(vec_env):
        wrappers += [layer]
        for env in layer.envs if isinstance(layer, DummyVecEnv) else ():
            inner: Any = env
            while isinstance(inner, gym.Wrapper):
                wrappers.append(inner)
                inner = inner.env
    writers = [(wrapper, vars(wrapper).get("results_writer")) for wrapper in wrappers]
    return {
        os.path.abspath(writer.file_handler.name): wrapper for wrapper, writer in writers if isinstance(writer, ResultsWriter)
    }
