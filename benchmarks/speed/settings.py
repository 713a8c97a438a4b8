"""Hyperparameters from RL Zoo's files, theirs and ours, for two packages that bound the KL differently."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import rl_zoo3
import yaml
from torch import nn

from sb3_trpo.zoo.algorithms import config_file

RL_ZOO = Path(rl_zoo3.__file__).parent / "hyperparams" / "trpo.yml"
NOT_OF_THE_CONSTRUCTOR = ("policy", "n_timesteps", "n_envs", "normalize")


def read_settings(file: Path, task: str) -> dict[str, Any]:
    """
    Read the constructor's keywords from a file of RL Zoo's format.

    :param file: the file
    :param task: name of the environment
    :return: keywords; of a schedule such as ``lin_0.05`` only the value that it starts with, since sb3-contrib's ``target_kl``
        cannot be a schedule, and a radius that shrinks to nothing would change what is timed
    """
    settings = yaml.safe_load(file.read_text())[task]
    kept = {key: value for key, value in settings.items() if key not in NOT_OF_THE_CONSTRUCTOR}
    for key in {"learning_rate", "target_kl"} & kept.keys():
        kept[key] = float(str(kept[key]).removeprefix("lin_"))
    if "policy_kwargs" in kept:
        kept["policy_kwargs"] = eval(kept["policy_kwargs"], {"nn": nn, "dict": dict})
    return kept


def of_rl_zoo(task: str, package: str, n_action_dims: int) -> dict[str, Any]:
    """
    Read RL Zoo's settings of sb3-contrib's TRPO.

    :param task: name of the environment in RL Zoo's file
    :param package: ``"sb3-contrib"`` or ``"ours"``
    :param n_action_dims: entries of an action: sb3-contrib averages the KL over them, ours sums it
    :return: keywords of the constructor
    """
    settings = read_settings(RL_ZOO, task)
    of_each = 1 if package == "sb3-contrib" else n_action_dims
    return settings | {"target_kl": settings["target_kl"] * of_each}


def of_ours(task: str, package: str, n_action_dims: int) -> dict[str, Any]:
    """
    Read our tuned settings.

    :param task: name of the environment
    :param package: ``"sb3-contrib"`` or ``"ours"``
    :param n_action_dims: entries of an action: sb3-contrib averages the KL over them, ours sums it
    :return: keywords of the constructor
    """
    settings = read_settings(config_file("trpo"), task)
    divisor = n_action_dims if package == "sb3-contrib" else 1
    return settings | {"target_kl": settings.get("target_kl", 0.01) / divisor}
