import pytest
import yaml
from helpers.learning_runs import runs_of

from benchmarks.learning import plans


def test_every_plan_has_settings_for_its_runs():
    for name in plans.NAMES:
        for run in runs_of(name):
            assert run.settings["n_timesteps"] > 0, (name, run)


def test_no_run_is_in_two_plans():
    names = [name for plan in plans.NAMES for name in {run.name for run in runs_of(plan)}]
    assert len(names) == len(set(names))


def test_a_plan_replaces_settings_and_shares_those_of_another_version():
    plan = {
        "seeds": [1, 0],
        "settings": {"n_timesteps": 64},
        "runs": [
            {"algorithm": "ppo", "envs": ["HalfCheetah-v5"]},
            {"algorithm": "trpo", "label": "wide", "envs": ["Swimmer-v5"], "settings": {"n_timesteps": 32}, "seeds": [7]},
        ],
    }
    runs = list(plans.runs_of(plan))
    assert [(run.label, run.env, run.seed) for run in runs] == [
        ("ppo", "HalfCheetah-v5", 0),
        ("ppo", "HalfCheetah-v5", 1),
        ("wide", "Swimmer-v5", 7),
    ]
    theirs = yaml.safe_load(plans.rl_zoo_file("ppo").read_text())["HalfCheetah-v4"]
    assert runs[0].settings == theirs | {"n_timesteps": 64}
    assert runs[2].settings["n_timesteps"] == 32


def test_runs_with_other_settings_have_another_folder():
    run = plans.Run("trpo", "trpo", "Hopper-v5", 0, {"gamma": 0.99})
    names = {run.name, run._replace(seed=1).name, run._replace(settings={"gamma": 0.9}).name}
    assert len(names) == 3
    assert run._replace(label="other").name == run.name


def test_settings_that_are_nowhere_are_named():
    with pytest.raises(KeyError, match=r"ppo.yml has no settings for Nowhere-v5.*policy"):
        plans.settings_for("ppo", "Nowhere-v5")


def test_names_with_a_slash_make_no_folder_and_need_a_package():
    run = plans.Run("trpo", "trpo", "dm_control/cheetah-run-v0", 0, {})
    assert run.name.startswith("trpo/dm_control-cheetah-run-v0-seed0-")
    assert plans.packages_of(run.env) == ["shimmy"]
    assert plans.packages_of("HalfCheetah-v5") == []
