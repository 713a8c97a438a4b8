"""The trained agents are those that ``results/agents.json`` reports."""

import json

import gymnasium as gym
import pytest
import yaml
from PIL import Image

from benchmarks.agents import animate, run, tables
from benchmarks.common.environment import RESULTS, ROOT
from benchmarks.learning import store
from sb3_trpo import TRPO

REPORTED = {each["env"]: each for each in json.loads((RESULTS / "agents.json").read_text())["results"]}
RUNS = store.read("mujoco")
SMALL = 2_000_000
"""Bytes that all agents may take together."""


def test_each_task_of_the_results_has_one_with_a_seed_that_is_reported_there():
    assert REPORTED.keys() == {each["env"] for each in RUNS}
    assert {(each["env"], each["seed"]) for each in REPORTED.values()} <= {(each["env"], each["seed"]) for each in RUNS}
    assert [(each.env, each.seed) for each in run.chosen()] == [(env, each["seed"]) for env, each in REPORTED.items()]


def test_they_are_small():
    sizes = [file.stat().st_size for file in run.AGENTS.rglob("*") if file.is_file()]
    assert sum(sizes) == sum(each["bytes"] for each in REPORTED.values()) < SMALL


@pytest.mark.parametrize("env_id", REPORTED)
@pytest.mark.filterwarnings("ignore:.*is out of date:DeprecationWarning")  # Ant-v4, which others have published results of
def test_each_was_trained_as_the_others_and_acts(env_id):
    folder = run.AGENTS / "trpo" / f"{env_id}_1"
    settings = dict(yaml.unsafe_load((folder / env_id / "args.yml").read_text()))
    assert (settings["seed"], settings["log_folder"]) == (REPORTED[env_id]["seed"], "runs/agents")
    assert settings["hyperparams"] is settings["conf_file"] is None, "settings are those of zoo_configs"
    model = TRPO.load(folder / f"{env_id}.zip", device="cpu")
    assert model.num_timesteps >= 1_000_000
    with gym.make(env_id) as env:
        assert model.predict(env.observation_space.sample(), deterministic=True)[0] in env.action_space


def test_one_reaches_its_reported_return():
    env_id, reported = "Hopper-v5", REPORTED["Hopper-v5"]
    assert reported["std"] < 0.01 * reported["mean"], "whichever processor this is, a few episodes are enough"
    assert run.evaluate(env_id, reported["seed"], episodes=3) == pytest.approx(reported["returns"][:3], rel=0.01)


def test_returns_near_0_have_a_digit_more():
    rows = [{"env": "A-v0", "seed": 0, "mean": mean, "std": 12.34, "bytes": 2048} for mean in (-3.84, 4321.6)]
    *_, small, large = tables.tables({"results": rows})["agents"].splitlines()
    assert small == "| A-v0 | 0 | -3.8 | 12.3 | 2 |"
    assert large == "| A-v0 | 0 | 4,322 | 12 | 2 |"


@pytest.mark.parametrize("env_id", animate.SHOWN)
def test_an_animation_moves(env_id):
    with Image.open(ROOT / "docs" / "results" / f"{env_id}.webp") as picture:
        assert picture.size == (animate.VIEW["width"], animate.VIEW["height"])
        assert picture.n_frames >= animate.SECONDS * animate.RATE
