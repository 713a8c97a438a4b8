"""Plans of learning runs (``plans/*.yml``), and the settings that they start from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import rl_zoo3
import sb3_contrib
import yaml
from stable_baselines3 import A2C, DDPG, PPO
from stable_baselines3.common.base_class import BaseAlgorithm

import sb3_trpo
from sb3_trpo.zoo.algorithms import config_file

PLANS = Path(__file__).parent / "plans"
NAMES = sorted(file.stem for file in PLANS.glob("*.yml"))
"""Names of the plans."""


def rl_zoo_file(name: str) -> Path:
    """
    Find settings that come with RL Zoo.

    :param name: RL Zoo's name of an algorithm
    :return: the YAML file
    """
    return Path(rl_zoo3.__file__).parent / "hyperparams" / f"{name}.yml"


class Algorithm(NamedTuple):
    """
    How to train with an algorithm.

    :param command: a module and its first arguments
    :param name: RL Zoo's name of the algorithm
    :param model: its class
    :param settings: file with its settings by environment
    :param resumes: whether a killed run resumes; otherwise it starts again
    """

    command: tuple[str, ...]
    name: str
    model: type[BaseAlgorithm]
    settings: Path
    resumes: bool


ALGORITHMS = {
    "trpo": Algorithm(("sb3_trpo.zoo", "train"), "trpo", sb3_trpo.TRPO, config_file("trpo"), True),
    "sb3-contrib": Algorithm(("rl_zoo3.train",), "trpo", sb3_contrib.TRPO, rl_zoo_file("trpo"), False),
    "ppo": Algorithm(("sb3_trpo.zoo", "train"), "ppo", PPO, rl_zoo_file("ppo"), True),
    "a2c": Algorithm(("sb3_trpo.zoo", "train"), "a2c", A2C, rl_zoo_file("a2c"), True),
    "ddpg": Algorithm(("sb3_trpo.zoo", "train"), "ddpg", DDPG, rl_zoo_file("ddpg"), False),
}


PACKAGES = {"dm_control/": "shimmy"}
"""Modules that register environments, by the beginning of their names."""


def packages_of(env: str) -> list[str]:
    """
    List the modules to import before an environment can be made.

    :param env: environment ID
    :return: names of the modules
    """
    return [module for beginning, module in PACKAGES.items() if env.startswith(beginning)]


class Run(NamedTuple):
    """
    One training.

    :param algorithm: key of ``ALGORITHMS``
    :param label: name of its settings in the plan
    :param env: environment ID
    :param seed: seed of the training
    :param settings: in the format of RL Zoo's files, with ``n_timesteps``
    """

    algorithm: str
    label: str
    env: str
    seed: int
    settings: dict[str, Any]

    @classmethod
    def of(cls, result: Mapping[str, Any]) -> Run:
        """Return the run that a stored result belongs to."""
        return cls(*(result[field] for field in cls._fields))

    @property
    def name(self) -> str:
        """Its folder; other settings have another."""
        digest = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:8]
        return f"{self.algorithm}/{self.env.replace('/', '-')}-seed{self.seed}-{digest}"


def settings_for(algorithm: str, env: str) -> dict[str, Any]:
    """
    Look up settings. RL Zoo has none for MuJoCo's -v5, which then use those of -v4, or of -v2 if there are no others.

    :param algorithm: key of ``ALGORITHMS``
    :param env: environment ID
    :return: the settings, in the format of the file
    :raises KeyError: if the file has none for the task
    """
    known = parsed(ALGORITHMS[algorithm].settings.read_text())
    for name in (env, *(env.replace("-v5", older) for older in ("-v4", "-v2"))):
        if name in known:
            return known[name]
    raise KeyError(
        f"{ALGORITHMS[algorithm].settings.name} has no settings for {env}: add them there, or `settings` to the plan, "
        "with at least `policy` and `n_timesteps`."
    )


def read_plan(name: str) -> dict[str, Any]:
    """
    Read a plan.

    :param name: name of the plan
    :return: the contents of its file
    """
    return parsed((PLANS / f"{name}.yml").read_text())


@cache
def parsed(text: str) -> dict[str, Any]:
    """
    Parse YAML, which takes seconds for all plans: a report reads each of them many times.

    :param text: contents of a file
    :return: the data, not to be changed
    """
    return yaml.safe_load(text)


def runs_of(plan: dict[str, Any]) -> Iterator[Run]:
    """
    List the runs of a plan.

    :param plan: the plan: ``seeds``, and ``runs`` with ``algorithm``, ``envs`` and optionally ``label``, ``seeds`` and
        ``settings``, which replace single settings of the algorithm's file or, with ``alone``, all of them
    :return: the runs, ordered by seed
    """
    runs = []
    for entry in plan["runs"]:
        algorithm, given = entry["algorithm"], plan.get("settings", {}) | entry.get("settings", {})
        for env in entry["envs"]:
            found = {} if entry.get("alone") else settings_for(algorithm, env)
            seeds = entry.get("seeds", plan.get("seeds"))
            runs += [Run(algorithm, entry.get("label", algorithm), env, seed, found | given) for seed in seeds]
    return iter(sorted(runs, key=lambda run: run.seed))
