"""
The tables of ``results/scaling.json``.

    python -m benchmarks.scaling.tables --latency 50e-6 --per-rank 5e-6 --bandwidth 1e9    # predictions for another network
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np

from benchmarks.common.environment import RESULTS
from benchmarks.common.tables import table
from benchmarks.scaling.collectives import collectives_table
from benchmarks.scaling.model import Model, Update

CORES = 2
"""Of the machine that measured, if the results do not say."""
PREDICTED = (1, 8, 64, 1024)
WIDTHS = {"5k": 64, "50k": 210, "500k": 690, "5M": 2210}
"""Units of each of the two hidden layers, by the approximate number of parameters on HalfCheetah-v5."""
EFFICIENCY = 0.85
"""The least efficiency of two ranks that we aim for."""


def model_of(raw: dict[str, Any]) -> Model:
    """
    Fit the cost model.

    :param raw: contents of ``scaling.json``
    :return: the model
    """
    return Model(raw, raw["updates"]["environment"].get("cores", CORES))


def tables(raw: dict[str, Any]) -> dict[str, str]:
    """
    Tabulate what ranks gain and cost.

    :param raw: contents of ``scaling.json``
    :return: Markdown by name
    """
    model = model_of(raw)
    return {
        "scaling_weak": weak_table(raw),
        "scaling_messages": messages_text(raw),
        "scaling_collectives": collectives_table(raw),
        "scaling_model": model_text(raw, model),
        "scaling_fit": fit_table(raw, model),
        "scaling_predictions": prediction_table(model),
    }


def weak_table(raw: dict[str, Any]) -> str:
    """
    Tabulate efficiencies: seconds of one rank alone over those of two.

    :param raw: contents of ``scaling.json``
    :return: Markdown
    """
    rows = []
    for name, case in raw["weak"]["ranks"]["2"]["learn()"].items():
        times = {key: np.array(value) for key, value in case["seconds"].items()}
        ratios = times["alone"] / times["together"]
        efficiency, ceiling = np.median(ratios), np.median(times["alone"] / times["side by side"])
        counted = case["per iteration"]
        rows.append(
            [
                name,
                f"{efficiency:.2f} ({ratios.min():.2f} to {ratios.max():.2f})",
                "met" if efficiency >= EFFICIENCY else "missed",
                f"{ceiling:.2f}",
                f"{np.median(times['alone']):.2f}",
                f"{counted['messages']:.0f}",
                f"{counted['bytes'] / 2**20:.1f}",
            ]
        )
    head = ("per rank", "efficiency of 2 ranks", f"target: {EFFICIENCY}", "of 2 runs side by side")
    return table((*head, "seconds per iteration, alone", "messages", "MiB"), rows)


def messages_text(raw: dict[str, Any]) -> str:
    """
    Describe what it gains to reduce a gradient as one vector.

    :param raw: contents of ``scaling.json``
    :return: a sentence
    """
    buckets = {name: np.median(times) for name, times in raw["weak"]["ranks"]["2"]["update, buckets"].items()}
    return (
        f"An update of two ranks takes {buckets['one vector']:.3f} s if the critic's gradient is reduced as one vector, "
        f"and {buckets['a message per tensor']:.3f} s with a message for each tensor."
    )


def model_text(raw: dict[str, Any], model: Model) -> str:
    """
    Describe the fitted model.

    :param raw: contents of ``scaling.json``
    :param model: the model
    :return: two sentences
    """
    f, h, c, s, alpha, per_rank, beta = model.coefficients
    ratios = [predicted / measured for _, cells in compared(raw, model) for measured, predicted in cells]
    return (
        f"$f$ = {f * 1e3:.2f} ms, $h$ = {h * 1e9:.0f} ns, $c$ = {c * 1e12:.1f} ps, $s$ = {s * 1e6:.0f} µs, "
        f"$\\alpha(2)$ = {alpha * 1e6:.0f} µs and {per_rank * 1e6:.0f} µs more for each further rank, "
        f"$1 / \\beta$ = {1e-6 / beta:.0f} MB/s. "
        f"The ratios of predicted and measured times go from {min(ratios):.2f} to {max(ratios):.2f}."
    )


def compared(raw: dict[str, Any], model: Model) -> list[tuple[str, list[tuple[float, float]]]]:
    """
    Compare update times on the machine that measured.

    :param raw: contents of ``scaling.json``
    :param model: the model
    :return: for each case its name, and the measured and the predicted seconds for each number of ranks
    """
    of_updates = raw["updates"]["ranks"]
    return [
        (
            name,
            [
                (float(np.median(cases[name]["seconds"])), sum(model.seconds(Update(cases[name]), int(n_ranks), crowded=True)))
                for n_ranks, cases in of_updates.items()
            ],
        )
        for name in of_updates["2"]
    ]


def fit_table(raw: dict[str, Any], model: Model) -> str:
    """
    Tabulate measured and predicted update times, and the messages of two ranks.

    :param raw: contents of ``scaling.json``
    :param model: the model
    :return: Markdown
    """
    of_updates = raw["updates"]["ranks"]
    rows = []
    for name, cells in compared(raw, model):
        counted = of_updates["2"][name]
        shown = (f"{measured:.2f}, {predicted:.2f} ({predicted / measured:.2f})" for measured, predicted in cells)
        rows.append([name, f"{counted['messages']}", f"{counted['bytes'] / 2**20:.1f}", *shown])
    return table(("hidden units", "messages", "MiB", *(f"{n_ranks} ranks" for n_ranks in of_updates)), rows)


def shapes(width: int) -> tuple[float, float]:
    """
    Count the parameters of policy and critic, for 17 observations and 6 actions.

    :param width: units of each of the two hidden layers
    :return: both numbers
    """
    trunk = 17 * width + width * width + 2 * width
    return trunk + 7.0 * width + 12.0, trunk + width + 1.0


def prediction_table(model: Model) -> str:
    """
    Tabulate predicted update times, for 2,048 transitions per rank, 10 critic passes and otherwise the default settings.

    :param model: the model
    :return: Markdown
    """
    rows = []
    for label, width in WIDTHS.items():
        n_policy, n_critic = shapes(width)
        case = {"n_policy": n_policy, "n_critic": n_critic, "n_steps": 2048, "cg_iterations": 15, "line_search_steps": 1}
        for batch_size in (128, 1024):
            update = Update({**case, "n_critic_updates": 10, "batch_size": batch_size})
            predicted = [model.seconds(update, n_ranks) for n_ranks in PREDICTED]
            rows.append([label, f"{batch_size:,}", *(f"{sum(each):.2f} ({each[1] / sum(each):.0%})" for each in predicted)])
    return table(("parameters", "minibatch of a rank", "1 rank", *(f"{n_ranks:,} ranks" for n_ranks in PREDICTED[1:])), rows)


def main() -> None:
    """Print predictions for another network."""
    parser = argparse.ArgumentParser(description="Predict the time of an update on many ranks with another network.")
    parser.add_argument("--latency", type=float, help="seconds of a short message there and back, instead of the fitted one")
    parser.add_argument("--per-rank", type=float, help="seconds more for each rank beyond two, instead of the fitted ones")
    parser.add_argument("--bandwidth", type=float, help="bytes per second, instead of the fitted one")
    args = parser.parse_args()
    model = model_of(json.loads((RESULTS / "scaling.json").read_text()))
    beta = None if args.bandwidth is None else 1.0 / args.bandwidth
    for index, given in ((4, args.latency), (5, args.per_rank), (6, beta)):
        model.coefficients[index] = model.coefficients[index] if given is None else given
    print(prediction_table(model))


if __name__ == "__main__":
    main()
