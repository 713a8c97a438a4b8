"""The Python blocks of the documentation's pages, and short runs of them."""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from sb3_contrib import TRPO as CONTRIB_TRPO
from stable_baselines3 import A2C, PPO

from sb3_trpo import TRPO

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```python\n(?P<shown>.*?)^```$|^% setup\n(?P<hidden>(?:^%[^\n]*\n)+)", re.MULTILINE | re.DOTALL)
QUIET = {"WANDB_ERROR_REPORTING": "false", "MLFLOW_DISABLE_TELEMETRY": "true", "ORT_DISABLE_TELEMETRY": "1"}
"""Environment variables that keep libraries of the recipes from reporting to their makers."""
SHORT = 64
"""Steps of a rollout, and of a whole run, unless a page's code says less."""


def pages() -> list[Path]:
    """List the pages, README included."""
    return [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


def blocks_of(text: str) -> list[str]:
    """
    Find the code of a page, in order.

    Blocks fenced as ``python`` are shown and run. Code that a reader has already, such as an environment, is in a comment::

        % setup
        % env = ...
    """
    found = []
    for match in BLOCK.finditer(text):
        hidden = match["hidden"]
        found.append(match["shown"] if hidden is None else re.sub(r"^% ?", "", hidden, flags=re.MULTILINE))
    return found


def shorten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every algorithm collect a short rollout and learn from it once or twice."""
    for algorithm in (TRPO, CONTRIB_TRPO, PPO, A2C):
        build, learn = algorithm.__init__, algorithm.learn

        @functools.wraps(build)
        def build_small(self: Any, *args: Any, build: Any = build, **kwargs: Any) -> None:
            small = {"n_steps": SHORT, "batch_size": SHORT} if not isinstance(self, A2C) else {}
            kwargs["n_steps"] = min(kwargs.get("n_steps", SHORT), SHORT)
            build(self, *args, **small | kwargs)

        @functools.wraps(learn)
        def learn_a_little(self: Any, total_timesteps: float, *args: Any, learn: Any = learn, **kwargs: Any) -> Any:
            return learn(self, min(total_timesteps, 2 * SHORT), *args, **kwargs)

        monkeypatch.setattr(algorithm, "__init__", build_small)
        monkeypatch.setattr(algorithm, "learn", learn_a_little)


def run_page(path: Path) -> None:
    """Run a page's code from top to bottom, in one namespace, in the present folder; what it does to the environment ends."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    text = path.read_text()
    with patch.dict(os.environ, QUIET):
        for number, code in enumerate(blocks_of(text), start=1):
            exec(compile(code, f"{path.name}, block {number}", "exec"), namespace)
