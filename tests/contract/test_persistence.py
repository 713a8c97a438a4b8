"""Contract: saving and loading, ours and sb3-contrib's; parameters in and out."""

import numpy as np
import pytest
import sb3_contrib
from gymnasium import spaces
from helpers.contract_tools import ROUNDING, moved_since, one_update, parameters, same_parameters
from helpers.envs import BOX_ACTION, DICT, IMAGE, VECTOR, RandomEnv, dict_env, image_env
from stable_baselines3.common.env_util import make_vec_env

from sb3_trpo import TRPO, CnnPolicy, MlpPolicy, MultiInputPolicy

SMALL = {"n_steps": 64, "batch_size": 32, "n_critic_updates": 2, "seed": 0}

MODELS = {
    "Discrete": ("MlpPolicy", RandomEnv, {}),
    "Box": ("MlpPolicy", lambda: RandomEnv(action_space=BOX_ACTION), {}),
    "gSDE": ("MlpPolicy", lambda: RandomEnv(action_space=BOX_ACTION), {"use_sde": True}),
    "Beta": ("MlpPolicy", lambda: RandomEnv(action_space=BOX_ACTION), {"policy_kwargs": {"action_distribution": "beta"}}),
    "MultiDiscrete": ("MlpPolicy", lambda: RandomEnv(action_space=spaces.MultiDiscrete([2, 3])), {}),
    "MultiBinary": ("MlpPolicy", lambda: RandomEnv(action_space=spaces.MultiBinary(3)), {}),
    "image": ("CnnPolicy", image_env, {}),
    "image, shared": ("CnnPolicy", image_env, {"policy_kwargs": {"share_features_extractor": True}}),
    "Dict": ("MultiInputPolicy", dict_env, {}),
}


def several(space: spaces.Space, n: int = 20):
    """Sample a batch of observations."""
    space.seed(0)
    samples = [space.sample() for _ in range(n)]
    if isinstance(space, spaces.Dict):
        return {key: np.stack([sample[key] for sample in samples]) for key in space.spaces}
    return np.stack(samples)


def predictions(model) -> np.ndarray:
    return model.predict(several(model.observation_space), deterministic=True)[0]


@pytest.fixture(params=MODELS.values(), ids=MODELS)
def trained(request):
    policy, make_env, options = request.param
    return TRPO(policy, make_env(), **SMALL, **options).learn(64), make_env


@pytest.mark.parametrize("with_env", [True, False])
def test_a_loaded_model_is_the_saved_one_and_trains_on(trained, with_env, tmp_path):
    model, make_env = trained
    model.save(tmp_path / "model")
    loaded = TRPO.load(tmp_path / "model", env=make_env() if with_env else None)
    assert type(loaded.policy) is type(model.policy)
    assert same_parameters(loaded.policy, model.policy)
    assert np.array_equal(predictions(loaded), predictions(model))
    assert loaded.num_timesteps == 64
    assert (loaded.env is not None) == with_env
    if not with_env:
        loaded.set_env(make_env())
    old = parameters(loaded.policy)
    loaded.learn(64, reset_num_timesteps=False)
    assert loaded.num_timesteps == 128
    assert loaded.logger.name_to_value["train/n_updates"] == 2
    assert {"value_net.weight", "action_net.weight"} <= moved_since(old, loaded.policy)


def test_a_loaded_model_goes_on_as_the_saved_one_would(trained, tmp_path):
    """Bit for bit, from the same observations and generators; RandomEnv draws from its space, which reset() seeds."""
    model, _ = trained
    model.save(tmp_path / "model")
    loaded = TRPO.load(tmp_path / "model", env=model.get_env())
    for each in (model, loaded):
        each._last_obs = None  # has learn() reset the environment
        each.set_random_seed(7)
        each.learn(2 * 64, reset_num_timesteps=False)
    assert same_parameters(loaded.policy, model.policy)
    assert all(np.array_equal(*pair) for pair in zip(*map(rollout, (model, loaded)), strict=True))


def rollout(model) -> list[np.ndarray]:
    buffer = model.rollout_buffer
    return [buffer.actions, buffer.rewards, buffer.values, buffer.log_probs, buffer.advantages]


def test_settings_survive_saving(tmp_path):
    settings = {"gamma": 0.9, "gae_lambda": 0.8, "cg_max_steps": 7, "cg_damping": 0.2, "cg_residual_tol": 1e-3,
                "line_search_shrinking_factor": 0.7, "line_search_max_iter": 5, "n_critic_updates": 3,
                "normalize_advantage": False, "target_kl": 0.02, "sub_sampling_factor": 2, "fisher_subsampling": 3,
                "ent_coef": 0.01, "max_grad_norm": 0.5, "chunk_size": 16, "learning_rate": 2e-3}  # fmt: skip
    TRPO("MlpPolicy", RandomEnv(), **SMALL | settings).save(tmp_path / "model")
    loaded = TRPO.load(tmp_path / "model", env=RandomEnv())
    assert {name: getattr(loaded, name) for name in settings} == settings
    assert one_update(loaded).outcome == "accepted"


def test_schedules_survive_saving(tmp_path):
    schedules = {
        "target_kl": lambda progress_remaining: 0.04 * progress_remaining,
        "learning_rate": lambda progress_remaining: 0.002 * progress_remaining,
        "ent_coef": lambda progress_remaining: 0.01 * progress_remaining,
    }
    TRPO("MlpPolicy", RandomEnv(), **SMALL, **schedules).save(tmp_path / "model")
    loaded = TRPO.load(tmp_path / "model", env=RandomEnv())
    for name, schedule in schedules.items():
        assert getattr(loaded, name)(0.25) == schedule(0.25)
    loaded.learn(64 * 4, callback=lambda local, _: local["self"].num_timesteps < 64 * 2)
    assert loaded.logger.name_to_value["train/target_kl"] == pytest.approx(0.04 * 0.75)
    assert loaded.logger.name_to_value["train/learning_rate"] == pytest.approx(0.002 * 0.75)


def test_keywords_and_custom_objects_override_what_was_saved(tmp_path):
    TRPO("MlpPolicy", RandomEnv(), **SMALL, target_kl=lambda progress_remaining: 0.01).save(tmp_path / "model")
    loaded = TRPO.load(tmp_path / "model", env=RandomEnv(), target_kl=0.03, n_steps=32, fisher_subsampling=2)
    assert one_update(loaded).log["train/target_kl"] == 0.03
    assert loaded.num_timesteps == 32
    assert loaded.rollout_buffer.buffer_size == 32
    assert loaded.fisher_subsampling == 2

    custom_objects = {"target_kl": 0.05, "learning_rate": 0.5, "lr_schedule": lambda _: 0.5}
    loaded = TRPO.load(tmp_path / "model", env=RandomEnv(), custom_objects=custom_objects)
    log = one_update(loaded).log
    assert (log["train/target_kl"], log["train/learning_rate"]) == (0.05, 0.5)


def test_a_model_loads_onto_another_number_of_environments(tmp_path):
    TRPO("MlpPolicy", make_vec_env(RandomEnv, n_envs=3), **SMALL).learn(1).save(tmp_path / "model")
    loaded = TRPO.load(tmp_path / "model", env=RandomEnv())
    assert loaded.n_envs == 1
    assert one_update(loaded).outcome == "accepted"


@pytest.mark.parametrize("from_file", [False, True])
def test_parameters_are_set_and_checked(from_file, tmp_path):
    model, other = (TRPO("MlpPolicy", RandomEnv(), **SMALL | {"seed": seed}) for seed in (0, 1))
    assert set(model.get_parameters()) == {"policy", "policy.optimizer"}
    assert not same_parameters(model.policy, other.policy)
    model.learn(64).save(tmp_path / "model")
    other.set_parameters(tmp_path / "model" if from_file else model.get_parameters())
    assert same_parameters(model.policy, other.policy)
    assert one_update(other).outcome == "accepted"
    with pytest.raises(ValueError, match="do not match"):
        other.set_parameters({"policy": model.policy.state_dict()}, exact_match=True)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize(
    ("cls", "space"), [(MlpPolicy, VECTOR), (CnnPolicy, IMAGE), (MultiInputPolicy, DICT)], ids=["Mlp", "Cnn", "MultiInput"]
)
def test_a_policy_saved_alone_still_shares_its_extractor_or_not_and_acts_alike(cls, space, share, tmp_path):
    policy_kwargs = {"share_features_extractor": share, "net_arch": [8]}
    policy = TRPO(cls, RandomEnv(space), policy_kwargs=policy_kwargs, **SMALL).policy
    policy.save(tmp_path / "policy.pt")
    loaded = cls.load(tmp_path / "policy.pt")
    assert loaded.share_features_extractor == share
    assert (loaded.pi_features_extractor is loaded.vf_features_extractor) == share
    assert same_parameters(loaded, policy)
    assert np.array_equal(predictions(loaded), predictions(policy))


@pytest.mark.parametrize("name", [name for name in MODELS if name != "Beta"])  # which sb3-contrib has not
def test_a_zip_of_sb3_contrib_acts_alike_and_trains_on(name, tmp_path):
    policy, make_env, options = MODELS[name]
    theirs = sb3_contrib.TRPO(policy, make_env(), **SMALL, **options).learn(64)
    theirs.save(tmp_path / "model")
    ours = TRPO.load(tmp_path / "model", env=make_env())
    assert ours.max_grad_norm == 0.0
    assert same_parameters(ours.policy, theirs.policy)
    assert np.array_equal(predictions(ours), predictions(theirs))
    update = one_update(ours)
    assert update.outcome == "accepted"
    assert 0.0 < update.kl <= 0.01 + ROUNDING
    assert {"value_net.weight", "action_net.weight"} <= update.moved


def test_a_zip_of_sb3_contrib_loads_without_an_environment(tmp_path):
    theirs = sb3_contrib.TRPO("MlpPolicy", RandomEnv(), **SMALL, learning_rate=lambda progress: 0.01 * progress).learn(64)
    theirs.save(tmp_path / "model")
    ours = TRPO.load(tmp_path / "model")
    assert np.array_equal(predictions(ours), predictions(theirs))
    assert ours.lr_schedule(0.5) == 0.005
