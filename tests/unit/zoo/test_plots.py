import numpy as np
import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import LoadMonitorResultsError

from sb3_trpo.zoo.plots import WINDOW, learning_curve


@pytest.fixture
def run_folder(tmp_path):
    env = make_vec_env("CartPole-v1", n_envs=2, seed=0, monitor_dir=str(tmp_path))
    env.reset()
    for _ in range(20 * WINDOW):
        env.step(np.array([1, 1]))
    env.close()
    return tmp_path


def ink(picture):
    from matplotlib.image import imread

    return float((imread(picture)[..., :3] < 0.95).any(-1).mean())


def test_a_picture_shows_episodes_and_evaluations(run_folder):
    picture = learning_curve(run_folder, "CartPole")
    assert picture == run_folder / "learning_curve.png"
    without = ink(picture)
    assert without > 0.01
    np.savez(run_folder / "evaluations.npz", timesteps=np.array([100, 500]), results=np.array([[9.0, 10.0], [200.0, 300.0]]))
    assert ink(learning_curve(run_folder, "CartPole")) != without


def test_a_folder_without_monitor_files_is_refused(tmp_path):
    with pytest.raises(LoadMonitorResultsError):
        learning_curve(tmp_path, "nothing")
