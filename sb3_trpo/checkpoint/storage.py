"""
A checkpoint on disk: a folder that is written as a whole or not at all, and read only if every byte is unchanged.

    checkpoint-000000051200/
        manifest.json         format, library versions, size and SHA-256 of each file, and SHA-256 of the manifest itself
        state.json            everything but arrays
        arrays.safetensors

A checkpoint is written under another name, flushed to the disk and then renamed. Neither JSON nor safetensors can contain
code, as a pickle can.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from sb3_trpo.checkpoint.limits import ARRAYS, LARGEST, MANIFEST, STATE, require_arrays_fit, require_state_fits

FORMAT = 1
"""Increase it when older versions of this package can no longer read what is written."""
NOT_THERE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
"""Errors which mean that a file is not there. Any other may be temporary, and does not mean that the checkpoint is broken."""
NAME = re.compile(r"checkpoint-(\d{1,18})")


class BrokenCheckpointError(ValueError):
    """A checkpoint has changed since it was written."""


class NewerFormatError(ValueError):
    """A checkpoint was written by a later version of this package."""


class Checkpoint(NamedTuple):
    """
    A checkpoint that has been read and verified.

    :param path: its folder
    :param n_timesteps: timesteps of the run when it was made
    :param versions: versions of the libraries that made it
    :param state: JSON
    :param arrays: arrays by path
    """

    path: Path
    n_timesteps: int
    versions: dict[str, str]
    state: dict[str, Any]
    arrays: dict[str, np.ndarray]


def name_of(n_timesteps: int) -> str:
    """
    Return the name of a checkpoint.

    :param n_timesteps: timesteps of the run when it is made
    :return: name of the checkpoint's folder
    """
    return f"checkpoint-{n_timesteps:012d}"


def timesteps_of(path: Path) -> int:
    """
    Read the timesteps from a checkpoint's name.

    :param path: its folder
    :return: timesteps of the run
    """
    return int(path.name.rpartition("-")[2])


def write(
    folder: Path, n_timesteps: int, versions: dict[str, str], state: dict[str, Any], arrays: dict[str, np.ndarray]
) -> Path:
    """
    Write a checkpoint.

    :param folder: folder of the run
    :param n_timesteps: timesteps of the run
    :param versions: versions of libraries, by name
    :param state: JSON
    :param arrays: arrays by path
    :return: the checkpoint's folder
    :raises CheckpointTooLargeError: if it would be too large to be read
    :raises OSError: if the disk is full, for instance. Nothing is left of the attempt, unless only the sync of the folder
        itself failed
    """
    require_arrays_fit(arrays)
    contents = {STATE: _to_json(state)}
    require_state_fits(contents[STATE], state)
    contents[ARRAYS] = safetensors.numpy.save(arrays)
    files = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in contents.items()}
    contents[MANIFEST] = _seal({"format": FORMAT, "timesteps": n_timesteps, "versions": versions, "files": files})
    target = folder / name_of(n_timesteps)
    unfinished = unused_path(folder / f"writing-{target.name}")
    try:
        unfinished.mkdir()
        for name, data in contents.items():
            _write_file(unfinished / name, data)
        _sync_folder(unfinished)
        if target.exists():  # it is broken, or the run would have continued from it
            shutil.rmtree(set_aside(target), ignore_errors=True)  # what remains is removed with older checkpoints
        unfinished.rename(target)
        _sync_folder(folder)
    except BaseException:  # KeyboardInterrupt as well
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return target


def read(path: Path) -> Checkpoint:
    """
    Read a checkpoint, and verify it.

    :param path: its folder
    :return: the checkpoint
    :raises BrokenCheckpointError: if a single byte has changed
    :raises NewerFormatError: if a later version of this package wrote it
    :raises OSError: if the disk cannot be read
    """
    try:
        manifest = _unseal(_read_file(path / MANIFEST))
        if manifest["format"] > FORMAT:
            raise NewerFormatError(
                f"The checkpoint {path} has format {manifest['format']}; this version of sb3_trpo knows those up to {FORMAT}. "
                "Install the version that wrote it, or a later one."
            )
        data = {name: _read_verified(path / name, manifest["files"][name]) for name in (STATE, ARRAYS)}
        state, arrays = _require_dict(json.loads(data[STATE])), safetensors.numpy.load(data[ARRAYS])
        n_timesteps = manifest["timesteps"]
        if type(n_timesteps) is not int or n_timesteps < 0 or manifest["format"] < 1:
            raise ValueError(f"{MANIFEST} has no valid format or number of timesteps")
        return Checkpoint(path, n_timesteps, _require_dict(manifest["versions"]), state, arrays)
    except NewerFormatError:
        raise
    except (*NOT_THERE, KeyError, TypeError, ValueError, RecursionError, safetensors.SafetensorError) as error:
        raise BrokenCheckpointError(f"The checkpoint {path} is broken ({error})") from error


def set_aside(path: Path) -> Path:
    """
    Rename a checkpoint before it is removed: half of one must not look like a whole one.

    :param path: its folder
    :return: the folder under its new name
    :raises OSError: if it cannot be renamed
    """
    return path.rename(unused_path(path.with_name(f"removing-{path.name}")))


def unused_path(path: Path) -> Path:
    """
    Find a path that is not in use.

    :param path: the preferred path; a folder that could not be removed may be there
    :return: the path, or one with a number appended
    """
    others = (path.with_name(f"{path.name}-{number}") for number in count(2))
    return next(each for each in chain((path,), others) if not each.exists())


def _to_json(content: Any) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()


def _seal(manifest: dict[str, Any]) -> bytes:
    """Encode a manifest together with its digest."""
    return _to_json({**manifest, "sha256": hashlib.sha256(_to_json(manifest)).hexdigest()})


def _unseal(data: bytes) -> dict[str, Any]:
    """Decode a manifest; encoded again, it must be the same to the last byte, so that no key can occur twice."""
    manifest: dict[str, Any] = _require_dict(json.loads(data))
    content = {name: value for name, value in manifest.items() if name != "sha256"}
    if _seal(content) != data:
        raise ValueError(f"{MANIFEST} does not match its digest")
    return content


def _require_dict(content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise ValueError(f"{content!r} where names and values should be")
    return content


def _read_verified(path: Path, expected: dict[str, Any]) -> bytes:
    data = _read_file(path)
    if len(data) != expected["bytes"] or hashlib.sha256(data).hexdigest() != expected["sha256"]:
        raise ValueError(f"{path.name} does not match the manifest")
    return data


def _read_file(path: Path) -> bytes:
    """Read a regular file of a plausible size; a link could lead anywhere, and reading a pipe would block."""
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
    """
    Flush a folder's entries to the disk, where the system supports it.

    Syncing a file does not flush its name: after a power failure, either could be there without the other.
    """
    if os.name == "posix":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
