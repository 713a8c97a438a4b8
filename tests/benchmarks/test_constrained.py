"""Table and picture of runs under limits, also while some of the runs are missing."""

import json

import numpy as np
import pytest

from benchmarks.common.pictures import Figure
from benchmarks.constrained import tables
from sb3_trpo import TRPO


def made_up(task, method, seed, cost, points=(100, 200), returns=5.0):
    curve = [[step, returns, cost, 50.0, 2] for step in points]
    of_end = {"returns": [returns - 1.0, returns + 1.0], "costs": [cost - 2.0, cost + 2.0]}
    last = {"return": returns + 2.0, "cost": cost + 10.0}
    return {"task": task, "method": method, "seed": seed, "curve": curve, "sampled": of_end, "last_100": last}


RUNS = {
    "a": made_up("Hopper-v5", "cpo", 1, 10.0, points=(200,)),
    "b": made_up("Hopper-v5", "cpo", 0, 25.0),
    "c": made_up("Hopper-v5", "trpo", 0, 900.0, returns=3000.0),
    "d": made_up("Ant-v5", "cpo", 0, 25.5),
}


def test_returns_costs_and_kept_limits_are_tabulated():
    head, _, *rows = tables.tables({"results": RUNS})["constrained"].splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert len(head.split("|")) == len(cells[0]) + 2
    assert [row[:3] for row in cells[:3]] == [
        ["Ant-v5", "`ConstrainedTRPO`", "1"],
        ["Hopper-v5", "`ConstrainedTRPO`", "2"],
        ["Hopper-v5", "`TRPO`, no limit", "1"],
    ]
    assert cells[1][3:6] == ["5.0 (5.0 to 5.0)", "17.5 (10.0 to 25.0)", "2 of 2"]
    assert cells[1][6:] == ["7.0 (7.0 to 7.0)", "27.5 (20.0 to 35.0)", "1 of 2"]
    assert cells[2][3:6] == ["3,000 (3,000 to 3,000)", "900.0 (900.0 to 900.0)", "0 of 1"]
    assert [(row[0], row[5], row[8]) for row in cells[3:]] == [("all", "2 of 3", "1 of 3"), ("all", "0 of 1", "0 of 1")]


def test_a_run_without_an_evaluation_is_tabulated_by_its_training():
    run = made_up("Hopper-v5", "omnisafe", 0, 12.0)
    del run["sampled"]
    _, _, row, total = tables.tables({"results": {"a": run}})["constrained"].splitlines()
    cells = [cell.strip() for cell in row.split("|")[4:-1]]
    assert cells == ["-", "-", "-", "7.0 (7.0 to 7.0)", "22.0 (22.0 to 22.0)", "1 of 1"]
    assert [cell.strip() for cell in total.split("|")[4:-1]] == ["-", "-", "-", "-", "-", "1 of 1"]


def test_without_any_run_there_is_a_table_and_a_picture(tmp_path):
    assert tables.tables({"results": {}})["constrained"].count("\n") == 1
    tables.draw_constrained({}, tmp_path / "constrained.svg")
    assert (tmp_path / "constrained.svg").exists()


def test_curves_are_drawn_as_means_beside_the_limit(monkeypatch, tmp_path):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **_: figures.append(figure))
    tables.draw_constrained(RUNS, tmp_path / "constrained.svg")
    (figure,) = figures
    panels = {(panel.get_title(), row): panel for row in (0, 1) for panel in figure.axes[2 * row : 2 * row + 2]}
    assert [title for title, _ in panels][:2] == ["Ant-v5", "Hopper-v5"]
    ours, without, limit = figure.axes[3].lines
    assert list(ours.get_xdata()) == [100, 200]
    assert list(ours.get_ydata()) == [17.5, 17.5]
    assert list(without.get_ydata()) == [900.0, 900.0]
    assert set(limit.get_ydata()) == {25.0}
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {"ConstrainedTRPO", "TRPO, no limit", "limit"}


def test_gaps_in_a_curve_are_bridged():
    runs = [made_up("Ant-v5", "cpo", 0, 1.0, points=(10, 30)), made_up("Ant-v5", "cpo", 1, 3.0, points=(10, 20, 30))]
    runs[0]["curve"][1][2] = 5.0
    steps, values = tables.curves(runs, 2)
    assert steps.tolist() == [10, 20, 30]
    np.testing.assert_allclose(values, [[1.0, 3.0, 5.0], [3.0, 3.0, 3.0]])


@pytest.mark.parametrize("there", [False, True])
def test_runs_are_read_from_their_folder(there, tmp_path, monkeypatch):
    from benchmarks import report

    monkeypatch.setattr(report, "RESULTS", tmp_path)
    if there:
        (tmp_path / "constrained").mkdir()
        (tmp_path / "constrained" / "b.json").write_text(json.dumps(RUNS["b"]))
    assert report.raw("constrained") == {"results": {"b": RUNS["b"]} if there else {}}


@pytest.mark.parametrize(("every", "expected"), [(4, 250), (-1, 2)])
def test_an_evaluation_with_gsde_draws_its_noise_as_often_as_training_does(every, expected, monkeypatch):
    """An episode of Swimmer has 1,000 steps, and a rollout 500."""
    from benchmarks.constrained import run

    env = run.make_envs("Swimmer-v5", 1, 0, 0.99)
    settings = {"use_sde": True, "sde_sample_freq": every, "n_steps": 500, "batch_size": 100, "seed": 0, "device": "cpu"}
    model = TRPO("MlpPolicy", env, **settings)
    monkeypatch.setattr(run, "EPISODES", 1)
    drawn, reset = [], model.policy.reset_noise
    monkeypatch.setattr(model.policy, "reset_noise", lambda *given: drawn.append(reset(*given)))
    found = run.evaluate(model, env, "Swimmer-v5", 1, deterministic=False)
    assert len(found["costs"]) == 1
    assert len(drawn) == expected
