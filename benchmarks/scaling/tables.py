"""
The tables of ``results/scaling.json`` and ``results/latency.json``.

    python -m benchmarks.scaling.tables --latency 50e-6 --bandwidth 1e10    # predictions for another network
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.common.environment import RESULTS
from benchmarks.common.tables import table
from benchmarks.scaling.collectives import collectives_table
from benchmarks.scaling.model import Cost, Measured, fitted

PREDICTED = (2, 8, 64, 1024)
"""Numbers of ranks."""
LATENCIES = (0.05e-3, 0.2e-3, 1e-3)
"""Seconds from one host to another; the second is that of the target."""
BANDWIDTH = 1.25e9
"""Bytes per second of a network of 10 Gbit/s."""
EFFICIENCY = 0.9
"""What two ranks of a run should reach of two runs side by side."""
FITTED_TO = ((2, 4), 0.2e-3)
"""Numbers of hosts and latency whose times of single vectors the check is fitted to."""
SHORT = 120_000
"""Bytes up to which vectors count for the work that each other rank is: longer ones are copied more slowly."""


def tables(raw: dict[str, Any]) -> dict[str, str]:
    """
    Tabulate what ranks gain and cost.

    :param raw: contents of ``scaling.json``
    :return: Markdown by name
    """
    cost = cost_of_a_network(raw, BANDWIDTH)
    return {
        "scaling_weak": weak_table(raw),
        "scaling_messages": messages_table(raw),
        "scaling_collectives": collectives_table(raw),
        "scaling_model": f"$w$ = {cost.wake * 1e6:.0f} µs, $o$ = {cost.other * 1e6:.0f} µs.",
        "scaling_predictions": prediction_table(raw, cost),
    }


def cases(raw: dict[str, Any]) -> dict[str, Any]:
    """Return times and messages of an iteration by the name of the case."""
    found: dict[str, Any] = raw["weak"]["ranks"]["2"]["learn()"]
    return found


def weak_table(raw: dict[str, Any]) -> str:
    """
    Tabulate efficiencies of two ranks: the time of two runs side by side, or of one alone, over theirs.

    :param raw: contents of ``scaling.json``
    :return: Markdown
    """
    rows = []
    for name, case in cases(raw).items():
        times = {key: np.array(value) for key, value in case["seconds"].items()}
        of_side_by_side, of_alone = (times[key] / times["together"] for key in ("side by side", "alone"))
        efficiency = float(np.median(of_side_by_side))
        rows.append(
            [
                name,
                f"{efficiency:.2f} ({of_side_by_side.min():.2f} to {of_side_by_side.max():.2f})",
                "met" if efficiency >= EFFICIENCY else "missed",
                f"{np.median(of_alone):.2f}",
                f"{np.median(times['alone']):.2f}",
            ]
        )
    head = ("per rank", "two runs side by side / two ranks", f"target: {EFFICIENCY}", "one rank alone / two ranks")
    return table((*head, "seconds per iteration, alone"), rows)


def messages_table(raw: dict[str, Any]) -> str:
    """
    Tabulate messages of an iteration, and KiB that a rank contributes to them, by part.

    :param raw: contents of ``scaling.json``
    :return: Markdown
    """
    parts = ("policy step", "critic", "rollout and checks")
    rows = []
    for name, case in cases(raw).items():
        number, size = Counter[str](), Counter[str]()
        for each in case["messages"]:
            number[each["part"]] += each["number"]
            size[each["part"]] += each["number"] * each["bytes"]
        rows.append([name, *(f"{number[part]} ({size[part] / 1024:.0f})" for part in parts), f"{number.total()}"])
    return table(("per rank", *parts, "together"), rows)


def cost_of_a_network(raw: dict[str, Any], bandwidth: float) -> Cost:
    """
    Take what the mesh costs a rank on this machine, with another network.

    More than two ranks that share two cores make wall times too long, so what each other rank costs is taken from CPU times.

    :param raw: contents of ``scaling.json``
    :param bandwidth: bytes per second
    :return: the costs
    """
    of_mesh = [
        (int(n_ranks) - 1, {key: float(np.median(of["mesh"][key])) for key in ("wall", "cpu")})
        for n_ranks, lengths in raw["collectives"]["ranks"].items()
        for length, of in lengths.items()
        if 4 * int(length) <= SHORT
    ]
    others, cpu = zip(*((n_others, of["cpu"]) for n_others, of in of_mesh), strict=True)
    other = float(np.polyfit(others, cpu, 1)[0])
    wall = float(np.median([of["wall"] for n_others, of in of_mesh if n_others == 1]))
    return Cost(wall - other, other, 1.0 / bandwidth)


def prediction_table(raw: dict[str, Any], cost: Cost, latencies: Sequence[float] = LATENCIES) -> str:
    """
    Tabulate predicted efficiencies of weak scaling: the time of an iteration of one rank over that with its messages.

    :param raw: contents of ``scaling.json``
    :param cost: of a message
    :param latencies: of the network
    :return: Markdown
    """
    rows = []
    for name, case in cases(raw).items():
        alone = float(np.median(case["seconds"]["alone"]))
        for latency in latencies:
            messages = [cost.of_all(case["messages"], n_ranks, latency) for n_ranks in PREDICTED]
            cells = (f"{alone / (alone + each):.2f} ({1e3 * each:.0f} ms)" for each in messages)
            rows.append([name, f"{1e3 * latency:g} ms", *cells])
    return table(("per rank", "latency", *(f"{n_ranks:,} ranks" for n_ranks in PREDICTED)), rows)


def latency_tables(raw: dict[str, Any]) -> dict[str, str]:
    """
    Compare predicted and measured times of the messages of an iteration between hosts.

    :param raw: contents of ``latency.json``
    :return: Markdown by name
    """
    cost = fitted([each for each in vectors(raw) if each[0] in FITTED_TO[0] and each[2] == FITTED_TO[1]])
    rows, errors = [], list[float]()
    for (n_hosts, latency), times in iterations(raw).items():
        cells = []
        for name, seconds in times.items():
            predicted = cost.of_all(raw["messages"][name], n_hosts, latency)
            error = predicted / seconds - 1
            cells.append(f"{1e3 * seconds:.0f}, {1e3 * predicted:.0f} ({error:+.0%})")
            if n_hosts not in FITTED_TO[0] or latency != FITTED_TO[1]:
                errors.append(error)
        rows.append([f"{n_hosts}", f"{1e3 * latency:g} ms", *cells])
    within = sum(abs(each) <= 0.2 for each in errors)
    text = (
        f"$w$ = {cost.wake * 1e6:.0f} µs, $o$ = {cost.other * 1e6:.0f} µs, $1 / B$ = {cost.per_byte * 1e9:.2f} ns per byte. "
        f"Of the {len(errors)} cases with other hosts or latencies, {within} are predicted to 20%. The median error is "
        f"{np.median(errors):+.0%}, the largest {max(errors, key=abs):+.0%}, and {sum(each < 0 for each in errors)} "
        "predictions are too low."
    )
    return {"latency": table(("hosts", "latency", *raw["messages"]), rows), "latency_fit": text}


def vectors(raw: dict[str, Any]) -> list[Measured]:
    """Return the times of single vectors: of all passes, the lower quartile, since other programs only lengthen them."""
    found: dict[tuple[int, int, float], list[float]] = {}
    for each in raw["measured"]:
        for size, seconds in each["vectors"].items():
            found.setdefault((each["hosts"], int(size), each["delay"]), []).extend(seconds)
    return [(*key, float(np.quantile(seconds, 0.25))) for key, seconds in found.items()]


def iterations(raw: dict[str, Any]) -> Mapping[tuple[int, float], dict[str, float]]:
    """Return the times of the messages of an iteration, taken like those of vectors, by hosts and latency, then case."""
    found: dict[tuple[int, float], dict[str, list[float]]] = {}
    for each in sorted(raw["measured"], key=lambda each: (each["hosts"], each["delay"])):
        of_pair = found.setdefault((each["hosts"], each["delay"]), {})
        for name, seconds in each["iterations"].items():
            of_pair.setdefault(name, []).extend(seconds)
    return {pair: {name: float(np.quantile(seconds, 0.25)) for name, seconds in of.items()} for pair, of in found.items()}


def main() -> None:
    """Print predictions for another network."""
    parser = argparse.ArgumentParser(description="Predict the efficiency of many ranks with another network.")
    parser.add_argument("--latency", type=float, default=LATENCIES[1], help="seconds from one host to another")
    parser.add_argument("--bandwidth", type=float, default=BANDWIDTH, help="bytes per second")
    args = parser.parse_args()
    raw = json.loads((RESULTS / "scaling.json").read_text())
    print(prediction_table(raw, cost_of_a_network(raw, args.bandwidth), [args.latency]))


if __name__ == "__main__":
    main()
