"""Contract: a run that crashes goes on bit for bit, whatever Stable-Baselines3's version."""

from functools import partial

import pytest
from helpers.contract_tools import same_parameters
from helpers.runs import outcome, run_until_done, with_log
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from sb3_trpo import TRPO
from sb3_trpo.checkpoint import ResumableCheckpoint


def normalized(seed, vec_env_cls=DummyVecEnv, **settings):
    vec_env_kwargs = {"start_method": "fork"} if vec_env_cls is SubprocVecEnv else {}
    env = make_vec_env("Pendulum-v1", 2, seed=seed, vec_env_cls=vec_env_cls, vec_env_kwargs=vec_env_kwargs)
    return VecNormalize(env, **settings)


def train(vec_env_cls, settings, folder, crash):
    model = TRPO("MlpPolicy", normalized(3, vec_env_cls), n_steps=64, n_critic_updates=2, seed=0, **settings)
    with_log(model, folder / "log")
    evaluation_env = normalized(4, training=False, norm_reward=False)
    evaluation = EvalCallback(evaluation_env, eval_freq=70, n_eval_episodes=1, log_path=str(folder), verbose=0)
    try:
        model.learn(1024, callback=[evaluation, ResumableCheckpoint(folder / "run", every=200, verbose=0), crash])
        return outcome(model, [evaluation], folder / "log")
    finally:
        model.env.close()


@pytest.mark.parametrize("vec_env_cls", [DummyVecEnv, SubprocVecEnv])
@pytest.mark.parametrize(
    "settings",
    [{}, {"use_sde": True, "sde_sample_freq": 4}, {"policy_kwargs": {"action_distribution": "beta"}}],
    ids=["", "gSDE", "Beta"],
)
def test_a_run_that_crashes_ends_like_one_that_does_not(vec_env_cls, settings, tmp_path):
    whole, _ = run_until_done(partial(train, vec_env_cls, settings, tmp_path / "whole"))
    pieces, starts = run_until_done(partial(train, vec_env_cls, settings, tmp_path / "pieces"), 400, 700)
    assert starts == 3
    assert pieces == whole
    loaded = TRPO.from_checkpoint(tmp_path / "pieces" / "run", normalized(5, training=False, norm_reward=False))
    again = TRPO.from_checkpoint(tmp_path / "whole" / "run", normalized(5, training=False, norm_reward=False))
    assert same_parameters(loaded.policy, again.policy)
    assert loaded.num_timesteps == 1024
