import shutil

import numpy as np
import pandas
import pytest
from stable_baselines3.common.env_util import make_vec_env

from sb3_trpo import TRPO
from sb3_trpo.zoo.experiment import ProgressFile
from sb3_trpo.zoo.plots import PANELS, WINDOW, NothingLoggedError, dashboard, learning_curve


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
    with pytest.raises(NothingLoggedError, match="no Monitor files"):
        learning_curve(tmp_path, "nothing")


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """Train for a few iterations, with Monitor's files and a log; return the folder and its dashboard."""
    folder = tmp_path_factory.mktemp("run")
    env = make_vec_env("Pendulum-v1", seed=0, monitor_dir=str(folder))
    TRPO("MlpPolicy", env, n_steps=512, batch_size=128, seed=0).learn(2048, callback=ProgressFile(str(folder)))
    env.close()
    return folder, dashboard(folder, "a run").read_bytes()


@pytest.mark.parametrize("columns", [
    "train/kl_divergence_loss", "train/target_kl", "train/entropy", "train/std", "train/explained_variance", "outcomes/",
    "time/collect_seconds", "time/policy_step_seconds", "time/critic_seconds",
])  # fmt: skip
def test_the_dashboard_shows_what_was_logged(columns, logged, tmp_path):
    folder, drawn = logged
    copy = shutil.copytree(folder, tmp_path / "copy")
    log = pandas.read_csv(copy / "progress.csv")
    names = [name for name in log if name.startswith(columns)]
    assert names
    log.assign(**dict.fromkeys(names, 0.5)).to_csv(copy / "progress.csv", index=False)
    assert dashboard(copy, "a run").read_bytes() != drawn


def test_the_same_log_gives_the_same_dashboard(logged):
    folder, drawn = logged
    assert len(PANELS) == 5
    assert dashboard(folder, "a run").read_bytes() == drawn


@pytest.mark.parametrize(("n_updates", "reason"), [(0, "no progress.csv"), (1, "no update of TRPO")])
def test_a_run_without_a_logged_update_has_no_dashboard(n_updates, reason, run_folder):
    if n_updates:
        env = make_vec_env("CartPole-v1", seed=0)
        TRPO("MlpPolicy", env, n_steps=64, batch_size=64).learn(64, callback=ProgressFile(str(run_folder)))
    with pytest.raises(NothingLoggedError, match=reason):
        dashboard(run_folder, "a run")
