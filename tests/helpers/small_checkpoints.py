"""Small checkpoints on disk, as the tests of storage write and check them."""

from __future__ import annotations

import numpy as np

from sb3_trpo.checkpoint.storage import read, write

VERSIONS = {"torch": "2.8.0", "sb3_trpo": "1.0"}
STATE_OF_ALL = {"run": {"a": [1, None, True, 2.5, "ü\ud800"]}, "huge": 10**50}


def arrays_of(n):
    return {"a/b": np.arange(n % 7 + 3.0), "c": np.array(n % 5, np.int8), "empty": np.zeros((0, 3), np.float32)}


def write_one(folder, n_timesteps=100):
    return write(folder, n_timesteps, VERSIONS, STATE_OF_ALL, arrays_of(n_timesteps))


def is_intact(path, n_timesteps):
    found, arrays = read(path), arrays_of(n_timesteps)
    same = all(
        np.array_equal(found.arrays[name], each) and found.arrays[name].dtype == each.dtype for name, each in arrays.items()
    )
    return same and found[:4] == (path, n_timesteps, VERSIONS, STATE_OF_ALL) and found.arrays.keys() == arrays.keys()


def leftovers(folder):
    return [path.name for path in folder.iterdir() if path.name.startswith(("writing-", "removing-"))]
