"""
The checkpoints of several ranks: a folder for each, ``rank-0-of-4`` and so on, in the folder of the run.

A rank reads its own. A run with another number of ranks takes the first one's, whose policy is that of all.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from sb3_trpo.checkpoint.storage import Checkpoint, checkpoints_in, newest, read_if_intact, timesteps_of
from sb3_trpo.parallel.communicator import ALONE, Communicator

FIRST_RANK = re.compile(r"rank-0-of-(\d{1,9})")


class Found(NamedTuple):
    """A checkpoint to go on from, and how many ranks the run had that made it."""

    checkpoint: Checkpoint
    n_ranks: int


def folder_of_rank(folder: Path, communicator: Communicator) -> Path:
    """
    Say where a rank keeps its checkpoints.

    :param folder: of the run
    :param communicator: the rank among all
    :return: the folder itself if it is alone
    """
    return folder if communicator.size == 1 else folder / f"rank-{communicator.rank}-of-{communicator.size}"


def first_ranks_in(folder: Path) -> dict[int, Path]:
    """
    Find where first ranks have kept their checkpoints.

    :param folder: of the run
    :return: folders by number of ranks
    """
    paths = folder.iterdir() if folder.is_dir() else ()
    return {1: folder} | {int(match[1]): path for path in paths if (match := FIRST_RANK.fullmatch(path.name))}


def find(folder: Path, communicator: Communicator) -> Found | None:
    """
    Find the newest checkpoint that is intact on every rank, or on the first one of another number of ranks.

    :param folder: of the run
    :param communicator: that want to go on
    :return: the checkpoint of this rank, the same one in time on all; ``None`` if there is none
    """
    own = _newest_of_all(folder_of_rank(folder, communicator), communicator)
    other = communicator.broadcast_object(
        _newest_of_others(folder, communicator, 0 if own is None else own.n_timesteps) if communicator.is_first else None
    )
    if other is not None:
        return other
    return None if own is None else Found(own, communicator.size)


def newest_in(folder: Path) -> Checkpoint | None:
    """
    Read the newest intact checkpoint of a run, of the first rank if there were several.

    :param folder: of the run
    :return: the checkpoint, or ``None`` if there is none
    """
    own = newest(folder)
    other = _newest_of_others(folder, ALONE, 0 if own is None else own.n_timesteps)
    return own if other is None else other.checkpoint


def _newest_of_all(folder: Path, communicator: Communicator) -> Checkpoint | None:
    """Go through the checkpoints that every rank has, newest first, until one is intact everywhere."""
    if communicator.size == 1:
        return newest(folder)
    there = [{timesteps_of(path): path for path in of_rank} for of_rank in communicator.gather_objects(checkpoints_in(folder))]
    for n_timesteps in sorted(set.intersection(*map(set, there)), reverse=True):
        found = read_if_intact(there[communicator.rank][n_timesteps])
        if all(communicator.gather_objects(found is not None)):
            return found
    return None


def _newest_of_others(folder: Path, communicator: Communicator, n_timesteps: int) -> Found | None:
    """Look for a checkpoint of another number of ranks that is further than some timesteps."""
    candidates = []
    for n_ranks, path in first_ranks_in(folder).items():
        is_further = any(timesteps_of(each) > n_timesteps for each in checkpoints_in(path))
        found = newest(path) if n_ranks != communicator.size and is_further else None
        if found is not None and found.n_timesteps > n_timesteps:
            candidates.append(Found(found, n_ranks))
    return max(candidates, key=lambda found: found.checkpoint.n_timesteps, default=None)
