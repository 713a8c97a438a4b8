"""The tables of ``results/speed.json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.common.tables import table
from benchmarks.common.timing import show

NAMES = {
    "HalfCheetah-v5x8": "HalfCheetah-v5, 8 environments",
    "HalfCheetah-v5+norm": "HalfCheetah-v5, VecNormalize",
    "HalfCheetah-v5+zoo": "HalfCheetah-v5, RL Zoo's settings",
    "batched": "1,024 batched environments",
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
"""The least ratios of ``learn()`` that we aim for."""


def tables(raw: dict[str, Any]) -> dict[str, str]:
    """
    Tabulate the speed of whole runs and of their parts.

    :param raw: contents of ``speed.json``
    :return: Markdown by name
    """
    parts = {part: each["results"] for part, each in raw.items()}
    return {
        "speed_learn": learn_table(parts["learn"]),
        "speed_train": train_table(parts["train"], parts["learn"]),
        "speed_fisher": fisher_table(parts["fisher"]),
        "speed_shares": shares_table(parts["shares"]),
        "speed_growth": growth_text(parts["growth"]),
    }


def learn_table(learn: Mapping[str, Any]) -> str:
    """
    Tabulate ``learn()``.

    :param learn: results by case
    :return: Markdown
    """
    rows = []
    for name, result in learn.items():
        ratio, target = result["learn"], TARGETS[name]
        ppo = show(result["learn_of_ppo"]) if "learn_of_ppo" in result else ""
        speed = f"{result['steps_per_second']['ours']:,.0f}"
        outcome = "met" if ratio["median"] >= target else "missed"
        rows.append([NAMES.get(name, name), show(ratio), f"{target}", outcome, ppo, show(result["over_bare_env"]), speed])
    head = ("`learn()`", "sb3-contrib / ours", "target", "", "PPO / ours", "ours / bare environment", "ours, steps/s")
    return table(head, rows)


def train_table(train: Mapping[str, Any], learn: Mapping[str, Any]) -> str:
    """
    Tabulate ``train()``.

    :param train: results by case
    :param learn: results of ``learn()``, with ``train()`` on four tasks
    :return: Markdown
    """
    rows = []
    for name, result in learn.items():
        if "train_of_ppo" in result:
            rows.append([f"{name}, 2,048 transitions", show(result["train"]), show(result["train_of_ppo"])])
    rows += [[name, show(result["train"]), ""] for name, result in train.items()]
    rows += [[f"{name}, peak memory", show(each["peak_memory"]), ""] for name, each in train.items() if "peak_memory" in each]
    return table(("`train()`", "sb3-contrib / ours", "PPO / ours"), rows)


def fisher_table(fisher: Mapping[str, Any]) -> str:
    """
    Tabulate Fisher products.

    :param fisher: results by case
    :return: Markdown
    """
    rows = []
    for name, result in fisher.items():
        floor = show(result["ours_over_matmuls"]) if "ours_over_matmuls" in result else ""
        others = result["others_over_ours"]
        rows.append([name, floor, show(others["double backward"]), show(others["forward mode"])])
    return table(("Fisher product", "ours / its matrix products", "double backward / ours", "forward mode / ours"), rows)


def shares_table(shares: Mapping[str, Any]) -> str:
    """
    Tabulate where the time of ``learn()`` goes.

    :param shares: results by case
    :return: Markdown
    """
    parts = list(next(iter(shares.values())))
    rows = ([NAMES.get(name, name), *(f"{result[part]:.0%}" for part in parts)] for name, result in shares.items())
    return table(("share of wall time", *parts), rows)


def growth_text(growth: Mapping[str, Any]) -> str:
    """
    Describe how the time of ``train()`` grows.

    :param growth: the fitted exponents
    :return: a sentence
    """
    of_batch, of_parameters = growth["exponent_of_batch"], growth["exponent_of_parameters"]
    return (
        f"The time of `train()` grows with the size of the batch to the power {of_batch:.2f}, and with the number of "
        f"parameters to the power {of_parameters:.2f}."
    )
