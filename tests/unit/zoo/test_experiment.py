import os
import re
import signal
import sys

import numpy as np
import pandas
import pytest
import yaml
from helpers.contract_tools import same_parameters
from optuna import load_study
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import CSVOutputFormat, Image

from sb3_trpo import TRPO
from sb3_trpo.checkpoint.run_folder import sole_owner
from sb3_trpo.parallel.first_rank import callbacks_of_other_ranks
from sb3_trpo.zoo.algorithms import config_file
from sb3_trpo.zoo.experiment import ProgressFile, envs_of_rank, is_seed_given, schedule

CARTPOLE = ("train", "--algo", "trpo", "--env", "CartPole-v1")
SEARCH = ("-optimize", "--n-trials", 2, "--n-evaluations", 1, "--eval-episodes", 1, "--no-optim-plots", "--seed", 0,
          "--n-startup-trials", 1)  # fmt: skip


def test_training_uses_our_class_and_our_settings(trained):
    model = TRPO.load(trained / "CartPole-v1.zip")
    settings = yaml.safe_load(config_file("trpo").read_text())["CartPole-v1"]
    assert model.policy_class.__module__ == "sb3_trpo.policies"
    assert (model.n_steps, model.batch_size, model.n_envs) == (settings["n_steps"], settings["batch_size"], settings["n_envs"])
    assert model.n_critic_updates == 2
    assert {path.name for path in trained.iterdir()} >= {"best_model.zip", "rl_model_1000_steps.zip", "evaluations.npz"}


def test_other_algorithms_keep_rl_zoos_settings(run_zoo, tmp_path, capsys):
    run_zoo("train", "--algo", "a2c", "--env", "CartPole-v1", "-n", 10, "-f", tmp_path, "--eval-freq", -1)
    assert f"hyperparams{os.sep}a2c.yml" in capsys.readouterr().out


def test_schedules_in_a_configuration_become_functions(run_zoo, tmp_path):
    (tmp_path / "conf.yml").write_text("CartPole-v1: {policy: MlpPolicy, n_timesteps: 64, n_steps: 32, batch_size: 32}")
    run_zoo(*CARTPOLE, "-f", tmp_path, "--eval-freq", -1, "-conf", tmp_path / "conf.yml",
            "-params", "target_kl:'lin_0.04'", "ent_coef:'lin_0.01'", "learning_rate:'lin_0.003_0.001'")  # fmt: skip
    model = TRPO.load(tmp_path / "trpo" / "CartPole-v1_1" / "CartPole-v1.zip")
    assert (model.target_kl(0.5), model.ent_coef(0.25)) == (0.02, 0.0025)
    assert [model.learning_rate(each) for each in (1.0, 0.5, 0.0)] == pytest.approx([0.003, 0.002, 0.001])
    assert model.n_steps == 32, "--conf-file takes precedence over our own settings"


@pytest.mark.parametrize("text", ["lin_", "lin_a", "lin_0.1_0.2_0.3"])
def test_a_schedule_that_is_none_is_refused_by_name(text):
    with pytest.raises(ValueError, match=f"target_kl is '{text}', but a schedule is lin_FIRST or lin_FIRST_LAST"):
        schedule("target_kl", text)


def checkpointed(folder) -> str:
    return f"callback:{{'sb3_trpo.checkpoint.ResumableCheckpoint': dict(folder='{folder}', every=1)}}"


def test_a_search_runs_our_class_and_makes_no_checkpoints(run_zoo, tmp_path, monkeypatch):
    built, setup = [], TRPO._setup_model
    monkeypatch.setattr(TRPO, "_setup_model", lambda self: built.append(self.target_kl) or setup(self))
    run_zoo(*CARTPOLE, "-n", 300, "-f", tmp_path, *SEARCH, "-params", checkpointed(tmp_path / "run"))
    assert len(built) == 2
    assert built[0] != built[1]
    assert not (tmp_path / "run").exists()


def test_every_trial_of_a_search_can_be_trained_and_a_missing_one_is_named(run_zoo, tmp_path):
    stored = ("--storage", tmp_path / "search.log", "--study-name", "cartpole")
    run_zoo(*CARTPOLE, "-n", 300, "-f", tmp_path, *SEARCH, *stored)
    study = load_study(study_name="cartpole", storage=JournalStorage(JournalFileBackend(str(tmp_path / "search.log"))))
    for number in (0, 1):
        run_zoo(*CARTPOLE, "-n", 64, "-f", tmp_path / f"{number}", "--eval-freq", -1, *stored, "--trial-id", number)
        model = TRPO.load(tmp_path / f"{number}" / "trpo" / "CartPole-v1_1" / "CartPole-v1.zip")
        assert model.gamma == pytest.approx(1.0 - study.trials[number].params["one_minus_gamma"])
    with pytest.raises(ValueError, match="--trial-id needs the --storage"):
        run_zoo(*CARTPOLE, "-n", 64, "-f", tmp_path, "--trial-id", 0)
    wrong = {"trial 2 in the study 'cartpole'": ("--trial-id", 2), "study 'x'": ("--study-name", "x", "--trial-id", 1)}
    for name, arguments in wrong.items():
        with pytest.raises(ValueError, match=f"has no {name}"):
            run_zoo(*CARTPOLE, "-n", 64, "-f", tmp_path, *stored, *arguments)


def test_a_run_that_was_stopped_resumes_in_its_folder_with_its_seed(run_zoo, tmp_path, monkeypatch):
    common = (*CARTPOLE, "-n", 8192, "--eval-freq", 1000)
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
    logs = [pandas.read_csv(run / "progress.csv") for run in runs]
    times = [name for name in logs[0] if name.startswith("time/") and name != "time/total_timesteps"]
    pandas.testing.assert_frame_equal(*(log.drop(columns=times) for log in logs), check_like=True)


def test_a_run_under_way_is_not_touched_by_a_second_one(run_zoo, tmp_path):
    arguments = (*CARTPOLE, "-n", 1024, "--eval-freq", -1, "-f", tmp_path / "logs")
    with sole_owner(tmp_path / "run"), pytest.raises(RuntimeError, match="Another run"):
        run_zoo(*arguments, "-params", checkpointed(tmp_path / "run"))
    assert not (tmp_path / "logs" / "trpo").exists()


def test_the_checkpoint_callback_that_the_configuration_shows_works(run_zoo, tmp_path):
    (shown,) = re.findall(r"^# +callback:\n(?:# .*\n)+", config_file("trpo").read_text(), re.MULTILINE)
    text = re.sub("^# ", "", shown, flags=re.MULTILINE)
    assert "ResumableCheckpoint" in text
    settings = yaml.safe_load(text) | {"policy": "MlpPolicy", "n_timesteps": 64, "n_steps": 32, "batch_size": 32}
    (tmp_path / "conf.yml").write_text(yaml.safe_dump({"CartPole-v1": settings}))
    run_zoo(*CARTPOLE, "-f", tmp_path, "--eval-freq", -1, "-conf", tmp_path / "conf.yml")
    assert len([*tmp_path.glob("runs/CartPole-v1/checkpoint-*")]) == 1


def test_a_folder_that_names_the_seed_needs_one(run_zoo, tmp_path):
    arguments = (*CARTPOLE, "-n", 64, "--eval-freq", -1, "-f", tmp_path / "logs")
    with pytest.raises(ValueError, match="give --seed"):
        run_zoo(*arguments, "-params", checkpointed(tmp_path / "{env}-{seed}"))
    run_zoo(*arguments, "--seed", 7, "-params", checkpointed(tmp_path / "{env}-{seed}"))
    assert (tmp_path / "CartPole-v1-7" / "rl_zoo.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "is_given"), [(["--seed", "3"], True), (["--seed=0"], True), (["--seed", "-1"], False), ([], False)]
)
def test_a_negative_seed_is_none(arguments, is_given, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["zoo train", "--algo", "trpo", *arguments])
    assert is_seed_given() == is_given


@pytest.mark.parametrize(("rank", "share"), [(0, [0, 1]), (1, [2, 3]), (2, [4, 5])])
def test_each_rank_creates_its_share_of_the_environments(rank, share):
    assert envs_of_rank(list, rank, 3, [*range(6)]) == share


def test_a_log_that_ends_twice_or_never_began_does_no_harm(tmp_path):
    callback = ProgressFile(str(tmp_path))
    model = TRPO("MlpPolicy", "CartPole-v1", n_steps=64, batch_size=64).learn(128, callback=callback)
    callback.on_training_end()
    assert "time/total_timesteps" in (tmp_path / "progress.csv").read_text()
    assert not [each for each in model.logger.output_formats if getattr(each, "file", None) and each.file.closed]


def test_only_the_first_rank_writes_the_log(tmp_path):
    assert callbacks_of_other_ranks([ProgressFile(str(tmp_path))]) == []


class OddRecords(BaseCallback):
    """Records what CSV cannot hold."""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.logger.record("odd/weights", self.model.policy.action_net.weight.detach(), exclude=("stdout", "log"))
        self.logger.record("odd/picture", Image(np.zeros((2, 2, 3), np.uint8), "HWC"), exclude=("stdout", "log"))
        self.logger.record("odd/text", "a,b", exclude="stdout")


def test_the_log_holds_numbers_only_and_what_else_is_recorded_does_no_harm(tmp_path):
    model = TRPO("MlpPolicy", "CartPole-v1", n_steps=64, batch_size=64)
    model.learn(192, callback=[OddRecords(), ProgressFile(str(tmp_path))])
    log = pandas.read_csv(tmp_path / "progress.csv")
    assert log["time/total_timesteps"].tolist() == [64, 128, 192]
    assert not [name for name in log if name.startswith("odd/")]
    assert "train/n_updates" in log


def test_a_log_that_cannot_be_written_ends_with_a_warning_and_the_run_goes_on(tmp_path, monkeypatch):
    (tmp_path / "progress.csv").mkdir()
    model = TRPO("MlpPolicy", "CartPole-v1", n_steps=64, batch_size=64)
    with pytest.warns(UserWarning, match="There will be no dashboard of this run: .*Is a directory"):
        model.learn(64, callback=ProgressFile(str(tmp_path)))
    (tmp_path / "progress.csv").rmdir()

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(CSVOutputFormat, "write", fail)
    with pytest.warns(UserWarning, match="The dashboard of this run will end here: .*No space left") as warned:
        model.learn(192, callback=ProgressFile(str(tmp_path)))
    assert model.num_timesteps == 192
    assert len([each for each in warned if "dashboard" in str(each.message)]) == 1
