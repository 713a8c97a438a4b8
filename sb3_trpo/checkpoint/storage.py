"""
Checkpoints on disk: one folder each, written whole or not at all, and read only if every byte is as it was written.

    checkpoint-000000051200/
        manifest.json         format, library versions, size and SHA-256 of each file, and of the manifest itself
        state.json            everything but arrays
        arrays.safetensors

A checkpoint is written under another name, flushed to the disk and then renamed; older ones go after that.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy
from filelock import FileLock, Timeout

from sb3_trpo.checkpoint.limits import ARRAYS, LARGEST, MANIFEST, STATE, require_arrays_fit, require_state_fits
from sb3_trpo.checkpoint.removing import clear, faults_of, free, remove, set_aside

FORMAT = 1
"""Rises when an older version of this package could not read what is written."""
LOCK = "lock"
ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
"""What tells that a file is not there. Other errors of the system may pass, and say nothing of the checkpoint."""
NAME = re.compile(r"checkpoint-(\d{1,18})")
UNFINISHED = ("writing-", "removing-")
"""Beginnings of the names of folders that a killed process has left behind."""


class BrokenCheckpointError(ValueError):
    """A checkpoint is not as it was written."""


class NewerFormatError(ValueError):
    """A checkpoint was written by a later version of this package."""


class Checkpoint(NamedTuple):
    """
    A checkpoint that has been read and verified.

    :param path: its folder
    :param n_timesteps: of the run when it was made
    :param versions: of the libraries that it was made with
    :param state: JSON
    :param arrays: by path
    """

    path: Path
    n_timesteps: int
    versions: dict[str, str]
    state: dict[str, Any]
    arrays: dict[str, np.ndarray]


@contextmanager
def sole_owner(folder: Path) -> Iterator[None]:
    """
    Own a folder of checkpoints: create it, keep other processes out, clear away what a killed one has left unfinished.

    :param folder: of one run
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
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RuntimeError(
            f"Another run is writing checkpoints to {folder}. Wait for its end, or give this run a folder of its own."
        ) from None
    try:
        for path in folder.iterdir():
            if path.name.startswith(UNFINISHED):
                shutil.rmtree(path, ignore_errors=True)
        yield
    finally:
        lock.release()


def write(
    folder: Path, n_timesteps: int, versions: dict[str, str], state: dict[str, Any], arrays: dict[str, np.ndarray]
) -> Path:
    """
    Write a checkpoint.

    :param folder: of the run
    :param n_timesteps: of the run
    :param versions: of libraries
    :param state: JSON
    :param arrays: by path
    :return: the checkpoint's folder
    :raises CheckpointTooLargeError: if it would be too large to be read
    :raises OSError: if the disk is full, for instance. Nothing is left of the attempt, unless the folder's list of names is
        all that could not be synced
    """
    require_arrays_fit(arrays)
    contents = {STATE: _dump(state)}
    require_state_fits(contents[STATE], state)
    contents[ARRAYS] = safetensors.numpy.save(arrays)
    files = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in contents.items()}
    contents[MANIFEST] = _sealed({"format": FORMAT, "timesteps": n_timesteps, "versions": versions, "files": files})
    target = folder / name_of(n_timesteps)
    unfinished = free(folder / f"writing-{target.name}")
    try:
        unfinished.mkdir()
        for name, data in contents.items():
            _write_file(unfinished / name, data)
        _sync_folder(unfinished)
        if target.exists():  # broken: whoever could read it would have gone on from it
            shutil.rmtree(set_aside(target), ignore_errors=True)  # what stays goes with the older ones
        unfinished.rename(target)
        _sync_folder(folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return target


def keep_newest(newest: Path, keep: int) -> dict[Path, OSError]:
    """
    Remove all but the newest checkpoints. Those beyond the newest are broken: the run would have gone on from them.

    What cannot be removed keeps nothing else from it, and goes with a later call; so does what earlier ones have left.

    :param newest: written just now
    :param keep: how many stay
    :return: what could not be removed, and why
    """
    found, n_timesteps = checkpoints_in(newest.parent), timesteps_of(newest)
    beyond = [path for path in found if timesteps_of(path) > n_timesteps]
    older = [path for path in found if timesteps_of(path) < n_timesteps]
    left = [path for path in newest.parent.iterdir() if path.name.startswith(UNFINISHED)]
    return faults_of(clear, left) | faults_of(remove, beyond + older[keep - 1 :])


def name_of(n_timesteps: int) -> str:
    """
    Name a checkpoint.

    :param n_timesteps: of the run
    :return: name of its folder
    """
    return f"checkpoint-{n_timesteps:012d}"


def timesteps_of(path: Path) -> int:
    """
    Read how far a run was off a checkpoint's name.

    :param path: its folder
    :return: the timesteps
    """
    return int(path.name.rpartition("-")[2])


def checkpoints_in(folder: Path) -> list[Path]:
    """
    List the checkpoints of a run, intact or not.

    :param folder: of the run
    :return: their folders, newest first
    """
    paths = folder.iterdir() if folder.is_dir() else ()
    return sorted((path for path in paths if NAME.fullmatch(path.name)), key=timesteps_of, reverse=True)


def newest(folder: Path) -> Checkpoint | None:
    """
    Read the newest checkpoint that is intact; one that is not is passed over with a warning.

    :param folder: of the run
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
        warnings.warn(f"{error}. It is passed over; the one before is used, if there is one.", UserWarning, stacklevel=2)
        return None


def read(path: Path) -> Checkpoint:
    """
    Read a checkpoint, and verify it.

    :param path: its folder
    :return: the checkpoint
    :raises BrokenCheckpointError: if a single byte is not as it was written
    :raises NewerFormatError: if a later version of this package wrote it
    :raises OSError: if the disk cannot be read
    """
    try:
        manifest = _unsealed(_read_file(path / MANIFEST))
        if manifest["format"] > FORMAT:
            raise NewerFormatError(
                f"The checkpoint {path} has format {manifest['format']}; this version of sb3_trpo knows those up to {FORMAT}. "
                "Install the version that wrote it, or a later one."
            )
        data = {name: _verified(path / name, manifest["files"][name]) for name in (STATE, ARRAYS)}
        state, arrays = _require_dict(json.loads(data[STATE])), safetensors.numpy.load(data[ARRAYS])
        n_timesteps = manifest["timesteps"]
        if type(n_timesteps) is not int or n_timesteps < 0 or manifest["format"] < 1:
            raise ValueError(f"{MANIFEST} does not say which format it has and how far the run was")
        return Checkpoint(path, n_timesteps, _require_dict(manifest["versions"]), state, arrays)
    except NewerFormatError:
        raise
    except (*ABSENT, KeyError, TypeError, ValueError, RecursionError, safetensors.SafetensorError) as error:
        raise BrokenCheckpointError(f"The checkpoint {path} is broken ({error})") from error


def _dump(content: Any) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()


def _sealed(manifest: dict[str, Any]) -> bytes:
    """Write a manifest with its own digest."""
    return _dump({**manifest, "sha256": hashlib.sha256(_dump(manifest)).hexdigest()})


def _unsealed(data: bytes) -> dict[str, Any]:
    manifest: dict[str, Any] = _require_dict(json.loads(data))
    content = {name: value for name, value in manifest.items() if name != "sha256"}
    if _sealed(content) != data:
        raise ValueError(f"{MANIFEST} does not match its digest")
    return content


def _require_dict(content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise ValueError(f"{content!r} where names and values should be")
    return content


def _verified(path: Path, expected: dict[str, Any]) -> bytes:
    data = _read_file(path)
    if len(data) != expected["bytes"] or hashlib.sha256(data).hexdigest() != expected["sha256"]:
        raise ValueError(f"{path.name} does not match the manifest")
    return data


def _read_file(path: Path) -> bytes:
    """Read a file that is one, and of a size that can be meant."""
    info = path.lstat()
    if not stat.S_ISREG(info.st_mode) or info.st_size > LARGEST[path.name]:
        raise ValueError(f"{path.name} is not a file of at most {LARGEST[path.name]} bytes")
    return path.read_bytes()


def _write_file(path: Path, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    """Bring a folder's list of names to the disk, where the system can."""
    if os.name == "posix":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
