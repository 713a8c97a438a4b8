import os
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import optuna
import pytest
import rl_zoo3
import yaml
from helpers.contract_tools import same_parameters
from rl_zoo3 import exp_manager, hyperparams_opt
from rl_zoo3.utils import ALGOS
from stable_baselines3.common import callbacks
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_trpo import TRPO
from sb3_trpo.checkpoint.run_folder import sole_owner
from sb3_trpo.maskable import MaskableTRPO
from sb3_trpo.zoo import command as zoo

OURS = yaml.safe_load(zoo.config_file("trpo").read_text())
RL_ZOO = yaml.safe_load((Path(rl_zoo3.__file__).parent / "hyperparams" / "trpo.yml").read_text())
PPO_LSTM = yaml.safe_load((Path(rl_zoo3.__file__).parent / "hyperparams" / "ppo_lstm.yml").read_text())
OURS_LSTM = yaml.safe_load(zoo.config_file("trpo_lstm").read_text())
CONTRIB_TARGET_KL = 0.01
MUJOCO = {name for name, spec in gym.registry.items() if "mujoco" in str(spec.entry_point)}
MUJOCO_V5 = sorted(name for name in MUJOCO if name.endswith("-v5"))


def call_zoo(monkeypatch, folder, *arguments):
    """Calls RL Zoo as the command line does, in this process."""
    replaced = ((exp_manager, "ExperimentManager"), (callbacks, "evaluate_policy"), (MaskableTRPO, "predict"))
    for thing, name in (*replaced, (rl_zoo3, "create_test_env"), (rl_zoo3.utils, "create_test_env")):
        monkeypatch.setattr(thing, name, getattr(thing, name))  # to be put back
    for module in ("rl_zoo3.train", "rl_zoo3.enjoy"):  # they bind the manager when imported
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setattr(sys, "argv", ["zoo", *map(str, arguments)])
    monkeypatch.chdir(folder)
    zoo.main()


@pytest.fixture
def run_zoo(monkeypatch, tmp_path):
    return partial(call_zoo, monkeypatch, tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    logs = tmp_path_factory.mktemp("logs")
    with pytest.MonkeyPatch.context() as monkeypatch:
        call_zoo(monkeypatch, logs, "train", "--algo", "trpo", "--env", "CartPole-v1", "-n", 2048, "-f", logs, "--seed", 0,
                 "--eval-freq", 1000, "--save-freq", 1000, "-params", "n_critic_updates:2")  # fmt: skip
    return logs / "trpo" / "CartPole-v1_1"


def test_training_uses_our_class_and_our_settings(trained):
    model = TRPO.load(trained / "CartPole-v1.zip")
    settings = OURS["CartPole-v1"]
    assert model.policy_class.__module__ == "sb3_trpo.policies"
    assert (model.n_steps, model.batch_size, model.n_envs) == (settings["n_steps"], settings["batch_size"], settings["n_envs"])
    assert model.n_critic_updates == 2
    assert {path.name for path in trained.iterdir()} >= {"best_model.zip", "rl_model_1000_steps.zip", "evaluations.npz"}


def test_enjoy_loads_our_class(trained, run_zoo, monkeypatch, capsys):
    loaded = []
    load = BaseAlgorithm.load.__func__
    monkeypatch.setattr(
        TRPO, "load", classmethod(lambda cls, *args, **kwargs: loaded.append(cls) or load(cls, *args, **kwargs))
    )
    run_zoo("enjoy", "--algo", "trpo", "--env", "CartPole-v1", "-f", trained.parents[1], "--no-render", "-n", 600)
    assert loaded == [TRPO]
    assert "Mean reward" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("has_window", "pictures", "way"),
    [(True, None, "enjoy {}"), (False, {"MUJOCO_GL": "egl"}, "record_video {}"), (False, None, "enjoy {} --no-render")],
)
def test_report_evaluates_draws_and_names_a_way_to_watch_that_works_here(
    has_window, pictures, way, trained, run_zoo, capsys, monkeypatch
):
    monkeypatch.setattr(zoo, "shows_windows", lambda: has_window)
    monkeypatch.setattr(zoo, "pictures", lambda _: pictures)
    run_zoo("report", "--env", "CartPole-v1", "-f", trained.parents[1], "--episodes", 3)
    printed = capsys.readouterr().out
    assert "over 3 episodes" in printed
    assert str(trained / "CartPole-v1.zip") in printed
    assert (trained / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    run = f"--algo trpo --env CartPole-v1 -f {trained.parents[1]} --exp-id 1"
    assert printed.endswith(f"-m sb3_trpo.zoo {way.format(run)}\n")


def test_hyperparameter_search_runs_our_class(run_zoo, tmp_path, monkeypatch):
    built = []
    setup = TRPO._setup_model
    monkeypatch.setattr(TRPO, "_setup_model", lambda self: built.append(self.target_kl) or setup(self))
    run_zoo("train", "--algo", "trpo", "--env", "CartPole-v1", "-n", 300, "-f", tmp_path, "-optimize", "--n-trials", 2,
            "--n-evaluations", 1, "--eval-episodes", 1, "--no-optim-plots", "--seed", 0, "--n-startup-trials", 1)  # fmt: skip
    assert len(built) == 2
    assert built[0] != built[1]


def test_sampled_hyperparameters_are_keywords_of_our_class():
    zoo.install()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(20):
        trial = study.ask()
        sampled = hyperparams_opt.HYPERPARAMS_SAMPLER["trpo"](trial, 6, 1, {})
        assert hyperparams_opt.HYPERPARAMS_CONVERTER["trpo"](trial.params) == sampled, (
            "a stored trial must give the same model"
        )
        model = TRPO("MlpPolicy", "Pendulum-v1", **sampled | {"batch_size": 2 ** trial.params["n_steps_pow"]})
        assert model.target_kl == sampled["target_kl"]


def test_schedules_in_a_configuration_become_functions(run_zoo, tmp_path):
    (tmp_path / "conf.yml").write_text("CartPole-v1: {policy: MlpPolicy, n_timesteps: 64, n_steps: 32, batch_size: 32}")
    run_zoo("train", "--algo", "trpo", "--env", "CartPole-v1", "-f", tmp_path, "--eval-freq", -1,
            "-conf", tmp_path / "conf.yml", "-params", "target_kl:'lin_0.04'", "ent_coef:'lin_0.01'")  # fmt: skip
    model = TRPO.load(tmp_path / "trpo" / "CartPole-v1_1" / "CartPole-v1.zip")
    assert (model.target_kl(0.5), model.ent_coef(0.25)) == (0.02, 0.0025)
    assert model.n_steps == 32, "--conf-file goes before our own settings"


@pytest.mark.parametrize(("arguments", "status"), [(["--help"], 0), (["-h"], 0), ([], 2)])
def test_the_scripts_are_listed_with_what_each_does(arguments, status, run_zoo, capsys):
    with pytest.raises(SystemExit) as done:
        run_zoo(*arguments)
    out, error = capsys.readouterr()
    assert done.value.code == status
    printed = error if status else out
    assert printed.startswith("usage: python -m sb3_trpo.zoo SCRIPT")
    for script in ("report", *zoo.FUNCTIONS, "record_video", "record_training", "push_to_hub", "load_from_hub"):
        assert re.search(rf"^  {script} +\w+ ", printed, re.MULTILINE), script


def test_an_unknown_script_is_refused_with_the_known_ones(run_zoo, capsys):
    with pytest.raises(SystemExit) as done:
        run_zoo("trian")
    assert done.value.code == 2
    assert re.search(r"'trian' \(choose from '?train'?, '?report'?, '?enjoy", capsys.readouterr().err)


def test_recording_a_training_records_each_video_with_our_class(trained, run_zoo, monkeypatch):
    commands = []
    monkeypatch.setattr(subprocess, "call", lambda command, **_: commands.append(command) or 0)
    monkeypatch.setattr("os.system", lambda _: 0)
    run_zoo("record_training", "--algo", "trpo", "--env", "CartPole-v1", "-f", trained.parents[1])
    assert len(commands) >= 3
    assert all(command[:4] == [sys.executable, "-m", "sb3_trpo.zoo", "record_video"] for command in commands)


def test_other_algorithms_keep_rl_zoos_settings(run_zoo, tmp_path, capsys):
    run_zoo("train", "--algo", "a2c", "--env", "CartPole-v1", "-n", 10, "-f", tmp_path, "--eval-freq", -1)
    assert f"hyperparams{Path('/')}a2c.yml" in capsys.readouterr().out


def test_the_module_runs_as_a_command(tmp_path):
    command = [sys.executable, "-c", "import runpy, sys; sys.argv = ['zoo', 'train', '--help']; "
               "runpy.run_module('sb3_trpo.zoo', run_name='__main__')"]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--conf-file" in done.stdout


def test_install_replaces_trpo_and_adds_its_variants():
    before = dict(ALGOS)
    zoo.install()
    assert ALGOS["trpo"] is TRPO
    others = {name: cls for name, cls in before.items() if name not in zoo.ALGORITHMS}
    assert others | zoo.ALGORITHMS == ALGOS


@pytest.mark.parametrize(
    ("algo", "env"),
    [("trpo_mask", "InvalidActionEnvDiscrete-v0"), ("trpo_mask_lstm", "MaskedTMaze-v0"), ("trpo_lstm", "TMaze-v0")],
)
def test_variants_are_trained_evaluated_watched_and_reported(algo, env, run_zoo, tmp_path, capsys, monkeypatch):
    masked = []
    predict = zoo.TEST_ENV._predict

    def spy(model, observation, state=None, episode_start=None, deterministic=False, action_masks=None):
        masked.append(action_masks)
        return predict(model, observation, state, episode_start, deterministic, action_masks)

    monkeypatch.setattr(zoo.TEST_ENV, "_predict", spy)
    monkeypatch.setattr(zoo.TEST_ENV, "_env", None)  # to be put back
    common = ("--algo", algo, "--env", env, "-f", tmp_path)
    run_zoo("train", *common, "-n", 512, "--seed", 0, "--eval-freq", 256, "-params", "n_steps:32", "n_critic_updates:1")
    model = zoo.ALGORITHMS[algo].load(tmp_path / algo / f"{env}_1" / f"{env}.zip")
    assert model.n_steps == 32
    assert "Eval num_timesteps=512" in capsys.readouterr().out
    run_zoo("enjoy", *common, "--no-render", "-n", 150)
    assert "Mean reward" in capsys.readouterr().out
    run_zoo("report", *common, "--episodes", 2)
    assert "Final evaluation" in capsys.readouterr().out
    assert len(masked) > 150 if "mask" in algo else not masked
    assert all(each is not None for each in masked), "nothing acts without masks"


@pytest.mark.parametrize("env", sorted(PPO_LSTM))
def test_there_are_settings_for_whatever_rl_zoo_tunes_recurrent_ppo_for(env):
    assert {re.sub(r"-v\d+$", "", name) for name in OURS_LSTM} >= {re.sub(r"-v\d+$", "", env)}


@pytest.mark.parametrize("env", [name for name in OURS_LSTM if name in gym.registry and name != "CarRacing-v3"])
def test_settings_of_recurrent_policies_make_a_model(env, run_zoo, tmp_path, monkeypatch):
    learned = []
    monkeypatch.setattr(TRPO, "learn", lambda model, *args, **kwargs: learned.append(model))
    run_zoo("train", "--algo", "trpo_lstm", "--env", env, "-f", tmp_path, "-params", "n_envs:1")
    (model,) = learned
    target_kl = model.target_kl(1.0) if callable(model.target_kl) else model.target_kl
    assert target_kl == float(str(OURS_LSTM[env].get("target_kl", CONTRIB_TARGET_KL)).removeprefix("lin_"))
    assert model.batch_size <= model.n_steps * OURS_LSTM[env].get("n_envs", 1)


TUNED = {*re.findall(r"^(\S+):(?: &\S+)?  # tuned: ", zoo.config_file("trpo").read_text(), re.MULTILINE)}


@pytest.mark.parametrize("env", sorted(RL_ZOO.keys() - MUJOCO - TUNED))
def test_settings_of_tasks_not_tuned_are_rl_zoos_but_for_the_radius(env):
    own_default = {} if env == "default" else {"n_critic_updates": 10}
    ours, theirs = dict(OURS[env]), own_default | RL_ZOO[env]
    radius = ours.pop("target_kl", CONTRIB_TARGET_KL) / theirs.pop("target_kl", CONTRIB_TARGET_KL)
    assert radius == pytest.approx(round(radius)), "an integer number of action dimensions"
    for settings in (ours, theirs):
        if "policy_kwargs" in settings:
            settings["policy_kwargs"] = settings["policy_kwargs"].replace(" ", "")
    assert ours == theirs


@pytest.mark.parametrize("env", [*MUJOCO_V5, *sorted(MUJOCO & set(RL_ZOO))])
def test_mujoco_tasks_share_their_settings_but_for_exceptions_that_are_explained(env):
    shared, own = OURS["HalfCheetah-v5"], OURS[env]
    exceptions = {name for name in own if own[name] != shared.get(name)}
    text = block_of(env, zoo.config_file("trpo").read_text())
    assert shared.keys() <= own.keys()
    for name in exceptions:
        assert re.search(rf"^  {name}: {re.escape(str(own[name]))}  # .{{20}}", text, re.MULTILINE | re.IGNORECASE), name


def block_of(env: str, text: str) -> str:
    """Give the lines of a task, and of the one that it shares settings with, up to those that all of MuJoCo share."""
    own = re.search(rf"^{env}:.*\n((?:  .*\n)+)", text, re.MULTILINE)[1]
    shared = re.search(r"<<: \*(\w+)", own)
    if not shared or shared[1] == "mujoco":
        return own
    return own + block_of(re.search(rf"^(\S+): &{shared[1]}$", text, re.MULTILINE)[1], text)


def test_mujoco_tasks_are_there():
    assert len(MUJOCO_V5) == 11


def checkpointed(folder) -> str:
    return f"callback:{{'sb3_trpo.checkpoint.ResumableCheckpoint': dict(folder='{folder}', every=1)}}"


def test_a_training_that_was_stopped_goes_on_in_its_folder_with_its_seed(run_zoo, tmp_path, monkeypatch):
    common = ("train", "--algo", "trpo", "--env", "CartPole-v1", "-n", 8192, "--eval-freq", 1000)
    run_zoo(*common, "--seed", 5, "-f", tmp_path / "whole")
    pieces = (*common, "-f", tmp_path / "pieces", "-params", checkpointed(tmp_path / "runs" / "{env}"))
    train, updates = TRPO.train, []

    def train_and_be_stopped(model):
        train(model)
        updates.append(model._n_updates)
        if len(updates) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(TRPO, "train", train_and_be_stopped)
    run_zoo(*pieces, "--seed", 5)
    assert updates == [1, 2]
    run_zoo(*pieces)
    assert updates == [1, 2, 3, 4]
    assert [path.name for path in (tmp_path / "pieces" / "trpo").iterdir()] == ["CartPole-v1_1"]
    runs = [tmp_path / name / "trpo" / "CartPole-v1_1" for name in ("whole", "pieces")]
    whole, resumed = (TRPO.load(run / "CartPole-v1.zip") for run in runs)
    assert same_parameters(whole.policy, resumed.policy)
    assert resumed.seed == 5
    results = [np.load(run / "evaluations.npz")["results"].tolist() for run in runs]
    assert results[0] == results[1]
    monitors = [[row.split(",")[:2] for row in (run / "0.monitor.csv").read_text().splitlines()[1:]] for run in runs]
    assert monitors[0] == monitors[1]


def test_a_training_that_is_under_way_is_not_touched_by_a_second_one(run_zoo, tmp_path):
    arguments = ("train", "--algo", "trpo", "--env", "CartPole-v1", "-n", 1024, "--eval-freq", -1, "-f", tmp_path / "logs")
    with sole_owner(tmp_path / "run"), pytest.raises(RuntimeError, match="Another run"):
        run_zoo(*arguments, "-params", checkpointed(tmp_path / "run"))
    assert not (tmp_path / "logs" / "trpo").exists()


def test_the_checkpoint_callback_that_the_configuration_shows_works(run_zoo, tmp_path):
    (shown,) = re.findall(r"^# +callback:\n(?:# .*\n)+", zoo.config_file("trpo").read_text(), re.MULTILINE)
    text = re.sub("^# ", "", shown, flags=re.MULTILINE)
    assert "ResumableCheckpoint" in text
    settings = yaml.safe_load(text) | {"policy": "MlpPolicy", "n_timesteps": 64, "n_steps": 32, "batch_size": 32}
    (tmp_path / "conf.yml").write_text(yaml.safe_dump({"CartPole-v1": settings}))
    run_zoo(
        "train", "--algo", "trpo", "--env", "CartPole-v1", "-f", tmp_path, "--eval-freq", -1, "-conf", tmp_path / "conf.yml"
    )
    assert len([*tmp_path.glob("runs/CartPole-v1/checkpoint-*")]) == 1


def test_a_folder_that_names_the_seed_wants_one_given(run_zoo, tmp_path):
    arguments = ("train", "--algo", "trpo", "--env", "CartPole-v1", "-n", 64, "--eval-freq", -1, "-f", tmp_path / "logs")
    with pytest.raises(ValueError, match="give --seed"):
        run_zoo(*arguments, "-params", checkpointed(tmp_path / "{env}-{seed}"))
    run_zoo(*arguments, "--seed", 7, "-params", checkpointed(tmp_path / "{env}-{seed}"))
    assert (tmp_path / "CartPole-v1-7" / "rl_zoo.json").is_file()


def test_a_hyperparameter_search_makes_no_checkpoints(run_zoo, tmp_path):
    run_zoo("train", "--algo", "trpo", "--env", "CartPole-v1", "-n", 300, "-f", tmp_path, "-optimize", "--n-trials", 2,
            "--n-evaluations", 1, "--eval-episodes", 1, "--no-optim-plots", "--seed", 0, "--n-startup-trials", 1,
            "-params", checkpointed(tmp_path / "run"))  # fmt: skip
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "is_given"), [(["--seed", "3"], True), (["--seed=0"], True), (["--seed", "-1"], False), ([], False)]
)
def test_a_negative_seed_is_none(arguments, is_given, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["zoo train", "--algo", "trpo", *arguments])
    assert zoo._is_seed_given() == is_given
