from pathlib import Path

import pytest
from helpers.learning_runs import result_of

from benchmarks.learning import plans, store


def test_a_run_that_has_finished_counts_though_another_file_has_it_as_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "FOLDER", tmp_path)
    run = plans.Run("trpo", "trpo", "Hopper-v5", 0, {"gamma": 0.99})
    store.write("mujoco", {}, [result_of(run, mean=7.0)])
    store.write("tuning", {}, [result_of(run, failure="stopped at 64 timesteps")])
    assert [row["mean"] for row in store.stored(["mujoco", "tuning"]).values()] == [7.0]


def test_results_that_have_not_changed_keep_what_they_were_made_with(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "FOLDER", tmp_path)
    runs = [plans.Run("trpo", "trpo", "Hopper-v5", seed, {"gamma": 0.99}) for seed in (0, 1)]
    results = [result_of(run, mean=7.0) for run in runs]
    store.write("mujoco", {"runs": []}, results[:1])
    before = (tmp_path / "mujoco.json").read_text()
    monkeypatch.setattr(store, "environment", lambda: {"cpu": "another"})
    store.write("mujoco", {"runs": []}, results[:1])
    assert (tmp_path / "mujoco.json").read_text() == before
    store.write("mujoco", {"runs": []}, results)
    assert "another" in (tmp_path / "mujoco.json").read_text()


def test_a_file_that_cannot_be_written_stays_as_it_was(tmp_path, monkeypatch):
    file = tmp_path / "results.json"
    store.replace(file, "before")
    monkeypatch.setattr(Path, "write_text", lambda self, text: self.write_bytes(text[:3].encode()) and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        store.replace(file, "afterwards")
    assert file.read_text() == "before"
