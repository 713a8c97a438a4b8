import shutil

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
    assert "Dashboard:        none, since its log has no update of TRPO, or only the first" in printed
    assert (trained / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    run = f"--algo trpo --env CartPole-v1 -f {trained.parents[1]} --exp-id 1"
    assert printed.endswith(f"python -m sb3_trpo.zoo {way.format(run)}\n")


def test_a_run_that_does_not_exist_is_refused_with_what_to_do(tmp_path):
    command = r"Train an agent first: sb3-trpo train --algo trpo --env CartPole-v1 -f"
    with pytest.raises(SystemExit, match=rf"no run .*CartPole-v1_7\. {command} '.*a b'$"):
        reporting.report(["--env", "CartPole-v1", "-f", str(tmp_path / "a b"), "--exp-id", "7"])


def test_a_run_under_way_is_drawn(tmp_path, trained, capsys):
    run = shutil.copytree(trained, tmp_path / "trpo" / "CartPole-v1_1")
    (run / "CartPole-v1.zip").unlink()
    reporting.report(["--env", "CartPole-v1", "-f", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "There is no final model" in printed
    assert str(run / "learning_curve.png") in printed
    assert "Watch the agent" not in printed


def test_the_newest_run_with_a_model_or_a_log_is_reported(tmp_path):
    for run in ("CartPole-v1_2", "CartPole-v1_10", "CartPole-v1_x_11", "CartPole-v1_1"):
        (tmp_path / run).mkdir()
        (tmp_path / run / "CartPole-v1.zip").touch()
    (tmp_path / "CartPole-v1_12").mkdir()  # of a search
    assert reporting.newest_run(tmp_path, "CartPole-v1") == 10
    (tmp_path / "CartPole-v1_12" / "progress.csv").touch()  # of a run under way
    assert reporting.newest_run(tmp_path, "CartPole-v1") == 12


def test_runs_of_other_algorithms_and_environments_of_a_package_are_reported(run_zoo, tmp_path, monkeypatch, capsys):
    lines = "import gymnasium", "gymnasium.register('Own-v0', 'gymnasium.envs.classic_control:CartPoleEnv', 50)"
    (tmp_path / "own_tasks.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "conf.yml").write_text("Own-v0: {policy: MlpPolicy, n_timesteps: 64, n_steps: 32}")
    own = ("--algo", "ppo", "--env", "Own-v0", "--gym-packages", "own_tasks")
    run_zoo("train", *own, "-conf", "conf.yml", "-f", tmp_path, "--eval-freq", -1, "-params", "batch_size:32")
    run_zoo("report", *own, "-f", tmp_path, "--episodes", 2)
    assert "over 2 episodes" in capsys.readouterr().out
