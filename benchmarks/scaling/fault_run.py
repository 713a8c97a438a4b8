"""
A training run that stops at one point and says so, for ``faults.py`` to disturb it there.

``torchrun ... -m benchmarks.scaling.fault_run FOLDER --phase "the critic"`` writes ``FOLDER/reached`` and waits for
``FOLDER/go-on``, then trains to the end. Each rank leaves ``FOLDER/rank-N.json`` when it ends, for whatever reason.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch as th
from stable_baselines3.common import callbacks
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trpo import TRPO
from sb3_trpo.checkpoint import ResumableCheckpoint, callback as checkpoint_callback
from sb3_trpo.update.flat_adam import FlatAdam
from sb3_trpo.update.surrogate import PolicyObjective

N_STEPS, N_ENVS, N_UPDATES = 64, 2, 6
PHASES: dict[str, tuple[Any, str, int]] = {
    "collecting": (VecNormalize, "step_wait", 2 * N_STEPS + 20),
    "the policy step": (PolicyObjective, "evaluate", 6),
    "the critic": (FlatAdam, "step", 7),
    "a checkpoint": (checkpoint_callback, "write", 2),
    "an evaluation": (callbacks, "evaluate_policy", 2),
}
"""Function that is called in each phase, and in which call the run stops: all are in the second or third update."""
REACHED, GO_ON = "reached", "go-on"
POLL_INTERVAL = 0.02


def stop_in(phase: str, folder: Path) -> None:
    """
    Stop once at a point of the run, until told to go on.

    :param phase: key of ``PHASES``
    :param folder: for the files
    """
    owner, name, times = PHASES[phase]
    function, n_calls = getattr(owner, name), 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal n_calls
        n_calls += 1
        if n_calls == times and not (folder / REACHED).exists():
            (folder / REACHED).write_text("")
            while not (folder / GO_ON).exists():
                time.sleep(POLL_INTERVAL)
        return function(*args, **kwargs)

    setattr(owner, name, counted)


def digest(model: TRPO) -> str:
    """
    Identify the parameters of a model.

    :param model: the model
    :return: a hash of their bits
    """
    state = model.policy.state_dict()
    return hashlib.sha256(b"".join(state[name].numpy().tobytes() for name in sorted(state))).hexdigest()[:16]


def noting(model: TRPO, part: str, states: list[str]) -> None:
    """
    Take note of the parameters after each call of a part of the update.

    :param model: the model
    :param part: name of the method
    :param states: where to
    """
    method: Callable[..., Any] = getattr(model, part)

    def noted(*args: Any) -> Any:
        result = method(*args)
        states.append(digest(model))
        return result

    setattr(model, part, noted)


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """
    Parse arguments.

    :param arguments: those given, ``None`` for this process's
    :return: their values
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--checkpoints", type=Path, help="folder of the checkpoints, by default in the first one")
    parser.add_argument("--phase", choices=[*PHASES])
    parser.add_argument("--rank", type=int, default=1, help="the rank that stops")
    parser.add_argument("--timeout", type=float, default=60.0, help="distributed_timeout")
    return parser.parse_args(arguments)


def train(args: argparse.Namespace) -> None:
    """
    Train, and leave a report.

    :param args: of :func:`parsed`
    """
    rank, report = int(os.environ["RANK"]), dict[str, Any](error=None)
    th.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    model, states = None, list[str]()
    if args.phase is not None and rank == args.rank:
        stop_in(args.phase, args.folder)
    try:
        env = VecNormalize(make_vec_env("Pendulum-v1", N_ENVS))
        settings: dict[str, Any] = {"n_steps": N_STEPS * int(os.environ["WORLD_SIZE"]), "n_critic_updates": 2, "seed": 0}
        model = TRPO("MlpPolicy", env, device="cpu", distributed_timeout=args.timeout, **settings)
        states.append(digest(model))
        for part in ("_improve_policy", "_fit_critic"):
            noting(model, part, states)
        checkpoint = ResumableCheckpoint(args.checkpoints or args.folder / "checkpoints", every=1, verbose=1)
        n_ranks = int(os.environ["WORLD_SIZE"])
        evaluation_env = VecNormalize(make_vec_env("Pendulum-v1", 1), training=False, norm_reward=False)
        evaluation = callbacks.EvalCallback(evaluation_env, n_eval_episodes=1, eval_freq=N_STEPS, verbose=0)
        model.learn(N_UPDATES * N_STEPS * N_ENVS * n_ranks, callback=[evaluation, checkpoint])
    except Exception as error:
        report["error"] = f"{type(error).__name__}: {error}"
        raise
    finally:
        if model is not None:
            now = digest(model)
            report |= {"parameters": now, "is whole": now in states, "updates": model._n_updates}
        unfinished = args.folder / f"rank-{rank}.part"
        unfinished.write_text(json.dumps(report))
        unfinished.rename(unfinished.with_suffix(".json"))


if __name__ == "__main__":
    train(parsed())
