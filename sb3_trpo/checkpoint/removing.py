"""Folders that go: under another name first, and as much of them as can."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from itertools import chain, count
from pathlib import Path


def faults_of(act: Callable[[Path], None], paths: Iterable[Path]) -> dict[Path, OSError]:
    """
    Act on several folders; one where it fails keeps no other from it.

    :param act: :func:`remove` or :func:`clear`
    :param paths: of the folders
    :return: what went wrong, by folder
    """
    faults = {}
    for path in paths:
        try:
            act(path)
        except OSError as error:
            faults[path] = error
    return faults


def remove(path: Path) -> None:
    """
    Remove a checkpoint.

    :param path: its folder
    :raises OSError: if it cannot be removed, or not all of it
    """
    clear(set_aside(path))


def set_aside(path: Path) -> Path:
    """
    Give a checkpoint another name, for half of one must not look like a whole one.

    :param path: its folder
    :return: the folder, to be cleared away
    :raises OSError: if it cannot be renamed
    """
    return path.rename(free(path.with_name(f"removing-{path.name}")))


def clear(path: Path) -> None:
    """
    Remove a folder; if it cannot be removed, as much of it as can.

    :param path: the folder
    :raises OSError: if anything is left
    """
    try:
        shutil.rmtree(path)
    except OSError:
        shutil.rmtree(path, ignore_errors=True)
        if path.exists():
            raise


def free(path: Path) -> Path:
    """
    Give a path that is not there.

    :param path: which may be taken by what could not be removed
    :return: the path, or one like it
    """
    others = (path.with_name(f"{path.name}-{number}") for number in count(2))
    return next(each for each in chain((path,), others) if not each.exists())
