"""
The folder of a run, with its checkpoints.

If a run has several ranks, each keeps its own checkpoints in a subfolder: ``rank-0-of-4`` and so on. A run that continues with
another number of ranks uses the first rank's checkpoint, since the policy is the same on all.
"""

from __future__ import annotations

import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from sb3_trpo.checkpoint.storage import NAME, BrokenCheckpointError, Checkpoint, read, set_aside, timesteps_of
from sb3_trpo.parallel.communicator import ALONE, Communicator

LOCK = "lock"
UNFINISHED = ("writing-", "removing-")
"""Prefixes of folders that a killed process has left behind."""
FIRST_RANK = re.compile(r"rank-0-of-(\d{1,9})")


class Found(NamedTuple):
    """A checkpoint to continue from, and the number of ranks of the run that made it."""

    checkpoint: Checkpoint
    n_ranks: int


@contextmanager
def sole_owner(folder: Path) -> Iterator[None]:
    """
    Own a folder of checkpoints: create it, lock it, and remove what a killed process has left unfinished.

    :param folder: folder of a run
    :raises OSError: if it cannot be created or written to
    :raises RuntimeError: if another process owns it
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f"writing-{os.getpid()}"
        probe.mkdir(exist_ok=True)
        probe.rmdir()
    except OSError as error:
        raise OSError(
            f"Checkpoints cannot be written to {folder}: {error.strerror}. Give a folder that can be created and written to."
        ) from error
    lock = FileLock(folder / LOCK)  # the system frees it even if this process is killed
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RuntimeError(
            f"Another run is writing checkpoints to {folder}. Wait until it ends, or give this run its own folder."
        ) from None
    try:
        for path in folder.iterdir():
            if path.name.startswith(UNFINISHED):
                shutil.rmtree(path, ignore_errors=True)
        yield
    finally:
        lock.release()


def checkpoints_in(folder: Path) -> list[Path]:
    """
    List checkpoints, intact or not.

    :param folder: folder of a run, or of one of its ranks
    :return: the checkpoints' folders, newest first
    """
    paths = folder.iterdir() if folder.is_dir() else ()
    return sorted((path for path in paths if NAME.fullmatch(path.name)), key=timesteps_of, reverse=True)


def newest_intact(folder: Path) -> Checkpoint | None:
    """
    Read the newest checkpoint that is intact; warn of newer ones that are broken.

    :param folder: folder of a run, or of one of its ranks
    :return: the checkpoint, or ``None`` if there is none
    :raises NewerFormatError: if a later version of this package wrote it
    """
    return next(filter(None, map(read_if_intact, checkpoints_in(folder))), None)


def read_if_intact(path: Path) -> Checkpoint | None:
    """
    Read a checkpoint, or warn that it is broken.

    :param path: its folder
    :return: the checkpoint, ``None`` if it is broken
    :raises NewerFormatError: if a later version of this package wrote it
    """
    try:
        return read(path)
    except BrokenCheckpointError as error:
        warnings.warn(f"{error}. It is skipped; the one before is used, if there is one.", UserWarning, stacklevel=2)
        return None


def keep_newest(newest: Path, keep: int) -> dict[Path, OSError]:
    """
    Remove all but the newest checkpoints. Those with more timesteps are broken, or the run would have continued from them.

    If a folder cannot be removed, the others still are, and the next call tries again.

    :param newest: the checkpoint that has just been written
    :param keep: number of checkpoints that stay
    :return: what could not be removed, and why
    """
    found, n_timesteps = checkpoints_in(newest.parent), timesteps_of(newest)
    beyond = [path for path in found if timesteps_of(path) > n_timesteps]
    older = [path for path in found if timesteps_of(path) < n_timesteps]
    left = [path for path in newest.parent.iterdir() if path.name.startswith(UNFINISHED)]
    return _errors_of(clear, left) | _errors_of(remove, beyond + older[keep - 1 :])


def remove(path: Path) -> None:
    """
    Remove a checkpoint.

    :param path: its folder
    :raises OSError: if not all of it can be removed
    """
    clear(set_aside(path))


def clear(path: Path) -> None:
    """
    Remove a folder, or as much of it as can be removed.

    :param path: the folder
    :raises OSError: if anything is left
    """
    try:
        shutil.rmtree(path)
    except OSError:
        shutil.rmtree(path, ignore_errors=True)
        if path.exists():
            raise


def _errors_of(act: Callable[[Path], None], paths: Iterable[Path]) -> dict[Path, OSError]:
    errors = {}
    for path in paths:
        try:
            act(path)
        except OSError as error:
            errors[path] = error
    return errors


def folder_of_rank(folder: Path, communicator: Communicator) -> Path:
    """
    Return the folder in which a rank keeps its checkpoints.

    :param folder: folder of the run
    :param communicator: has the rank and the number of ranks
    :return: the folder of the run itself if there is only one rank
    """
    return folder if communicator.size == 1 else folder / f"rank-{communicator.rank}-of-{communicator.size}"


def folders_of_first_ranks(folder: Path) -> dict[int, Path]:
    """
    Find the folders in which first ranks have kept their checkpoints.

    :param folder: folder of the run
    :return: folders by number of ranks
    """
    paths = folder.iterdir() if folder.is_dir() else ()
    return {1: folder} | {int(match[1]): path for path in paths if (match := FIRST_RANK.fullmatch(path.name))}


def find(folder: Path, communicator: Communicator) -> Found | None:
    """
    Find the newest checkpoint that is intact on every rank, or on the first rank of another number of ranks.

    :param folder: folder of the run
    :param communicator: connects the ranks that want to continue
    :return: the checkpoint of this rank, with the same timesteps on all; ``None`` if there is none
    """
    own = _newest_on_all_ranks(folder_of_rank(folder, communicator), communicator)
    n_timesteps = 0 if own is None else own.n_timesteps
    other = communicator.broadcast_object(
        _newest_of_other_sizes(folder, communicator.size, n_timesteps) if communicator.is_first else None
    )
    if other is not None:
        return other
    return None if own is None else Found(own, communicator.size)


def newest_of_run(folder: Path) -> Checkpoint | None:
    """
    Read the newest intact checkpoint of a run; that of the first rank if there were several.

    :param folder: folder of the run
    :return: the checkpoint, or ``None`` if there is none
    """
    own = newest_intact(folder)
    other = _newest_of_other_sizes(folder, ALONE.size, 0 if own is None else own.n_timesteps)
    return own if other is None else other.checkpoint


def _newest_on_all_ranks(folder: Path, communicator: Communicator) -> Checkpoint | None:
    """Try the checkpoints that every rank has, newest first, until one is intact on all ranks."""
    if communicator.size == 1:
        return newest_intact(folder)
    of_ranks = communicator.gather_objects(checkpoints_in(folder))
    by_timesteps = [{timesteps_of(path): path for path in paths} for paths in of_ranks]
    for n_timesteps in sorted(set.intersection(*map(set, by_timesteps)), reverse=True):
        found = read_if_intact(by_timesteps[communicator.rank][n_timesteps])
        if all(communicator.gather_objects(found is not None)):
            return found
    return None


def _newest_of_other_sizes(folder: Path, n_ranks: int, n_timesteps: int) -> Found | None:
    """Look for a checkpoint of another number of ranks with more than the given timesteps."""
    candidates = []
    for n_others, path in folders_of_first_ranks(folder).items():
        is_further = any(timesteps_of(each) > n_timesteps for each in checkpoints_in(path))
        found = newest_intact(path) if n_others != n_ranks and is_further else None
        if found is not None and found.n_timesteps > n_timesteps:
            candidates.append(Found(found, n_others))
    return max(candidates, key=lambda found: found.checkpoint.n_timesteps, default=None)
