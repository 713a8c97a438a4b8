"""Checkpoints that are too large to be read are not written."""

import numpy as np
import pytest
import safetensors.numpy
from helpers.small_checkpoints import write_one

from sb3_trpo.checkpoint import limits
from sb3_trpo.checkpoint.limits import ARRAYS, LARGEST, STATE, CheckpointTooLargeError
from sb3_trpo.checkpoint.storage import BrokenCheckpointError, read, write


def too_large(name):
    """Give a state and arrays that reach 1,000 bytes in a file, or a header of 1,000 bytes."""
    if name == STATE:
        return {"run": {"callbacks": {"Mine#0": {"state": {"history": {"list": [1] * 500}}}}}, "x": 1}, {}
    if name == ARRAYS:
        return {}, {"callbacks/Mine#0/buffer/0": np.zeros(120), "policy/a": np.zeros(4)}
    return {}, {f"callbacks/Mine#0/frames/{index}": np.zeros(1, np.uint8) for index in range(20)}


HEAVY = {STATE: "run/callbacks/Mine#0/state/history/list", ARRAYS: "callbacks/Mine#0/buffer/0", "header": "Mine#0/frames"}


@pytest.mark.parametrize("name", HEAVY)
def test_what_would_not_be_read_is_not_written_and_what_takes_the_space_is_named(name, tmp_path, monkeypatch):
    state, arrays = too_large(name)
    path = write_one(tmp_path, 1)
    if name == "header":
        monkeypatch.setattr(limits, "LARGEST_HEADER", 999)
    else:
        monkeypatch.setitem(LARGEST, name, 999)
    with pytest.raises(CheckpointTooLargeError, match=rf"{HEAVY[name]}\. Let .*get_state") as raised:
        write(tmp_path, 2, {}, state, arrays)
    assert "at most 999 are read" in str(raised.value)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("name", [STATE, ARRAYS])
def test_what_is_just_small_enough_is_written_and_read(name, tmp_path, monkeypatch):
    state, arrays = too_large(name)
    path = write(tmp_path, 1, {}, state, arrays)
    size = (path / name).stat().st_size
    monkeypatch.setitem(LARGEST, name, size if name == STATE else size + 2 * limits.ENTRY)
    found = read(write(tmp_path, 2, {}, state, arrays))
    assert (found.state, found.arrays.keys()) == (state, arrays.keys())
    monkeypatch.setitem(LARGEST, name, size - 1)
    with pytest.raises(CheckpointTooLargeError):
        write(tmp_path, 3, {}, state, arrays)
    with pytest.raises(BrokenCheckpointError, match="not a file of at most"):
        read(path)


@pytest.mark.parametrize("n", [1, 30, 1000])
def test_the_header_of_arrays_is_not_underestimated(n):
    arrays = {f"{'ä' * (index % 7)}{index}": np.zeros((1,) * (index % 5), np.float64) for index in range(n)}
    actual = int.from_bytes(safetensors.numpy.save(arrays)[:8], "little")
    estimate = sum(limits.header_sizes(arrays).values())
    assert actual <= estimate + 16 < 2 * actual + 200
