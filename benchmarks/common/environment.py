"""What a measurement was made with, stored beside it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch as th

PACKAGES = ("sb3-trpo", "sb3-contrib", "stable-baselines3", "torch", "gymnasium", "numpy")
ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"


def environment(packages: Sequence[str] = PACKAGES) -> dict[str, Any]:
    """
    Describe interpreter, machine, packages, commit and command.

    :param packages: names of the packages whose versions matter
    :return: plain data for JSON
    """
    return {
        "command": command(),
        "commit": git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "sb3_trpo") else ""),
        "python": platform.python_version(),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": th.get_num_threads(),
        "packages": {name: version(name) for name in packages},
    }


def command() -> str:
    """
    Write this process's command, without the paths of this machine.

    :return: such as ``python -m benchmarks.speed.run --part learn``
    """
    spec = getattr(sys.modules["__main__"], "__spec__", None)  # None for a script
    program = ["-m", spec.name] if spec else [Path(sys.argv[0]).name]
    return " ".join(["python", *program, *sys.argv[1:]])


def git(*arguments: str) -> str:
    """
    Ask git about this checkout.

    :param arguments: of the command
    :return: what it prints; nothing if this is no checkout
    """
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def cpu_model() -> str:
    """
    Name the processor.

    :return: its model, or the architecture if the system does not name it
    """
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()
