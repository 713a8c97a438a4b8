"""
Tables and a picture for the README from ``results/speed.json``; measures nothing.

    python -m benchmarks.speed.report
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from benchmarks.common.environment import RESULTS
from benchmarks.common.timing import show

NAMES = {
    "HalfCheetah-v5x8": "HalfCheetah-v5, 8 envs",
    "HalfCheetah-v5+norm": "HalfCheetah-v5, VecNormalize",
    "HalfCheetah-v5+zoo": "HalfCheetah-v5, RL Zoo's settings",
    "batched": "1,024 batched envs",
}
TARGETS = {
    "CartPole-v1": 5.0,
    "Pendulum-v1": 4.5,
    "HalfCheetah-v5": 4.3,
    "Hopper-v5": 3.0,
    "HalfCheetah-v5x8": 2.2,
    "HalfCheetah-v5+norm": 3.0,
    "HalfCheetah-v5+zoo": 3.0,
    "batched": 3.0,
}


def learn_table(learn: Mapping[str, Any]) -> str:
    """
    Tabulate ``learn()``.

    :param learn: results by case
    :return: Markdown
    """
    lines = ["| `learn()` | sb3-contrib / ours | ours / bare env | ours, steps/s | PPO / ours |", "|---|---|---|---|---|"]
    for name, result in learn.items():
        ppo = show(result["learn_of_ppo"]) if "learn_of_ppo" in result else ""
        speed = f"{result['steps_per_second']['ours']:,.0f}"
        cells = (NAMES.get(name, name), show(result["learn"]), show(result["over_bare_env"]), speed, ppo)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def train_table(train: Mapping[str, Any], learn: Mapping[str, Any]) -> str:
    """
    Tabulate ``train()``.

    :param train: results by case
    :param learn: results of ``learn()``, with ``train()`` on four tasks
    :return: Markdown
    """
    lines = ["| `train()` | sb3-contrib / ours | PPO / ours |", "|---|---|---|"]
    for name, result in learn.items():
        if "train_of_ppo" in result:
            lines.append(f"| {name}, 2,048 transitions | {show(result['train'])} | {show(result['train_of_ppo'])} |")
    lines += [f"| {name} | {show(result['train'])} | |" for name, result in train.items()]
    lines += [f"| {name}, peak memory | {show(r['peak_memory'])} | |" for name, r in train.items() if "peak_memory" in r]
    return "\n".join(lines)


def fisher_table(fisher: Mapping[str, Any]) -> str:
    """
    Tabulate Fisher products.

    :param fisher: results by case
    :return: Markdown
    """
    lines = ["| Fisher product | ours / its matmuls | double backward / ours | forward mode / ours |", "|---|---|---|---|"]
    for name, result in fisher.items():
        floor = show(result["ours_over_matmuls"]) if "ours_over_matmuls" in result else ""
        others = result["others_over_ours"]
        lines.append(f"| {name} | {floor} | {show(others['double backward'])} | {show(others['forward mode'])} |")
    return "\n".join(lines)


def shares_table(shares: Mapping[str, Any]) -> str:
    """
    Tabulate where the time of ``learn()`` goes.

    :param shares: results by case
    :return: Markdown
    """
    parts = list(next(iter(shares.values())))
    lines = [f"| share of wall time | {' | '.join(parts)} |", "|---" * (len(parts) + 1) + "|"]
    for name, result in shares.items():
        lines.append(f"| {NAMES.get(name, name)} | " + " | ".join(f"{result[part]:.0%}" for part in parts) + " |")
    return "\n".join(lines)


def draw(learn: Mapping[str, Any]) -> None:
    """
    Plot the ratios of ``learn()`` as bars, with their spread and the targets.

    :param learn: results by case
    """
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots()
    names = [NAMES.get(name, name) for name in learn][::-1]
    spreads = [result["learn"] for result in learn.values()][::-1]
    medians = [spread["median"] for spread in spreads]
    below = [spread["median"] - spread["min"] for spread in spreads]
    above = [spread["max"] - spread["median"] for spread in spreads]
    axes.barh(
        names, medians, xerr=[below, above], color="#4477aa", ecolor="#222222", capsize=3, label="median, least to largest"
    )
    axes.plot([TARGETS[name] for name in learn][::-1], names, "D", color="#ee6677", label="target")
    axes.axvline(1.0, color="#888888", linewidth=0.8)
    axes.set_xlabel("speed of learn(): times sb3-contrib's TRPO, one thread")
    figure.legend(loc="outside upper right", ncols=2, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(RESULTS / "speed.png", dpi=120)


def main() -> None:
    """Print the tables and save the picture."""
    parts = {part: each["results"] for part, each in json.loads((RESULTS / "speed.json").read_text()).items()}
    tables = [learn_table(parts["learn"]), train_table(parts["train"], parts["learn"]), fisher_table(parts["fisher"])]
    print("\n\n".join([*tables, shares_table(parts["shares"])]))
    growth = parts["growth"]
    print(f"\ntrain() grows with the batch to the power {growth['exponent_of_batch']:.2f}", end="")
    print(f" and with the parameters to the power {growth['exponent_of_parameters']:.2f}.")
    draw(parts["learn"])


if __name__ == "__main__":
    main()
