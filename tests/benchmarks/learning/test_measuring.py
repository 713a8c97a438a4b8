import numpy as np
import pytest

from benchmarks.learning import measuring, plans

MONITOR = '#{"t_start": 0.0, "env_id": "X"}\nr,l,t\n'


def test_an_unfinished_run_and_a_damaged_model_are_failures(tmp_path, monkeypatch):
    folder = tmp_path / "trpo" / "CartPole-v1_1"
    folder.mkdir(parents=True)
    (tmp_path / measuring.OUTPUT).write_text("the end\n")
    run = plans.Run("trpo", "trpo", "CartPole-v1", 0, {"n_timesteps": 256})

    def failure():
        return measuring.measure(run, tmp_path)["failure"]

    assert failure().startswith("exit status none yet: the end (ValueError: No model found")
    assert str(tmp_path) not in failure()
    (folder / "CartPole-v1.zip").write_bytes(b"PK")
    assert failure().startswith("exit status none yet: the end (ValueError: ")
    monkeypatch.setattr(measuring, "load_from_zip_file", lambda file, device: [{"num_timesteps": 255}])
    assert failure() == "exit status none yet: the end (ValueError: stopped at 255 timesteps)"


def test_curve_averages_the_last_hundred_episodes_of_all_envs(tmp_path):
    rng = np.random.default_rng(0)
    returns = rng.normal(size=300).round(3)
    for env in range(2):  # episodes of 10 steps, in turn
        lines = [f"{returns[2 * i + env]},10,{2 * i + env + 1}" for i in range(150)]
        (tmp_path / f"{env}.monitor.csv").write_text(MONITOR + "\n".join(lines) + "\n")
    curve = measuring.learning_curve(str(tmp_path), 3000, is_whole=True)
    assert [point[0] for point in curve] == [75 * i for i in range(1, 41)]
    for steps, mean, seconds in curve:
        finished = steps // 10
        assert mean == pytest.approx(returns[max(0, finished - 100) : finished].mean(), abs=1e-3)
        assert seconds == finished
    resumed = measuring.learning_curve(str(tmp_path), 3000, is_whole=False)  # its clock has counted the pause
    assert resumed == [point[:2] for point in curve]
