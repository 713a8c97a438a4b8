"""The tables of ``results/speed.json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.common.tables import table
from benchmarks.common.timing import show
from benchmarks.speed.targets import TARGETS


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
        "speed_shares": shares_table(parts["shares_before"], parts.get("shares", {})),
        "speed_growth": growth_text(parts["growth"]),
    }


def learn_table(learn: Mapping[str, Any]) -> str:
    """
    Tabulate ``learn()`` beside its targets.

    :param learn: results by case
    :return: Markdown
    """
    rows = []
    for name, result in learn.items():
        ratio, over_bare, target = result["learn"], result["over_bare_env"], TARGETS[name]
        learn_target = judged(f"{target.learn:g}", ratio["median"] >= target.learn)
        bare_target = ""
        if target.over_bare is not None:
            bare_target = judged(f"{target.over_bare:g}", over_bare["median"] <= target.over_bare)
        ppo = show(result["learn_of_ppo"]) if "learn_of_ppo" in result else ""
        speed = f"{result['steps_per_second']['ours']:,.0f}"
        rows.append([target.label, show(ratio), learn_target, show(over_bare), bare_target, ppo, speed])
    head = ("`learn()`", "sb3-contrib / ours", "at least", "ours / bare environment", "at most", "PPO / ours", "ours, steps/s")
    return table(head, rows)


def judged(target: str, is_met: bool) -> str:
    """
    Say whether a target is met.

    :param target: the number
    :param is_met: whether the median reaches it
    :return: such as ``9: missed``
    """
    return f"{target}: {'met' if is_met else 'missed'}"


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


def shares_table(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """
    Tabulate where the time of ``learn()`` goes, and where it went before version 0.2.0.

    :param before: shares by case, measured then
    :param after: results by case
    :return: Markdown
    """
    parts = list(next(iter(before.values())))
    rows = []
    for name, target in TARGETS.items():
        measured = {"before": before.get(name), "after": after.get(name, {}).get("shares")}
        for when, shares in measured.items():
            if shares is not None:
                rows.append([target.label, when, *(f"{shares[part]:.0%}" for part in parts)])
    return table(("share of wall time", "", *parts), rows)


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
