"""Training runs that torchrun starts on several pretended hosts, as the documentation says, for ``faults.py`` to disturb."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.common.environment import ROOT
from benchmarks.scaling.fault_run import GO_ON, REACHED
from benchmarks.scaling.hosts import SWITCH, Host, Wire, hosts

TIMEOUT = 8.0
"""``distributed_timeout`` of the runs: short, so that all faults together take half an hour."""
LIMIT = 240.0
"""Seconds after which a run counts as hanging."""
PORT = 29500
POLL_INTERVAL = 0.02


class Bench:
    """
    Runs on pretended hosts.

    :param members: the hosts
    :param folder: for files of all runs
    :param per_host: ranks on each host
    """

    def __init__(self, members: list[Host], folder: Path, per_host: int) -> None:
        self.hosts = members
        self.folder = folder
        self.n_ranks = per_host * len(members)
        self._per_host = per_host

    def start(self, host: Host, run: Run) -> None:
        """
        Start torchrun on a host.

        :param host: the host
        :param run: what to run there
        """
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", len(self.hosts)]
        torchrun += ["--nproc-per-node", self._per_host, "--max-restarts", run.max_restarts, "--monitor-interval", "0.2"]
        torchrun += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{self.hosts[0].name}:{PORT}", "--rdzv-id", run.folder.name]
        script = ["-m", "benchmarks.scaling.fault_run", run.folder, "--checkpoints", run.checkpoints_of(host)]
        script += ["--timeout", run.timeout, *(("--phase", run.phase, "--rank", run.rank) if run.phase else ())]
        command = [str(part) for part in (*torchrun, *script)]
        env = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **run.variables.get(self.hosts.index(host), {})}
        run.launchers[host] = host.start(command, env, run.folder / f"{host.name}.txt", ROOT)

    def started(self, run: Run) -> Run:
        """Start torchrun on all hosts."""
        run.folder.mkdir(parents=True)
        for host in self.hosts:
            self.start(host, run)
        return run


class Run:
    """
    A run on all hosts.

    :param folder: for its files
    :param checkpoints: folder of its checkpoints; with ``{}`` in its name, one for each host
    :param phase: where it stops, ``None`` for nowhere
    :param rank: the rank that stops
    :param timeout: ``distributed_timeout``
    :param max_restarts: of torchrun
    :param variables: environment variables by number of the host
    """

    def __init__(
        self,
        folder: Path,
        checkpoints: str,
        phase: str | None = None,
        rank: int = 1,
        timeout: float = TIMEOUT,
        max_restarts: int = 0,
        variables: Mapping[int, Mapping[str, str]] | None = None,
    ) -> None:
        self.folder, self.phase, self.rank, self.timeout = folder, phase, rank, timeout
        self.max_restarts, self.variables = max_restarts, variables or {}
        self.launchers: dict[Host, subprocess.Popen[bytes]] = {}
        self._checkpoints = checkpoints

    def checkpoints_of(self, host: Host) -> str:
        """Return the folder of checkpoints that a host sees."""
        return self._checkpoints.format(host.name)

    def wait_until_it_stops(self) -> None:
        """
        Wait for the point at which the run stops.

        :raises RuntimeError: if it does not get there
        """
        if not within(LIMIT, lambda: (self.folder / REACHED).exists() or self._has_ended()) or self._has_ended():
            raise RuntimeError(f"The run did not reach {self.phase}. {self._output()}")

    def let_it_go_on(self) -> None:
        """End the stop."""
        (self.folder / GO_ON).write_text("")

    def reports(self, ranks: Iterable[int]) -> list[dict[str, Any]]:
        """
        Wait for the reports of ranks; under restarts until torchrun has ended, as there may be better ones.

        :param ranks: those to wait for
        :return: the reports with the time of each; fewer if ranks have been killed or hang
        """
        awaited = {rank: self.folder / f"rank-{rank}.json" for rank in ranks}
        within(LIMIT, lambda: self._has_ended() or (not self.max_restarts and all(file.exists() for file in awaited.values())))
        return [
            json.loads(file.read_text()) | {"rank": rank, "at": file.stat().st_mtime}
            for rank, file in awaited.items()
            if file.exists()
        ]

    def _has_ended(self) -> bool:
        return all(each.poll() is not None for each in self.launchers.values())

    def _output(self) -> str:
        return "\n".join(file.read_text()[-2000:] for file in self.folder.glob("*.txt"))


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Wait for a condition; return whether it has come true in time."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(POLL_INTERVAL)
    return True


@contextmanager
def bench(wire: Wire = SWITCH, n_hosts: int = 2, per_host: int = 1) -> Iterator[Bench]:
    """
    Have hosts to run on.

    :param wire: what joins them
    :param n_hosts: number of hosts
    :param per_host: ranks on each
    :return: the bench
    """
    with tempfile.TemporaryDirectory() as folder, hosts(n_hosts, wire) as members:
        yield Bench(members, Path(folder), per_host)
