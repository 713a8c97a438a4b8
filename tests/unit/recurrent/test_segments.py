"""How a rollout is cut into segments, and how these are chosen, grouped and padded."""

import math
from itertools import pairwise, product

import numpy as np
from hypothesis import given, settings, strategies as st

from sb3_trpo.recurrent.segments import (
    CALL_COST,
    STEP_COST,
    Segment,
    every_kth,
    grouped_by_length,
    padded_rows,
    padded_size,
    rows_of,
    segments_of,
)

LENGTHS = st.integers(1, 30)


@settings(max_examples=100)
@given(st.integers(1, 4), LENGTHS, LENGTHS, st.data())
def test_segments_cover_a_rollout_once_and_cross_no_start(n_envs, n_steps, longest, data):
    starts = np.array(
        data.draw(st.lists(st.sampled_from([0.0, 0.0, 1.0]), min_size=n_envs * n_steps, max_size=n_envs * n_steps))
    )
    segments = segments_of(starts.astype(np.float32), n_steps, longest)
    assert rows_of(segments).tolist() == [*range(n_envs * n_steps)]
    for start, length in segments:
        assert 1 <= length <= longest
        assert start // n_steps == (start + length - 1) // n_steps
        assert not starts[start + 1 : start + length].any()
    for before, after in pairwise(segments):  # none is cut without need
        assert starts[after.start] or after.start % n_steps == 0 or before.length == longest


def cost_of(groups):
    return sum(CALL_COST + group[0].length * (STEP_COST + len(group)) for group in groups)


@settings(max_examples=100)
@given(st.lists(st.integers(1, 400), min_size=1, max_size=8), st.integers(1, 3000))
def test_groups_hold_each_segment_once_and_no_others_take_less_time(lengths, size):
    segments = [Segment(index, length) for index, length in enumerate(lengths)]
    groups = grouped_by_length(segments, size)
    assert sorted(segment for group in groups for segment in group) == segments
    ordered = sorted(segments, key=lambda segment: -segment.length)
    assert [segment.length for group in groups for segment in group] == [segment.length for segment in ordered]

    def fits(group):
        return len(group) * group[0].length <= size or len(group) == 1

    assert all(map(fits, groups))
    for choice in product([False, True], repeat=len(ordered) - 1):
        edges = [0, *(index for index, is_cut in enumerate(choice, start=1) if is_cut), len(ordered)]
        others = [ordered[first:end] for first, end in pairwise(edges)]
        assert cost_of(groups) <= cost_of(others) or not all(map(fits, others))


def test_few_groups_are_needed_where_memory_is_no_bound():
    lengths = np.random.default_rng(0).integers(1, 1000, 300)
    groups = grouped_by_length([Segment(0, int(length)) for length in lengths], 10**9)
    assert len(groups) <= 2 * math.ceil(math.log2(1000))
    assert sum(len(group) * group[0].length for group in groups) < 1.2 * lengths.sum()


def test_sizes_recur():
    sizes = [padded_size(n) for n in range(1, 1025)]
    assert sizes[:10] == [1, 2, 3, 4, 5, 6, 7, 8, 10, 10]
    assert all(n <= size <= 1.25 * n for n, size in enumerate(sizes, start=1))
    assert len(set(sizes)) == 8 + 4 * 7


def test_every_kth_segment_is_counted_from_the_shortest():
    lengths = [5, 1, 5, 1, 3, 1]
    segments = [Segment(10 * index, length) for index, length in enumerate(lengths)]
    assert [segment.length for segment in every_kth(segments, 2)] == [1, 1, 5]
    assert sorted(every_kth(segments, 1)) == segments


def test_rows_are_padded_by_repeating_the_last_one():
    rows, starts, weights, n_padding = padded_rows([Segment(4, 3), Segment(10, 1), Segment(20, 2)])
    assert rows.tolist() == [4, 5, 6, 10, 10, 10, 20, 21, 21]
    assert starts.tolist() == [4, 10, 20]
    assert weights.tolist() == [1, 1, 1, 1, 0, 0, 1, 1, 0]
    assert n_padding == 3
    assert weights.dtype == np.float32


@given(st.lists(LENGTHS, min_size=1, max_size=10), st.booleans())
def test_padded_rows_without_padding_are_the_rows(lengths, is_rounded):
    segments = [Segment(100 * index, length) for index, length in enumerate(lengths)]
    rows, starts, weights, n_padding = padded_rows(segments, is_rounded)
    sizes = len(lengths), max(lengths)
    assert (len(starts), len(rows) // len(starts)) == (tuple(map(padded_size, sizes)) if is_rounded else sizes)
    assert set(rows) <= set(rows_of(segments))
    assert np.array_equal(rows[weights > 0], rows_of(segments))
    assert n_padding == (weights == 0).sum()
