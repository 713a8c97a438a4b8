import numpy as np
import pytest
from helpers.learning_runs import row

from benchmarks.common import pictures as style
from benchmarks.learning import pictures, study


@pytest.mark.parametrize("tasks", [1, 2, 4, 9])
def test_learning_curves_have_a_panel_for_each_task(tmp_path, monkeypatch, tasks):
    envs, drawn = [f"Task{each}-v0" for each in range(tasks)], []
    monkeypatch.setattr(style.Figure, "savefig", lambda figure, file, **_: drawn.append(figure))
    rows = [row(env, "trpo", seed, 1.0, [[100, float(seed)], [200, 2.0]]) for env in envs for seed in range(3)]
    pictures.draw_curves(study.Study(rows), envs, tmp_path / "curves.png")
    assert [axes.get_title() for axes in drawn[0].axes] == envs
    (line,), (band,) = drawn[0].axes[0].lines, drawn[0].axes[0].collections
    np.testing.assert_array_equal(line.get_xydata(), [[100.0, 1.0], [200.0, 2.0]])
    assert (band.get_paths()[0].vertices[:, 1].min(), band.get_paths()[0].vertices[:, 1].max()) == (0.0, 2.0)
