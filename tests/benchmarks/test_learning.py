import importlib
import json
import os
import re
import signal
import time
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import yaml
from filelock import FileLock
from scipy.stats import trim_mean

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MONITOR = '#{"t_start": 0.0, "env_id": "X"}\nr,l,t\n'


def module(name):
    @pytest.fixture(name=name)
    def imported(monkeypatch):
        monkeypatch.syspath_prepend(BENCHMARKS)
        return importlib.import_module(name)

    return imported


learning, learning_pictures, measuring, plans = map(module, ("learning", "learning_pictures", "measuring", "plans"))
published, report, store, study, tables = map(module, ("published", "report", "store", "study", "tables"))


@pytest.fixture(autouse=True)
def few_resamples(study, monkeypatch):
    monkeypatch.setattr(study, "RESAMPLES", 500)


def row(env, label, seed, mean=None, curve=()):
    finished = {"mean": mean, "std": 0.0, "curve": list(curve)} if mean is not None else {"failure": "MemoryError"}
    return {"env": env, "label": label, "seed": seed, "seconds": 60.0, **finished}


def runs_of(plans, name):
    return plans.runs_of(plans.read_plan(name))


def test_every_plan_has_settings_for_its_runs(plans):
    for name in plans.NAMES:
        for run in runs_of(plans, name):
            assert run.settings["n_timesteps"] > 0, (name, run)


def test_no_run_is_in_two_plans(plans):
    names = [name for plan in plans.NAMES for name in {run.name for run in runs_of(plans, plan)}]
    assert len(names) == len(set(names))


def test_plans_of_reported_runs_use_seeds_that_nothing_was_tuned_with(report, store, plans):
    seen = {(row["env"], row["seed"]) for row in store.read(*report.TUNING)}
    seen |= {(run.env, run.seed) for name in report.TUNING for run in runs_of(plans, name)}
    for name in (*report.REPORTED, "wall_clock"):
        assert not seen & {(run.env, run.seed) for run in runs_of(plans, name)}


def test_a_plan_replaces_settings_and_shares_those_of_another_version(plans):
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


def test_runs_with_other_settings_have_another_folder(plans):
    run = plans.Run("trpo", "trpo", "Hopper-v5", 0, {"gamma": 0.99})
    names = {run.name, run._replace(seed=1).name, run._replace(settings={"gamma": 0.9}).name}
    assert len(names) == 3
    assert run._replace(label="other").name == run.name


def test_settings_that_are_nowhere_are_named(plans):
    with pytest.raises(KeyError, match=r"ppo.yml has no settings for Nowhere-v5.*policy"):
        plans.settings_for("ppo", "Nowhere-v5")


def test_a_run_is_trained_and_played_as_its_plan_says(learning, measuring, plans, tmp_path, monkeypatch):
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
    (keeper,) = used.pop("callback")
    assert used == settings
    assert [*keeper] == ["sb3_trpo.checkpoint.ResumableCheckpoint"]
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


def test_an_unfinished_run_and_a_damaged_model_are_failures(learning, measuring, plans, tmp_path, monkeypatch):
    folder = tmp_path / "trpo" / "CartPole-v1_1"
    folder.mkdir(parents=True)
    (tmp_path / measuring.OUTPUT).write_text("the end\n")
    run = plans.Run("trpo", "trpo", "CartPole-v1", 0, {"n_timesteps": 256})

    def failure():
        return measuring.measure(run, tmp_path)["failure"]

    assert failure().startswith("exit status none yet: the end (ValueError: No model found")
    assert str(tmp_path) not in failure()
    (folder / "CartPole-v1.zip").write_bytes(b"PK")
    assert failure().startswith("exit status none yet: the end (ValueError: ")
    monkeypatch.setattr(measuring, "load_from_zip_file", lambda file, device: [{"num_timesteps": 255}])
    assert failure() == "exit status none yet: the end (ValueError: stopped at 255 timesteps)"


def test_curve_averages_the_last_hundred_episodes_of_all_envs(measuring, tmp_path):
    rng = np.random.default_rng(0)
    returns = rng.normal(size=300).round(3)
    for env in range(2):  # episodes of 10 steps, in turn
        lines = [f"{returns[2 * i + env]},10,{2 * i + env + 1}" for i in range(150)]
        (tmp_path / f"{env}.monitor.csv").write_text(MONITOR + "\n".join(lines) + "\n")
    curve = measuring.learning_curve(str(tmp_path), 3000, is_whole=True)
    assert [point[0] for point in curve] == [75 * i for i in range(1, 41)]
    for steps, mean, seconds in curve:
        finished = steps // 10
        assert mean == pytest.approx(returns[max(0, finished - 100) : finished].mean(), abs=1e-3)
        assert seconds == finished
    resumed = measuring.learning_curve(str(tmp_path), 3000, is_whole=False)  # its clock has counted the pause
    assert resumed == [point[:2] for point in curve]


def result_of(run, **outcome):
    return {**run._asdict(), "std": 0.0, "seconds": 1.0, **outcome}


def test_results_outlive_the_folders_of_their_runs(learning, store, plans, tmp_path, monkeypatch):
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


def test_a_run_that_has_finished_counts_though_another_file_has_it_as_failed(store, plans, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "FOLDER", tmp_path)
    run = plans.Run("trpo", "trpo", "Hopper-v5", 0, {"gamma": 0.99})
    store.write("mujoco", {}, [result_of(run, mean=7.0)])
    store.write("tuning", {}, [result_of(run, failure="stopped at 64 timesteps")])
    assert [row["mean"] for row in store.stored(["mujoco", "tuning"]).values()] == [7.0]


def only_plan(monkeypatch, modules, runs):
    for each in modules:
        monkeypatch.setattr(each, "runs_of", lambda plan: iter(runs))
        monkeypatch.setattr(each, "NAMES", ["pybullet"])


def quick_training(learning, monkeypatch, folder, text):
    (folder / "training.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setitem(learning.ALGORITHMS, "trpo", learning.ALGORITHMS["trpo"]._replace(command=("training",)))


def test_time_of_a_run_is_noted_before_its_end(learning, plans, tmp_path, monkeypatch):
    training = "import shutil, time\ntime.sleep(1)\nshutil.copy('attempts.json', 'killed.json')"
    quick_training(learning, monkeypatch, tmp_path, training)
    monkeypatch.setattr(learning, "MINUTE", 0.1)
    learning.train(plans.Run("trpo", "trpo", "Hopper-v5", 0, {}), tmp_path)
    (killed,) = json.loads((tmp_path / "killed.json").read_text())
    (ended,) = learning.attempts_in(tmp_path)
    assert killed["exit"] is None
    assert ended["exit"] == 0
    assert 0.0 < killed["seconds"] <= ended["seconds"]


@pytest.mark.parametrize(("options", "due"), [([], [1, 2]), (["--afresh"], [0, 1, 2]), (["--collect"], None)])
def test_finished_runs_are_not_repeated_unless_asked_for(learning, store, plans, tmp_path, monkeypatch, options, due):
    monkeypatch.setattr(store, "FOLDER", tmp_path)
    runs = list(runs_of(plans, "pybullet"))[:3]
    only_plan(monkeypatch, (learning, store), runs)
    store.write("pybullet", {}, [result_of(runs[0], mean=7.0), result_of(runs[1], failure="stopped at 64 timesteps")])
    started = []
    monkeypatch.setattr(learning, "execute", lambda runs, folder, jobs: started.append(runs))
    monkeypatch.setattr("sys.argv", ["learning.py", "pybullet", "--folder", str(tmp_path / "runs"), *options])
    learning.main()
    assert started == ([[runs[each] for each in due]] if due is not None else [])


def test_results_move_with_their_runs_to_another_plan(learning, store, plans, tmp_path, monkeypatch):
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
def test_results_that_no_plan_lists_any_more_are_not_written_away(learning, store, plans, tmp_path, monkeypatch, when):
    monkeypatch.setattr(store, "FOLDER", tmp_path)
    run = next(runs_of(plans, "pybullet"))
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


def test_results_of_other_plans_that_are_written_too_are_not_written_away(learning, store, plans, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "FOLDER", tmp_path)
    moved, kept = list(runs_of(plans, "pybullet"))[:2]
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


def test_results_are_written_when_no_other_process_does(learning, store, plans, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "FOLDER", tmp_path)
    runs = list(runs_of(plans, "pybullet"))[:2]
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


def test_results_that_another_process_stores_meanwhile_stay(learning, store, plans, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "FOLDER", tmp_path)
    runs = list(runs_of(plans, "pybullet"))[:2]
    only_plan(monkeypatch, (learning, store), runs)

    def meanwhile(runs, folder, jobs):
        store.write("pybullet", {}, [result_of(runs[1], mean=7.0)])

    monkeypatch.setattr(learning, "execute", meanwhile)
    monkeypatch.setattr("sys.argv", ["learning.py", "pybullet", "--folder", str(tmp_path / "runs")])
    learning.main()
    assert store.stored(["pybullet"]).keys() == {runs[1].name}


def test_a_run_under_way_elsewhere_is_neither_failed_nor_started_again(learning, plans, tmp_path, monkeypatch):
    quick_training(learning, monkeypatch, tmp_path, "raise SystemExit(3)")
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


def test_what_befalls_one_run_befalls_no_other(learning, plans, tmp_path, monkeypatch, capsys):
    def train(run, folder):
        if run.seed == 0:
            raise OSError("No space left on device")
        (folder / learning.RESULT).write_text(json.dumps(result_of(run, mean=7.0)))

    monkeypatch.setattr(learning, "train", train)
    monkeypatch.setattr(learning, "measure", lambda run, folder: json.loads((folder / learning.RESULT).read_text()))
    learning.execute([plans.Run("trpo", "trpo", "Hopper-v5", seed, {}) for seed in (0, 1)], tmp_path, jobs=1)
    told = capsys.readouterr().err
    assert "seed 0: OSError: No space left on device" in told
    assert "seed 1: 7.0 +/- 0.0" in told


def test_sigterm_reaches_the_trainings_and_keeps_what_there_is(learning, store, plans, tmp_path, monkeypatch):
    ended = "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\nopen('up', 'w')\ntime.sleep(60)"
    quick_training(learning, monkeypatch, tmp_path, ended)
    monkeypatch.setattr(store, "FOLDER", tmp_path)
    runs = list(runs_of(plans, "pybullet"))[:2]
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


def test_a_training_that_the_end_overtakes_is_ended_too(learning, plans, tmp_path, monkeypatch):
    quick_training(learning, monkeypatch, tmp_path, "import time\ntime.sleep(60)")
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
def test_arguments_that_make_no_sense_are_refused(learning, monkeypatch, capsys, options, said):
    monkeypatch.setattr("sys.argv", ["learning.py", "pybullet", *options])
    with pytest.raises(SystemExit, match="2"):
        learning.main()
    assert said in capsys.readouterr().err


def test_a_plan_that_is_finished_leaves_its_file_alone(learning, store, plans, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(store, "FOLDER", tmp_path)
    runs = list(runs_of(plans, "pybullet"))[:1]
    only_plan(monkeypatch, (learning, store), runs)
    store.write("pybullet", {"made": "before"}, [result_of(runs[0], mean=7.0)])
    before = (tmp_path / "pybullet.json").read_bytes()
    monkeypatch.setattr("sys.argv", ["learning.py", "pybullet", "--folder", str(tmp_path / "runs")])
    learning.main()
    assert "All 1 runs are finished." in capsys.readouterr().out
    assert (tmp_path / "pybullet.json").read_bytes() == before


def test_a_file_that_cannot_be_written_stays_as_it_was(store, tmp_path, monkeypatch):
    file = tmp_path / "results.json"
    store.replace(file, "before")
    monkeypatch.setattr(Path, "write_text", lambda self, text: self.write_bytes(text[:3].encode()) and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        store.replace(file, "afterwards")
    assert file.read_text() == "before"


def test_failed_runs_are_counted_and_not_averaged(tables, study):
    results = study.Study([row("Hopper-v5", "trpo", seed, 1000.0 * seed) for seed in range(4)] + [row("Hopper-v5", "trpo", 4)])
    assert results.failures("Hopper-v5", study.OURS) == 1
    cells = tables.summary(results, "Hopper-v5", study.OURS)
    assert cells[2:6] == ["0 to 3", "1", "1,500 +/- 1,291", "1,500"]
    assert cells[7] == "0.0 to 3,000"


def test_interval_holds_its_estimate_and_the_iqm_ignores_outliers(study):
    scores = np.array([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [1000.0, 8.0]])[:, None]
    values, low, high = study.intervals(study.iqm, scores)
    assert values.tolist() == [2.5, 0.0]
    for runs in (3, 6, 10):  # of 2 tasks, at 4 points
        scores_of_runs = np.random.default_rng(runs).normal(size=(runs, 2, 4))
        expected = trim_mean(scores_of_runs.reshape(-1, 4), 0.25)
        np.testing.assert_allclose(study.iqm(scores_of_runs), expected, rtol=1e-12)
    assert (low <= values).all()
    assert (values <= high).all()


def test_intervals_are_the_same_each_time(study):
    ours, peer = np.random.default_rng(0).normal(size=(2, 8, 1))

    def improvement(ours, peer):
        return np.array([ours.mean() - peer.mean()])

    for of, scores in ((study.iqm, [ours[:, None]]), (improvement, [ours, peer])):
        np.testing.assert_array_equal(study.intervals(of, *scores), study.intervals(of, *scores))


def test_probability_of_improvement_counts_pairs(study):
    rows = [row("Hopper-v5", "trpo", seed, float(mean)) for seed, mean in enumerate((1, 3, 5))]
    rows += [row("Hopper-v5", "sb3-contrib", seed, float(mean)) for seed, mean in enumerate((2, 4))]
    probability, low, high = study.probability_of_improvement(study.Study(rows), "Hopper-v5")
    assert probability == pytest.approx(3 / 6)  # (3, 2), (5, 2) and (5, 4) of six pairs
    assert 0.0 == low <= probability <= high == 1.0
    apart = [row("A-v0", label, seed, mean + seed) for label, mean in (("trpo", 9.0), ("sb3-contrib", 1.0)) for seed in (0, 1)]
    assert study.probability_of_improvement(study.Study(apart), "A-v0").tolist() == [1.0, 1.0, 1.0]


def test_targets_are_missed_as_well_as_met(tables, published, study):
    results = study.Study([row("Hopper-v5", "trpo", 0, 3500.0), row("Walker2d-v5", "trpo", 0, 3500.0)])
    hopper, walker = tables.against(results, study.Study([]), published.MARKS).splitlines()[2:]
    assert hopper.endswith("| met |")
    assert walker.endswith("| missed |")


def test_no_target_is_met_with_a_run_that_failed(tables, published, study):
    rows = [row("Hopper-v5", "trpo", 0, 3500.0), row("Hopper-v5", "trpo", 1), row("Walker2d-v5", "trpo", 0)]
    results = study.Study(rows)
    hopper, walker = tables.against(results, study.Study([]), published.MARKS).splitlines()[2:]
    assert hopper.startswith("| Hopper-v5 | 3,500 (1 of 2) |")
    assert walker.startswith("| Walker2d-v5 | none (0 of 1) |")
    assert hopper.endswith("| missed |")
    assert walker.endswith("| missed |")
    assert tables.summaries(results).splitlines()[-1] == "| Walker2d-v5 | sb3_trpo |  | 1 | none |  |  |  |"


def test_aggregates_are_those_of_all_tasks_and_their_intervals_decide(tables, study):
    def of(ours):
        scales = {"A-v0": 1.0, "B-v0": 2.0, "C-v0": 6.0}
        rows = [row(env, "trpo", seed, scales[env] * mean) for env in scales for seed, mean in enumerate(ours)]
        rows += [row(env, "sb3-contrib", seed, 1.0) for env in scales for seed in range(3)]
        return tables.aggregate(study.Study(rows), [*scales]).splitlines()

    head, _, *lines = of((1.0, 2.0, 4.0, 13.0))
    assert head == "| of 3 tasks | sb3_trpo, 4 runs each | sb3-contrib, 3 runs each | intervals apart |"
    iqm, median, mean = (float(line.split("|")[2].split("[")[0]) for line in lines)
    assert iqm == 7.83  # of 4, 4, 6, 8, 12 and 13, which lie between 1, 2, 2 and 24, 26, 78
    assert (median, mean) == (10.0, 15.0)
    assert all(line.endswith("| met |") for line in lines)
    assert all(line.endswith("| missed |") for line in of((0.0, 0.0, 0.0, 8.0))[2:])  # whose means are higher, too


def test_effort_is_told_by_task(tables):
    tuning = [row("A-v0", "wide", 100, 1.0), row("A-v0", "wide", 101), row("B-v0", "wide", 100, 1.0)]
    reported = [row("A-v0", "trpo", 0, 1.0) | {"seconds": 3600.0}]
    assert tables.efforts(tuning, reported).splitlines()[2:] == ["| A-v0 | 2 | 0.03 | 1 | 1.00 |"]


def test_curves_are_compared_where_all_runs_have_points(study):
    rows = [row("A-v0", "trpo", 0, 1.0, [[100, 1.0, 5.0], [200, 2.0, 9.0], [300, 3.0, 12.0]])]
    rows += [row("A-v0", "trpo", 1, 1.0, [[200, 4.0], [300, 5.0]]), row("A-v0", "trpo", 2, 1.0), row("A-v0", "trpo", 3)]
    expected = [[[200, 2.0, 9.0], [300, 3.0, 12.0]], [[200, 4.0, np.nan], [300, 5.0, np.nan]]]
    np.testing.assert_array_equal(study.curves(study.Study(rows), "A-v0", study.OURS), expected)


def test_published_returns_stand_beside_means_intervals_and_earlier_settings(tables, published, study, monkeypatch):
    monkeypatch.setattr(study, "RESAMPLES", 2_000)  # so that three runs' interval is from the least to the largest
    rows = [row("CartPole-v1", "trpo", seed, mean) for seed, mean in enumerate((500.0, 498.0, 496.0))]
    rows += [row("CartPole-v1", "sb3-contrib", 0, 490.0), row("Acrobot-v1", "trpo", 0, -83.1)]
    before = study.Study([row("CartPole-v1", "gamma 0.9", 10, 400.0), row("CartPole-v1", "gamma 0.9", 11)])
    cartpole, acrobot = tables.against(study.Study(rows), before, published.RL_ZOO).splitlines()[2:]
    given = "400.0 (1 of 2) | 490.0 (1) |  | 500.0 | 500.0 | missed |"
    assert cartpole == f"| CartPole-v1 | 498.0 [496.0, 500.0] (3) | {given}"
    assert acrobot == "| Acrobot-v1 | -83.1 (1) |  |  |  | -83.1 | -83.1 | met |"
    (hopper,) = tables.against(study.Study([row("Hopper-v5", "trpo", 0, 1.0)]), before, published.MARKS).splitlines()[2:]
    assert hopper == "| Hopper-v5 | 1.0 (1) |  |  | 3,372 (sb3-contrib, -v3, 3 seeds) | 3,618 | 3,400 | missed |"


def test_settings_are_told_apart_whatever_their_order(tables):
    present = {"gamma": 0.99, "n_envs": 4, "policy": "MlpPolicy"}
    assert tables.unlike({"n_envs": 8, "target_kl": 0.1, "gamma": 0.99}, present) == "n_envs 8, target_kl 0.1, no policy"
    assert tables.unlike({"gamma": 0.99, "target_kl": 0.1, "n_envs": 8}, present) == "n_envs 8, target_kl 0.1, no policy"


def test_earlier_settings_are_rows_of_their_own_with_all_their_runs(report, store):
    runs, settings = store.read("superseded"), report.earlier()
    groups = {(run["env"], json.dumps(run["settings"], sort_keys=True)) for run in runs}
    listed = [(env, method) for env in settings.envs() for method in settings.methods(env)]
    assert len(listed) == len(groups)
    assert sum(len(settings.runs(*each)) + settings.failures(*each) for each in listed) == len(runs)


def test_readme_and_report_show_what_the_results_say(report, tables, published, study, store, monkeypatch):
    monkeypatch.setattr(study, "RESAMPLES", 2_000)  # as the report has them
    results = report.latest()
    assert (store.FOLDER / "report.md").read_text() == report.text(results, report.probabilities(results))
    readme = (BENCHMARKS.parent / "README.md").read_text()
    assert tables.against(results, report.earlier(), published.MARKS) in readme
    assert report.effort() in " ".join(readme.split())


def test_probabilities_of_the_report_are_those_of_its_tasks(report, study, published):
    results = report.latest()
    probabilities = report.probabilities(results)
    assert probabilities.keys() == {env for env in published.MARKS if len(results.scores(env, study.PEER))}
    for env, (probability, *_) in probabilities.items():
        ours, peers = (results.scores(env, method) for method in (study.OURS, study.PEER))
        assert len(peers) == 6  # of two files
        assert probability == pytest.approx(np.mean(ours[:, None] > peers))


def test_what_a_run_took_counts_once(report, store, plans, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "FOLDER", tmp_path)
    run = plans.Run("trpo", "trpo", "Hopper-v5", 100, {"gamma": 0.99})
    store.write("tuning", {}, [result_of(run, mean=7.0), result_of(run._replace(label="again"), mean=7.0)])
    others = [run._replace(seed=1)] * 2 + [run._replace(algorithm="sb3-contrib", seed=seed) for seed in (2, 3)]
    store.write("wall_clock", {}, [result_of(each, mean=7.0) | {"seconds": 7200.0} for each in others])
    told = "at least 1 runs, 0.0 core hours.*Reported: 1 runs, 2.0 core hours. Of other algorithms: 2 runs, 4.0 core hours."
    assert re.search(told, report.effort())


def test_time_to_a_level_is_that_of_the_first_point_there(study):
    curve = [[100, 1.0, 10.0], [200, 5.0, 20.0], [300, 4.0, 30.0]]
    assert study.seconds_to_reach({"curve": curve}, 4.5) == 20.0
    assert study.seconds_to_reach({"curve": curve}, 6.0) is None


def test_a_run_that_never_reaches_the_peers_return_counts_as_endless(tables, study):
    def timed(label, seed, *curve):
        return row("A-v0", label, seed, 8.0, [list(point) for point in curve])

    def cells(rows, line=2):
        return [cell.strip() for cell in tables.wall_clock(study.Study(rows)).splitlines()[line].split("|")[1:-1]]

    rows = [timed("sb3-contrib", seed, (100, 1.0, 50.0), (200, level, 100.0)) for seed, level in enumerate((4.0, 6.0))]
    rows += [timed("trpo", seed, (100, 5.0, time), (200, 9.0, 40.0)) for seed, time in enumerate((10.0, 12.0))]
    assert cells(rows) == ["A-v0", "last training return: 5.0", "100", "10, 12", "never, 100", "0.110", "met"]
    assert cells(rows, 3) == ["A-v0", "final evaluation: 8.0", "100", "40, 40", "never, never", "0.400", "missed"]
    rows += [timed("trpo", seed, (100, 1.0, 10.0), (200, 2.0, 20.0)) for seed in (2, 3, 4)]
    assert cells(rows)[3:] == ["10, 12, never, never, never", "never, 100", "inf", "missed"]


def test_runs_without_a_clock_are_left_out_where_it_matters(study):
    timed, resumed = row("A-v0", "trpo", 0, 1.0, [[100, 1.0, 10.0]]), row("A-v0", "trpo", 1, 1.0, [[100, 1.0]])
    assert study.uninterrupted([timed, resumed, row("A-v0", "trpo", 2)]) == [timed]


def test_returns_are_divided_by_the_mean_of_the_peer(study):
    rows = [row("A-v0", "trpo", seed, 10.0 + seed) for seed in range(3)] + [
        row("A-v0", "sb3-contrib", seed, 4.0 + 2 * seed) for seed in (0, 1)
    ]
    np.testing.assert_allclose(study.normalised(study.Study(rows), ["A-v0"], study.OURS)[:, 0], [2.0, 2.2, 2.4])


def test_runs_are_not_dropped_to_make_the_tasks_even(study):
    rows = [row(env, label, 0, 1.0) for env in ("A-v0", "B-v0") for label in ("trpo", "sb3-contrib")]
    with pytest.raises(ValueError, match="same shape"):
        study.normalised(study.Study([*rows, row("B-v0", "trpo", 1, 1.0)]), ["A-v0", "B-v0"], study.OURS)


@pytest.mark.parametrize("tasks", [1, 2, 4, 9])
def test_learning_curves_have_a_panel_for_each_task(learning_pictures, study, tmp_path, monkeypatch, tasks):
    envs, drawn = [f"Task{each}-v0" for each in range(tasks)], []
    monkeypatch.setattr(learning_pictures.Figure, "savefig", lambda figure, file, dpi: drawn.append(figure))
    rows = [row(env, "trpo", seed, 1.0, [[100, float(seed)], [200, 2.0]]) for env in envs for seed in range(3)]
    learning_pictures.draw_curves(study.Study(rows), envs, tmp_path / "curves.png")
    assert [axes.get_title() for axes in drawn[0].axes] == envs
    (line,), (band,) = drawn[0].axes[0].lines, drawn[0].axes[0].collections
    np.testing.assert_array_equal(line.get_xydata(), [[100.0, 1.0], [200.0, 2.0]])
    assert (band.get_paths()[0].vertices[:, 1].min(), band.get_paths()[0].vertices[:, 1].max()) == (0.0, 2.0)


def test_general_choices_are_columns_of_means(tables, study):
    rows = [row("A-v0", "defaults", seed, 1.0 + seed) for seed in range(2)] + [row("A-v0", "wide", 0, 7.0)]
    rows += [row("B-v0", "wide", 0, 9.0), row("B-v0", "defaults", 0)]
    head, _, first, second = tables.choices(study.Study(rows)).splitlines()
    assert [head, first, second] == [
        "| task | defaults | wide |",
        "| A-v0 | 1.5 +/- 0.7 (2) | 7.0 (1) |",
        "| B-v0 | none (0 of 1) | 9.0 (1) |",
    ]
