"""Running ``python -m sb3_trpo.zoo`` in this process."""

from pathlib import Path

import pytest

from sb3_trpo.zoo.command import main


def run_zoo(folder: Path, *arguments: object) -> None:
    """Run a script of the zoo as the command line does, in a folder."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("sys.argv", ["zoo", *map(str, arguments)])
        monkeypatch.chdir(folder)
        main()
