"""
Everything that is replaced while one of RL Zoo's scripts runs, with the reason for each.

RL Zoo has registries for algorithms and search spaces. For the rest its scripts call names that they import, with no hook
between: only a replacement reaches them.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from types import ModuleType
from typing import Any

from stable_baselines3.common import callbacks
from stable_baselines3.common.vec_env import VecEnv

from sb3_trpo.extras import ZOO, needs
from sb3_trpo.zoo.algorithms import ALGORITHMS
from sb3_trpo.zoo.experiment import ExperimentManager
from sb3_trpo.zoo.masking import PLAYERS, TEST_ENV, evaluate
from sb3_trpo.zoo.rendering import prepare_rendering
from sb3_trpo.zoo.search_spaces import sample_lstm_params, sample_trpo_params

with needs(*ZOO):
    import huggingface_sb3
    import rl_zoo3
    from huggingface_hub.errors import EntryNotFoundError
    from requests.exceptions import HTTPError
    from rl_zoo3 import exp_manager, hyperparams_opt, utils

RECORD_VIDEO = ["python", "-m", "rl_zoo3.record_video"]
hub_metadata = sys.modules["huggingface_sb3.push_to_hub"]  # in the package, this name is a function
download_from_hub = huggingface_sb3.load_from_hub
rl_zoo_test_env, run_process = utils.create_test_env, subprocess.call


def install(playing: bool = False) -> ExitStack:
    """
    Put our algorithms, their search spaces and their settings into RL Zoo, in this process.

    Takes effect at once, and lasts until it is undone. Use it as a context manager, or call ``close()`` on what it returns::

        with install():
            rl_zoo3.train.train()

    RL Zoo's scripts look names up on import, so import them inside the block.

    :param playing: whether masked models, which must have been trained before, ask the environment for masks where a script
        passes none; needed by ``enjoy``, ``record_video`` and ``push_to_hub``, and wrong for training
    :return: a context manager that undoes everything
    """
    samplers = {algo: sample_lstm_params if "lstm" in algo else sample_trpo_params for algo in ALGORITHMS}
    converters = dict.fromkeys(ALGORITHMS, hyperparams_opt.HYPERPARAMS_CONVERTER["trpo"])
    with ExitStack() as stack:
        stack.callback(TEST_ENV.set, None)
        # RL Zoo's own registries.
        stack.enter_context(updated(utils.ALGOS, ALGORITHMS | PLAYERS if playing else ALGORITHMS))
        stack.enter_context(updated(hyperparams_opt.HYPERPARAMS_SAMPLER, samplers))
        stack.enter_context(updated(hyperparams_opt.HYPERPARAMS_CONVERTER, converters))
        # train() makes its manager by this name.
        stack.enter_context(replaced(exp_manager, "ExperimentManager", ExperimentManager))
        # EvalCallback, and the one of RL Zoo's search that extends it, evaluate by this name, which knows no masks.
        stack.enter_context(replaced(callbacks, "evaluate_policy", evaluate))
        # Scripts create the environments that they play in by this name. Only here do we learn which ones these are and how
        # they are rendered. Some scripts import it from the package, some from its module.
        stack.enter_context(replaced(rl_zoo3, "create_test_env", create_test_env))
        stack.enter_context(replaced(utils, "create_test_env", create_test_env))
        # push_to_hub and load_from_hub expect earlier versions of the libraries that they use.
        if not hasattr(hub_metadata, "generate_metadata"):
            stack.enter_context(replaced(hub_metadata, "generate_metadata", generate_metadata))
        stack.enter_context(replaced(huggingface_sb3, "load_from_hub", load_from_hub))
        # record_training starts record_video in new processes, where RL Zoo would not know our algorithms.
        stack.enter_context(replaced(subprocess, "call", call_ours))
        return stack.pop_all()


def replaced(owner: ModuleType, name: str, value: Any) -> ExitStack:
    """
    Replace an attribute of a module, or add it.

    :param owner: the module
    :param name: name of the attribute
    :param value: its new value
    :return: a context manager that puts the old value back; until then the new one stays
    """
    undo = ExitStack()
    if hasattr(owner, name):
        undo.callback(setattr, owner, name, getattr(owner, name))
    else:
        undo.callback(delattr, owner, name)
    setattr(owner, name, value)
    return undo


def updated(registry: dict[str, Any], entries: Mapping[str, Any]) -> ExitStack:
    """
    Add entries to a registry, or replace them.

    :param registry: a dictionary
    :param entries: entries by key
    :return: a context manager that restores the registry; until then the entries stay
    """
    undo = ExitStack()
    undo.callback(registry.update, dict(registry))
    undo.callback(registry.clear)  # first, since callbacks run in reverse order
    registry.update(entries)
    return undo


def create_test_env(env_id: str, **kwargs: Any) -> VecEnv:
    """
    Create environments with RL Zoo's ``create_test_env``, after making sure that they can be rendered as requested.

    :param env_id: the environment's ID
    :param kwargs: further arguments of RL Zoo's function
    :return: the environments, which masked models will ask for masks
    """
    mode = (kwargs.get("env_kwargs") or {}).get("render_mode", "human")
    prepare_rendering(env_id, mode if kwargs.get("should_render", True) else None)
    env: VecEnv = rl_zoo_test_env(env_id, **kwargs)
    TEST_ENV.set(env)
    return env


def generate_metadata(*args: Any) -> dict[str, Any]:
    """
    Describe an agent for the Hub, under the name by which ``push_to_hub`` imports this, with a result of the type it expects.

    :param args: algorithm, environment, and mean and standard deviation of the returns
    :return: the metadata of a model card
    """
    metadata: dict[str, Any] = hub_metadata._generate_metadata(*args).to_dict()
    return metadata


def load_from_hub(repo_id: str, filename: str) -> str:
    """
    Download a file from the Hub, with the error for a missing one that RL Zoo's ``load_from_hub`` catches.

    :param repo_id: name of the repository
    :param filename: name of the file
    :return: path of the copy
    :raises HTTPError: if the repository has no such file; agents without ``VecNormalize`` have no statistics
    """
    try:
        path: str = download_from_hub(repo_id, filename)
    except EntryNotFoundError as error:
        raise HTTPError(str(error)) from error
    return path


def call_ours(command: Sequence[str], *args: Any, **kwargs: Any) -> int:
    """
    Run a process, with our ``record_video`` instead of RL Zoo's.

    :param command: the program and its arguments
    :param args: further arguments of ``subprocess.call``
    :param kwargs: keywords of ``subprocess.call``
    :return: the exit status
    """
    if not isinstance(command, str) and list(command[:3]) == RECORD_VIDEO:
        command = [sys.executable, "-m", "sb3_trpo.zoo", "record_video", *command[3:]]
    return run_process(command, *args, **kwargs)
