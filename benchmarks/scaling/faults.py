"""
Faults between machines: what each rank does, how soon, and whether a restart ends like a run without the fault.

    python -m benchmarks.scaling.faults                           # all of them, on hosts of network namespaces; as root
    python -m benchmarks.scaling.faults --only cable              # those whose name has this text

Each fault meets a run of ``fault_run.py`` that torchrun has started on each host as the documentation says. The run stops at
one point, the fault happens, and the run goes on. ``results/faults`` gets a file for each fault.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.common.environment import RESULTS, ROOT, environment
from benchmarks.scaling.fault_run import GO_ON, PHASES, REACHED
from benchmarks.scaling.hosts import SWITCH, Host, Wire, hosts, why_not

FOLDER = RESULTS / "faults"
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
        if not _within(LIMIT, lambda: (self.folder / REACHED).exists() or self._has_ended()) or self._has_ended():
            raise RuntimeError(f"The run did not reach {self.phase}. {self._output()}")

    def let_it_go_on(self) -> None:
        """End the stop."""
        (self.folder / GO_ON).write_text("")

    def reports(self, n_ranks: int) -> list[dict[str, Any]]:
        """
        Wait for the reports of ranks.

        :param n_ranks: how many to wait for
        :return: the reports; fewer if the others have been killed or hang
        """
        files = [self.folder / f"rank-{rank}.json" for rank in range(n_ranks)]
        _within(LIMIT, lambda: all(file.exists() for file in files) or self._has_ended())
        return [json.loads(file.read_text()) | {"rank": rank} for rank, file in enumerate(files) if file.exists()]

    def _has_ended(self) -> bool:
        return all(each.poll() is not None for each in self.launchers.values())

    def _output(self) -> str:
        return "\n".join(file.read_text()[-2000:] for file in self.folder.glob("*.txt"))


def _within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Wait for a condition; return whether it has come true in time."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(POLL_INTERVAL)
    return True


class Fault(NamedTuple):
    """
    Something that goes wrong.

    :param name: what it is
    :param act: does it; ``None`` if the variables or the folder are all
    :param phase: where the run stops for it
    :param rank: the rank that stops
    :param settings: further ones of :class:`Run`
    :param lost: numbers of ranks whose processes are gone afterward, and leave no report
    :param wire: what joins the hosts
    """

    name: str
    act: Callable[[Bench, Run], None] | None = None
    phase: str | None = None
    rank: int = 1
    settings: dict[str, Any] = {}  # noqa: RUF012  # nobody changes it
    lost: tuple[int, ...] = ()
    wire: Wire = SWITCH


def cut_off(number: int, seconds: float | None = None) -> Callable[[Bench, Run], None]:
    """
    Pull the cable of a host.

    :param number: of the host
    :param seconds: until it is plugged in again, ``None`` for never
    :return: the fault
    """

    def act(bench: Bench, run: Run) -> None:
        bench.hosts[number].cut_off()
        run.let_it_go_on()
        if seconds is not None:
            time.sleep(seconds)
            bench.hosts[number].connect()

    return act


def killed(number: int, is_back: bool = False) -> Callable[[Bench, Run], None]:
    """
    Switch a host off.

    :param number: of the host
    :param is_back: whether it is switched on and torchrun started on it again, once the others have noticed
    :return: the fault
    """

    def act(bench: Bench, run: Run) -> None:
        host = bench.hosts[number]
        host.kill()
        run.let_it_go_on()
        if is_back:
            time.sleep(1.5 * run.timeout)
            host.connect()
            bench.start(host, run)

    return act


FAULTS = (
    *(Fault(f"a cable is pulled out in {phase}", cut_off(1), phase) for phase in PHASES),
    Fault("the first host's cable is pulled out in the critic", cut_off(0), "the critic"),
    Fault("a cable is out for 5 s", cut_off(1, 5.0), "the critic", settings={"timeout": 20.0}),
    Fault("a cable is out for twice the timeout", cut_off(1, 2 * TIMEOUT), "the critic"),
    Fault("a host is switched off", killed(1), "the policy step", lost=(1,)),
    Fault("the first host is switched off", killed(0), "the policy step", lost=(0,)),
    Fault("a host is switched off and on again", killed(1, is_back=True), "the critic", settings={"max_restarts": 3}),
    Fault("checkpoints in a folder of each host", cut_off(1), "the critic", settings={"checkpoints": "{}"}),
    Fault("1 % of packets lost", wire=Wire(loss=0.01)),
    Fault("10 % of packets lost", wire=Wire(loss=0.1)),
    Fault("a delay of 50 ms", wire=Wire(delay=0.05)),
    Fault("other CPU instructions on a host", settings={"variables": {1: {"ATEN_CPU_CAPABILITY": "default"}}}),
    Fault("other numbers of threads", settings={"variables": {1: {"OMP_NUM_THREADS": "2"}}}),
)


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


def undisturbed(there: Bench) -> str:
    """
    Train without a fault.

    :param there: where
    :return: the final parameters
    """
    run = there.started(Run(there.folder / "undisturbed", str(there.folder / "checkpoints-of-undisturbed")))
    (parameters,) = {each["parameters"] for each in run.reports(there.n_ranks)}
    return str(parameters)


def meet(fault: Fault, there: Bench) -> dict[str, Any]:
    """
    Let a fault happen, then start the run again without it.

    :param fault: the fault
    :param there: where
    :return: what has happened
    """
    settings = {"checkpoints": "shared", **fault.settings}
    settings["checkpoints"] = str(there.folder / f"checkpoints-{settings['checkpoints']}")
    run = there.started(Run(there.folder / "disturbed", phase=fault.phase, rank=fault.rank, **settings))
    if fault.act is not None:
        run.wait_until_it_stops()
    start = time.time()
    if fault.act is not None:
        fault.act(there, run)
    awaited = [rank for rank in range(there.n_ranks) if rank not in fault.lost]
    _within(LIMIT, lambda: all((run.folder / f"rank-{rank}.json").exists() for rank in awaited))
    reports = run.reports(there.n_ranks)
    ranks = [
        {
            "rank": each["rank"],
            "seconds": round(each["at"] - start, 1),
            "error": each["error"] and each["error"].partition(" This is typically")[0],  # the rest is always the same
            "whole": each.get("is whole"),
        }
        for each in reports
    ]
    return {
        "fault": fault.name,
        "timeout": run.timeout,
        "ranks": ranks,
        "parameters": [each.get("parameters") for each in reports],
    }


def again(fault: Fault, there: Bench) -> str | None:
    """
    Start the run again where it was, without the fault.

    :param fault: the fault
    :param there: where, with all cables plugged in
    :return: the final parameters, ``None`` if the ranks do not end with the same
    """
    checkpoints = there.folder / f"checkpoints-{fault.settings.get('checkpoints', 'shared')}"
    run = there.started(Run(there.folder / "again", str(checkpoints)))
    found = {each["parameters"] for each in run.reports(there.n_ranks) if each["error"] is None}
    return found.pop() if len(found) == 1 else None


def measure(fault: Fault, expected: str) -> dict[str, Any]:
    """
    Measure one fault.

    :param fault: the fault
    :param expected: final parameters of the run without it
    :return: the result to store
    """
    with bench(fault.wire) as there:
        result = meet(fault, there)
        for host in there.hosts:
            host.stop()
            if fault.wire == SWITCH:
                host.connect()
        resumed = again(fault, there)
    parameters = {*result.pop("parameters")}
    went_on = all(each["error"] is None for each in result["ranks"]) and parameters == {expected}
    return result | {"goes on": went_on, "restart ends alike": resumed == expected, "environment": environment()}


def file_of(fault: Fault) -> str:
    """
    Name the file of a result.

    :param fault: the fault
    :return: its name
    """
    return re.sub("[^a-z0-9]+", "-", fault.name.lower()) + ".json"


def main() -> None:
    """Measure faults whose result is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--only", default="", help="a part of the name")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    args = parser.parse_args()
    reason = why_not()
    if reason is not None:
        sys.exit(f"No hosts can be made here: {reason}.")
    args.folder.mkdir(parents=True, exist_ok=True)
    missing = [fault for fault in FAULTS if args.only in fault.name and not (args.folder / file_of(fault)).exists()]
    with bench() as there:
        expected = undisturbed(there)
    for fault in missing:
        result = measure(fault, expected)
        (args.folder / file_of(fault)).write_text(json.dumps(result, indent=1) + "\n")
        print({key: value for key, value in result.items() if key != "environment"}, flush=True)


if __name__ == "__main__":
    main()
