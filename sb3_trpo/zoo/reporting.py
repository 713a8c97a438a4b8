"""The script ``report``: evaluate a finished run, draw its pictures, and list its files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_trpo.extras import ZOO, needs
from sb3_trpo.zoo.algorithms import ALGORITHMS
from sb3_trpo.zoo.masking import evaluate
from sb3_trpo.zoo.plots import NothingLoggedError, dashboard, learning_curve
from sb3_trpo.zoo.rendering import has_display, rendering_settings

with needs(*ZOO):
    from huggingface_sb3 import EnvironmentName
    from rl_zoo3.utils import create_test_env, get_model_path, get_saved_hyperparams


def final_returns(
    algorithm: type[BaseAlgorithm], model_file: str, env: EnvironmentName, episodes: int, seed: int
) -> list[float]:
    """
    Evaluate the final policy of a run, with deterministic actions and unnormalized rewards.

    :param algorithm: class of the model
    :param model_file: zip file in the run's folder, beside its settings
    :param env: the environment's name
    :param episodes: number of episodes
    :param seed: seed of the environment
    :return: the return of each episode
    """
    hyperparams, stats_path = get_saved_hyperparams(str(Path(model_file).parent / env), test_mode=True)
    test_env = create_test_env(
        env.gym_id,
        stats_path=stats_path,
        seed=seed,
        should_render=False,
        hyperparams=hyperparams,
        env_kwargs=hyperparams.pop("env_kwargs", None),
    )
    model = algorithm.load(model_file, device="cpu")
    returns, _ = evaluate(model, test_env, n_eval_episodes=episodes, return_episode_rewards=True)
    test_env.close()
    return list(returns)


def report(arguments: Sequence[str] | None = None) -> None:
    """
    Evaluate the final model of a run, plot its learning curve and its log, and print where everything is.

    :param arguments: arguments of the command line; ``None`` for this process's
    """
    parser = argparse.ArgumentParser("sb3_trpo.zoo report", description="Evaluate and plot a finished run.")
    parser.add_argument("--algo", choices=list(ALGORITHMS), default="trpo")
    parser.add_argument("--env", required=True, type=EnvironmentName, help="environment ID")
    parser.add_argument("-f", "--folder", default="logs", help="log folder of the run")
    parser.add_argument("--exp-id", type=int, default=0, help="number of the run, 0 for the latest")
    parser.add_argument("--episodes", type=int, default=20, help="episodes to evaluate")
    parser.add_argument("--seed", type=int, default=1000, help="seed of the evaluation environment")
    args = parser.parse_args(arguments)

    try:
        _, model_file, run_folder = get_model_path(args.exp_id, args.folder, args.algo, args.env)
    except ValueError as error:
        sys.exit(f"{error}. Train one first: python -m sb3_trpo.zoo train --algo {args.algo} --env {args.env.gym_id}")
    returns = final_returns(ALGORITHMS[args.algo], model_file, args.env, args.episodes, args.seed)
    title = f"{args.algo} on {args.env.gym_id}"
    run = f"--algo {args.algo} --env {args.env.gym_id} -f {args.folder} --exp-id {run_folder.rsplit('_', 1)[-1]}"
    print(
        f"\nFinal evaluation: {np.mean(returns):.1f} +/- {np.std(returns):.1f} over {len(returns)} episodes\n"
        f"Model:            {model_file}\n"
        f"Learning curve:   {drawn(learning_curve, run_folder, title)}\n"
        f"Dashboard:        {drawn(dashboard, run_folder, title)}\n"
        f"Watch the agent:  {sys.executable} -m sb3_trpo.zoo {script_to_watch(args.env.gym_id, run)}"
    )


def drawn(plot: Callable[[str, str], Path], run_folder: str, title: str) -> str:
    """
    Draw a picture of a run, if the run has left what it shows.

    :param plot: a function that draws
    :param run_folder: folder of the run
    :param title: title of the picture
    :return: the picture's file, or why there is none
    """
    try:
        return str(plot(run_folder, title))
    except NothingLoggedError as reason:
        return f"none, since {reason}"


def script_to_watch(env_id: str, run: str) -> str:
    """
    Choose a script that shows the agent on this machine.

    :param env_id: the environment's ID
    :param run: arguments that name the run
    :return: the script and its arguments
    """
    if has_display():
        return f"enjoy {run}"
    return f"enjoy {run} --no-render" if rendering_settings(env_id) is None else f"record_video {run}"
