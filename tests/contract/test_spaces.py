"""Contract: every action and observation space, Dict observations with every option, gSDE, predictions."""

from functools import partial

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from helpers.contract_tools import ROUNDING, Update, one_update
from helpers.envs import BOX_ACTION, DICT, IMAGE, VECTOR, RandomEnv, dict_env, grid_world, image_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import (
    FakeImageEnv,
    IdentityEnv,
    IdentityEnvBox,
    IdentityEnvMultiBinary,
    IdentityEnvMultiDiscrete,
)

from sb3_trpo import TRPO

ACTION_SPACES = {
    "Box(1)": spaces.Box(-1.0, 1.0, (1,)),
    "Box(5)": spaces.Box(-2.0, 3.0, (5,)),
    "Box(2,2)": spaces.Box(-1.0, 1.0, (2, 2)),
    "Discrete": spaces.Discrete(4),
    "MultiDiscrete": spaces.MultiDiscrete([2, 3, 4]),
    "MultiBinary": spaces.MultiBinary(3),
}
OBSERVATION_SPACES = {
    "Box": VECTOR,
    "Box(2,3)": spaces.Box(-1.0, 1.0, (2, 3)),
    "unbounded": spaces.Box(-np.inf, np.inf, (4,)),
    "Discrete": spaces.Discrete(5),
    "MultiDiscrete": spaces.MultiDiscrete([3, 4]),
    "MultiBinary": spaces.MultiBinary(4),
    "image": IMAGE,
    "image, channels first": spaces.Box(0, 255, (3, 36, 36), np.uint8),
    "Dict": DICT,
}
SMALL = {"n_steps": 64, "batch_size": 32, "n_critic_updates": 2, "seed": 0}


def policy_for(space: spaces.Space) -> str:
    if isinstance(space, spaces.Dict):
        return "MultiInputPolicy"
    return "CnnPolicy" if len(space.shape) == 3 else "MlpPolicy"


def assert_sound(update: Update, target_kl: float = 0.01) -> None:
    """Check an accepted step on standardized advantages, whose surrogate is 0 at the old policy."""
    log = update.log
    assert update.outcome == "accepted"
    assert 0.0 < update.kl <= target_kl + ROUNDING
    assert log["train/kl_divergence_loss"] == pytest.approx(update.kl, abs=ROUNDING)
    assert log["train/policy_objective"] > 0.0
    assert log["train/policy_objective"] == pytest.approx(log["train/improvement"], abs=1e-5)


@pytest.mark.parametrize("action_space", ACTION_SPACES.values(), ids=ACTION_SPACES)
def test_steps_stay_in_the_trust_region_for_every_action_space(action_space):
    model = TRPO("MlpPolicy", RandomEnv(action_space=action_space), **SMALL)
    for _ in range(3):
        assert_sound(one_update(model))
    action, _ = model.predict(VECTOR.sample())
    assert action_space.contains(action if action.shape else int(action))


ENVS_OF_SB3 = {
    "Discrete": lambda: IdentityEnv(3),
    "Box": lambda: IdentityEnvBox(eps=0.5),
    "MultiDiscrete": lambda: IdentityEnvMultiDiscrete(2),
    "MultiBinary": lambda: IdentityEnvMultiBinary(2),
    "image": lambda: FakeImageEnv(3, 36, 36),
    "Dict": grid_world,
}


@pytest.mark.parametrize("make_env", ENVS_OF_SB3.values(), ids=ENVS_OF_SB3)
def test_environments_of_sb3_train(make_env):
    env = make_env()
    model = TRPO(policy_for(env.observation_space), env, **SMALL)
    assert_sound(one_update(model))


@pytest.mark.parametrize("space", OBSERVATION_SPACES.values(), ids=OBSERVATION_SPACES)
def test_steps_stay_in_the_trust_region_for_every_observation_space(space):
    model = TRPO(policy_for(space), RandomEnv(space), **SMALL)
    assert_sound(one_update(model))
    action, _ = model.predict(space.sample())
    assert model.action_space.contains(int(action))


def test_images_are_flattened_by_the_mlp_policy():
    assert_sound(one_update(TRPO("MlpPolicy", image_env(), **SMALL)))


@pytest.mark.parametrize(
    "action_space",
    [spaces.Text(3), spaces.Sequence(spaces.Discrete(2)), spaces.OneOf((spaces.Discrete(2), spaces.Discrete(3)))],
    ids=lambda space: type(space).__name__,
)
def test_unsupported_action_spaces_raise_and_name_the_supported_ones(action_space):
    with pytest.raises(AssertionError) as raised:
        TRPO("MlpPolicy", RandomEnv(action_space=action_space))
    assert all(name in str(raised.value) for name in ("Box", "Discrete", "MultiDiscrete", "MultiBinary"))


OPTIONS = (
    {}, {"sub_sampling_factor": 3}, {"fisher_subsampling": 3}, {"chunk_size": 10},
    {"sub_sampling_factor": 2, "fisher_subsampling": 2, "chunk_size": 5},
    {"use_sde": True}, {"use_sde": True, "sde_sample_freq": 4, "chunk_size": 20},
    {"normalize_advantage": False}, {"ent_coef": 0.01},
    {"policy_kwargs": {"share_features_extractor": True}}, {"policy_kwargs": {"net_arch": {"pi": [16], "vf": [8, 8]}}},
)  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("n_envs", [1, 3])
def test_dict_observations_work_with_every_option(options, n_envs):
    env = make_vec_env(partial(dict_env, BOX_ACTION if "use_sde" in options else None), n_envs=n_envs)
    model = TRPO("MultiInputPolicy", env, **SMALL | {"n_steps": 66 // n_envs, "batch_size": 22}, **options)
    update = one_update(model)
    assert update.outcome == "accepted"
    assert update.critic_outcome == "fitted"
    assert update.log["train/improvement"] > 0.0
    if "sub_sampling_factor" not in options:  # else the update has seen only part of what is measured here
        assert 0.0 < update.kl <= 0.01 + ROUNDING
        assert update.log["train/kl_divergence_loss"] == pytest.approx(update.kl, abs=ROUNDING)


GSDE = (
    {}, {"squash_output": True}, {"full_std": False}, {"use_expln": True}, {"net_arch": []},
    {"squash_output": True, "full_std": False, "use_expln": True, "log_std_init": -1.0},
)  # fmt: skip


@pytest.mark.parametrize("sde_sample_freq", [-1, 4])
@pytest.mark.parametrize("policy_kwargs", GSDE, ids=str)
def test_gsde_stays_in_the_trust_region(policy_kwargs, sde_sample_freq):
    env = RandomEnv(action_space=spaces.Box(-2.0, 1.0, (2,)))
    model = TRPO("MlpPolicy", env, use_sde=True, sde_sample_freq=sde_sample_freq, policy_kwargs=policy_kwargs, **SMALL)
    for _ in range(2):
        update = one_update(model)
        assert_sound(update)
        assert "log_std" in update.moved
    action, _ = model.predict(VECTOR.sample(), deterministic=False)
    assert env.action_space.contains(action)


def test_gsde_samples_its_noise_every_sde_sample_freq_steps(monkeypatch):
    draws = []
    model = TRPO("MlpPolicy", RandomEnv(action_space=ACTION_SPACES["Box(1)"]), use_sde=True, sde_sample_freq=16, **SMALL)
    monkeypatch.setattr(model.policy, "reset_noise", draws.append)
    model.learn(64)
    assert draws == [1] * (1 + 64 // 16)


@pytest.mark.parametrize("space", [VECTOR, IMAGE, DICT], ids=["Box", "image", "Dict"])
@pytest.mark.parametrize("deterministic", [True, False])
def test_predict_takes_one_observation_or_several(space, deterministic):
    model = TRPO(policy_for(space), RandomEnv(space, BOX_ACTION), **SMALL)
    one = RandomEnv(space).reset(seed=0)[0]
    several = {key: np.stack([part] * 4) for key, part in one.items()} if isinstance(one, dict) else np.stack([one] * 4)
    th.manual_seed(0)
    assert model.predict(one, deterministic=deterministic)[0].shape == (2,)
    actions, state = model.predict(several, deterministic=deterministic)
    assert state is None
    assert actions.shape == (4, 2)
    assert np.allclose(actions, actions[0]) == deterministic
