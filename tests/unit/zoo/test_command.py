import re
import sys

import pytest
from helpers.zoo_tools import run_zoo as run_zoo_in
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_trpo import TRPO
from sb3_trpo.maskable import MaskableTRPO
from sb3_trpo.zoo.algorithms import ALGORITHMS
from sb3_trpo.zoo.command import SCRIPTS


@pytest.mark.parametrize(("arguments", "status"), [(["--help"], 0), (["-h"], 0), ([], 2)])
def test_the_scripts_are_listed_with_what_each_does(arguments, status, run_zoo, capsys):
    with pytest.raises(SystemExit) as done:
        run_zoo(*arguments)
    out, error = capsys.readouterr()
    assert done.value.code == status
    printed = error if status else out
    assert printed.startswith("usage: python -m sb3_trpo.zoo SCRIPT")
    for script in SCRIPTS:
        assert re.search(rf"^  {script} +\w+ ", printed, re.MULTILINE), script


def test_an_unknown_script_is_refused_with_the_known_ones(run_zoo, capsys):
    with pytest.raises(SystemExit) as done:
        run_zoo("trian")
    assert done.value.code == 2
    assert re.search(r"'trian' \(choose from '?train'?, '?report'?, '?enjoy", capsys.readouterr().err)


@pytest.mark.parametrize("script", sorted(SCRIPTS.keys() - {"push_to_hub"}))  # which needs an older huggingface_sb3
def test_each_script_lists_its_arguments_and_leaves_the_command_line_as_it_was(script, tmp_path, capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "rl_zoo3.load_from_hub", raising=False)  # imported by enjoy in another test
    monkeypatch.setattr(sys, "argv", arguments := [*sys.argv])
    with pytest.raises(SystemExit) as done:
        run_zoo_in(tmp_path, script, "--help")
    assert done.value.code == 0
    assert "usage" in capsys.readouterr().out
    assert sys.argv == arguments


def test_enjoy_loads_our_class(trained, run_zoo, monkeypatch, capsys):
    loaded = []
    load = BaseAlgorithm.load.__func__
    monkeypatch.setattr(
        TRPO, "load", classmethod(lambda cls, *args, **kwargs: loaded.append(cls) or load(cls, *args, **kwargs))
    )
    run_zoo("enjoy", "--algo", "trpo", "--env", "CartPole-v1", "-f", trained.parents[1], "--no-render", "-n", 600)
    assert loaded == [TRPO]
    assert "Mean reward" in capsys.readouterr().out


def test_recording_a_training_records_each_video_with_our_class(trained, run_zoo, monkeypatch):
    commands = []
    monkeypatch.setattr("sb3_trpo.zoo.patches.run_process", lambda command, **_: commands.append(command) or 0)
    monkeypatch.setattr("os.system", lambda _: 0)
    run_zoo("record_training", "--algo", "trpo", "--env", "CartPole-v1", "-f", trained.parents[1])
    assert len(commands) >= 3
    assert all(command[:4] == [sys.executable, "-m", "sb3_trpo.zoo", "record_video"] for command in commands)


@pytest.mark.parametrize("limits", [None, {"cost": 7.0, "episode_cost": 9.0}])
def test_limits_on_costs_come_from_settings_or_the_command_line(limits, run_zoo, tmp_path):
    env, given = "SwimmerVelocity-v5", [f"cost_limits:{limits}"] if limits else []
    small = ("n_steps:16", "n_envs:1", "batch_size:16", "n_critic_updates:1", *given)
    run_zoo("train", "--algo", "trpo_cost", "--env", env, "-f", tmp_path, "-n", 32, "--eval-freq", -1, "-params", *small)
    model = ALGORITHMS["trpo_cost"].load(tmp_path / "trpo_cost" / f"{env}_1" / f"{env}.zip")
    assert model.cost_limits == (limits or {"cost": 25.0})
    assert model.cost_estimates.keys() == model.cost_limits.keys()


@pytest.mark.parametrize(
    ("algo", "env"),
    [("trpo_mask", "InvalidActionEnvDiscrete-v0"), ("trpo_mask_lstm", "MaskedTMaze-v0"), ("trpo_lstm", "TMaze-v0")],
)
def test_variants_are_trained_evaluated_watched_and_reported(algo, env, run_zoo, tmp_path, capsys, monkeypatch):
    masked, predict = [], MaskableTRPO.predict

    def spy(model, observation, state=None, episode_start=None, deterministic=False, action_masks=None):
        masked.append(action_masks)
        return predict(model, observation, state, episode_start, deterministic, action_masks)

    monkeypatch.setattr(MaskableTRPO, "predict", spy)
    common = ("--algo", algo, "--env", env, "-f", tmp_path)
    run_zoo("train", *common, "-n", 512, "--seed", 0, "--eval-freq", 256, "-params", "n_steps:32", "n_critic_updates:1")
    model = ALGORITHMS[algo].load(tmp_path / algo / f"{env}_1" / f"{env}.zip")
    assert model.n_steps == 32
    assert "Eval num_timesteps=512" in capsys.readouterr().out
    run_zoo("enjoy", *common, "--no-render", "-n", 150)
    assert "Mean reward" in capsys.readouterr().out
    run_zoo("report", *common, "--episodes", 2)
    assert "Final evaluation" in capsys.readouterr().out
    assert len(masked) > 150 if "mask" in algo else not masked
    assert all(each is not None for each in masked), "nothing acts without masks"
