"""Training scripts of this folder in interpreters of their own."""

from __future__ import annotations

import os
from pathlib import Path

import sb3_trpo

TESTS = Path(__file__).parents[1]
PACKAGE = Path(sb3_trpo.__file__).parents[1]


def environment() -> dict[str, str]:
    """Let an interpreter find this folder, and the package that is being tested."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (PACKAGE, TESTS)))}
