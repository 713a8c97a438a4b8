"""The table of ``results/faults``, a file for each fault."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.common.tables import table
from benchmarks.scaling.faults import FAULTS

GONE = "no report"


def fault_tables(raw: Mapping[str, Any]) -> dict[str, str]:
    """
    Tabulate what each rank does.

    :param raw: the results by the name of their file, under ``results``
    :return: Markdown by name
    """
    by_name = {result["fault"]: result for result in raw["results"].values()}
    results = [by_name[fault.name] for fault in FAULTS if fault.name in by_name]
    head = (
        "fault",
        "`distributed_timeout`",
        "first rank",
        "other ranks",
        "policy",
        "started again, it ends as if undisturbed",
    )
    return {"faults": table(head, [_row(each) for each in results])}


def _row(result: Mapping[str, Any]) -> list[str]:
    ranks = {each["rank"]: each for each in result["ranks"]}
    others = [ranks.get(rank) for rank in range(1, result["n_ranks"])]
    whole = "of a finished step" if all(each["whole"] for each in result["ranks"]) else "**not whole**"
    again = "ends as if undisturbed by itself" if result["goes on"] else "yes" if result["restart ends alike"] else "**no**"
    return [result["fault"], f"{result['timeout']:g} s", _ends([ranks.get(0)]), _ends(others), whole, again]


def _ends(reports: Sequence[Mapping[str, Any] | None]) -> str:
    """Say how ranks ended, and when the last one that ended in this way did."""
    latest: dict[str, float | None] = {}
    for report in reports:
        if report is None:
            latest[GONE] = None
        elif report["error"] is None:
            latest["goes on"] = None
        else:
            name = f"`{report['error'].partition(':')[0]}`"
            latest[name] = max(latest.get(name) or 0.0, report["seconds"])
    return ", ".join(name if seconds is None else f"{name} after {seconds:.1f} s" for name, seconds in latest.items())
