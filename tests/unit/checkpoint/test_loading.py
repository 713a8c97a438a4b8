"""A model from a checkpoint, for evaluation."""

import builtins
import pickle

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from helpers.contract_tools import same_parameters
from helpers.envs import VECTOR, RandomEnv
from helpers.resumable_runs import INTERRUPTED, TOTAL, resealed, trained
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trpo import TRPO
from sb3_trpo.checkpoint.run_folder import checkpoints_in

pytestmark = INTERRUPTED


def test_from_checkpoint_gives_the_model(tmp_path):
    model = trained(tmp_path, policy_kwargs={"net_arch": [8], "activation_fn": th.nn.ReLU}, target_kl=lambda p: 0.1 * p)
    loaded = TRPO.from_checkpoint(tmp_path, make_vec_env("CartPole-v1", 3))
    assert loaded.n_envs == 3, "any number"
    assert same_parameters(loaded.policy, model.policy)
    assert (loaded.num_timesteps, loaded._n_updates, loaded.target_kl(1.0)) == (TOTAL, TOTAL // 32, 0.0)
    seen = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    assert np.array_equal(*(each.predict(seen, deterministic=True)[0] for each in (loaded, model)))
    (newest, before) = checkpoints_in(tmp_path)
    assert TRPO.from_checkpoint(before, gym.make("CartPole-v1")).num_timesteps == TOTAL - 32
    assert TRPO.from_checkpoint(str(newest), gym.make("CartPole-v1"), gamma=0.5).gamma == 0.5


def test_from_checkpoint_fills_in_the_statistics_of_normalization(tmp_path):
    model = trained(tmp_path, env=lambda: VecNormalize(make_vec_env("Pendulum-v1", 2, seed=0)))
    env = VecNormalize(make_vec_env("Pendulum-v1"), training=False, norm_reward=False)
    TRPO.from_checkpoint(tmp_path, env)
    assert np.array_equal(env.obs_rms.mean, model.env.obs_rms.mean)
    assert env.ret_rms.var == model.env.ret_rms.var
    assert not env.training
    with pytest.raises(ValueError, match="not wrapped in VecNormalize"):
        TRPO.from_checkpoint(tmp_path, make_vec_env("Pendulum-v1"))


def test_from_checkpoint_refuses_what_does_not_fit(tmp_path):
    with pytest.raises(ValueError, match="no intact checkpoint"):
        TRPO.from_checkpoint(tmp_path, "CartPole-v1")
    trained(tmp_path)
    with pytest.raises(ValueError, match=r"does not fit:\n.*"):
        TRPO.from_checkpoint(tmp_path, gym.make("Acrobot-v1"))


class Extractor(th.nn.Identity):
    """A class of the user's."""

    features_dim = 3

    def __init__(self, observation_space):
        super().__init__()


def test_from_checkpoint_loads_no_class_by_name_that_is_not_known(tmp_path):
    policy_kwargs = {"features_extractor_class": Extractor}
    model = trained(tmp_path, env=lambda: RandomEnv(VECTOR), policy_kwargs=policy_kwargs)
    with pytest.raises(ValueError, match=r"features_extractor_class.*Extractor.*Give policy_kwargs"):
        TRPO.from_checkpoint(tmp_path, RandomEnv(VECTOR))
    loaded = TRPO.from_checkpoint(tmp_path, RandomEnv(VECTOR), policy_kwargs=policy_kwargs)
    assert same_parameters(loaded.policy, model.policy)


def test_loading_a_checkpoint_unpickles_nothing(tmp_path, monkeypatch):
    trained(tmp_path, total=64)

    def refuse(*_args, **_kwargs):
        raise AssertionError("something is unpickled")

    for owner, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (th, "load"), (builtins, "eval")):
        monkeypatch.setattr(owner, name, refuse)
    assert trained(tmp_path, total=96).num_timesteps == 96
    assert TRPO.from_checkpoint(tmp_path, gym.make("CartPole-v1")).num_timesteps == 96


HOSTILE = {
    "a huge network": lambda state, _: state["settings"].update(policy_kwargs={"dict": {"net_arch": {"list": [10**9]}}}),
    "a huge rollout": lambda state, _: state["settings"].update(n_steps=10**13),
}


@pytest.mark.parametrize("attack", HOSTILE)
def test_from_checkpoint_refuses_sizes_that_nothing_in_it_has(attack, tmp_path):
    trained(tmp_path, total=32)
    resealed(checkpoints_in(tmp_path)[0], HOSTILE[attack])
    with pytest.raises(ValueError, match="asks for the size 1000000000"):
        TRPO.from_checkpoint(tmp_path, gym.make("CartPole-v1"))


def test_from_checkpoint_takes_only_settings(tmp_path):
    trained(tmp_path, total=32)
    resealed(checkpoints_in(tmp_path)[0], lambda state, _: state["settings"].update(env=None, device="x", nonsense=1))
    assert TRPO.from_checkpoint(tmp_path, gym.make("CartPole-v1")).num_timesteps == 32
