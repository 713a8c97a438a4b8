"""Rows of a buffer: pairs of arrays, and what is read back."""

import numpy as np
import pytest
from gymnasium import spaces
from helpers.envs import VECTOR
from hypothesis import given, strategies as st
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer

from sb3_trpo.rollouts.collection.buffer_rows import ChangingArray, array_pairs, arrays_of, merged, restored, stacked

PAIR = spaces.Dict(matrix=spaces.Box(-1.0, 1.0, (2, 2)), choice=spaces.Discrete(3))
ACTION = spaces.Discrete(2)
VECTORS = RolloutBuffer(4, VECTOR, ACTION, n_envs=2, device="cpu")
DICTS = DictRolloutBuffer(4, PAIR, ACTION, n_envs=2, device="cpu")


def test_each_array_is_paired_with_its_rows():
    ((seen, rows),) = array_pairs(np.ones((2, 3)), VECTORS)
    assert seen.shape == rows.shape[1:]
    assert rows is VECTORS.observations
    parts = {"matrix": np.ones((2, 2, 2)), "choice": np.ones(2)}
    found = {id(seen): rows for seen, rows in array_pairs(parts, DICTS)}
    assert all(found[id(parts[key])] is DICTS.observations[key] for key in parts)


def test_arrays_are_listed():
    assert arrays_of(VECTORS.observations)[0] is VECTORS.observations
    assert [*map(id, arrays_of(DICTS.observations))] == [*map(id, DICTS.observations.values())]


def test_rows_are_merged_step_after_step():
    assert merged(np.arange(12).reshape(3, 2, 2)).tolist() == np.arange(12).reshape(6, 2).tolist()


def test_a_row_gets_its_shape_and_type_back():
    like = np.array([3, 4], np.int64)
    row = np.array([[3.0], [4.0]], np.float32)
    again = restored(row, like)
    assert (again.dtype, again.tolist()) == (like.dtype, [3, 4])
    row[:] = 0.0
    assert again.tolist() == [3, 4]


@pytest.mark.parametrize("n", [1, 3])
def test_single_observations_are_stacked_as_the_buffer_has_them(n):
    assert stacked([np.ones(3)] * n, VECTORS).shape == (n, 3)
    both = stacked([{"matrix": np.ones((2, 2)), "choice": 1}] * n, DICTS)
    assert {key: part.shape for key, part in both.items()} == {"choice": (n, 1), "matrix": (n, 2, 2)}


@given(values=st.lists(st.sampled_from([0.0, 1.0, np.nan]), min_size=1, max_size=9), n_envs=st.integers(1, 3), data=st.data())
def test_an_array_that_seldom_changes_is_what_it_was_at_each_step(values, n_envs, data):
    start = data.draw(st.integers(0, len(values) - 1))
    end = data.draw(st.integers(start + 1, len(values)))
    array, present = ChangingArray(), np.zeros((2, 3), np.float32)
    for step, value in enumerate(values):
        present[:] = value
        array.note(step, present)
    present[:] = 7.0  # what was noted is a copy
    found = array.per_state(slice(start, end), n_envs).expand((end - start) * n_envs, 2, 3).numpy()
    expected = np.repeat(np.array(values[start:end], np.float32), n_envs)[:, None, None]
    np.testing.assert_array_equal(found, np.broadcast_to(expected, found.shape))


def test_an_array_that_does_not_change_is_kept_once():
    array, present = ChangingArray(), np.ones(2, np.float32)
    for step in range(5):
        array.note(step, present)
    assert array.per_state(slice(1, 5), 3).shape == (2,)
    assert len(array._values) == 1
