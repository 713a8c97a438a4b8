"""The size limits of a checkpoint: what is too large to be read back is not written."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

MANIFEST, STATE, ARRAYS = "manifest.json", "state.json", "arrays.safetensors"
LARGEST = {MANIFEST: 2**20, STATE: 2**30, ARRAYS: 2**36}
"""
Bytes beyond which a file is neither written nor read: a forged checkpoint must not fill the memory.

A manifest has less than a kilobyte. 1,024 environments make 3 MB of a state, 10 million pairs in a callback's list 370 MB;
reading takes several times as much memory. As arrays, a policy of a billion parameters with Adam's moments has 12 GB, and a
replay buffer of a million stacks of Atari's frames, held by a callback, 28 GB.
"""
LARGEST_HEADER = 100_000_000
"""Bytes of names and shapes beyond which safetensors does not read a file; some versions write it all the same."""
ENTRY = 72
"""Upper bound on the bytes in the header for each array, besides its name and shape."""
REMEDY = (
    "Let an environment or a callback write such data to its own file, or give it get_state() and set_state(state) that "
    "leave them out."
)
"""What to do about a checkpoint that is too large."""


class CheckpointTooLargeError(ValueError):
    """A checkpoint is too large to be read back."""


def require_arrays_fit(arrays: dict[str, np.ndarray]) -> None:
    """
    Refuse arrays that are too large to be read back, before they are copied.

    :param arrays: arrays by path
    :raises CheckpointTooLargeError: if they are too large, or too many
    """
    header = header_sizes(arrays)
    if sum(header.values()) > LARGEST_HEADER:
        raise CheckpointTooLargeError(
            f"{ARRAYS} would list {len(arrays):,} arrays in {sum(header.values()):,} bytes, and at most {LARGEST_HEADER:,} "
            f"are read at a restart. Most are in {_largest_part(header)}. {REMEDY}"
        )
    sizes = {path: array.nbytes for path, array in arrays.items()}
    _require_size(ARRAYS, sum(header.values()) + sum(sizes.values()), lambda: sizes)


def header_sizes(arrays: dict[str, np.ndarray]) -> dict[str, int]:
    """
    Compute an upper bound on the size of each array's entry in the header of safetensors.

    :param arrays: arrays by path
    :return: sizes in bytes, by path
    """
    return {path: len(path.encode()) + len(str(array.shape)) + ENTRY for path, array in arrays.items()}


def require_state_fits(data: bytes, state: dict[str, Any]) -> None:
    """
    Refuse a state that is too large to be read back.

    :param data: the bytes to write
    :param state: the JSON in them
    :raises CheckpointTooLargeError: if it is too large
    """
    _require_size(STATE, len(data), partial(_sizes_of, state))


def _require_size(name: str, size: int, sizes: Callable[[], dict[str, int]]) -> None:
    if size > LARGEST[name]:
        raise CheckpointTooLargeError(
            f"{name} would have {size:,} bytes, and at most {LARGEST[name]:,} are read at a restart. Most are in "
            f"{_largest_part(sizes())}. {REMEDY}"
        )


def _sizes_of(state: Any) -> dict[str, int]:
    """Compute the sizes in bytes of all named parts of a state, by path."""
    if not isinstance(state, dict):
        return {"": len(json.dumps(state))}
    return {f"{name}/{path}".rstrip("/"): size for name, part in state.items() for path, size in _sizes_of(part).items()}


def _largest_part(sizes: dict[str, int]) -> str:
    """Find the innermost part that has more than half of all bytes."""
    steps = [(path.split("/"), size) for path, size in sizes.items()]
    part: list[str] = []
    while True:
        inner: Counter[str] = Counter()
        for path, size in steps:
            if path[: len(part)] == part and len(path) > len(part):
                inner[path[len(part)]] += size
        name, size = max(inner.items(), key=lambda item: item[1], default=("", 0))
        if size <= sum(sizes.values()) / 2:
            return "/".join(part) or "no single part"
        part.append(name)
