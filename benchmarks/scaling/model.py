r"""
How long messages through the mesh take, and what they leave of the speed of one rank.

In each round, a rank of a group of :math:`f` sends its vector of :math:`b` bytes to the others, and waits for theirs:

.. math:: t(P, b) = \sum_{\text{rounds}} \ell + w + (f - 1) (o + b / B)

with the latency :math:`\ell` from one host to another, the time :math:`w` in which a waiting process wakes up, the work
:math:`o` of a rank for each other one, and :math:`B` bytes per second.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sb3_trpo.parallel.transport.mesh import factors

Measured = tuple[int, int, float, float]
"""Number of ranks, bytes of the vector, latency and seconds."""


class Cost(NamedTuple):
    """
    What a message costs, besides latency.

    :param wake: seconds until a process that waits for a message goes on
    :param other: seconds for each other rank of a group
    :param per_byte: seconds for each byte from another rank
    """

    wake: float
    other: float
    per_byte: float

    def seconds(self, n_ranks: int, n_bytes: int, latency: float) -> float:
        """
        Predict the time of a sum over all ranks.

        :param n_ranks: their number
        :param n_bytes: length of the vector
        :param latency: seconds from one host to another
        :return: seconds
        """
        terms = _terms(n_ranks, n_bytes)
        return float(terms[0] * latency + terms @ self)

    def of_all(self, messages: Iterable[Mapping[str, Any]], n_ranks: int, latency: float) -> float:
        """
        Predict the time of several messages.

        :param messages: with their ``bytes`` and ``number``
        :param n_ranks: number of ranks
        :param latency: seconds from one host to another
        :return: seconds
        """
        return sum(each["number"] * self.seconds(n_ranks, each["bytes"], latency) for each in messages)


def _terms(n_ranks: int, n_bytes: int) -> np.ndarray:
    """Return the number of rounds, of other ranks in all groups, and of the bytes that come from them."""
    groups = factors(n_ranks)
    others = sum(groups) - len(groups)
    return np.array([len(groups), others, others * n_bytes], dtype=float)


def fitted(measured: Sequence[Measured]) -> Cost:
    """
    Fit costs by least squares of relative errors; none is negative.

    :param measured: times of single sums
    :return: the costs
    """
    from scipy.optimize import nnls

    rounds = [_terms(n_ranks, n_bytes) for n_ranks, n_bytes, *_ in measured]
    seconds = np.array([each[3] for each in measured])
    without_latency = [each[3] - terms[0] * each[2] for each, terms in zip(measured, rounds, strict=True)]
    coefficients, _ = nnls(np.array(rounds) / seconds[:, None], np.array(without_latency) / seconds)
    return Cost(*map(float, coefficients))
