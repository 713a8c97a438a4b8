r"""
A cost model of updates on several ranks, fitted to ``results/scaling.json``: prints the README's tables.

    python -m benchmarks.scaling.model

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

import argparse
import json
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.common.environment import RESULTS
from sb3_trpo.parallel.distributed import SHORT_MESSAGE

PREDICTED = (1, 8, 64, 1024)
HELD_OUT = 3
"""Number of ranks whose updates are predicted, and not fitted to."""
WIDTHS = {"5k": 64, "50k": 210, "500k": 690, "5M": 2210}
"""Units of each of the two hidden layers, by the approximate number of parameters on HalfCheetah-v5."""
GRADIENT, PRODUCT, EVALUATION, FIT = 3.0, 4.0, 1.0, 3.0
"""Cost of a gradient, a Fisher product, a candidate and a pass of the critic, in forward passes."""


def shapes(width: int) -> tuple[float, float]:
    """
    Count the parameters of policy and critic, for 17 observations and 6 actions.

    :param width: units of each of the two hidden layers
    :return: both numbers
    """
    trunk = 17 * width + width * width + 2 * width
    return trunk + 7.0 * width + 12.0, trunk + width + 1.0


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
            (self.n_candidates + 5.0, 64.0),
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


def table(head: list[str], rows: list[list[str]]) -> str:
    """
    Format a table.

    :param head: names of the columns
    :param rows: cells
    :return: Markdown
    """
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def weak_table(results: dict[str, Any]) -> str:
    """Tabulate efficiencies: seconds of one rank alone over those of two."""
    rows = []
    for name, case in results["weak"]["ranks"]["2"]["learn()"].items():
        times = {key: np.array(value) for key, value in case["seconds"].items()}
        ratios = times["alone"] / times["together"]
        ceiling = np.median(times["alone"] / times["side by side"])
        counted = case["per iteration"]
        rows.append(
            [
                name,
                f"{np.median(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f})",
                f"{ceiling:.2f}",
                f"{np.median(times['alone']):.2f}",
                f"{counted['messages']:.0f}",
                f"{counted['bytes'] / 2**20:.1f}",
            ]
        )
    head = ["per rank", "efficiency of 2 ranks", "of 2 runs side by side", "seconds per iteration, alone", "messages", "MiB"]
    return table(head, rows)


def check_table(results: dict[str, Any], model: Model) -> str:
    """Tabulate measured and predicted update times on this machine, and the messages of two ranks."""
    of_updates = results["updates"]["ranks"]
    rows = []
    for name, counted in of_updates["2"].items():
        cells = []
        for n_ranks, cases in of_updates.items():
            predicted = sum(model.seconds(Update(cases[name]), int(n_ranks), crowded=True))
            measured = np.median(cases[name]["seconds"])
            cells.append(f"{measured:.2f}, {predicted:.2f} ({predicted / measured:.2f})")
        rows.append([name, f"{counted['messages']}", f"{counted['bytes'] / 2**20:.1f}", *cells])
    return table(["hidden units", "messages", "MiB", *(f"{n_ranks} ranks" for n_ranks in of_updates)], rows)


def prediction_table(model: Model, latency: float | None, per_rank: float | None, bandwidth: float | None) -> str:
    """Tabulate predicted update times, for 2,048 transitions per rank, 10 critic passes and otherwise the default settings."""
    for index, given in ((4, latency), (5, per_rank), (6, None if bandwidth is None else 1.0 / bandwidth)):
        model.coefficients[index] = model.coefficients[index] if given is None else given
    rows = []
    for label, width in WIDTHS.items():
        n_policy, n_critic = shapes(width)
        case = {"n_policy": n_policy, "n_critic": n_critic, "n_steps": 2048, "cg_iterations": 15, "line_search_steps": 1}
        for batch_size in (128, 1024):
            update = Update({**case, "n_critic_updates": 10, "batch_size": batch_size})
            predicted = [model.seconds(update, n_ranks) for n_ranks in PREDICTED]
            rows.append([label, str(batch_size), *(f"{sum(each):.2f} ({each[1] / sum(each):.0%})" for each in predicted)])
    return table(["parameters", "minibatch of a rank", *(f"{n_ranks} ranks" for n_ranks in PREDICTED)], rows)


def main() -> None:
    """Fit, and print."""
    parser = argparse.ArgumentParser(description="Fit the cost model and print the README's tables.")
    parser.add_argument("--latency", type=float, help="seconds of a short message there and back, instead of the fitted one")
    parser.add_argument("--per-rank", type=float, help="seconds more for each rank beyond two, instead of the fitted ones")
    parser.add_argument("--bandwidth", type=float, help="bytes per second, instead of the fitted one")
    args = parser.parse_args()
    results = json.loads((RESULTS / "scaling.json").read_text())
    model = Model(results, os.cpu_count() or 1)
    f, h, c, s, alpha, per_rank, beta = model.coefficients
    sections: dict[str, Callable[[], str]] = {
        "Weak scaling": lambda: weak_table(results),
        "Fit": lambda: check_table(results, model),
        "Predictions": lambda: prediction_table(model, args.latency, args.per_rank, args.bandwidth),
    }
    print(f"f = {f * 1e3:.2f} ms, h = {h * 1e9:.0f} ns, c = {c * 1e12:.1f} ps, s = {s * 1e6:.0f} us")
    print(f"alpha = {alpha * 1e6:.0f} us, {per_rank * 1e6:.0f} us for each rank beyond two, 1 / beta = {1e-6 / beta:.0f} MB/s")
    buckets = results["weak"]["ranks"]["2"]["update, buckets"]
    print({name: f"{np.median(times):.3f} s" for name, times in buckets.items()})
    for n_ranks, of in results["collectives"]["ranks"].items():
        ours, rings = (1e3 * np.median(of["5000"][name]) for name in ("sum", "all_reduce"))
        print(f"{n_ranks} ranks, 5,000 numbers: {ours:.1f} ms, all-reduce {rings:.1f} ms")
    for title, make in sections.items():
        print(f"\n{title}\n\n{make()}")


if __name__ == "__main__":
    main()
