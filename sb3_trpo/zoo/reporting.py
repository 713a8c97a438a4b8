"""The script ``report``: evaluate a run, draw its pictures, and list its files."""

from __future__ import annotations

import argparse
import importlib
import shlex
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
    from rl_zoo3.utils import ALGOS, create_test_env, get_saved_hyperparams


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
    Evaluate the final model of a run, draw its learning curve and its log, and print where everything is.

    A run that is still under way has no final model, but can be drawn.

    :param arguments: arguments of the command line; ``None`` for this process's
    """
    command = sys.argv[0].removesuffix(" report") if sys.argv[0].endswith(" report") else "sb3-trpo"
    parser = argparse.ArgumentParser(f"{command} report", description="Evaluate a run, and draw its learning curve and log.")
    parser.add_argument("--algo", choices=list(ALGOS | ALGORITHMS), default="trpo")
    parser.add_argument("--env", required=True, type=EnvironmentName, help="environment ID")
    parser.add_argument("-f", "--folder", default="logs", help="log folder of the run")
    parser.add_argument("--exp-id", type=int, default=0, help="number of the run, 0 for the latest")
    parser.add_argument("--episodes", type=int, default=20, help="episodes to evaluate")
    parser.add_argument("--seed", type=int, default=1000, help="seed of the evaluation environment")
    parser.add_argument("--gym-packages", nargs="+", default=[], help="modules to import, which register environments")
    args = parser.parse_args(arguments)
    if args.episodes < 1:
        parser.error(f"argument --episodes: {args.episodes} is less than 1")
    for module in args.gym_packages:
        importlib.import_module(module)

    runs = Path(args.folder) / args.algo
    run_folder = runs / f"{args.env}_{args.exp_id or newest_run(runs, args.env)}"
    model_file, title = run_folder / f"{args.env}.zip", f"{args.algo} on {args.env.gym_id}"
    named = ["--algo", args.algo, "--env", args.env.gym_id, "-f", args.folder]
    if model_file.is_file():
        returns = final_returns((ALGOS | ALGORITHMS)[args.algo], str(model_file), args.env, args.episodes, args.seed)
        print(f"\nFinal evaluation: {np.mean(returns):.1f} +/- {np.std(returns):.1f} over {len(returns)} episodes")
        print(f"Model:            {model_file}")
    elif run_folder.is_dir():
        print(f"\nThere is no final model {model_file} yet.")
    else:
        sys.exit(f"There is no run {run_folder}. Train an agent first: {command} train {shlex.join(named)}")
    print(f"Learning curve:   {drawn(learning_curve, run_folder, title)}")
    print(f"Dashboard:        {drawn(dashboard, run_folder, title)}")
    if model_file.is_file():
        script, *options = script_to_watch(args.env.gym_id)
        number = run_folder.name.rpartition("_")[2]
        packages = ["--gym-packages", *args.gym_packages] if args.gym_packages and script == "enjoy" else []
        print(f"Watch the agent:  {command} {shlex.join([script, *named, '--exp-id', number, *packages, *options])}")


def newest_run(runs: Path, env: str) -> int:
    """
    Find the newest run that has left a model or a log: a search takes a number too, but leaves neither.

    :param runs: folder of the runs of an algorithm
    :param env: the environment's name
    :return: the number of the run, 1 if there is none
    """
    left = [*runs.glob(f"{env}_*/{env}.zip"), *runs.glob(f"{env}_*/progress.csv")]
    numbers = (file.parent.name.removeprefix(f"{env}_") for file in left)
    return max((int(number) for number in numbers if number.isdigit()), default=1)


def drawn(plot: Callable[[Path, str], Path], run_folder: Path, title: str) -> str:
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


def script_to_watch(env_id: str) -> list[str]:
    """
    Choose a script that shows the agent on this machine.

    :param env_id: the environment's ID
    :return: the script and its options
    """
    if has_display():
        return ["enjoy"]
    return ["enjoy", "--no-render"] if rendering_settings(env_id) is None else ["record_video"]
