"""
RL Zoo with our algorithms: ``python -m sb3_trpo.zoo train --algo trpo --env Hopper-v5``; needs the extra ``[zoo]``.

Every script of RL Zoo takes its own arguments; ``trpo`` means :class:`sb3_trpo.TRPO`, ``trpo_mask``, ``trpo_lstm`` and
``trpo_mask_lstm`` its variants, and settings come from ``zoo_configs`` unless ``--conf-file`` is given. One script is ours:
``report`` evaluates and draws a finished run. RL Zoo itself is not touched: names are replaced in this process only.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import runpy
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from stable_baselines3.common import callbacks
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env import VecEnv

from sb3_trpo import TRPO
from sb3_trpo.extras import ZOO, MissingExtraError, needs, require
from sb3_trpo.parallel.distributed import connect
from sb3_trpo.parallel.first_rank import callbacks_of_other_ranks
from sb3_trpo.zoo.screens import pictures, prepare, shows_windows

try:
    with needs(*ZOO):
        import optuna
        import rl_zoo3
        from huggingface_sb3 import EnvironmentName
        from rl_zoo3 import exp_manager, hyperparams_opt
        from rl_zoo3.utils import ALGOS, SimpleLinearSchedule, create_test_env, get_model_path, get_saved_hyperparams
        from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported

    from sb3_trpo.checkpoint import ResumableCheckpoint
    from sb3_trpo.checkpoint.ranks import first_ranks_in
    from sb3_trpo.checkpoint.storage import checkpoints_in, sole_owner
    from sb3_trpo.maskable.collecting import SelfMaskingModel
    from sb3_trpo.maskable.trpo import MaskableTRPO
    from sb3_trpo.recurrent.trpo import MaskableRecurrentTRPO, RecurrentTRPO
    from sb3_trpo.zoo import memory_tasks  # noqa: F401  # for its environments
    from sb3_trpo.zoo.plots import learning_curve
except MissingExtraError as error:
    raise MissingExtraError(ZOO[0], error.name or "a library", ZOO[1]) from error  # which brings all the others

ALGORITHMS: dict[str, type[TRPO]] = {
    "trpo": TRPO,
    "trpo_mask": MaskableTRPO,
    "trpo_lstm": RecurrentTRPO,
    "trpo_mask_lstm": MaskableRecurrentTRPO,
}
SCHEDULES = ("target_kl", "ent_coef")
"""Settings that a configuration may give as ``lin_<initial value>``, besides RL Zoo's own."""
SCRIPTS = {
    "train": "train an agent; with -optimize, search for hyperparameters",
    "report": "evaluate a finished run, draw its learning curve, say where its files are",
    "enjoy": "watch a trained agent in a window; with --no-render, let it play unseen",
    "record_video": "record a video of a trained agent",
    "record_training": "record videos of a run's checkpoints and join them",
    "plot_train": "plot what runs collected while they trained",
    "all_plots": "plot the evaluations of several algorithms and environments, and tabulate them",
    "plot_from_file": "plot again what all_plots has saved",
    "push_to_hub": "upload a trained agent to the Hugging Face hub",
    "load_from_hub": "download one from there; unpickling it can run any code",
}
"""What each script does; all but ``report`` are RL Zoo's."""
FUNCTIONS = {
    "train": "rl_zoo3.train",
    "enjoy": "rl_zoo3.enjoy",
    "plot_train": "rl_zoo3.plots.plot_train",
    "plot_from_file": "rl_zoo3.plots.plot_from_file",
    "all_plots": "rl_zoo3.plots.all_plots",
}
"""RL Zoo's scripts that are functions, named like their module; it has the others as modules that run."""
NOTE = "rl_zoo.json"
"""Beside checkpoints: which log folder and seed they go with."""


def config_file(algo: str) -> Path:
    """
    Find the settings that come with the package.

    :param algo: RL Zoo's name of one of our algorithms
    :return: the YAML file, inside an installed package or beside it in a checkout
    """
    package = Path(__file__).parents[1]
    installed, checkout = (folder / "zoo_configs" / f"{algo}.yml" for folder in (package, package.parent))
    return installed if installed.is_file() else checkout


def sample_trpo_params(trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
    """
    Draw hyperparameters for RL Zoo's search.

    The ranges are those that tuned configurations come from; ``target_kl`` is that of the joint action, up to the 0.24 that RL
    Zoo's HalfCheetah settings amount to.

    :param trial: Optuna's trial
    :param n_actions: dimensions of a Box action space, else 0
    :param n_envs: number of environments
    :param additional_args: RL Zoo's, of no use to an on-policy algorithm
    :return: keywords for the algorithm
    """
    sampled = {
        "n_steps_pow": trial.suggest_int("n_steps_pow", 7, 12),
        "batch_size_pow": trial.suggest_int("batch_size_pow", 5, 9),
        "one_minus_gamma": trial.suggest_float("one_minus_gamma", 1e-4, 0.1, log=True),
        "one_minus_gae_lambda": trial.suggest_float("one_minus_gae_lambda", 1e-3, 0.2, log=True),
        "learning_rate": trial.suggest_float("learning_rate", 1e-4, 3e-3, log=True),
        "n_critic_updates": trial.suggest_int("n_critic_updates", 5, 30),
        "cg_max_steps": trial.suggest_int("cg_max_steps", 5, 30),
        "cg_damping": trial.suggest_float("cg_damping", 1e-3, 0.3, log=True),
        "target_kl": trial.suggest_float("target_kl", 3e-3, 0.3, log=True),
        "net_arch": trial.suggest_categorical("net_arch", ["small", "medium"]),
        "activation_fn": trial.suggest_categorical("activation_fn", ["tanh", "relu"]),
    }
    hyperparams: dict[str, Any] = hyperparams_opt.convert_onpolicy_params(sampled)
    return hyperparams


def sample_lstm_params(trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
    """
    Draw hyperparameters of a policy with memory.

    :param trial: Optuna's trial
    :param n_actions: dimensions of a Box action space, else 0
    :param n_envs: number of environments
    :param additional_args: RL Zoo's
    :return: keywords for the algorithm
    """
    hyperparams = sample_trpo_params(trial, n_actions, n_envs, additional_args)
    hyperparams["ent_coef"] = trial.suggest_float("ent_coef", 1e-4, 0.1, log=True)
    critic = trial.suggest_categorical("enable_critic_lstm", [True, False])
    size = trial.suggest_categorical("lstm_hidden_size", [16, 32, 64, 128, 256])
    return {
        **hyperparams,
        "policy_kwargs": {**hyperparams["policy_kwargs"], "enable_critic_lstm": critic, "lstm_hidden_size": size},
    }


RlZooManager = exp_manager.ExperimentManager


class ExperimentManager(RlZooManager):
    """RL Zoo's manager, reading our configurations and their schedules, and going on with runs that have checkpoints."""

    def __init__(self, args: argparse.Namespace, algo: str, *rest: Any, **kwargs: Any) -> None:
        if kwargs.get("config") is None and algo in ALGORITHMS:
            kwargs["config"] = str(config_file(algo))
        super().__init__(args, algo, *rest, **kwargs)
        self._communicator = connect(None, get_device(self.device))
        if self._communicator.size > 1 and self.optimize_hyperparameters:
            raise ValueError(
                "Ranks share one run, and a search makes many: start it without a launcher, in as many processes as you like "
                "with one --storage."
            )
        # RL Zoo chooses the first free folder, and a seed by lot.
        self.save_path, self.params_path, self.seed = self._communicator.broadcast_object(
            (self.save_path, self.params_path, self.seed)
        )
        self.args.seed = self.seed

    def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> VecEnv:
        """
        Make environments, counted through all ranks: the names of Monitor's files and the first seeds are their own.

        :param n_envs: of this rank
        :param eval_env: whether they are for evaluation
        :param no_log: whether Monitor writes nothing
        :return: the environments
        """
        make = partial(make_vec_env, start_index=0 if eval_env else self._communicator.rank * n_envs)
        with nullcontext() if self._communicator.is_first else mock.patch.object(exp_manager, "make_vec_env", make):
            envs: VecEnv = super().create_envs(n_envs, eval_env, no_log)  # by several threads, in a search
        return envs

    def learn(self, model: Any) -> None:
        """
        Train, with the callbacks that are this rank's.

        :param model: that learns
        """
        if not self._communicator.is_first:
            self.callbacks = callbacks_of_other_ranks(self.callbacks)
        super().learn(model)

    def save_trained_model(self, model: Any) -> None:
        """
        Save, on the first rank.

        :param model: that has learned
        """
        if self._communicator.is_first:
            super().save_trained_model(model)

    def _save_config(self, saved_hyperparams: dict[str, Any]) -> None:
        if self._communicator.is_first:
            super()._save_config(saved_hyperparams)

    @staticmethod
    def _preprocess_schedules(hyperparams: dict[str, Any]) -> dict[str, Any]:
        hyperparams = RlZooManager._preprocess_schedules(hyperparams)
        for name in SCHEDULES:
            value = hyperparams.get(name)
            if isinstance(value, str) and value.startswith("lin_"):
                hyperparams[name] = SimpleLinearSchedule(value.removeprefix("lin_"))
        return hyperparams

    def _preprocess_hyperparams(self, hyperparams: dict[str, Any]) -> Any:
        processed = super()._preprocess_hyperparams(hyperparams)
        keepers = [callback for callback in processed[2] if isinstance(callback, ResumableCheckpoint)]
        if keepers and self.optimize_hyperparameters:
            # Trials are short, and would share one folder.
            named = self.specified_callbacks if isinstance(self.specified_callbacks, list) else [self.specified_callbacks]
            self.specified_callbacks = [each for each in named if ResumableCheckpoint.__name__ not in str(each)]
        for keeper in keepers if not self.optimize_hyperparameters else ():
            if "{seed}" in str(keeper.folder) and not _is_seed_given():
                raise ValueError(
                    f"folder is {keeper.folder}, which needs a seed, or each start would get another: give --seed"
                )
            self._go_on_with(keeper.folder_of(self.env_name.gym_id, self.seed))
        return processed

    def _go_on_with(self, folder: Path) -> None:
        """Take log folder and seed of the run that a folder of checkpoints belongs to; RL Zoo would choose both anew."""
        name, seed = self._communicator.broadcast_object(self._run_in(folder) if self._communicator.is_first else ("", 0))
        if seed != self.seed:
            self.seed = self.args.seed = seed
            print(f"Seed of the run that goes on: {seed}")
        run = Path(self.save_path).with_name(name)
        self.save_path, self.params_path = str(run), str(run / self.env_name)

    def _run_in(self, folder: Path) -> tuple[str, int]:
        """Give name and seed of the run in a folder of checkpoints, or put this one's there."""
        note, name, seed = folder / NOTE, Path(self.save_path).name, self.seed
        with sole_owner(folder):  # before a log is opened that another process may be writing
            if note.is_file() and any(map(checkpoints_in, first_ranks_in(folder).values())):
                noted = json.loads(note.read_text())
                if re.fullmatch(rf"{re.escape(self.env_name)}_\d+", noted["run"]):  # a name, and no way out of the log folder
                    name = noted["run"]
                seed = seed if _is_seed_given() else int(noted["seed"])
            else:
                note.write_text(json.dumps({"run": name, "seed": seed}))
        return name, seed


def _is_seed_given() -> bool:
    """Tell whether the command has a seed; RL Zoo takes a negative one for none."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--seed", type=int, default=-1)
    known, _ = parser.parse_known_args(sys.argv[1:])
    return int(known.seed) >= 0


def evaluate(model: Any, env: VecEnv, *args: Any, **kwargs: Any) -> Any:
    """
    Evaluate a model, with masks if it knows them.

    :param model: the model
    :param env: to evaluate it in
    :param args: of SB3's ``evaluate_policy``
    :param kwargs: likewise
    :return: its result
    """
    return evaluate_policy(SelfMaskingModel(model, env) if isinstance(model, MaskableTRPO) else model, env, *args, **kwargs)


class MaskedTestEnv(threading.local):
    """
    What makes environments for RL Zoo's scripts, which know of no masks: masked models then ask their thread's last one.

    :param predict: of ``MaskableTRPO``
    """

    def __init__(self, predict: Callable[..., Any]) -> None:
        self._predict = predict
        self._env: VecEnv | None = None

    def __call__(self, env_id: str, **kwargs: Any) -> VecEnv:
        """Make one by RL Zoo's ``create_test_env``, if it can be rendered as it is asked to be."""
        mode = (kwargs.get("env_kwargs") or {}).get("render_mode", "human")
        prepare(env_id, mode if kwargs.get("should_render", True) else None)
        self._env = create_test_env(env_id, **kwargs)
        return self._env

    def predict(
        self,
        model: MaskableTRPO,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
        action_masks: Any = None,
    ) -> Any:
        """Choose actions, under the environment's masks if none are given."""
        if action_masks is None and self._env is not None and is_masking_supported(self._env):
            action_masks = get_action_masks(self._env)
        return self._predict(model, observation, state, episode_start, deterministic, action_masks)


TEST_ENV = MaskedTestEnv(MaskableTRPO.predict)


def install() -> None:
    """Put our algorithms, their search space and their configurations into RL Zoo, in this process."""
    ALGOS.update(ALGORITHMS)
    samplers, converters = hyperparams_opt.HYPERPARAMS_SAMPLER, hyperparams_opt.HYPERPARAMS_CONVERTER
    samplers.update({algo: sample_lstm_params if "lstm" in algo else sample_trpo_params for algo in ALGORITHMS})
    converters.update(dict.fromkeys(ALGORITHMS, converters["trpo"]))
    vars(exp_manager)["ExperimentManager"] = ExperimentManager
    vars(callbacks)["evaluate_policy"] = evaluate  # for EvalCallback, and RL Zoo's own kind of it
    for module in (rl_zoo3, rl_zoo3.utils):
        vars(module)["create_test_env"] = TEST_ENV

    def predict(model: MaskableTRPO, *args: Any, **kwargs: Any) -> Any:
        return TEST_ENV.predict(model, *args, **kwargs)

    type.__setattr__(MaskableTRPO, "predict", predict)


def final_returns(
    algorithm: type[BaseAlgorithm], model_file: str, env: EnvironmentName, episodes: int, seed: int
) -> list[float]:
    """
    Let the final policy of a run play, deterministically and for the raw rewards.

    :param algorithm: class of the model
    :param model_file: in the run's folder, beside its settings
    :param env: the environment's name
    :param episodes: how many to play
    :param seed: of the environment
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
    Evaluate the final model of a run, draw its learning curve, and say where everything is.

    :param arguments: of the command line, ``None`` for this process's
    """
    parser = argparse.ArgumentParser("sb3_trpo.zoo report", description="Evaluate and draw a finished run.")
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
    picture = learning_curve(run_folder, title=f"{args.algo} on {args.env.gym_id}")

    run = f"--algo {args.algo} --env {args.env.gym_id} -f {args.folder} --exp-id {run_folder.rsplit('_', 1)[-1]}"
    print(
        f"\nFinal evaluation: {np.mean(returns):.1f} +/- {np.std(returns):.1f} over {len(returns)} episodes\n"
        f"Model:            {model_file}\n"
        f"Learning curve:   {picture}\n"
        f"Watch the agent:  {sys.executable} -m sb3_trpo.zoo {_way_to_watch(args.env.gym_id).format(run=run)}"
    )


def _way_to_watch(env_id: str) -> str:
    """Choose the script, and its arguments, that works on this machine."""
    if shows_windows():
        return "enjoy {run}"
    return "enjoy {run} --no-render" if pictures(env_id) is None else "record_video {run}"


def _run_function(verb: str) -> None:
    with needs(*ZOO):
        module = importlib.import_module(FUNCTIONS[verb])
    getattr(module, verb)()


def _run_module(verb: str) -> None:
    if verb.startswith("record"):
        require(*ZOO, "moviepy")
    rl_zoo_call = subprocess.call

    def call(command: Sequence[str], **kwargs: Any) -> int:
        """Let ``record_training``, which starts ``record_video`` in processes of their own, start ours."""
        if list(command[:3]) == ["python", "-m", "rl_zoo3.record_video"]:
            command = [sys.executable, "-m", "sb3_trpo.zoo", "record_video", *command[3:]]
        return rl_zoo_call(command, **kwargs)

    with mock.patch.object(subprocess, "call", call):
        runpy.run_module(f"rl_zoo3.{verb}", run_name="__main__")


def main() -> None:
    """Run the script that the first argument names, with the others."""
    parser = argparse.ArgumentParser(
        "python -m sb3_trpo.zoo",
        usage="%(prog)s SCRIPT [ARGUMENT ...]",
        description="RL Zoo's scripts with TRPO. SCRIPT --help lists the arguments of one.",
        epilog="\n".join(["scripts:", *(f"  {script:16} {what}" for script, what in SCRIPTS.items())]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("script", choices=SCRIPTS, help=argparse.SUPPRESS)
    if len(sys.argv) < 2:
        parser.print_help(sys.stderr)
        sys.exit(2)
    verb = parser.parse_args(sys.argv[1:2]).script
    sys.argv = [f"{sys.argv[0]} {verb}", *sys.argv[2:]]
    if int(os.environ.get("RANK", "0")) > 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # to the end; the first rank prints
    install()
    try:
        if verb == "report":
            report()
        elif verb in FUNCTIONS:
            _run_function(verb)
        else:
            _run_module(verb)
    except MissingExtraError as error:
        sys.exit(str(error))
