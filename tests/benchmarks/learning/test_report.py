import json
import re

import numpy as np
import pytest
from helpers.learning_runs import result_of, runs_of

from benchmarks.learning import plans, published, report, store, study


def test_plans_of_reported_runs_use_seeds_that_nothing_was_tuned_with():
    seen = {(row["env"], row["seed"]) for row in store.read(*report.TUNING)}
    seen |= {(run.env, run.seed) for name in report.TUNING for run in runs_of(name)}
    for name in (*report.REPORTED, "wall_clock"):
        assert not seen & {(run.env, run.seed) for run in runs_of(name)}


def test_earlier_settings_are_rows_of_their_own_with_all_their_runs():
    runs, settings = store.read("superseded"), report.earlier()
    groups = {(run["env"], json.dumps(run["settings"], sort_keys=True)) for run in runs}
    listed = [(env, method) for env in settings.envs() for method in settings.methods(env)]
    assert len(listed) == len(groups)
    assert sum(len(settings.runs(*each)) + settings.failures(*each) for each in listed) == len(runs)


def test_the_report_agrees_with_the_results(monkeypatch):
    monkeypatch.setattr(study, "RESAMPLES", 2_000)  # as the report has them
    results = report.latest()
    assert (store.FOLDER / "report.md").read_text() == report.text(results, report.probabilities(results))


def test_probabilities_of_the_report_are_those_of_its_tasks():
    results = report.latest()
    probabilities = report.probabilities(results)
    assert probabilities.keys() == {env for env in published.MARKS if len(results.scores(env, study.PEER))}
    for env, (probability, *_) in probabilities.items():
        ours, peers = (results.scores(env, method) for method in (study.OURS, study.PEER))
        assert len(peers) == 6  # of two files
        assert probability == pytest.approx(np.mean(ours[:, None] > peers))


def test_the_cost_of_a_run_counts_once(tmp_path, monkeypatch):
    run = plans.Run("trpo", "trpo", "Hopper-v5", 100, {"gamma": 0.99})
    peers = [run._replace(algorithm="sb3-contrib", seed=seed) for seed in (2, 3)]
    runs = {"tuning": [run, run._replace(label="again")], "wall_clock": [*[run._replace(seed=1)] * 2, *peers]}
    monkeypatch.setattr(store, "FOLDER", tmp_path)
    monkeypatch.setattr(store, "read_plan", lambda name: name)
    monkeypatch.setattr(store, "runs_of", lambda name: runs.get(name, []))
    monkeypatch.setattr(report, "imported", lambda name: [])
    store.keep(run, result_of(run, mean=7.0))
    for each in runs["wall_clock"]:
        store.keep(each, result_of(each, mean=7.0) | {"seconds": 7200.0})
    told = "at least 1 runs, 0.0 core hours.*Reported: 1 runs, 2.0 core hours. Of other algorithms: 2 runs, 4.0 core hours."
    assert re.search(told, report.effort())
