"""
How a rollout is cut into segments, which policies with memory are run over, and how segments are grouped.

A segment is the part of one episode of one environment that lies in the rollout. Its initial LSTM state is the one that the
acting policy had there, or zeros where the episode starts. From there on the state is recomputed by whatever policy is being
evaluated, so that gradients reach back through the whole segment.

An LSTM runs over the segments of a group in parallel, padded to the same length. Padding has weight 0: every mean is
``sum(w x) / sum(w)``, so that neither the grouping nor the padding changes a result beyond rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import NamedTuple

import numpy as np


class Segment(NamedTuple):
    """
    Where a segment lies among the rows of a rollout, which go through it environment after environment.

    :param start: its first row
    :param length: number of rows
    """

    start: int
    length: int


class PaddedRows(NamedTuple):
    """
    The rows of several segments, padded to the same length, segment after segment.

    :param rows: indices of rows, shape ``(n_segments * longest,)``; padding repeats a segment's last row
    :param starts: first row of each segment, shape ``(n_segments,)``
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
    :param longest: rows per segment at most; a longer segment is cut again, and no gradient crosses the cut
    :return: the segments, in order; together they cover the rollout
    """
    is_start = episode_starts > 0
    is_start[::n_steps] = True
    starts = np.flatnonzero(is_start)
    return [
        Segment(int(start), int(min(longest, end - start)))
        for first, end in zip(starts, [*starts[1:], len(is_start)], strict=True)
        for start in range(first, end, longest)
    ]


def every_kth(segments: Sequence[Segment], k: int) -> list[Segment]:
    """
    Choose every k-th segment, counted from the shortest to the longest.

    Segments of all lengths are chosen alike, so that they hold about a k-th of the transitions. Counted in the rollout's order
    they might not: episodes that alternate between short and long would leave the short ones only.

    :param segments: the segments
    :param k: 1 chooses all
    :return: the chosen ones, shortest first
    """
    return sorted(segments, key=attrgetter("length"))[::k]


def grouped_by_length(segments: Sequence[Segment], size: int) -> list[list[Segment]]:
    """
    Group segments of similar lengths, so that at most half of a group is padding.

    :param segments: the segments
    :param size: rows per group at most, padding included; a longer segment makes a group of its own
    :return: the groups, longest segments first
    """
    groups: list[list[Segment]] = []
    for segment in sorted(segments, key=lambda segment: -segment.length):
        longest = groups[-1][0].length if groups else 0
        if groups and 2 * segment.length >= longest and (len(groups[-1]) + 1) * longest <= size:
            groups[-1].append(segment)
        else:
            groups.append([segment])
    return groups


def rows_of(segments: Sequence[Segment]) -> np.ndarray:
    """
    List the rows of segments, without padding.

    :param segments: the segments
    :return: indices of rows, segment after segment
    """
    return np.concatenate([np.arange(start, start + length) for start, length in segments])


def padded_rows(segments: Sequence[Segment]) -> PaddedRows:
    """
    List the rows of segments, padded to the length of the longest.

    :param segments: the segments
    :return: the rows and their weights
    """
    starts, lengths = np.array(segments).T
    steps = np.arange(lengths.max())
    rows = (starts[:, None] + np.minimum(steps, lengths[:, None] - 1)).reshape(-1)
    weights = (steps < lengths[:, None]).astype(np.float32).reshape(-1)
    return PaddedRows(rows, starts, weights, len(rows) - int(lengths.sum()))
