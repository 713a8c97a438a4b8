"""
Peak memory of one update on images: NatureCNN on stacks of 84x84x4, ours and sb3-contrib's.

Each case runs in a new process, on one thread. The rollout buffer is filled first; what counts is how far the update then
raises the resident set. Two Fisher products and one critic pass have the same peak as many.

    python -m benchmarks.memory.run
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import sb3_contrib
import torch as th
from stable_baselines3.common.logger import Logger

import sb3_trpo
from benchmarks.common.environment import RESULTS, ROOT, environment
from benchmarks.common.random_env import Frames
from sb3_trpo.extras import needs
from sb3_trpo.recurrent import RecurrentTRPO

with needs("This benchmark needs", "bench"):
    import psutil

LSTM = "sb3_trpo, LSTM"
CASES = [("sb3_trpo", 512), ("sb3_trpo", 2048), ("sb3_trpo", 8192), ("sb3_contrib", 512), ("sb3_contrib", 2048)]
CASES += [(LSTM, 512), (LSTM, 2048), (LSTM, 8192)]
CLASSES = {"sb3_trpo": sb3_trpo.TRPO, "sb3_contrib": sb3_contrib.TRPO, LSTM: RecurrentTRPO}
MIB = 2**20


def measure(package: str, n_frames: int, default_settings: bool = False) -> dict[str, float | int | str]:
    """
    Run one update in this process.

    :param package: key of ``CLASSES``
    :param n_frames: transitions in the rollout
    :param default_settings: whether to use sb3-contrib's default number of Fisher products and critic passes
    :return: size of the rollout's frames and of the peak above it in MiB, and seconds of the update
    """
    th.set_num_threads(1)
    settings = {"n_critic_updates": 10} if default_settings else {"cg_max_steps": 2, "n_critic_updates": 1}
    policy = "CnnLstmPolicy" if package == LSTM else "CnnPolicy"
    model = CLASSES[package](policy, Frames(), n_steps=n_frames, device="cpu", seed=0, **settings)
    model.set_logger(Logger(folder=None, output_formats=[]))
    fill(model)
    process = psutil.Process()
    before = process.memory_info().rss
    start = time.perf_counter()
    model.train()
    return {
        "package": package,
        "frames": n_frames,
        "rollout_mib": round(model.rollout_buffer.observations.nbytes / MIB, 1),
        "peak_above_rollout_mib": round((peak_bytes() - before) / MIB, 1),
        "seconds": round(time.perf_counter() - start, 2),
    }


def peak_bytes() -> int:
    """
    Read the largest resident set that this process has had; that of ``getrusage`` begins with the parent's.

    :return: bytes
    """
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


def measure_in_own_process(package: str, n_frames: int, default_settings: bool = False) -> dict[str, float | int | str]:
    """
    Run one update in a new process, where nothing else has used memory.

    :param package: key of ``CLASSES``
    :param n_frames: transitions in the rollout
    :param default_settings: whether to use sb3-contrib's default number of Fisher products and critic passes
    :return: the result of :func:`measure`
    """
    command = [sys.executable, "-m", "benchmarks.memory.run", "--case", package, str(n_frames)]
    command += ["--default-settings"] if default_settings else []
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def fill(model: sb3_trpo.TRPO | sb3_contrib.TRPO) -> None:
    """
    Fill the rollout buffer with random frames and advantages, and the same log-probability for all actions.

    :param model: owner of the buffer
    """
    rng = np.random.default_rng(0)
    buffer = model.rollout_buffer
    memory = {"lstm_states": model._last_lstm_states} if isinstance(model, RecurrentTRPO) else {}
    for _ in range(buffer.buffer_size):
        frame = rng.integers(0, 256, (1, 4, 84, 84), dtype=np.uint8)
        action = rng.integers(0, 6, (1, 1))
        buffer.add(frame, action, rng.normal(size=1), np.zeros(1), th.zeros(1), th.full((1,), -np.log(6.0)), **memory)
    buffer.compute_returns_and_advantage(th.zeros(1), np.zeros(1))


def main() -> None:
    """Measure every case in a new process, print a table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--case", nargs=2, metavar=("PACKAGE", "FRAMES"), help="measure one case in this process")
    parser.add_argument("--default-settings", action="store_true", help="use sb3-contrib's number of products and passes")
    args = parser.parse_args()
    if args.case:
        print(json.dumps(measure(args.case[0], int(args.case[1]), args.default_settings)))
        return
    th.set_num_threads(1)
    results = []
    print("| TRPO | frames | rollout, MiB | peak above the rollout, MiB | per frame, KiB |\n|---|---|---|---|---|")
    for package, n_frames in CASES:
        result = measure_in_own_process(package, n_frames)
        results.append(result)
        peak = result["peak_above_rollout_mib"]
        print(f"| {package} | {n_frames} | {result['rollout_mib']} | {peak} | {peak * 1024 / n_frames:.0f} |", flush=True)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "memory.json").write_text(json.dumps({"environment": environment(), "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
