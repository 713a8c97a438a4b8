"""The tables and pictures of the documentation are those of the raw results."""

import json

import pytest

from benchmarks import pictures, report
from benchmarks.common.environment import RESULTS
from benchmarks.common.pictures import Figure
from benchmarks.learning import study
from benchmarks.memory.tables import tables as memory_tables


def test_committed_tables_are_those_of_the_raw_results():
    made = report.texts()
    assert {file.stem for file in report.FOLDER.glob("*.md")} == made.keys()
    for name, text in made.items():
        assert (report.FOLDER / f"{name}.md").read_text() == text + "\n", name


def test_all_raw_results_but_those_of_learning_have_tables():
    assert {file.stem for file in RESULTS.glob("*.json")} | {*report.FOLDERS} == report.FIGURES.keys()


def test_environments_are_found_in_every_part_and_listed_once():
    first, second = {"cpu": "A"}, {"cpu": "B"}
    contents = {"a": {"environment": first}, "b": {"c": {"environment": second}, "d": {"environment": first}}}
    assert report.environments({"environment": second} | contents) == [second, first]


def test_sizes_that_were_not_run_are_estimated_by_the_trend_of_the_largest():
    peaks = {
        ("sb3_trpo", 8192): 100.0,
        ("sb3_contrib", 512): 9.0,
        ("sb3_contrib", 1024): 1024.0,
        ("sb3_contrib", 2048): 2048.0,
    }
    raw = {"results": [{"package": of, "frames": n, "peak_above_rollout_mib": mib} for (of, n), mib in peaks.items()]}
    raw["results"] += [{"package": "sb3_trpo", "frames": n, "peak_above_rollout_mib": 99.0} for n in (512, 1024, 2048)]
    assert memory_tables(raw)["memory"].splitlines()[-1] == "| 8,192 | 100 | not run: about 8 GiB by the trend |"


@pytest.fixture
def drawn(monkeypatch):
    """Keep the figures that would be saved."""
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **_: figures.append(figure))
    return figures


def test_the_bars_of_speed_are_the_medians(drawn, tmp_path):
    learn = json.loads((RESULTS / "speed.json").read_text())["learn"]["results"]
    pictures.draw_speed(learn, tmp_path / "speed.svg")
    widths = [bar.get_width() for bar in drawn[0].axes[0].patches]
    assert widths == [result["learn"]["median"] for result in learn.values()][::-1]


def test_the_trust_region_is_drawn_update_by_update(drawn, tmp_path):
    results = report.raw("trust_region")["results"]
    pictures.draw_trust_region(results, tmp_path / "trust_region.svg")
    lines = [list(line.get_ydata()) for axes in drawn[0].axes for line in axes.lines]
    assert [each["kls"] for each in results] == [line for line in lines if len(line) == len(results[0]["kls"])]


def test_hybrid_actions_are_drawn_as_the_means_over_seeds(drawn, tmp_path):
    raw = report.raw("hybrid")
    pictures.draw_hybrid(raw, tmp_path / "hybrid.svg")
    lines = {line.get_label(): line.get_ydata() for line in drawn[0].axes[0].lines}
    assert lines.keys() == {run["way"] for run in raw["results"]}
    for way, drawn_means in lines.items():
        curves = [run["curve"] for run in raw["results"] if run["way"] == way]
        assert list(drawn_means) == pytest.approx([sum(each) / len(curves) for each in zip(*curves, strict=True)])


def test_the_headline_has_the_five_tasks_and_the_times(drawn, tmp_path, monkeypatch):
    monkeypatch.setattr(study, "RESAMPLES", 10)
    learn = report.raw("speed")["learn"]["results"]
    pictures.draw_headline(report.learning.latest(), learn, tmp_path / "headline.png")
    *panels, times = drawn[0].axes
    assert [panel.get_title() for panel in panels] == list(pictures.HEADLINE)
    assert [len(panel.lines) for panel in panels] == [3] * 5
    assert len(times.patches) == 12
    legend = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert legend == ["sb3_trpo, 10 runs", "sb3-contrib's TRPO, 5 or 6 runs", "SB3's PPO, 3 runs"]
