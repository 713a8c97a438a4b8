"""The table of ``results/trust_region.json``."""

from __future__ import annotations

from typing import Any

from benchmarks.common.tables import table


def tables(raw: dict[str, Any]) -> dict[str, str]:
    """
    Tabulate the KL of the steps.

    :param raw: contents of ``trust_region.json``
    :return: Markdown by name
    """
    results = {(each["actions"], each["package"]): each for each in raw["results"]}
    rows = []
    for actions in dict.fromkeys(actions for actions, _ in results):
        ours, peer = (results[actions, package] for package in ("sb3_trpo", "sb3_contrib"))
        kls = [each[key] for each in (ours, peer) for key in ("max", "mean")]
        is_within = "yes" if kls[0] <= ours["target_kl"] else "no"
        rows.append([actions, f"{ours['target_kl']}", *(f"{kl:.4f}" for kl in kls), is_within])
    columns = (f"{of}, {package}" for package in ("sb3_trpo", "sb3-contrib") for of in ("max", "mean"))
    head = ("actions", "`target_kl`", *columns, "sb3_trpo within it")
    return {"trust_region": table(head, rows)}
