"""
TRPO that uses each rollout in several updates, beside TRPO, on five MuJoCo tasks.

    python -m benchmarks.reuse.run                                  # everything: 160 runs of a million steps, resumable
    python -m benchmarks.reuse.run --task Hopper-v5 --variant m3 --seeds 100 --steps 100000 --folder /tmp/try

Each run has one thread and writes its own file as it ends; runs whose file is there are skipped. Settings are those of
``zoo_configs/trpo.yml``, with fewer steps in a rollout and a smaller radius as ``VARIANTS`` says.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch as th
from rl_zoo3.utils import SimpleLinearSchedule
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize, sync_envs_normalization

from benchmarks.common.environment import RESULTS, environment
from benchmarks.constrained.run import settings_for
from benchmarks.reuse.algorithm import ReusingTRPO, WeightRecord, radius_factor

TASKS = ("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Ant-v5", "Swimmer-v5")
SEEDS = (300, 301, 302, 303)
"""Other than those of tuning."""
N_STEPS = 1_000_000
POINTS = 50
WINDOW = 100
EPISODES = 20
FOLDER = RESULTS / "reuse"


class Variant(NamedTuple):
    """
    How an update differs from that of plain TRPO.

    :param n_rollouts: M
    :param shorter: what the steps of a rollout are divided by
    :param radius: what ``target_kl`` is multiplied by
    :param settings: keywords of the class
    """

    n_rollouts: int = 1
    shorter: int = 1
    radius: float = 1.0
    settings: dict[str, Any] = {}  # noqa: RUF012  # nobody changes it


THREE = Variant(3, 2, radius_factor(3))
VARIANTS = {
    "m1": Variant(),
    "half": Variant(shorter=2, radius=0.5),
    "m3": THREE,
    "m7": Variant(7, 4, radius_factor(7)),
    "m3-no-v-trace": THREE._replace(settings={"v_trace": False}),
    "m3-newest-critic": THREE._replace(settings={"reuse_for_critic": False}),
    "m3-renormalized": THREE._replace(settings={"renormalize": True}),
    "m3-bounded": THREE._replace(settings={"max_weight": 1.0}),
}


def adapted(settings: dict[str, Any], variant: Variant) -> dict[str, Any]:
    """
    Adapt a task's settings to a variant.

    :param settings: keywords of TRPO
    :param variant: the variant
    :return: keywords of :class:`ReusingTRPO`
    """
    radius = settings["target_kl"]
    if isinstance(radius, SimpleLinearSchedule):
        smaller: Any = SimpleLinearSchedule(variant.radius * radius.initial_value)
    else:
        smaller = variant.radius * radius
    changes = {"n_steps": settings["n_steps"] // variant.shorter, "target_kl": smaller}
    return settings | changes | {"n_reused_rollouts": variant.n_rollouts - 1} | variant.settings


def make_envs(task: str, n_envs: int, seed: int, gamma: float) -> VecNormalize:
    """
    Make normalized environments.

    :param task: their name
    :param n_envs: their number
    :param seed: seed of the first
    :param gamma: discount factor for normalizing rewards
    :return: the environments
    """
    return VecNormalize(make_vec_env(task, n_envs, seed=seed), gamma=gamma)


class Episodes(BaseCallback):
    """Keeps when each episode ended, and its return."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, float]] = []

    def _on_step(self) -> bool:
        if np.any(self.locals["dones"]):
            ended = [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
            self.rows += [(self.num_timesteps, float(each)) for each in ended]
        return True


def curve(rows: list[tuple[int, float]], n_steps: int) -> list[tuple[int, float]]:
    """
    Average the last 100 episodes at points spread evenly over a run.

    :param rows: of :class:`Episodes`
    :param n_steps: timesteps of the run
    :return: timesteps and mean return; points before the end of the first episode are left out
    """
    ends, returns = (np.array(column) for column in zip(*rows, strict=True))
    points = []
    for point in np.linspace(0, n_steps, POINTS + 1)[1:]:
        past = returns[ends <= point]
        if len(past):
            points.append((int(point), round(float(past[-WINDOW:].mean()), 2)))
    return points


def weight_curve(records: list[WeightRecord], n_steps: int) -> list[list[float | None]]:
    """
    Summarize the weights of the updates in each part of a run.

    :param records: of all updates
    :param n_steps: timesteps of the run
    :return: timesteps at the end of the part; mean and largest weight; mean and least effective share; mean drift of the
        normalization, ``None`` if it was not measured there
    """
    parts: dict[int, list[WeightRecord]] = {}
    for record in records:
        parts.setdefault(min(POINTS, -(-record.timesteps * POINTS // n_steps)), []).append(record)
    rows = []
    for part, members in parts.items():
        shares, drifts = [each.effective_share for each in members], [each.drift for each in members if each.drift is not None]
        numbers = np.mean([each.mean for each in members]), max(each.largest for each in members), np.mean(shares), min(shares)
        drift = float(f"{np.mean(drifts):.3g}") if drifts else None
        rows.append([part * n_steps // POINTS, *(round(float(each), 4) for each in numbers), drift])
    return rows


def evaluate(model: ReusingTRPO, env: VecNormalize, task: str, seed: int) -> list[float]:
    """
    Evaluate the final policy by its most likely actions.

    :param model: the trained model
    :param env: its environments
    :param task: their name
    :param seed: of the evaluation
    :return: return of each of 20 episodes
    """
    unseen = make_envs(task, 1, seed, model.gamma)
    sync_envs_normalization(env, unseen)
    unseen.training = unseen.norm_reward = False
    returns, _ = evaluate_policy(model, unseen, EPISODES, deterministic=True, return_episode_rewards=True)
    return [round(float(each), 2) for each in returns]  # type: ignore[union-attr]  # a list, as asked for


def run(task: str, variant: str, seed: int, n_steps: int, file: Path) -> str:
    """
    Train once, evaluate the final policy, and write the result.

    :param task: one of ``TASKS``
    :param variant: key of ``VARIANTS``
    :param seed: seed of the training; the evaluation uses 2000 + seed
    :param n_steps: timesteps
    :param file: where to write
    :return: a line for the terminal
    """
    th.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*mini-batch size.*")
    made_with = environment()
    settings = adapted(settings_for(task, "trpo"), VARIANTS[variant])
    shown = {name: repr(value) if callable(value) else value for name, value in settings.items()}
    env = make_envs(task, settings.pop("n_envs"), seed, settings["gamma"])
    model, episodes = ReusingTRPO(settings.pop("policy"), env, seed=seed, device="cpu", **settings), Episodes()
    start = time.perf_counter()
    model.learn(n_steps, episodes)
    seconds = time.perf_counter() - start
    returns = evaluate(model, env, task, 2000 + seed)
    result = {
        "task": task,
        "variant": variant,
        "seed": seed,
        "steps": n_steps,
        "settings": shown,
        "seconds": round(seconds, 1),
        "environment": made_with,
        "deterministic": returns,
        "outcomes": model._outcome_counts,
        "curve": curve(episodes.rows, n_steps),
        "weights": weight_curve(model.weight_records, n_steps),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".tmp")
    partial.write_text(json.dumps(result) + "\n")
    partial.replace(file)
    area = np.mean([each for _, each in result["curve"]])
    return f"{task} {variant} {seed}: area {area:.1f}, final {np.mean(returns):.1f}, {seconds:.0f} s"


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--task", choices=TASKS, nargs="*", default=TASKS)
    parser.add_argument("--variant", choices=list(VARIANTS), nargs="*", default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, nargs="*", default=SEEDS)
    parser.add_argument("--steps", type=int, default=N_STEPS)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    args = parser.parse_args()
    runs = [(task, variant, seed) for seed in args.seeds for task in args.task for variant in args.variant]
    files = {each: args.folder / f"{'-'.join(map(str, each))}.json" for each in runs}
    missing = [each for each in runs if not files[each].is_file()]
    print(f"{len(missing)} of {len(runs)} runs to do", flush=True)
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        jobs = {pool.submit(run, *each, args.steps, files[each]): each for each in missing}
        for job in as_completed(jobs):
            print(job.result() if job.exception() is None else f"{jobs[job]} failed: {job.exception()!r}", flush=True)


if __name__ == "__main__":
    main()
