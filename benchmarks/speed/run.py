"""
Speed beside sb3-contrib's TRPO: alternating runs in one process, on one thread, with the same hyperparameters.

    python -m benchmarks.speed.run                # everything: about 45 minutes
    python -m benchmarks.speed.run --part learn   # one part: learn, train, fisher, growth or shares
    python -m benchmarks.speed.run --case frames  # learn() and shares of single cases; all other results stay
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch as th

from benchmarks.common.environment import RESULTS, environment
from benchmarks.speed.cases import CASES
from benchmarks.speed.fisher_products import measure_products
from benchmarks.speed.learn import measure_learn
from benchmarks.speed.shares import measure_shares
from benchmarks.speed.train import measure_growth, measure_train

BY_CASE: dict[str, Callable[[str], dict[str, Any]]] = {"learn": measure_learn, "shares": measure_shares}
"""Parts that measure one case at a time."""
WHOLE: dict[str, Callable[[], dict[str, Any]]] = {
    "train": measure_train,
    "fisher": measure_products,
    "growth": measure_growth,
}
"""Parts that are measured as a whole."""


def store(file: Path, part: str, measured: Mapping[str, Any]) -> None:
    """
    Store the results of a part.

    :param file: the raw results; what they say of other parts stays
    :param part: its name
    :param measured: environment and results; those by case, which have an environment each, join what is stored
    """
    contents = json.loads(file.read_text()) if file.is_file() else {}
    if part in BY_CASE:
        known = contents.get(part, {}).get("results", {}) | measured["results"]
        measured = {"results": {case: known[case] for case in CASES if case in known}}
    file.write_text(json.dumps(contents | {part: measured}, indent=1) + "\n")


def main() -> None:
    """Measure the parts asked for, print tables and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--part", choices=[*BY_CASE, *WHOLE], action="append", help="measure this part")
    parser.add_argument("--case", choices=CASES, action="append", help="measure this case of learn() and of the shares")
    parser.add_argument("--results", type=Path, default=RESULTS / "speed.json", help="file to update")
    args = parser.parse_args()
    th.set_num_threads(1)
    for part in args.part or (BY_CASE if args.case else [*BY_CASE, *WHOLE]):
        print(f"\n{part}")
        if part in WHOLE:
            store(args.results, part, {"environment": environment(), "results": WHOLE[part]()})
            continue
        for case in args.case or CASES:
            store(args.results, part, {"results": {case: {"environment": environment()} | BY_CASE[part](case)}})


if __name__ == "__main__":
    main()
