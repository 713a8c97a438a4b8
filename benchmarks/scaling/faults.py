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
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.common.environment import RESULTS, environment
from benchmarks.scaling.bench import TIMEOUT, Bench, Run, bench
from benchmarks.scaling.fault_run import PHASES
from benchmarks.scaling.hosts import SWITCH, Wire, why_not

FOLDER = RESULTS / "faults"
STORE_OF_EACH_ATTEMPT = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
"""
Lets a new torchrun join a run that has been restarted.

By default, the store of the first attempt serves all attempts, and only the processes of the first one learn its address.
"""
CLOCKS = [*Path("/usr/lib").glob("*/faketime/libfaketime.so.1")]
"""Library that shows a process other clocks, of Debian's libfaketime."""
A_DAY_AHEAD = {"LD_PRELOAD": str(CLOCKS[0]) if CLOCKS else "", "FAKETIME": "+1d"}


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
    :param n_hosts: number of hosts
    :param per_host: ranks on each of them
    """

    name: str
    act: Callable[[Bench, Run], None] | None = None
    phase: str | None = None
    rank: int = 1
    settings: dict[str, Any] = {}  # noqa: RUF012  # nobody changes it
    lost: tuple[int, ...] = ()
    wire: Wire = SWITCH
    n_hosts: int = 2
    per_host: int = 1


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


def lasts(seconds: float) -> Callable[[Bench, Run], None]:
    """
    Let a phase take its time.

    :param seconds: how long
    :return: the fault
    """

    def act(_: Bench, run: Run) -> None:
        time.sleep(seconds)
        run.let_it_go_on()

    return act


FAULTS = (
    *(Fault(f"a cable is pulled out in {phase}", cut_off(1), phase) for phase in PHASES if phase != "an evaluation"),
    Fault("the first host's cable is pulled out in the critic", cut_off(0), "the critic"),
    Fault("a cable is out for 5 s", cut_off(1, 5.0), "the critic", settings={"timeout": 20.0}),
    Fault("a cable is out for twice the timeout", cut_off(1, 2 * TIMEOUT), "the critic"),
    Fault("a host is switched off", killed(1), "the policy step", lost=(1,)),
    Fault("the first host is switched off", killed(0), "the policy step", lost=(0,)),
    Fault(
        "a host is switched off and on again",
        killed(1, is_back=True),
        "the critic",
        settings={"max_restarts": 3, "variables": dict.fromkeys(range(2), STORE_OF_EACH_ATTEMPT)},
    ),
    Fault("a cable is pulled out, three hosts", cut_off(1), "the critic", n_hosts=3),
    Fault("a cable is pulled out, four hosts", cut_off(1), "the critic", n_hosts=4),
    Fault("a host of two ranks is switched off", killed(1), "the policy step", 2, lost=(2, 3), per_host=2),
    Fault("the first rank evaluates for three timeouts", lasts(3 * TIMEOUT), "an evaluation", 0),
    Fault("checkpoints in a folder of each host", cut_off(1), "the critic", settings={"checkpoints": "{}"}),
    Fault("1 % of packets lost", wire=Wire(loss=0.01)),
    Fault("10 % of packets lost", wire=Wire(loss=0.1)),
    Fault("a delay of 50 ms", wire=Wire(delay=0.05)),
    Fault("other CPU instructions on a host", settings={"variables": {1: {"ATEN_CPU_CAPABILITY": "default"}}}),
    Fault("a clock a day ahead", settings={"variables": {1: A_DAY_AHEAD}}),
    Fault("other numbers of threads", settings={"variables": {1: {"OMP_NUM_THREADS": "2"}}}),
)


@cache
def undisturbed(n_ranks: int) -> str:
    """
    Train without a fault.

    :param n_ranks: number of ranks, each on a host of its own
    :return: the final parameters
    """
    with bench(n_hosts=n_ranks) as there:
        run = there.started(Run(there.folder / "undisturbed", str(there.folder / "checkpoints-of-undisturbed")))
        (parameters,) = {each["parameters"] for each in run.reports(range(n_ranks))}
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
    reports = run.reports([rank for rank in range(there.n_ranks) if rank not in fault.lost])
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
        "n_ranks": there.n_ranks,
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
    found = {each["parameters"] for each in run.reports(range(there.n_ranks)) if each["error"] is None}
    return found.pop() if len(found) == 1 else None


def measure(fault: Fault, expected: str) -> dict[str, Any]:
    """
    Measure one fault.

    :param fault: the fault
    :param expected: final parameters of the run without it
    :return: the result to store
    """
    with bench(fault.wire, fault.n_hosts, fault.per_host) as there:
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
    reason = why_not() or (None if CLOCKS else "libfaketime is not installed")
    if reason is not None:
        sys.exit(f"The faults can't be measured here: {reason}.")
    args.folder.mkdir(parents=True, exist_ok=True)
    missing = [fault for fault in FAULTS if args.only in fault.name and not (args.folder / file_of(fault)).exists()]
    for fault in missing:
        result = measure(fault, undisturbed(fault.n_hosts * fault.per_host))
        (args.folder / file_of(fault)).write_text(json.dumps(result, indent=1) + "\n")
        print({key: value for key, value in result.items() if key != "environment"}, flush=True)


if __name__ == "__main__":
    main()
