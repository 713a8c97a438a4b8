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
    assert "Dashboard:        none, since its log has no update of TRPO's" in printed
    assert (trained / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    run = f"--algo trpo --env CartPole-v1 -f {trained.parents[1]} --exp-id 1"
    assert printed.endswith(f"-m sb3_trpo.zoo {way.format(run)}\n")


@pytest.mark.parametrize("number", [(), ("--exp-id", "7")])
def test_a_run_without_a_model_is_refused_with_what_to_do(number, tmp_path):
    (tmp_path / "trpo" / "CartPole-v1_1").mkdir(parents=True)
    command = r"Train one first: python -m sb3_trpo\.zoo train --algo trpo --env CartPole-v1 -f"
    with pytest.raises(SystemExit, match=rf"CartPole-v1_{7 if number else 1}/CartPole-v1\.zip\. {command}"):
        reporting.report(["--env", "CartPole-v1", "-f", str(tmp_path), *number])


def test_the_newest_run_with_a_model_is_reported(tmp_path):
    for run in ("CartPole-v1_2", "CartPole-v1_10", "CartPole-v1_x_11", "CartPole-v1_1"):
        (tmp_path / run).mkdir()
        (tmp_path / run / "CartPole-v1.zip").touch()
    (tmp_path / "CartPole-v1_12").mkdir()  # of a search
    assert reporting.newest_run(tmp_path, "CartPole-v1") == 10


def test_runs_of_other_algorithms_and_environments_of_a_package_are_reported(run_zoo, tmp_path, monkeypatch, capsys):
    lines = "import gymnasium", "gymnasium.register('Own-v0', 'gymnasium.envs.classic_control:CartPoleEnv', 50)"
    (tmp_path / "own_tasks.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "conf.yml").write_text("Own-v0: {policy: MlpPolicy, n_timesteps: 64, n_steps: 32}")
    own = ("--algo", "ppo", "--env", "Own-v0", "--gym-packages", "own_tasks")
    run_zoo("train", *own, "-conf", "conf.yml", "-f", tmp_path, "--eval-freq", -1, "-params", "batch_size:32")
    run_zoo("report", *own, "-f", tmp_path, "--episodes", 2)
    assert "over 2 episodes" in capsys.readouterr().out
