import json

import pytest
from helpers.learning_runs import row

from benchmarks.common import pictures as style
from benchmarks.learning import plans, ppo, study

ENVS = ("Hopper-v5", "Ant-v5")


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Two seeds of two tasks, of which PPO lacks one; runs in turn on Hopper-v5."""
    runs = [plans.Run("ppo", "ppo", env, seed, {}) for env in ENVS for seed in (0, 1)]
    monkeypatch.setattr(ppo, "runs_of", lambda plan: iter(runs))
    monkeypatch.setattr(ppo, "FOLDER", tmp_path)
    (tmp_path / ppo.FILE).write_text(json.dumps({"returns": {"Hopper-v5": 10.0, "Ant-v5": -50.0}}))
    rows = [row(env, "trpo", seed, 410.0 + seed) for env in ENVS for seed in (0, 1)]
    rows += [row("Hopper-v5", "ppo", seed, 110.0) for seed in (0, 1)] + [row("Ant-v5", "ppo", 0, 500.0)]
    times = {"trpo": (100.0, 120.0), "ppo": (330.0,)}
    curve = [[500, 1.0, 50.0], [1000, 2.0, 100.0]]
    timed = [
        row("Hopper-v5", label, seed, 1.0, curve) | {"seconds": each}
        for label, seconds in times.items()
        for seed, each in enumerate(seconds)
    ]
    monkeypatch.setattr(ppo, "read", lambda plan: timed)
    return study.Study(rows)


def test_only_tasks_with_all_runs_count_together(results):
    assert ppo.tasks(results) == ["Hopper-v5"]
    text = "\n".join(ppo.sections(results)["Beside PPO"])
    assert "| Ant-v5 | 410.5 (410.0 to 411.0) | 500.0 (500.0 to 500.0) | 0% |" in text
    assert "| of 1 tasks | sb3_trpo, 2 runs each | PPO, 2 runs each |" in text
    assert "| IQM | 4.00 [" in text  # (410 - 10) / (110 - 10)
    assert "P(a run of sb3_trpo > one of PPO)" in text
    assert "| Hopper-v5 | 1.00 [1.00, 1.00] |" in text


def test_times_are_medians_of_runs_in_turn(results):
    assert "| Hopper-v5 | 110 (2) | 330 (1) | 3.0 |" in "\n".join(ppo.sections(results)["Beside PPO"])


def test_pictures_show_both(results, monkeypatch):
    drawn = {}
    monkeypatch.setattr(style.Figure, "savefig", lambda figure, file, **_: drawn.update({file.stem: figure}))
    ppo.draw(results)
    assert drawn.keys() == ppo.PICTURES.keys()
    assert [line.get_label() for line in drawn["ppo_profile"].axes[0].lines] == ["sb3_trpo", "PPO"]
    assert drawn["ppo_improvement"].axes[0].get_xlabel() == "P(a run of sb3_trpo > one of PPO)"
    assert [line.get_xdata()[-1] for line in drawn["ppo_clock"].axes[0].lines] == [100.0, 100.0]


def test_before_any_task_is_complete_there_is_a_table_alone(results, monkeypatch):
    monkeypatch.setattr(ppo, "read", lambda plan: [])
    early = study.Study([row("Ant-v5", "trpo", 0, 410.0), row("Ant-v5", "ppo", 0, 500.0)])
    assert len(ppo.sections(early)["Beside PPO"]) == 2
    ppo.draw(early)
    assert not [*ppo.FOLDER.glob("*.svg")]
