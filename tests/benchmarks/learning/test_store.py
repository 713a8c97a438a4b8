import json
from pathlib import Path

import pytest
from helpers.learning_runs import only_plan, result_of, runs_of

from benchmarks.learning import plans, store

RUN = plans.Run("trpo", "trpo", "Hopper-v5", 0, {"gamma": 0.99})


@pytest.fixture(autouse=True)
def empty(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "FOLDER", tmp_path)


def test_a_result_has_the_label_that_its_plan_gives_the_run():
    store.keep(RUN, result_of(RUN, mean=7.0))
    assert store.result_of(RUN._replace(label="another plan")) == result_of(RUN, mean=7.0) | {"label": "another plan"}
    assert "label" not in json.loads(store.file_of(RUN).read_text())


def test_other_settings_are_another_run():
    store.keep(RUN, result_of(RUN, mean=7.0))
    assert store.result_of(RUN._replace(settings={"gamma": 0.9})) is None


@pytest.mark.parametrize("first", ["finished", "failed"])
def test_a_failure_never_replaces_the_result_of_a_finished_run(first):
    finished, failed = result_of(RUN, mean=7.0), result_of(RUN, failure="stopped at 64 timesteps")
    for result in (finished, failed) if first == "finished" else (failed, finished):
        store.keep(RUN, result)
    assert store.result_of(RUN) == finished


def test_results_are_read_in_the_order_of_the_plan_and_runs_without_one_are_left_out(monkeypatch):
    runs = [RUN._replace(seed=seed) for seed in (3, 1, 2)]
    only_plan(monkeypatch, (store,), runs)
    for run in (runs[1], runs[0]):
        store.keep(run, result_of(run, mean=7.0))
    assert [result["seed"] for result in store.read("pybullet")] == [3, 1]


def test_a_run_with_two_labels_is_read_once_if_asked_for(monkeypatch):
    only_plan(monkeypatch, (store,), [RUN, RUN._replace(label="again")])
    store.keep(RUN, result_of(RUN, mean=7.0))
    assert [result["label"] for result in store.read("pybullet")] == ["trpo", "again"]
    assert len(store.read_once(["pybullet"])) == 1


def test_a_file_that_cannot_be_written_stays_as_it_was(tmp_path, monkeypatch):
    file = tmp_path / "results.json"
    store.replace(file, "before")
    monkeypatch.setattr(Path, "write_text", lambda self, text: self.write_bytes(text[:3].encode()) and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        store.replace(file, "afterwards")
    assert file.read_text() == "before"


def test_every_result_in_the_repository_is_that_of_a_run_of_a_plan(monkeypatch):
    monkeypatch.undo()
    planned = {store.file_of(run): run for name in plans.NAMES for run in runs_of(name)}
    files = [*(store.FOLDER / "raw").rglob("*.json")]
    assert files
    for file in files:
        result = json.loads(file.read_text())
        assert {field: result[field] for field in RUN._fields if field != "label"} == {
            field: value for field, value in planned[file]._asdict().items() if field != "label"
        }
