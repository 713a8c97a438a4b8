import numpy as np
import pandas
import pytest
from matplotlib.figure import Figure
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


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Train for a few iterations, and draw the dashboard; return the log, and the figure instead of a file."""
    env = make_vec_env("Pendulum-v1", seed=0, monitor_dir=str(tmp_path))
    TRPO("MlpPolicy", env, n_steps=512, batch_size=128, seed=0).learn(2048, callback=ProgressFile(str(tmp_path)))
    env.close()
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **_: figures.append(figure))
    assert dashboard(tmp_path, "a run") == tmp_path / "dashboard.png"
    return pandas.read_csv(tmp_path / "progress.csv").dropna(subset=["train/n_updates"]), figures[0]


def test_the_dashboard_shows_what_was_logged(drawn):
    log, figure = drawn
    panels = {axes.get_title(): axes for axes in figure.axes}
    assert [*panels] == ["return", *PANELS]
    lines = {axes: {line.get_label(): list(line.get_ydata()) for line in axes.lines} for axes in panels.values()}
    kl, exploration, critic, outcomes, times = (panels[title] for title in PANELS)
    assert lines[kl] == {"KL of the step": [*log["train/kl_divergence_loss"]], "target_kl": [*log["train/target_kl"]]}
    assert lines[exploration] == {"entropy, nats": [*log["train/entropy"]], "standard deviation": [*log["train/std"]]}
    assert [*log["train/explained_variance"]] in lines[critic].values()
    assert lines[outcomes] == {"accepted": [*log["outcomes/accepted"]]}
    parts = log[[f"time/{part}_seconds" for part in ("collect", "policy_step", "critic")]]
    assert [area.get_label() for area in times.collections] == ["collecting", "policy step", "critic"]
    tops = [area.get_paths()[0].vertices[:, 1].max() for area in times.collections]
    assert tops == pytest.approx(parts.cumsum(axis=1).max().tolist())
    steps = [*log["time/total_timesteps"]]
    assert all([*axes.lines[0].get_xdata()] == steps for axes in (kl, exploration, outcomes))
    assert len(lines[panels["return"]]["training episode"]) == 2048 // 200


def test_evaluations_between_rollouts_hide_no_times_and_low_explained_variance_is_marked(tmp_path, monkeypatch):
    rows = [
        "time/total_timesteps,time/collect_seconds,train/n_updates,train/kl_divergence_loss,train/target_kl,train/entropy,"
        "train/explained_variance,time/policy_step_seconds,time/critic_seconds,eval/mean_reward",
        "64,1.5,,,,,,,,", "70,,1,0.01,0.01,1.0,-3.0,0.2,0.3,5.0", "128,2.5,,,,,,,,", "130,,2,0.01,0.01,1.0,0.5,0.2,0.3,5.0",
    ]  # fmt: skip
    (tmp_path / "progress.csv").write_text("\n".join(rows))
    (tmp_path / "0.monitor.csv").write_text('#{"t_start": 0.0, "env_id": "A"}\nr,l,t\n1.0,64,1.0\n')
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **_: figures.append(figure))
    dashboard(tmp_path, "a run")
    critic, times = (next(axes for axes in figures[0].axes if axes.get_title() == [*PANELS][place]) for place in (2, 4))
    assert [(*line.get_xdata(),) for line in critic.lines if line.get_label() == "below -0.2"] == [(70,)]
    assert times.collections[0].get_paths()[0].vertices[:, 1].max() == 2.5


def test_a_picture_is_drawn_of_a_short_run(run_folder):
    env = make_vec_env("CartPole-v1", seed=0)
    TRPO("MlpPolicy", env, n_steps=64, batch_size=64).learn(128, callback=ProgressFile(str(run_folder)))
    assert ink(dashboard(run_folder, "a run")) > 0.01


@pytest.mark.parametrize("content", ["", "a,b\n1,2,3\n1,2,3,4\n"])
def test_a_log_that_cannot_be_read_is_named(content, run_folder):
    (run_folder / "progress.csv").write_text(content)
    with pytest.raises(NothingLoggedError, match=r"progress\.csv cannot be read"):
        dashboard(run_folder, "a run")


@pytest.mark.parametrize(("n_updates", "reason"), [(0, "no progress.csv"), (1, "no update of TRPO")])
def test_a_run_without_a_logged_update_has_no_dashboard(n_updates, reason, run_folder):
    if n_updates:
        env = make_vec_env("CartPole-v1", seed=0)
        TRPO("MlpPolicy", env, n_steps=64, batch_size=64).learn(64, callback=ProgressFile(str(run_folder)))
    with pytest.raises(NothingLoggedError, match=reason):
        dashboard(run_folder, "a run")
