r"""
A cost model of updates on several ranks, fitted to ``results/scaling.json``; ``tables.py`` tabulates what it predicts.

========  ==============================================================================
P         number of ranks
n         number of parameters of policy or critic, b = 4 n bytes
N, m      transitions of a rank; minibatches of the critic in an update
W         passes over a rank's transitions, counted in forward passes
alpha(P)  seconds of a short message there and back: those of two ranks, and more for each further rank
beta      seconds per byte
f         seconds of an update that do not depend on the batch
h, c      seconds per transition and pass; the same per parameter
s         seconds per minibatch
========  ==============================================================================

``T(P) = f + max(1, P / cores) (N W (h + c n) + m s) + messages``. A reduction of b bytes costs ``alpha(P) + 2 (P - 1) beta b``
up to 128 KiB, through the first rank, and ``2 (P - 1) alpha(2) + 2 (P - 1) / P beta b`` beyond, in a ring.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sb3_trpo.parallel.distributed import SHORT_MESSAGE

HELD_OUT = 3
"""Number of ranks whose updates are predicted, and not fitted to."""
GRADIENT, PRODUCT, EVALUATION, FIT = 3.0, 4.0, 1.0, 3.0
"""Cost of a gradient, a Fisher product, a candidate and a pass of the critic, in forward passes."""


class Update:
    """
    The work of an update.

    :param case: settings and counts from ``results/scaling.json``
    """

    def __init__(self, case: dict[str, Any]) -> None:
        self.n_policy, self.n_critic = case["n_policy"], case["n_critic"]
        self.n = case["n_steps"]
        self.n_products, self.n_candidates = case["cg_iterations"], case["line_search_steps"]
        self.n_passes = case["n_critic_updates"]
        self.n_minibatches = self.n_passes * -(-self.n // case["batch_size"])

    def work(self) -> np.ndarray:
        """Return the factors of f, h, c and s."""
        of_policy = GRADIENT + PRODUCT * self.n_products + EVALUATION * self.n_candidates
        of_critic = FIT * self.n_passes
        per_parameter = self.n * (of_policy * self.n_policy + of_critic * self.n_critic)
        return np.array([1.0, self.n * (of_policy + of_critic), per_parameter, self.n_minibatches])

    def reductions(self) -> list[tuple[float, float]]:
        """Return number and bytes of the reductions: products and gradient, steps of the critic, and scalars."""
        return [
            (self.n_products + 1.0, 4.0 * self.n_policy),
            (float(self.n_minibatches), 4.0 * self.n_critic),
            (self.n_candidates + 6.0, 64.0),  # as tests/parallel/test_messages.py counts them, without the checksums
        ]


def relative_fit(rows: np.ndarray, times: np.ndarray) -> np.ndarray:
    """
    Fit non-negative coefficients by least squares of relative errors.

    :param rows: factors of the coefficients, shape ``(n, k)``
    :param times: measured seconds, shape ``(n,)``
    :return: coefficients, shape ``(k,)``
    """
    from scipy.optimize import nnls

    coefficients, _ = nnls(rows / times[:, None], np.ones(len(times)))
    return np.asarray(coefficients)


class Model:
    """
    The fitted model.

    :param results: contents of ``results/scaling.json``
    :param cores: number of cores of the machine
    """

    def __init__(self, results: dict[str, Any], cores: int) -> None:
        self.cores = cores
        of_updates = results["updates"]["ranks"]
        measured = [(1, case, case["alone"]) for case in of_updates["2"].values()]
        measured += [(int(p), case, case["seconds"]) for p, cases in of_updates.items() for case in cases.values()]
        fitted = [each for each in measured if each[0] != HELD_OUT]
        rows = np.array([self.row(Update(case), n_ranks) for n_ranks, case, _ in fitted])
        self.coefficients = relative_fit(rows, np.array([np.median(times) for *_, times in fitted]))

    def row(self, update: Update, n_ranks: int, crowded: bool = True) -> np.ndarray:
        """
        Return the factors of all coefficients.

        :param update: the update of each rank
        :param n_ranks: number of ranks
        :param crowded: whether the ranks share this machine's cores
        :return: those of computation, then those of messages, shape ``(7,)``
        """
        share = max(1.0, n_ranks / self.cores) if crowded else 1.0
        of_messages = sum((number * self.factors(n_ranks, size) for number, size in update.reductions()), np.zeros(3))
        return np.concatenate((share * update.work(), of_messages if n_ranks > 1 else np.zeros(3)))

    def factors(self, n_ranks: int, size: float) -> np.ndarray:
        """
        Return the factors of latency, of latency per further rank, and of time per byte for one reduction.

        :param n_ranks: number of ranks
        :param size: length of the vector in bytes
        :return: the factors, shape ``(3,)``
        """
        others = n_ranks - 1.0
        if size <= SHORT_MESSAGE:
            return np.array([1.0, others - 1.0, 2.0 * others * size])
        return np.array([2.0 * others, 0.0, 2.0 * others / n_ranks * size])

    def seconds(self, update: Update, n_ranks: int, crowded: bool = False) -> tuple[float, float]:
        """
        Predict the time of an update.

        :param update: the update of each rank
        :param n_ranks: number of ranks
        :param crowded: whether the ranks share this machine's cores
        :return: seconds of computation and of messages
        """
        parts = self.row(update, n_ranks, crowded) * self.coefficients
        return float(parts[:4].sum()), float(parts[4:].sum())
