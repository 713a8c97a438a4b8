"""Contract: SB3's callbacks, and what they see."""

import gymnasium as gym
import numpy as np
import pytest
from helpers.contract_tools import same_parameters
from helpers.envs import BOX_ACTION, RandomEnv
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor

from sb3_trpo import TRPO

SMALL = {"n_steps": 64, "batch_size": 32, "n_critic_updates": 2, "seed": 0}


def small_model(env: gym.Env | None = None) -> TRPO:
    return TRPO("MlpPolicy", env or RandomEnv(), **SMALL)


class Notes(BaseCallback):
    """Records what a callback sees."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.full, self.at_step, self.at_end = [], [], set(), set()

    def _on_training_start(self) -> None:
        self.calls.append("training_start")

    def _on_rollout_start(self) -> None:
        self.calls.append("rollout_start")

    def _on_step(self) -> bool:
        self.at_step |= set(self.locals)
        return True

    def _on_rollout_end(self) -> None:
        self.calls.append("rollout_end")
        self.at_end |= set(self.locals)
        buffer = self.model.rollout_buffer
        self.full.append(buffer.full and buffer.pos == self.model.n_steps and bool(np.any(buffer.advantages)))

    def _on_training_end(self) -> None:
        self.calls.append("training_end")


def test_a_callback_is_called_in_sb3s_order_and_sees_full_buffers():
    notes = Notes()
    small_model().learn(128, callback=notes)
    assert notes.calls == ["training_start", *["rollout_start", "rollout_end"] * 2, "training_end"]
    assert notes.full == [True, True]
    assert notes.n_calls == notes.num_timesteps == 128


def test_a_callback_sees_sb3s_locals():
    notes = Notes()
    small_model(RandomEnv(action_space=BOX_ACTION)).learn(64, callback=notes)
    always = {"self", "env", "callback", "rollout_buffer", "n_rollout_steps"}
    always |= {"infos", "rewards", "dones", "new_obs", "actions"}
    assert always | {"clipped_actions", "obs_tensor", "n_steps", "values", "log_probs"} <= notes.at_step
    assert always | {"values"} <= notes.at_end


@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize("n_calls", [1, 10, 64])
def test_training_stops_at_once_when_a_callback_returns_false(n_envs, n_calls):
    model, untrained = (small_model(make_vec_env(RandomEnv, n_envs=n_envs)) for _ in range(2))
    calls = iter(range(1, 1000))
    model.learn(1000, callback=lambda *_: next(calls) < n_calls)
    assert model.num_timesteps == n_calls * n_envs
    assert next(calls) == n_calls + 1
    assert same_parameters(model.policy, untrained.policy)


def test_a_list_of_callbacks_is_called_in_full():
    first, second = Notes(), Notes()
    small_model().learn(64, callback=[first, CallbackList([second])])
    assert first.n_calls == second.n_calls == 64


def test_a_plain_function_is_a_callback():
    seen = []
    small_model().learn(64, callback=lambda local, _: seen.append(local["n_steps"]) or True)
    assert seen == list(range(64))


def test_evaluation_keeps_the_best_model(tmp_path):
    settings = {"best_model_save_path": str(tmp_path), "log_path": str(tmp_path), "verbose": 0}
    evaluation = EvalCallback(Monitor(RandomEnv()), eval_freq=64, n_eval_episodes=2, **settings)
    model = small_model().learn(192, callback=evaluation)
    results = np.load(tmp_path / "evaluations.npz")
    assert results["timesteps"].tolist() == [64, 128, 192]
    assert results["results"].shape == (3, 2)
    best = TRPO.load(tmp_path / "best_model")
    assert best.num_timesteps == 64 * (1 + results["results"].mean(axis=1).argmax())
    assert model.num_timesteps == 192


def test_training_stops_when_the_reward_threshold_is_met():
    stop = StopTrainingOnRewardThreshold(reward_threshold=0.0, verbose=0)
    evaluation = EvalCallback(Monitor(RandomEnv()), callback_on_new_best=stop, eval_freq=96, n_eval_episodes=1, verbose=0)
    assert small_model().learn(1000, callback=evaluation).num_timesteps == 96


def test_checkpoints_load_and_train_on(tmp_path):
    model = small_model().learn(192, callback=CheckpointCallback(save_freq=64, save_path=str(tmp_path)))
    steps = [64, 128, 192]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"rl_model_{step}_steps.zip" for step in steps)
    loaded = [TRPO.load(tmp_path / f"rl_model_{step}_steps.zip", env=RandomEnv()) for step in steps]
    assert [checkpoint.num_timesteps for checkpoint in loaded] == steps
    assert not same_parameters(loaded[0].policy, loaded[1].policy)
    loaded[1].learn(64, reset_num_timesteps=False)
    assert loaded[1].num_timesteps == model.num_timesteps


def test_a_progress_bar_shows_the_steps(capsys):
    pytest.importorskip("tqdm")
    pytest.importorskip("rich")
    small_model().learn(128, progress_bar=True)
    shown = capsys.readouterr()
    assert "128/128" in shown.out + shown.err
