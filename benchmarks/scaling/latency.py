"""
What a message costs between hosts, by their number, its length and the latency of the wire.

    python -m benchmarks.scaling.latency                      # as root: on hosts of network namespaces

Each host has one rank. In turn, ranks sum vectors of several lengths, and send the messages of a whole iteration, as
``results/scaling.json`` counts them, without computing anything in between.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import torch as th
import torch.distributed as dist

from benchmarks.common.environment import RESULTS, ROOT, environment
from benchmarks.scaling.hosts import Wire, hosts, why_not
from sb3_trpo.parallel.distributed import GlooCommunicator, connect

FILE = RESULTS / "latency.json"
HOSTS = (2, 3, 4)
DELAYS = (0.05e-3, 0.2e-3, 1e-3)
"""Seconds from one host to another."""
LENGTHS = (16, 2_000, 6_000)
"""Lengths of float32 vectors: a scalar or a few, and gradients of small networks."""
PACKET = 65_000
"""Bytes of a packet: each vector is one, because the program that stands for the wire takes its time for each packet."""
PASSES, ROUNDS = 3, 3
"""Times that all pairs of delay and number of hosts come in turn, and rounds in each of them."""
REPEATS = 40
PORT = 29400
LIMIT = 300.0


def messages_of_iterations() -> dict[str, list[dict[str, Any]]]:
    """Return the messages of an iteration by the name of the case, as they were counted."""
    counted = json.loads((RESULTS / "scaling.json").read_text())["weak"]["ranks"]["2"]["learn()"]
    return {name: case["messages"] for name, case in counted.items()}


def seconds_of(communicator: GlooCommunicator, job: Callable[[], object]) -> float:
    """Time a job that all ranks begin together."""
    communicator.sum(th.zeros(1))
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def send_all(communicator: GlooCommunicator, messages: list[dict[str, Any]]) -> None:
    """Exchange vectors of the lengths of messages."""
    for each in messages:
        vector = th.zeros(each["bytes"], dtype=th.uint8)
        for _ in range(each["number"]):
            communicator.sum(vector)


def work(out: Path) -> None:
    """
    Measure on this rank.

    :param out: file that the first rank writes
    """
    th.set_num_threads(1)
    communicator = connect(True, th.device("cpu"))
    assert isinstance(communicator, GlooCommunicator)
    found: dict[str, dict[str, list[float]]] = {"vectors": {}, "iterations": {}}
    for _ in range(ROUNDS):
        for length in LENGTHS:
            vector = th.zeros(length)
            took = seconds_of(communicator, lambda vector=vector: [communicator.sum(vector) for _ in range(REPEATS)])
            found["vectors"].setdefault(str(4 * length), []).append(took / REPEATS)
        for name, messages in messages_of_iterations().items():
            took = seconds_of(communicator, lambda messages=messages: send_all(communicator, messages))
            found["iterations"].setdefault(name, []).append(took)
    if communicator.is_first:
        out.write_text(json.dumps(found))
    dist.barrier()


def measure(n_hosts: int, delay: float) -> dict[str, Any]:
    """
    Measure on several hosts.

    :param n_hosts: their number
    :param delay: seconds from one to another
    :return: what the first rank has written
    """
    with tempfile.TemporaryDirectory() as folder, hosts(n_hosts, Wire(delay, packet=PACKET)) as members:
        out = Path(folder) / "found.json"
        command = [sys.executable, "-m", "benchmarks.scaling.latency", "--out", str(out)]
        variables = {"WORLD_SIZE": str(n_hosts), "MASTER_ADDR": members[0].name, "MASTER_PORT": str(PORT)}
        started = [
            host.start(command, {"RANK": str(rank), "PYTHONPATH": str(ROOT), **variables}, Path(folder, f"{rank}.txt"), ROOT)
            for rank, host in enumerate(members)
        ]
        for each in started:
            if each.wait(LIMIT):
                raise RuntimeError(Path(folder, "0.txt").read_text())
        found: dict[str, Any] = json.loads(out.read_text())
    return found


def main() -> None:
    """Measure, or run as one of the ranks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.out:
        work(args.out)
        return
    reason = why_not()
    if reason is not None:
        sys.exit(f"No hosts can be made here: {reason}.")
    found = []
    for number, delay, n_hosts in product(range(PASSES), DELAYS, HOSTS):
        found.append({"pass": number, "delay": delay, "hosts": n_hosts, **measure(n_hosts, delay)})
        print(number, delay, n_hosts, flush=True)
    FILE.write_text(
        json.dumps({"environment": environment(), "messages": messages_of_iterations(), "measured": found}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
