"""
What ranks cost and gain: weak scaling on HalfCheetah-v5, collectives, and updates with their messages counted.

``python -m benchmarks.scaling.run`` starts the ranks through torchrun. ``python -m benchmarks.report`` then fits the cost
model and writes the tables.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from sb3_trpo.update.flat_adam import FlatAdam

TASK = "HalfCheetah-v5"
CPU = th.device("cpu")
ROUNDS = 5
WEAK = ((2048, 128), (2048, 256), (2048, 512), (2048, 1024), (8192, 512), (8192, 1024))
"""Steps per rollout and transitions per minibatch of the critic, both per rank; the first pair is the default."""
WORLDS = (2, 3, 4)
UPDATES: dict[str, dict[str, Any]] = {
    "64x64": {"width": 64, "n_steps": 2048, "n_critic_updates": 10, "cg_max_steps": 15, "batch_size": 128},
    "64x64, critic alone": {"width": 64, "n_steps": 2048, "n_critic_updates": 20, "cg_max_steps": 1, "batch_size": 128},
    "64x64, large minibatches": {"width": 64, "n_steps": 2048, "n_critic_updates": 10, "cg_max_steps": 15, "batch_size": 1024},
    "256x256": {"width": 256, "n_steps": 2048, "n_critic_updates": 4, "cg_max_steps": 10, "batch_size": 128},
    "512x512": {"width": 512, "n_steps": 1024, "n_critic_updates": 2, "cg_max_steps": 6, "batch_size": 128},
    "2240x2240": {"width": 2240, "n_steps": 128, "n_critic_updates": 1, "cg_max_steps": 3, "batch_size": 64},
}
"""Networks of 5k to 5M parameters, with settings per rank that keep the large ones short."""
COUNTED = ("send", "isend", "broadcast", "all_gather", "all_reduce")


def make(n_ranks: int, width: int = 64, **settings: Any) -> TRPO:
    """
    Make a model that does the same work on each rank for any number of ranks.

    :param n_ranks: number of ranks; 1 for a model alone
    :param width: units of each of the two hidden layers
    :param settings: keywords of the constructor, per rank
    :return: the model
    """
    settings = {"n_steps": 2048, "batch_size": 128, **settings}
    for name in ("n_steps", "batch_size"):
        settings[name] *= n_ranks
    policy_kwargs = {"net_arch": [width, width]}
    alone = None if n_ranks > 1 else False
    model = TRPO("MlpPolicy", TASK, seed=0, device="cpu", policy_kwargs=policy_kwargs, distributed=alone, **settings)
    model.set_logger(Logger(None, []))
    return model


def ready_to_update(model: TRPO) -> Callable[[], None]:
    """
    Collect a rollout, and make a job that updates the model on it.

    :param model: this rank's model
    :return: the job; it does the same update each time
    """
    _, callback = model._setup_learn(1, None)
    buffer = model.rollout_buffer
    assert model.collect_rollouts(model.env, callback, buffer, buffer.buffer_size)
    state = copy.deepcopy((model.policy.state_dict(), model.policy.optimizer.state_dict()))

    def update() -> None:
        model.policy.load_state_dict(state[0])
        model.policy.optimizer.load_state_dict(state[1])
        model.train()

    return update


@contextmanager
def counting() -> Iterator[Counter[str]]:
    """Count messages, and the bytes that this rank contributes to them."""
    counter: Counter[str] = Counter()

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            sent = args[1] if isinstance(args[0], list) else args[0]
            counter["messages"] += 1
            counter["bytes"] += sent.numel() * sent.element_size()
            counter[function.__name__] += 1
            return function(*args, **kwargs)

        return call

    with mock.patch.multiple(dist, **{name: counted(getattr(dist, name)) for name in COUNTED}):
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


def measure_updates(communicator: GlooCommunicator) -> dict[str, Any]:
    """Time updates of one rank while the others wait, and of all ranks; count the messages of the latter."""
    found: dict[str, Any] = {}
    for name, settings in UPDATES.items():
        together = make(communicator.size, **settings)
        update = ready_to_update(together)
        with counting() as counter:
            update()
        log = together.logger.name_to_value
        times = [timed(update) for _ in range(5)]
        n_policy = sum(each.numel() for part, each in together.policy.named_parameters() if "value" not in part)
        n_critic = sum(each.numel() for part, each in together.policy.named_parameters() if "value" in part)
        found[name] = {
            **settings,
            "n_policy": n_policy,
            "n_critic": n_critic,
            "cg_iterations": log["train/cg_iterations"],
            "line_search_steps": log["train/line_search_steps"],
            **counter,
            "seconds": times,
        }
        if communicator.size == WORLDS[0]:
            found[name]["alone"] = measure_alone(communicator, settings)
    return found


def measure_alone(communicator: GlooCommunicator, settings: dict[str, Any]) -> list[float]:
    """Time updates of the first rank while the others wait."""
    update = ready_to_update(make(1, **settings)) if communicator.is_first else int
    update()
    return [timed(update) for _ in range(5)]


def critic_unbucketed(communicator: GlooCommunicator, model: TRPO) -> Callable[[], None]:
    """Make an update that reduces the critic's gradient tensor by tensor."""
    update, step = ready_to_update(model), FlatAdam.step
    sizes = [each.numel() for part, each in model.policy.named_parameters() if "value" in part]

    def stepped(adam: FlatAdam) -> None:
        for part in adam.g.split(sizes)[1:]:  # the first has been reduced already
            communicator.mean(part, 1.0)
        step(adam)

    def job() -> None:
        with mock.patch.object(FlatAdam, "step", stepped):
            update()

    return job


def measure_weak(communicator: GlooCommunicator) -> dict[str, Any]:
    """Time learn() in turn: one rank while the other waits, two runs at the same time, and two ranks of one run."""
    found: dict[str, Any] = {}
    for n_steps, batch_size in WEAK:
        alone = make(1, n_steps=n_steps, batch_size=batch_size)
        models = {"alone": alone if communicator.is_first else None, "side by side": alone}
        models["together"] = make(communicator.size, n_steps=n_steps, batch_size=batch_size)
        times: dict[str, list[float]] = {name: [] for name in models}
        n_iterations = max(1, 4096 // n_steps)
        with counting() as counter:
            for each in models.values():
                _learn(each, 1)
            counter.clear()
            for _ in range(ROUNDS):
                for name, model in models.items():
                    times[name].append(timed(lambda model=model, n=n_iterations: _learn(model, n)) / n_iterations)
        per_iteration = {key: count / (ROUNDS * n_iterations) for key, count in counter.items()}
        found[f"{n_steps} steps, minibatches of {batch_size}"] = {"seconds": times, "per iteration": per_iteration}
    model = make(communicator.size)
    bucketed, unbucketed = ready_to_update(model), critic_unbucketed(communicator, make(communicator.size))
    updates: dict[str, list[float]] = {"one vector": [], "a message per tensor": []}
    for _ in range(ROUNDS):
        updates["one vector"].append(timed(bucketed))
        updates["a message per tensor"].append(timed(unbucketed))
    return {"learn()": found, "update, buckets": updates}


def _learn(model: TRPO | None, iterations: int) -> None:
    """Train for more iterations."""
    if model is not None:
        n_timesteps = model.n_steps * iterations
        model.learn(n_timesteps, reset_num_timesteps=model.num_timesteps == 0)


JOBS: dict[str, Callable[[GlooCommunicator], dict[str, Any]]] = {
    "collectives": collectives.measure_collectives,
    "updates": measure_updates,
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
        worlds = {"weak": WORLDS[:1], "collectives": collectives.WORLDS}.get(part, WORLDS)
        found = {str(n_ranks): launch(part, n_ranks) for n_ranks in worlds}
        results[part] = {"environment": environment(), "ranks": found}
        path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
