"""The measured effects on the page on tuning are those of the stored results."""

from __future__ import annotations

import ast
import re
import statistics
from collections import defaultdict
from typing import Any

import pytest
from helpers.pages import DOCS

from benchmarks.learning import store

PAGE = (DOCS / "guide" / "tuning.md").read_text()
PLANS = ("tuning", "superseded", "mujoco", "rl_zoo", "pybullet", "wall_clock")
DEFAULTS = {"n_envs": 1, "n_steps": 2048, "gamma": 0.99, "gae_lambda": 0.95, "n_critic_updates": 20, "target_kl": 0.01}
DEFAULTS |= {"batch_size": 128, "learning_rate": 0.001, "sub_sampling_factor": 1, "cg_max_steps": 15, "cg_damping": 0.1}
ROW = re.compile(r"^\| (?P<task>[\w-]+-v\d) \| (?P<setting>[^|]+) \| (?P<seeds>\d+) \| (?P<effects>`[^|]+) \|", re.MULTILINE)
EFFECT = re.compile(r"`(?P<value>[^`]+)` (?P<mean>-?[\d,.]*\d)(?: ± (?P<spread>[\d,.]*\d))?")

Settings = dict[str, str]


def settings_of(result: dict[str, Any]) -> Settings:
    """Give all settings of a run as text, the initial standard deviation and the defaults that it relied on included."""
    settings = DEFAULTS | {"normalize": False, "log_std_init": 0} | result["settings"]
    text = settings.pop("policy_kwargs", "")
    if found := re.search(r"log_std_init=(-?[\d.]+)(?:, *)?", text):
        settings["log_std_init"], text = ast.literal_eval(found[1]), text.replace(found[0], "")
    if isinstance(settings["normalize"], str):  # a dict as text: all that were tried normalize rewards only
        settings["normalize"] = "rewards"
    settings["n_envs x n_steps"] = f"{settings.pop('n_envs')} x {settings.pop('n_steps')}"
    return {**{name: str(value) for name, value in settings.items()}, "network": text.removeprefix("dict()")}


def returns_by_settings() -> dict[str, list[tuple[Settings, dict[int, float]]]]:
    """Collect the final returns of a task's runs by settings and seed."""
    found: dict[str, dict[tuple[tuple[str, str], ...], dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for result in store.read(*PLANS):
        if result["algorithm"] == "trpo" and result.get("mean") is not None:
            found[result["env"]][tuple(sorted(settings_of(result).items()))][result["seed"]] = result["mean"]
    return {env: [(dict(settings), returns) for settings, returns in each.items()] for env, each in found.items()}


RETURNS = returns_by_settings()


def alternatives(task: str, name: str, values: list[str]) -> list[list[dict[int, float]]]:
    """List groups of runs that differ in one setting only, or in two that go together, with the given values."""
    groups, names = defaultdict(dict), name.split(" and ")
    for settings, returns in RETURNS[task]:
        rest = {key: value for key, value in settings.items() if key not in names}
        groups[tuple(sorted(rest.items()))][" and ".join(settings[each] for each in names)] = returns
    return [[group[value] for value in values] for group in groups.values() if all(value in group for value in values)]


def summaries(groups: list[dict[int, float]]) -> tuple[int, list[tuple[float, float]]]:
    """Give the number of seeds that all groups have, and mean and standard deviation of each over them."""
    seeds = set.intersection(*map(set, groups))
    common = [[group[seed] for seed in seeds] for group in groups]
    return len(seeds), [(statistics.mean(each), statistics.stdev(each) if len(seeds) > 1 else 0.0) for each in common if seeds]


def is_rounded(text: str, value: float) -> bool:
    digits = len(text.partition(".")[2])
    return abs(float(text.replace(",", "")) - value) <= 0.5000001 * 10.0**-digits


ROWS = [match.groupdict() for match in ROW.finditer(PAGE)]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['task']} {row['setting']}")
def test_an_effect_is_that_of_runs_that_differ_in_one_setting_only(row):
    effects = [match.groupdict() for match in EFFECT.finditer(row["effects"])]
    assert len(effects) >= 2
    groups = alternatives(row["task"], row["setting"].strip("`"), [effect["value"] for effect in effects])
    found = [means for n_seeds, means in map(summaries, groups) if n_seeds == int(row["seeds"])]
    assert any(are_rounded(effects, means) for means in found), found


def are_rounded(effects: list[dict[str, str | None]], means: list[tuple[float, float]]) -> bool:
    """Check a row's numbers, of which the standard deviations may be missing."""
    pairs = zip(effects, means, strict=True)
    return all(
        is_rounded(effect["mean"], mean) and (effect["spread"] is None or is_rounded(effect["spread"], spread))
        for effect, (mean, spread) in pairs
    )


def test_every_row_of_the_tables_is_checked():
    assert len(ROWS) == len(re.findall(r"^\| [\w-]+-v\d \|", PAGE, re.MULTILINE)) >= 15
