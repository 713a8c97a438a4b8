"""Interpreters that have only what ``pip install '.[extra,...]'`` brings."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

try:
    import tomllib
except ModuleNotFoundError:  # before Python 3.11; pytest brings this one there
    import tomli as tomllib

import sb3_trpo

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
OWN = canonicalize_name(PROJECT["name"])
HIDE = """
import sys
from importlib.machinery import PathFinder
class Visible(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in hidden else super().find_spec(name, path, target)
sys.meta_path[:] = [Visible if finder is PathFinder else finder for finder in sys.meta_path]
"""


def required_by(name: str, extras: Iterable[str]) -> Iterator[Requirement]:
    """List what a distribution requires; ours as in the checkout, since another version may be installed."""
    if name == OWN:
        yield from map(Requirement, PROJECT["dependencies"])
        yield from (Requirement(each) for extra in extras for each in EXTRAS[extra])
        return
    for requirement in map(Requirement, metadata.requires(name) or ()):
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield requirement


def brought_by(*extras: str) -> set[str]:
    """Name the distributions that an installation with some extras brings."""
    found: set[tuple[str, str]] = set()
    pending = [(OWN, extra) for extra in ("", *extras)]
    while pending:
        name, extra = pending.pop()
        if (name, extra) in found:
            continue
        found.add((name, extra))
        try:
            required = [*required_by(name, [extra] if extra else [])]
        except metadata.PackageNotFoundError:  # for another system, or not installed here
            continue
        pending += [(canonicalize_name(each.name), some) for each in required for some in ("", *each.extras)]
    return {name for name, _ in found}


@cache
def installed_modules() -> Mapping[str, list[str]]:
    """Find the distributions of each top-level module; this reads every installed distribution's list of files."""
    return metadata.packages_distributions()


def hidden_without(*extras: str) -> set[str]:
    """Name the top-level modules that are installed here and that these extras alone would not bring."""
    kept = brought_by(*extras)
    owners = installed_modules().items()
    return {module for module, names in owners if not kept & {canonicalize_name(name) for name in names}}


def run_without(hidden: Iterable[str], program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program in an interpreter in which modules are hidden."""
    command = [sys.executable, "-c", f"hidden = {set(hidden)!r}\n{HIDE}\n{program}"]
    # One thread: several, in each of the processes that run tests, wait for each other most of the time.
    environment = os.environ | {"PYTHONPATH": str(Path(sb3_trpo.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, cwd=folder, env=environment)
