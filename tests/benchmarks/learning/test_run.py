import json
import os
import signal
import time
from threading import Thread

import numpy as np
import pytest
import yaml
from filelock import FileLock
from helpers.learning_runs import only_plan, quick_training, result_of, runs_of

from benchmarks.learning import measuring, plans, run as learning, store


def test_a_run_is_trained_and_evaluated_as_its_plan_says(tmp_path, monkeypatch):
    played, play = [], measuring.final_returns
    monkeypatch.setattr(measuring, "final_returns", lambda *given: played.append(given) or play(*given))
    settings = {"policy": "MlpPolicy", "n_envs": 2, "n_steps": 64, "n_timesteps": 256}
    run = plans.Run("trpo", "small", "CartPole-v1", 7, settings)
    result = learning.carry_out(run, tmp_path)
    (folder,) = (tmp_path / run.name / "trpo").glob("CartPole-v1_1/CartPole-v1")
    arguments, used = (dict(yaml.load((folder / file).read_text(), yaml.UnsafeLoader)) for file in ("args.yml", "config.yml"))
    assert {name: arguments[name] for name in ("seed", "num_threads", "eval_freq", "device")} == {
        "seed": 7,
        "num_threads": 1,
        "eval_freq": -1,
        "device": "cpu",
    }
    (checkpoint,) = used.pop("callback")
    assert used == settings
    assert [*checkpoint] == ["sb3_trpo.checkpoint.ResumableCheckpoint"]
    assert list((tmp_path / run.name / "checkpoints").iterdir())
    ((_, model, _, episodes, seed),) = played
    assert (model, episodes, seed) == (str(folder.parent / "CartPole-v1.zip"), 20, 1007)
    assert {field: result[field] for field in run._fields} == run._asdict()
    assert len(result["returns"]) == 20
    assert result["mean"] == pytest.approx(np.mean(result["returns"]))
    assert result["std"] == pytest.approx(np.std(result["returns"]))
    (attempt,) = result["attempts"]
    assert attempt["exit"] == 0
    assert attempt["made_with"].keys() >= {"commit", "packages", "cpu"}
    assert result["curve"][-1][0] == 256
    assert len(result["curve"][-1]) == 3
    assert store.result_of(run) == json.loads(json.dumps(result))
    assert learning.carry_out(run, tmp_path) == result  # from its folder
    assert len(played) == 1


@pytest.fixture(autouse=True)
def results(tmp_path, monkeypatch):
    """Keep results apart from those of the repository."""
    monkeypatch.setattr(store, "FOLDER", tmp_path / "results")


def test_what_was_begun_is_collected_and_results_outlive_the_folders_of_their_runs(tmp_path, monkeypatch):
    runs = [plans.Run("trpo", "trpo", "Hopper-v5", seed, {"gamma": 0.99}) for seed in range(4)]
    only_plan(monkeypatch, (learning, store), runs)
    for run in runs[:3]:
        store.keep(run, result_of(run, mean=7.0))
    remade, interrupted = (tmp_path / "runs" / run.name for run in runs[1:3])
    remade.mkdir(parents=True)
    (remade / learning.RESULT).write_text(json.dumps(result_of(runs[1], mean=9.0)))
    interrupted.mkdir()
    learning.note_attempt(interrupted, [], start=0.0, made_with={}, status=None)
    (interrupted / learning.OUTPUT).touch()
    monkeypatch.setattr("sys.argv", ["learning.py", "pybullet", "--collect", "--folder", str(tmp_path / "runs")])
    learning.main()
    assert [(row["seed"], row["mean"]) for row in store.read("pybullet")] == [(0, 7.0), (1, 9.0), (2, 7.0)]


def test_time_of_a_run_is_noted_before_its_end(tmp_path, monkeypatch):
    training = "import shutil, time\ntime.sleep(1)\nshutil.copy('attempts.json', 'killed.json')"
    quick_training(monkeypatch, tmp_path, training)
    monkeypatch.setattr(learning, "MINUTE", 0.1)
    learning.train(plans.Run("trpo", "trpo", "Hopper-v5", 0, {}), tmp_path)
    (killed,) = json.loads((tmp_path / "killed.json").read_text())
    (ended,) = learning.attempts_in(tmp_path)
    assert killed["exit"] is None
    assert ended["exit"] == 0
    assert 0.0 < killed["seconds"] <= ended["seconds"]


@pytest.mark.parametrize(("options", "due"), [([], [1, 2]), (["--afresh"], [0, 1, 2]), (["--collect"], None)])
def test_finished_runs_are_not_repeated_unless_asked_for(tmp_path, monkeypatch, options, due):
    runs = list(runs_of("pybullet"))[:3]
    only_plan(monkeypatch, (learning, store), runs)
    store.keep(runs[0], result_of(runs[0], mean=7.0))
    store.keep(runs[1], result_of(runs[1], failure="stopped at 64 timesteps"))
    started = []
    monkeypatch.setattr(learning, "execute", lambda runs, folder, jobs: started.append(runs))
    monkeypatch.setattr("sys.argv", ["learning.py", "pybullet", "--folder", str(tmp_path / "runs"), *options])
    learning.main()
    assert started == ([[runs[each] for each in due]] if due is not None else [])


def test_a_run_under_way_elsewhere_is_neither_failed_nor_started_again(tmp_path, monkeypatch):
    quick_training(monkeypatch, tmp_path, "raise SystemExit(3)")
    run = plans.Run("trpo", "trpo", "Hopper-v5", 0, {"n_timesteps": 64})
    (tmp_path / run.name).mkdir(parents=True)
    learning.note_attempt(tmp_path / run.name, [], start=0.0, made_with={}, status=None)
    (tmp_path / run.name / learning.OUTPUT).touch()
    with FileLock(tmp_path / run.name / learning.LOCK):
        assert learning.carry_out(run, tmp_path)["failure"] == "under way in another process"
        learning.collect(run, tmp_path)
        assert store.result_of(run) is None
    assert len(learning.attempts_in(tmp_path / run.name)) == 1
    learning.collect(run, tmp_path)
    assert store.result_of(run)["failure"].startswith("exit status None")
    assert learning.carry_out(run, tmp_path)["failure"].startswith("exit status 3")
    assert store.result_of(run)["failure"].startswith("exit status 3")


def test_the_failure_of_a_run_leaves_the_others_alone(tmp_path, monkeypatch, capsys):
    def train(run, folder):
        if run.seed == 0:
            raise OSError("No space left on device")
        (folder / learning.RESULT).write_text(json.dumps(result_of(run, mean=7.0)))

    monkeypatch.setattr(learning, "train", train)
    monkeypatch.setattr(learning, "measure", lambda run, folder: json.loads((folder / learning.RESULT).read_text()))
    learning.execute([plans.Run("trpo", "trpo", "Hopper-v5", seed, {}) for seed in (0, 1)], tmp_path, jobs=1)
    printed = capsys.readouterr().err
    assert "seed 0: OSError: No space left on device" in printed
    assert "seed 1: 7.0 +/- 0.0" in printed


def test_sigterm_reaches_the_trainings_which_have_not_failed(tmp_path, monkeypatch):
    ended = "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\nopen('up', 'w')\ntime.sleep(60)"
    quick_training(monkeypatch, tmp_path, ended)
    runs = list(runs_of("pybullet"))[:2]
    only_plan(monkeypatch, (learning, store), runs)
    before = signal.getsignal(signal.SIGTERM)

    def kill_when_up():
        while not (tmp_path / "runs" / runs[0].name / "up").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("sys.argv", ["learning.py", "pybullet", "--jobs", "1", "--folder", str(tmp_path / "runs")])
    killer = Thread(target=kill_when_up)
    killer.start()
    start = time.monotonic()
    try:
        with pytest.raises(SystemExit, match="130"):
            learning.main()
    finally:
        killer.join()
        signal.signal(signal.SIGTERM, before)
    assert time.monotonic() - start < 50
    assert [attempt["exit"] for attempt in learning.attempts_in(tmp_path / "runs" / runs[0].name)] == [0]
    assert not store.read("pybullet")  # neither has failed
    assert not learning.TRAININGS


def test_a_training_that_starts_during_the_shutdown_is_terminated_too(tmp_path, monkeypatch):
    quick_training(monkeypatch, tmp_path, "import time\ntime.sleep(60)")
    run = plans.Run("trpo", "trpo", "Hopper-v5", 0, {})
    learning.ENDING.set()
    try:
        learning.train(run, tmp_path)  # as if it had begun before
        assert learning.carry_out(run, tmp_path / "runs")["failure"] == "not started"
    finally:
        learning.ENDING.clear()
    (attempt,) = learning.attempts_in(tmp_path)
    assert attempt["exit"] == -signal.SIGTERM
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--jobs", "0"], "--jobs 0: at least 1"),
        (["--only", "Nowhere-v5"], "--only Nowhere-v5: pybullet.yml has AntBulletEnv-v0"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(monkeypatch, capsys, options, said):
    monkeypatch.setattr("sys.argv", ["learning.py", "pybullet", *options])
    with pytest.raises(SystemExit, match="2"):
        learning.main()
    assert said in capsys.readouterr().err


def test_a_plan_that_is_finished_is_said_to_be(tmp_path, monkeypatch, capsys):
    runs = list(runs_of("pybullet"))[:1]
    only_plan(monkeypatch, (learning, store), runs)
    store.keep(runs[0], result_of(runs[0], mean=7.0))
    monkeypatch.setattr("sys.argv", ["learning.py", "pybullet", "--folder", str(tmp_path / "runs")])
    learning.main()
    assert "All 1 runs are finished." in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()
