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
    assert learning.carry_out(run, tmp_path) == result  # from its folder
    assert len(played) == 1


def test_results_outlive_the_folders_of_their_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "FOLDER", tmp_path)
    runs = [plans.Run("trpo", "trpo", "Hopper-v5", seed, {"gamma": 0.99}) for seed in range(4)]
    store.write("mujoco", {}, [result_of(runs[0], mean=7.0), result_of(runs[1], mean=7.0)])
    store.write("superseded", {}, [result_of(runs[2], mean=7.0)])
    remade, interrupted = (tmp_path / "runs" / run.name for run in runs[1:3])
    remade.mkdir(parents=True)
    (remade / learning.RESULT).write_text(json.dumps(result_of(runs[1], mean=9.0)))
    interrupted.mkdir()
    learning.note_attempt(interrupted, [], start=0.0, made_with={}, status=None)
    known = store.stored(["mujoco", "superseded"])
    results = learning.results_of(runs, tmp_path / "runs", known)
    assert [(row["seed"], row["mean"]) for row in results] == [(0, 7.0), (1, 9.0), (2, 7.0)]
    assert not learning.results_of([runs[0]._replace(settings={"gamma": 0.9})], tmp_path / "runs", known)


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
    monkeypatch.setattr(store, "FOLDER", tmp_path)
    runs = list(runs_of("pybullet"))[:3]
    only_plan(monkeypatch, (learning, store), runs)
    store.write("pybullet", {}, [result_of(runs[0], mean=7.0), result_of(runs[1], failure="stopped at 64 timesteps")])
    started = []
    monkeypatch.setattr(learning, "execute", lambda runs, folder, jobs: started.append(runs))
    monkeypatch.setattr("sys.argv", ["learning.py", "pybullet", "--folder", str(tmp_path / "runs"), *options])
    learning.main()
    assert started == ([[runs[each] for each in due]] if due is not None else [])


def test_results_move_with_their_runs_to_another_plan(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "FOLDER", tmp_path)
    seeds = {"mujoco": [2], "superseded": [0, 1], "tuning": [100]}

    def plan_of(name):
        entry = {"algorithm": "trpo", "alone": True, "envs": ["Hopper-v5"], "seeds": seeds[name]}
        return {"runs": [entry | {"settings": {"n_timesteps": 64}}]}

    for each in (learning, store):
        monkeypatch.setattr(each, "NAMES", list(seeds))
        monkeypatch.setattr(each, "read_plan", plan_of)
    before = [plans.Run("trpo", "trpo", "Hopper-v5", seed, {"n_timesteps": 64}) for seed in range(2)]
    store.write("mujoco", {}, [result_of(run, mean=7.0) for run in before])  # made when it was their plan
    monkeypatch.setattr("sys.argv", ["learning.py", "mujoco", "--collect", "--folder", str(tmp_path / "runs")])
    learning.main()
    assert store.stored(["superseded"]).keys() == {run.name for run in before}
    assert not store.stored(["mujoco"])
    assert not (tmp_path / "tuning.json").exists()


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_results_that_no_plan_lists_any_more_are_not_overwritten(tmp_path, monkeypatch, when):
    monkeypatch.setattr(store, "FOLDER", tmp_path)
    run = next(runs_of("pybullet"))
    stored, changed = run._replace(seed=8), run._replace(seed=8, settings={"n_timesteps": 64})
    store.write("pybullet", {}, [result_of(stored, mean=7.0)])
    executed = []

    def execute(due, folder, jobs):
        executed.extend(due)
        only_plan(monkeypatch, (learning, store), [run, changed])

    only_plan(monkeypatch, (learning, store), [run, changed if when == "before" else stored])
    monkeypatch.setattr(learning, "execute", execute)
    monkeypatch.setattr("sys.argv", ["learning.py", "pybullet", "--folder", str(tmp_path / "runs")])
    with pytest.raises(SystemExit, match=rf"Results of pybullet that no plan lists.*{stored.name}.*superseded.yml"):
        learning.main()
    assert store.stored(["pybullet"]).keys() == {stored.name}
    assert executed == ([] if when == "before" else [run])


def test_results_of_other_plans_in_the_same_file_are_not_overwritten(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "FOLDER", tmp_path)
    moved, kept = list(runs_of("pybullet"))[:2]
    for each in (learning, store):
        monkeypatch.setattr(each, "NAMES", ["pybullet", "tuning"])
        monkeypatch.setattr(each, "read_plan", lambda name: name)
        monkeypatch.setattr(each, "runs_of", {"pybullet": [], "tuning": [moved]}.__getitem__)
    store.write("pybullet", {}, [result_of(moved, mean=7.0)])
    store.write("tuning", {}, [result_of(kept, mean=8.0)])
    with pytest.raises(
        SystemExit, match=rf"Results of pybullet, tuning that no plan lists any more would be lost: {kept.name}"
    ):
        learning.lose_nothing("pybullet")


def test_results_are_written_when_no_other_process_holds_the_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "FOLDER", tmp_path)
    runs = list(runs_of("pybullet"))[:2]
    only_plan(monkeypatch, (learning, store), runs)
    store.write("pybullet", {}, [result_of(runs[0], mean=7.0)])
    (tmp_path / "runs" / runs[1].name).mkdir(parents=True)
    (tmp_path / "runs" / runs[1].name / learning.RESULT).write_text(json.dumps(result_of(runs[1], mean=8.0)))
    monkeypatch.setattr("sys.argv", ["learning.py", "pybullet", "--collect", "--folder", str(tmp_path / "runs")])
    monkeypatch.setattr(signal, "signal", lambda *given: None)  # which only a main thread may call
    collecting = Thread(target=learning.main)
    with store.locked():
        collecting.start()
        collecting.join(0.5)
        assert collecting.is_alive()
        assert store.stored(["pybullet"]).keys() == {runs[0].name}
    collecting.join()
    assert store.stored(["pybullet"]).keys() == {run.name for run in runs}


def test_results_that_another_process_stores_meanwhile_remain(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "FOLDER", tmp_path)
    runs = list(runs_of("pybullet"))[:2]
    only_plan(monkeypatch, (learning, store), runs)

    def meanwhile(runs, folder, jobs):
        store.write("pybullet", {}, [result_of(runs[1], mean=7.0)])

    monkeypatch.setattr(learning, "execute", meanwhile)
    monkeypatch.setattr("sys.argv", ["learning.py", "pybullet", "--folder", str(tmp_path / "runs")])
    learning.main()
    assert store.stored(["pybullet"]).keys() == {runs[1].name}


def test_a_run_under_way_elsewhere_is_neither_failed_nor_started_again(tmp_path, monkeypatch):
    quick_training(monkeypatch, tmp_path, "raise SystemExit(3)")
    run = plans.Run("trpo", "trpo", "Hopper-v5", 0, {"n_timesteps": 64})
    (tmp_path / run.name).mkdir(parents=True)
    learning.note_attempt(tmp_path / run.name, [], start=0.0, made_with={}, status=None)
    (tmp_path / run.name / learning.OUTPUT).touch()
    with FileLock(tmp_path / run.name / learning.LOCK):
        assert learning.carry_out(run, tmp_path)["failure"] == "under way in another process"
        assert learning.results_of([run], tmp_path, {}) == []
    assert len(learning.attempts_in(tmp_path / run.name)) == 1
    (left,) = learning.results_of([run], tmp_path, {})
    assert left["failure"].startswith("exit status None")
    assert learning.carry_out(run, tmp_path)["failure"].startswith("exit status 3")


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


def test_sigterm_reaches_the_trainings_and_keeps_existing_results(tmp_path, monkeypatch):
    ended = "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\nopen('up', 'w')\ntime.sleep(60)"
    quick_training(monkeypatch, tmp_path, ended)
    monkeypatch.setattr(store, "FOLDER", tmp_path)
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
    (stopped,) = store.stored(["pybullet"]).values()
    assert stopped["failure"].startswith("exit status 0")
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


def test_a_plan_that_is_finished_leaves_its_file_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(store, "FOLDER", tmp_path)
    runs = list(runs_of("pybullet"))[:1]
    only_plan(monkeypatch, (learning, store), runs)
    store.write("pybullet", {"made": "before"}, [result_of(runs[0], mean=7.0)])
    before = (tmp_path / "pybullet.json").read_bytes()
    monkeypatch.setattr("sys.argv", ["learning.py", "pybullet", "--folder", str(tmp_path / "runs")])
    learning.main()
    assert "All 1 runs are finished." in capsys.readouterr().out
    assert (tmp_path / "pybullet.json").read_bytes() == before
