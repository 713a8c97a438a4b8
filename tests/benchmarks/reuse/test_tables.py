"""Tables and verdict of reused rollouts, also while runs are missing, and the curves that they are made of."""

import json

import pytest
from rl_zoo3.utils import SimpleLinearSchedule

from benchmarks.reuse import run, tables
from benchmarks.reuse.algorithm import WeightRecord

WEIGHTS = [[10, 1.0, 3.0, 0.9, 0.5, 0.25], [20, 1.2, 2.0, 0.8, 0.7, None]]


def made_up(task, variant, seed, area=100.0, final=200.0, weights=()):
    curve = [[10, area - 1.0], [20, area + 1.0]]
    return {"task": task, "variant": variant, "seed": seed, "curve": curve, "deterministic": [final], "weights": [*weights]}


def study(areas, finals, variant="m3"):
    """Two seeds of plain TRPO and of a variant on each task; ``finals`` are lower or higher by 1 with the seed."""
    runs = [made_up(task, "m1", seed, 100.0, 200.0 + seed) for task in tables.TASKS for seed in (-1, 1)]
    for task, area, final in zip(tables.TASKS, areas, finals, strict=True):
        runs += [made_up(task, variant, seed, area, final + seed) for seed in (-1, 1)]
    return {"results": {str(index): each for index, each in enumerate(runs)}}


def cells_of(text):
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in text.splitlines()[2:]]


def test_areas_and_returns_are_compared_on_the_seeds_that_both_have():
    runs = [made_up("Ant-v5", "m1", 0), made_up("Ant-v5", "m1", 1, 300.0, 2000.0), made_up("Ant-v5", "m3", 0, 110.0, 100.0)]
    rows = cells_of(tables.tables({"results": {str(i): each for i, each in enumerate(runs)}})["reuse"])
    assert rows[0] == ["Ant-v5", "M = 1, plain TRPO", "2", "200.0 ± 100.0", "-", "1,100 ± 900", "-"]
    assert rows[1] == ["Ant-v5", "M = 3", "1", "110.0", "1.10", "100.0", "0.50"]


@pytest.mark.parametrize(
    ("areas", "finals", "expected"),
    [
        ([111, 120, 130, 90, 90], [200] * 5, "pays"),
        ([111, 120, 109, 90, 90], [200] * 5, "does not pay"),
        ([111, 120, 130, 90, 90], [300, 300, 300, 300, 199], "pays"),  # within an error of sqrt(2)
        ([111, 120, 130, 90, 90], [300, 300, 300, 300, 198], "does not pay"),
    ],
)
def test_the_verdict_follows_the_rule(areas, finals, expected):
    rows = cells_of(tables.tables(study(areas, finals))["reuse_verdict"])
    of_three = rows[[*tables.NAMES].index("m3") - 1]
    assert of_three[:2] == ["M = 3", "5 of 5"]
    assert of_three[-1] == expected
    assert {row[-1] for row in rows if row is not of_three} == {"open"}


def test_the_verdict_is_open_with_a_single_seed():
    raw = study([200] * 5, [300] * 5)
    raw["results"] = {name: each for name, each in raw["results"].items() if each["seed"] == 1}
    assert cells_of(tables.tables(raw)["reuse_verdict"])[1] == ["M = 3", "5 of 5", "5", "0", "open"]


def test_weights_are_summarized_over_seeds():
    raw = {"results": {str(seed): made_up("Hopper-v5", "m7", seed, weights=WEIGHTS) for seed in (0, 1)}}
    (row,) = cells_of(tables.tables(raw)["reuse_weights"])
    assert row == ["Hopper-v5", "M = 7", "1.100", "3", "0.850", "0.50", "0.25"]


def test_without_any_run_there_are_tables():
    made = tables.tables({"results": {}})
    assert made["reuse"].count("\n") == made["reuse_weights"].count("\n") == 1
    assert {row[-1] for row in cells_of(made["reuse_verdict"])} == {"open"}


def test_runs_and_tables_have_the_same_tasks_and_variants():
    assert run.TASKS == tables.TASKS
    assert run.VARIANTS.keys() == tables.NAMES.keys()


@pytest.mark.parametrize(
    ("variant", "n_steps", "radius", "n_reused"),
    [("m1", 512, 0.08, 0), ("half", 256, 0.04, 0), ("m3", 256, 0.02, 2), ("m7", 128, 0.005, 6)],
)
def test_rollouts_and_radius_shrink_with_their_number(variant, n_steps, radius, n_reused):
    settings = {"n_steps": 512, "target_kl": SimpleLinearSchedule(0.08), "gamma": 0.9}
    found = run.adapted(settings, run.VARIANTS[variant])
    assert (found["n_steps"], found["n_reused_rollouts"], found["gamma"]) == (n_steps, n_reused, 0.9)
    assert found["target_kl"](1.0) == pytest.approx(radius)
    assert run.adapted(settings | {"target_kl": 0.08}, run.VARIANTS[variant])["target_kl"] == pytest.approx(radius)


def test_a_curve_has_the_mean_of_the_last_hundred_episodes_at_each_point():
    rows = [(step, float(step)) for step in range(3, 1001)]
    points = run.curve(rows, 100)
    assert points[0] == (4, 3.5)  # none has ended by timestep 2
    assert points[-1] == (100, 51.5)
    assert run.curve(rows, 1000)[-1] == (1000, 950.5)
    assert len(points) == run.POINTS - 1


def test_weights_are_averaged_over_the_updates_of_each_part():
    records = [
        WeightRecord(10, 1.0, 2.0, 0.5, 0.1),
        WeightRecord(20, 2.0, 5.0, 0.7, None),
        WeightRecord(1010, 1.0, 1.0, 1.0, None),
    ]
    assert run.weight_curve(records, 1000) == [[20, 1.5, 5.0, 0.6, 0.5, 0.1], [1000, 1.0, 1.0, 1.0, 1.0, None]]


def test_a_run_is_written_with_all_that_the_tables_need(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "settings_for", lambda *_: SETTINGS | {})
    monkeypatch.setattr(run, "EPISODES", 1)
    file = tmp_path / "reuse" / "run.json"
    run.run("Pendulum-v1", "m3", 0, 800, file)
    result = json.loads(file.read_text())
    assert result["settings"]["n_reused_rollouts"] == 2
    assert len(result["deterministic"]) == 1
    assert result["weights"][-1][0] == 800
    assert tables.area(result) < 0.0 > tables.final(result)
    assert [*file.parent.iterdir()] == [file]


SETTINGS = {"policy": "MlpPolicy", "n_envs": 2, "n_steps": 200, "batch_size": 50, "gamma": 0.9, "target_kl": 0.01}
