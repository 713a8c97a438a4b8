"""
Every table and picture of the raw results, for the documentation; measures nothing.

    python -m benchmarks.report

Tables go to ``results/tables``, the learning report and its pictures to ``results/learning``, other pictures to ``results``,
and the headline to ``docs``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from benchmarks.agents.tables import tables as agents_tables
from benchmarks.checkpoint.tables import tables as checkpoint_tables
from benchmarks.common.environment import RESULTS, ROOT
from benchmarks.common.tables import table
from benchmarks.constrained.tables import draw_constrained, tables as constrained_tables
from benchmarks.hybrid.tables import tables as hybrid_tables
from benchmarks.learning import report as learning
from benchmarks.learning.beta_actions import tables as beta_actions_tables
from benchmarks.learning.tables import beside
from benchmarks.memory.tables import tables as memory_tables
from benchmarks.peers.tables import tables as peers_tables
from benchmarks.pictures import HEADLINE, draw_headline, draw_hybrid, draw_speed, draw_trust_region
from benchmarks.reuse.tables import tables as reuse_tables
from benchmarks.scaling.fault_tables import fault_tables
from benchmarks.scaling.tables import latency_tables, tables as scaling_tables
from benchmarks.speed.tables import tables as speed_tables
from benchmarks.state_kl.tables import draw_state_kl, tables as state_kl_tables
from benchmarks.trust_region.tables import tables as trust_region_tables
from benchmarks.variants.tables import tables as variants_tables

FOLDER = RESULTS / "tables"
FIGURES: dict[str, Callable[[dict[str, Any]], dict[str, str]]] = {
    "trust_region": trust_region_tables,
    "state_kl": state_kl_tables,
    "speed": speed_tables,
    "peers": peers_tables,
    "memory": memory_tables,
    "scaling": scaling_tables,
    "latency": latency_tables,
    "faults": fault_tables,
    "checkpoint": checkpoint_tables,
    "variants": variants_tables,
    "agents": agents_tables,
    "hybrid": hybrid_tables,
    "constrained": constrained_tables,
    "reuse": reuse_tables,
    "beta_actions": beta_actions_tables,
}
"""Functions from raw results to tables by name."""
FOLDERS = ("constrained", "faults", "reuse")
"""Figures whose raw results are a folder, with a file for each run."""


def raw(name: str) -> dict[str, Any]:
    """
    Read raw results.

    :param name: key of ``FIGURES``
    :return: the contents of the file; of a folder, those of each file by its name, under ``results``
    """
    if name in FOLDERS:
        files = sorted((RESULTS / name).glob("*.json"))
        return {"results": {file.stem: json.loads(file.read_text()) for file in files}}
    contents: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return contents


def environments(contents: Any) -> list[dict[str, Any]]:
    """
    Find what measurements were made with.

    :param contents: raw results, or a part of them
    :return: each environment once, in order
    """
    if not isinstance(contents, dict):
        return []
    found = [contents["environment"]] if "environment" in contents else []
    found += [each for part in contents.values() for each in environments(part)]
    return [each for index, each in enumerate(found) if each not in found[:index]]


def made_with() -> str:
    """
    Tabulate what the measurements were made with.

    :return: Markdown
    """
    rows = []
    for name in FIGURES:
        found = environments(raw(name))
        if not found:  # a folder, before its first run has ended
            continue
        cells: dict[str, list[str]] = {
            "cpu": [],
            "python": [],
            "sb3-trpo": [],
            "commit": [],
            "stable-baselines3": [],
            "torch": [],
        }
        for each in found:
            known = each | each["packages"] | {"commit": each["commit"][:7]}
            for key, values in cells.items():
                values.append(known[key])
        file = f"{name}/*.json" if name in FOLDERS else f"{name}.json"
        rows.append([f"`{file}`", *(", ".join(dict.fromkeys(values)) for values in cells.values())])
    return table(("raw results", "processor", "Python", "sb3_trpo", "commit", "SB3 and sb3-contrib", "torch"), rows)


def texts() -> dict[str, str]:
    """
    Make all tables but those of the learning report, which is one text.

    :return: Markdown by name
    """
    made = {"made_with": made_with(), "ppo": beside(learning.latest(), HEADLINE, "PPO")}
    for name, tables in FIGURES.items():
        made |= tables(raw(name))
    return made


def main() -> None:
    """Write everything."""
    FOLDER.mkdir(exist_ok=True)
    for name, text in texts().items():
        (FOLDER / f"{name}.md").write_text(text + "\n")
    learning.main()
    learn = raw("speed")["learn"]["results"]
    draw_speed(learn, RESULTS / "speed.svg")
    draw_trust_region(raw("trust_region")["results"], RESULTS / "trust_region.svg")
    draw_state_kl(raw("state_kl")["results"], RESULTS / "state_kl.svg")
    draw_hybrid(raw("hybrid"), RESULTS / "hybrid.svg")
    draw_constrained(raw("constrained")["results"], RESULTS / "constrained.svg")
    draw_headline(learning.latest(), learn, ROOT / "docs" / "headline.png")
    print(FOLDER)


if __name__ == "__main__":
    main()
