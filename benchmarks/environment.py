"""What a measurement was made with, to be stored beside it."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch as th

PACKAGES = ("sb3-trpo", "sb3-contrib", "stable-baselines3", "torch", "gymnasium", "numpy")
RESULTS = Path(__file__).parent / "results"


def environment() -> dict[str, Any]:
    """
    Describe interpreter, machine, packages, commit and command.

    :return: plain data for JSON
    """
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    changed = subprocess.run(
        ["git", "status", "--porcelain", "sb3_trpo"],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "commit": commit.stdout.strip() + ("+" if changed.stdout else ""),
        "python": platform.python_version(),
        "cpu": cpu_model(),
        "threads": th.get_num_threads(),
        "packages": {name: version(name) for name in PACKAGES},
    }


def cpu_model() -> str:
    """
    Name the processor.

    :return: its model, or the architecture where the system does not say
    """
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()
