"""
Segments: the parts into which a rollout is cut for a recurrent policy, and their grouping.

A segment is the part of one episode of one environment that lies in the rollout. Its initial LSTM state is the one that the
acting policy had there, or zeros where the episode starts. From there on, the state is recomputed by the policy that is being
evaluated, so that gradients reach back through the whole segment.

An LSTM runs over the segments of a group in parallel, padded to the same length, which is one of few. Padding has
weight 0, and every mean is ``sum(w x) / sum(w)``, so neither the grouping nor the padding changes a result beyond rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from operator import attrgetter
from typing import NamedTuple

import numpy as np

CALL_COST = 200
"""Time of calling an LSTM and its derivatives, in units of the time of a row; measured on 64 and 256 units."""
STEP_COST = 8
"""Time of a step that does not depend on the number of rows, in the same units."""


class Segment(NamedTuple):
    """
    The position of a segment among a rollout's rows, which are ordered environment after environment.

    :param start: index of its first row
    :param length: number of rows
    """

    start: int
    length: int


class PaddedRows(NamedTuple):
    """
    The rows of several segments, padded to the same length, segment after segment.

    :param rows: indices of rows, shape ``(n_segments * longest,)``; padding repeats a segment's last row
    :param starts: index of each segment's first row, shape ``(n_segments,)``
    :param weights: 1 for a row and 0 for padding, shape ``(n_segments * longest,)``
    :param n_padding: number of zeros in ``weights``
    """

    rows: np.ndarray
    starts: np.ndarray
    weights: np.ndarray
    n_padding: int


def segments_of(episode_starts: np.ndarray, n_steps: int, longest: int) -> list[Segment]:
    """
    Cut a rollout where an episode starts or another environment begins.

    :param episode_starts: nonzero where an episode starts, shape ``(n_envs * n_steps,)``, environment after environment
    :param n_steps: steps per environment
    :param longest: maximum number of rows per segment; a longer one is cut again, and no gradient crosses the cut
    :return: the segments, in order; together they cover the rollout
    """
    is_start = episode_starts > 0
    is_start[::n_steps] = True  # an environment's first row, whose episode may have started in an earlier rollout
    starts = np.flatnonzero(is_start)
    return [
        Segment(int(start), int(min(longest, end - start)))
        for first, end in zip(starts, [*starts[1:], len(is_start)], strict=True)
        for start in range(first, end, longest)
    ]


def every_kth(segments: Sequence[Segment], k: int) -> list[Segment]:
    """
    Choose every k-th segment, counted from the shortest to the longest.

    This chooses from all lengths alike, so that the chosen segments hold about a k-th of the transitions. Counted in the
    rollout's order they might not: if short and long episodes alternated, k = 2 would choose only the short ones.

    :param segments: the segments
    :param k: 1 chooses all
    :return: the chosen segments, shortest first
    """
    # Sorting is stable: segments of one length stay in the rollout's order, and the choice is the same on every run.
    return sorted(segments, key=attrgetter("length"))[::k]


def grouped_by_length(segments: Sequence[Segment], size: int) -> list[list[Segment]]:
    """
    Group segments of similar lengths so that an LSTM takes as little time as possible.

    A group takes time for the call, for each of its steps, and for each of its rows, padding included.

    :param segments: the segments, at least one
    :param size: maximum number of rows per group, padding included but not what :func:`padded_rows` adds by rounding; a longer
        segment forms a group alone
    :return: the groups, longest segments first
    """
    ordered = sorted(segments, key=lambda segment: -segment.length)
    lengths = np.array([segment.length for segment in ordered])
    n_longest = max(1, size // lengths[0])
    if len(ordered) <= n_longest and lengths[0] * len(ordered) - lengths.sum() <= CALL_COST:  # less than a second call
        return [ordered]
    return [ordered[first:end] for first, end in pairwise(_cheapest_cuts(lengths, size))]


def _cheapest_cuts(lengths: np.ndarray, size: int) -> list[int]:
    """
    Find where to cut a list of segments into groups.

    :param lengths: their lengths, the longest first
    :param size: maximum number of rows per group
    :return: index of each group's first segment, and finally the number of segments
    """
    starts = np.arange(len(lengths))
    costs = np.zeros(len(lengths) + 1)  # of grouping as many segments, at best
    begins = np.zeros(len(lengths) + 1, int)  # of the last group, if grouped so
    of_call = CALL_COST + lengths * STEP_COST
    for end in range(1, len(lengths) + 1):
        n = end - starts[:end]
        candidates = costs[:end] + of_call[:end] + lengths[:end] * n
        candidates[(lengths[:end] * n > size) & (n > 1)] = np.inf
        begins[end] = candidates.argmin()
        costs[end] = candidates[begins[end]]
    cuts = [len(lengths)]
    while cuts[-1] > 0:
        cuts.append(int(begins[cuts[-1]]))
    return cuts[::-1]


def padded_size(n: int) -> int:
    """
    Round up to one of few sizes, four between a power of 2 and the next.

    torch's kernels and its allocator keep something for each new shape, so shapes should recur.

    :param n: a number of steps or of segments
    :return: at most a quarter more
    """
    unit = 1 << max(0, n.bit_length() - 3)
    return -(-n // unit) * unit


def rows_of(segments: Sequence[Segment]) -> np.ndarray:
    """
    List the rows of segments, without padding.

    :param segments: the segments
    :return: indices of rows, segment after segment
    """
    return np.concatenate([np.arange(start, start + length) for start, length in segments])


def padded_rows(segments: Sequence[Segment], is_rounded: bool = False) -> PaddedRows:
    """
    List the rows of segments, padded to the length of the longest.

    :param segments: the segments, at least one
    :param is_rounded: whether to round the length and the number of segments up, by :func:`padded_size`
    :return: the rows and their weights
    """
    # Padding needs valid rows, for they are read and go through the network; weights of 0 remove them from all sums.
    n_segments, n_steps = len(segments), max(length for _, length in segments)
    if is_rounded:
        n_segments, n_steps = padded_size(n_segments), padded_size(n_steps)
    starts, lengths = np.array([*segments, *[(segments[-1].start, 0)] * (n_segments - len(segments))]).T
    steps = np.arange(n_steps)
    rows = (starts[:, None] + np.minimum(steps, np.maximum(lengths, 1)[:, None] - 1)).reshape(-1)
    weights = (steps < lengths[:, None]).astype(np.float32).reshape(-1)
    return PaddedRows(rows, starts, weights, len(rows) - int(lengths.sum()))
