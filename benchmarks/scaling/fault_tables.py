"""The table of ``results/faults``, a file for each fault."""

from __future__ import annotations

from collections.abc import Mapping
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
    head = ("fault", "`distributed_timeout`", "rank 0", "rank 1", "policy", "started again, it ends as if undisturbed")
    return {"faults": table(head, [_row(each) for each in results])}


def _row(result: Mapping[str, Any]) -> list[str]:
    ranks = {each["rank"]: each for each in result["ranks"]}
    whole = "of a finished step" if all(each["whole"] for each in result["ranks"]) else "**not whole**"
    again = "ends as if undisturbed by itself" if result["goes on"] else "yes" if result["restart ends alike"] else "**no**"
    return [result["fault"], f"{result['timeout']:g} s", *(_end(ranks.get(rank)) for rank in range(2)), whole, again]


def _end(report: Mapping[str, Any] | None) -> str:
    """Say how a rank ended, and when."""
    if report is None:
        return GONE
    if report["error"] is None:
        return "goes on"
    return f"`{report['error'].partition(':')[0]}` after {report['seconds']:.1f} s"
