"""
Steps per second of processor time beside other packages, on HalfCheetah-v5 with one thread.

    python -m benchmarks.peers.run --prepare      # once: an environment for each package, some minutes and 4 GB
    python -m benchmarks.peers.run                # about 8 minutes

The packages need versions of their own, so each is timed in a process of its own environment, all in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.common.environment import RESULTS, ROOT, environment
from benchmarks.peers.protocol import CG_DAMPING, CG_STEPS, MINIBATCH, N_STEPS, PASSES, TARGET_KL, TASK, WIDTHS

ENVIRONMENTS = ROOT / ".venv-peers"
REQUIREMENTS = Path(__file__).parent / "requirements"
ROUNDS, N_ROLLOUTS = 5, 5
ONE_THREAD = {
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"),
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}


class Peer(NamedTuple):
    """
    A package to time.

    :param script: module that times it
    :param arguments: further arguments of the script
    :param has_own_environment: whether it is not part of this package's environment
    """

    script: str
    arguments: tuple[str, ...] = ()
    has_own_environment: bool = True


PEERS = {
    "sb3_trpo": Peer("stable_baselines", ("sb3_trpo",), has_own_environment=False),
    "sb3_contrib": Peer("stable_baselines", ("sb3_contrib",), has_own_environment=False),
    "sbx": Peer("stable_baselines", ("sbx",)),
    "tianshou": Peer("tianshou_trpo"),
    "skrl": Peer("skrl_trpo"),
}


def python_of(name: str) -> str:
    """
    Find the interpreter of a package.

    :param name: key of ``PEERS``
    :return: its path
    """
    return str(ENVIRONMENTS / name / "bin" / "python") if PEERS[name].has_own_environment else sys.executable


def prepare(name: str) -> None:
    """
    Make the environment of a package, with torch first, so that nothing chooses another build of it.

    :param name: key of ``PEERS``
    """
    file = REQUIREMENTS / f"{name}.txt"
    torch = next(line for line in file.read_text().splitlines() if line.startswith("torch=="))
    venv.create(ENVIRONMENTS / name, with_pip=True)
    for wanted in ([torch], ["--requirement", str(file)]):
        install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted]
        subprocess.run([python_of(name), *install], check=True)


def measure(name: str, n_rollouts: int) -> dict[str, Any]:
    """
    Time a package in a new process, on one core.

    :param name: key of ``PEERS``
    :param n_rollouts: number of rollouts and updates, after two to warm up
    :return: steps, seconds, and versions
    :raises RuntimeError: if its process fails
    """
    peer = PEERS[name]
    command = [python_of(name), "-m", f"benchmarks.peers.scripts.{peer.script}", str(n_rollouts), *peer.arguments]
    variables = os.environ | ONE_THREAD | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} failed:\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure_in_turn(names: list[str], rounds: int, n_rollouts: int) -> dict[str, Any]:
    """
    Time all packages in each round.

    :param names: keys of ``PEERS``
    :param rounds: number of timings of each
    :param n_rollouts: number of rollouts and updates of each timing
    :return: versions and the times of all rounds, by package
    """
    results: dict[str, Any] = {name: {"rounds": []} for name in names}
    for _ in range(rounds):
        for name in names:
            timed = measure(name, n_rollouts)
            results[name]["versions"] = timed.pop("versions")
            results[name]["rounds"].append(timed)
            print(f"| {name} | {timed['steps'] / timed['cpu_seconds']:,.0f} steps per CPU second |", flush=True)
    return results


def main() -> None:
    """Prepare the environments, or measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--prepare", action="store_true", help="make the environments, and measure nothing")
    parser.add_argument("--package", choices=PEERS, action="append", help="leave out all others")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--rollouts", type=int, default=N_ROLLOUTS, help="rollouts in each timing")
    args = parser.parse_args()
    names = args.package or list(PEERS)
    if args.prepare:
        for name in names:
            if PEERS[name].has_own_environment:
                prepare(name)
        return
    if hasattr(os, "sched_setaffinity"):  # the processes inherit it; not every package has a setting for threads
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    results = measure_in_turn(names, args.rounds, args.rollouts)
    settings = {"task": TASK, "n_steps": N_STEPS, "minibatch": MINIBATCH, "passes": PASSES, "widths": WIDTHS}
    settings |= {"target_kl": TARGET_KL, "cg_steps": CG_STEPS, "cg_damping": CG_DAMPING, "rollouts": args.rollouts}
    contents = {"environment": environment() | {"threads": 1}, "settings": settings, "results": results}
    (RESULTS / "peers.json").write_text(json.dumps(contents, indent=1) + "\n")


if __name__ == "__main__":
    main()
