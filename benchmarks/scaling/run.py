"""
What ranks cost and gain: weak scaling on HalfCheetah-v5, with messages counted, and two ways of summing vectors.

``python -m benchmarks.scaling.run`` starts the ranks through torchrun.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch as th
import torch.distributed as dist
from stable_baselines3.common.logger import Logger

from benchmarks.common.environment import RESULTS, ROOT, environment
from benchmarks.scaling import collectives
from sb3_trpo import TRPO
from sb3_trpo.parallel.distributed import GlooCommunicator, connect
from sb3_trpo.parallel.transport.mesh import Mesh

TASK = "HalfCheetah-v5"
CPU = th.device("cpu")
ROUNDS = 5
WEAK = ((2048, 128), (2048, 256), (2048, 512), (2048, 1024), (8192, 512), (8192, 1024))
"""Steps per rollout and transitions per minibatch of the critic, both per rank; the first pair is the default."""
PARTS = {"_improve_policy": "policy step", "_fit_critic": "critic"}
"""Methods of TRPO whose messages are counted by themselves."""
REST = "rollout and checks"


def make(n_ranks: int, **settings: Any) -> TRPO:
    """
    Make a model that does the same work on each rank for any number of ranks.

    :param n_ranks: number of ranks; 1 for a model alone
    :param settings: keywords of the constructor, per rank
    :return: the model
    """
    settings = {"n_steps": 2048, "batch_size": 128, **settings}
    for name in ("n_steps", "batch_size"):
        settings[name] *= n_ranks
    alone = None if n_ranks > 1 else False
    model = TRPO("MlpPolicy", TASK, seed=0, device="cpu", distributed=alone, **settings)
    model.set_logger(Logger(None, []))
    return model


@contextmanager
def counting() -> Iterator[Counter[tuple[str, int]]]:
    """Count messages by the part of an iteration and by the bytes that each rank contributes."""
    counter: Counter[tuple[str, int]] = Counter()
    part = REST

    def counted(function: Callable[..., Any], values_at: int) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            counter[part, args[values_at].nbytes] += 1
            return function(*args, **kwargs)

        return call

    def named(method: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal part
            part = name
            try:
                return method(*args, **kwargs)
            finally:
                part = REST

        return call

    with ExitStack() as stack:
        for owner, name, values_at in ((Mesh, "sum", 1), (Mesh, "gather", 1), (dist, "all_reduce", 0), (dist, "broadcast", 0)):
            stack.enter_context(mock.patch.object(owner, name, counted(getattr(owner, name), values_at)))
        for name, label in PARTS.items():
            stack.enter_context(mock.patch.object(TRPO, name, named(getattr(TRPO, name), label)))
        yield counter


def timed(job: Callable[[], object]) -> float:
    """
    Time a job that all ranks begin together.

    :param job: what to run
    :return: wall time in seconds
    """
    dist.barrier()
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def measure_weak(communicator: GlooCommunicator) -> dict[str, Any]:
    """Time learn() in turn: one rank while the other waits, two runs at the same time, and two ranks of one run."""
    found: dict[str, Any] = {}
    for n_steps, batch_size in WEAK:
        alone = make(1, n_steps=n_steps, batch_size=batch_size)
        models = {"alone": alone if communicator.is_first else None, "side by side": alone}
        models["together"] = make(communicator.size, n_steps=n_steps, batch_size=batch_size)
        times: dict[str, list[float]] = {name: [] for name in models}
        n_iterations = max(1, 4096 // n_steps)
        for each in models.values():
            _learn(each, 1)
        counter = messages_of_an_iteration(models["together"])
        for _ in range(ROUNDS):
            for name, model in models.items():
                times[name].append(timed(lambda model=model, n=n_iterations: _learn(model, n)) / n_iterations)
        messages = [{"part": part, "bytes": size, "number": number} for (part, size), number in sorted(counter.items())]
        found[f"{n_steps} steps, minibatches of {batch_size}"] = {"seconds": times, "messages": messages}
    return {"learn()": found}


def messages_of_an_iteration(model: TRPO) -> Counter[tuple[str, int]]:
    """Count the messages of an iteration, without those with which learn() begins and ends."""
    counters = []
    for n_iterations in (1, 2):
        with counting() as counter:
            _learn(model, n_iterations)
        counters.append(counter)
    return counters[1] - counters[0]


def _learn(model: TRPO | None, iterations: int) -> None:
    """Train for more iterations."""
    if model is not None:
        n_timesteps = model.n_steps * iterations
        model.learn(n_timesteps, reset_num_timesteps=model.num_timesteps == 0)


JOBS: dict[str, Callable[[GlooCommunicator], dict[str, Any]]] = {
    "collectives": collectives.measure_collectives,
    "weak": measure_weak,
}


def work(job: str, out: Path) -> None:
    """
    Run a job on this rank.

    :param job: key of ``JOBS``
    :param out: JSON file that the first rank writes the measurements to
    """
    th.set_num_threads(1)
    communicator = connect(True, CPU)
    assert isinstance(communicator, GlooCommunicator)
    found = JOBS[job](communicator)
    if communicator.is_first:
        out.write_text(json.dumps(found))
    dist.barrier()


def launch(job: str, n_ranks: int) -> dict[str, Any]:
    """
    Run a job on several ranks.

    :param job: key of ``JOBS``
    :param n_ranks: number of ranks
    :return: the measurements
    """
    print(f"{job}, {n_ranks} ranks", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n_ranks)]
        subprocess.run([*torchrun, "-m", "benchmarks.scaling.run", "--job", job, "--out", str(out)], cwd=ROOT, check=True)
        found: dict[str, Any] = json.loads(out.read_text())
    return found


def main() -> None:
    """Measure, or run as one of the ranks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", nargs="*", choices=list(JOBS), default=list(JOBS))
    parser.add_argument("--job", choices=list(JOBS), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        work(args.job, args.out)
        return
    th.set_num_threads(1)
    path = RESULTS / "scaling.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for part in args.part:
        worlds = (2,) if part == "weak" else collectives.WORLDS
        found = {str(n_ranks): launch(part, n_ranks) for n_ranks in worlds}
        results[part] = {"environment": environment(), "ranks": found}
        path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
