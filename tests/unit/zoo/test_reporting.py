import pytest

from sb3_trpo.zoo import reporting


@pytest.mark.parametrize(
    ("has_window", "settings", "way"),
    [(True, None, "enjoy {}"), (False, {"MUJOCO_GL": "egl"}, "record_video {}"), (False, None, "enjoy {} --no-render")],
)
def test_report_evaluates_plots_and_names_a_script_that_works_here(
    has_window, settings, way, trained, run_zoo, capsys, monkeypatch
):
    monkeypatch.setattr(reporting, "has_display", lambda: has_window)
    monkeypatch.setattr(reporting, "rendering_settings", lambda _: settings)
    run_zoo("report", "--env", "CartPole-v1", "-f", trained.parents[1], "--episodes", 3)
    printed = capsys.readouterr().out
    assert "over 3 episodes" in printed
    assert str(trained / "CartPole-v1.zip") in printed
    assert "Dashboard:        none, since the run has logged no update" in printed
    assert (trained / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    run = f"--algo trpo --env CartPole-v1 -f {trained.parents[1]} --exp-id 1"
    assert printed.endswith(f"-m sb3_trpo.zoo {way.format(run)}\n")


def test_a_run_without_a_model_is_refused_with_what_to_do(tmp_path):
    (tmp_path / "trpo" / "CartPole-v1_1").mkdir(parents=True)
    with pytest.raises(SystemExit, match=r"Train one first: python -m sb3_trpo\.zoo train --algo trpo --env CartPole-v1"):
        reporting.report(["--env", "CartPole-v1", "-f", str(tmp_path)])
