"""What a run is, and what tells it from another; ``test_callback.py`` shows it in use."""

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from helpers.envs import RandomEnv
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize

from sb3_trpo import TRPO
from sb3_trpo.checkpoint.identity import differences, identity, settings_of, versions


def made(env="CartPole-v1", **settings):
    return TRPO("MlpPolicy", env, n_steps=8, batch_size=8, **settings)


def test_what_may_differ_from_start_to_start_does_not_count(tmp_path):
    assert differences(identity(made()), identity(made())) == []
    changed = made(verbose=0, tensorboard_log=str(tmp_path), device="cpu")
    rendered = made(gym.make("CartPole-v1", render_mode="rgb_array"))
    assert differences(identity(made()), identity(changed)) == differences(identity(made()), identity(rendered)) == []


def test_training_does_not_change_what_a_run_is():
    model = made(VecNormalize(make_vec_env("CartPole-v1")), policy_kwargs={"net_arch": [8]})
    before = identity(model)
    assert identity(model.learn(16)) == before


def test_every_setting_of_the_constructor_counts():
    assert {"n_steps", "gamma", "target_kl", "fisher_subsampling", "seed", "policy_kwargs"} <= set(settings_of(TRPO))
    assert not {"policy", "env", "verbose", "device", "vf_coef"} & set(settings_of(TRPO))


class Extended(TRPO):
    def __init__(self, *args, bonus=1.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.bonus = bonus


def test_a_subclass_adds_its_settings():
    assert {"bonus", "gamma"} <= set(settings_of(Extended))
    one, two = (identity(Extended("MlpPolicy", "CartPole-v1", bonus=bonus)) for bonus in (1.0, 2.0))
    assert differences(one, two) == ["bonus: 1.0 in the checkpoint, 2.0 here"]


SCHEDULES = [(0.01, 0.02), (0.01, lambda progress: 0.01 * progress)]
SCHEDULES += [(LinearSchedule(0.02, 0.0, 1.0), LinearSchedule(0.02, 0.01, 1.0))]


@pytest.mark.parametrize(("one", "other"), SCHEDULES)
def test_schedules_are_distinguished_by_their_values(one, other):
    (difference,) = differences(identity(made(target_kl=one)), identity(made(target_kl=other)))
    assert difference.startswith("target_kl: ")
    assert differences(identity(made(target_kl=one)), identity(made(target_kl=one))) == []


def falling(progress):
    """Has no value at the end."""
    return 0.01 / progress


def test_a_schedule_that_has_no_value_at_the_end_or_is_not_finite_equals_itself():
    assert identity(made(target_kl=falling))["target_kl"].endswith("falling")
    model = made()
    model.max_grad_norm, model.ent_coef = float("nan"), lambda progress: float("nan")
    one = identity(model)
    assert (one["max_grad_norm"], one["ent_coef"]) == ("nan", ["nan"] * 5)
    assert differences(one, identity(model)) == []


def test_envs_in_workers_are_described():
    here = make_vec_env("CartPole-v1", 2)
    there = make_vec_env(partial(gym.make, "CartPole-v1", max_episode_steps=9), 2, vec_env_cls=SubprocVecEnv)
    found = differences(identity(made(here)), identity(made(there)))
    there.close()
    assert [text.split(":")[0] for text in found] == ["envs", "vec_env"]
    assert "max_episode_steps=9" in found[0]


def test_arguments_of_a_layer_that_are_numbers_are_shown():
    (layers,) = identity(made(gym.make("CartPole-v1", sutton_barto_reward=True)))["envs"]
    assert any("sutton_barto_reward=True" in layer for layer in layers)
    assert any("TimeLimit(max_episode_steps=500)" in layer for layer in layers)


def test_aspects_missing_on_one_side_are_differences():
    assert differences({"a": 1, "b": 2}, {"b": 2, "c": None}) == [
        "a: 1 in the checkpoint, 'absent' here",
        "c: 'absent' in the checkpoint, None here",
    ]


def test_a_description_is_plain_data():
    class Unplain:
        pass

    model = made(RandomEnv(), gamma=np.float64(0.9))
    model.batch_size = Unplain()
    assert identity(model)["gamma"] == 0.9
    assert identity(model)["batch_size"].endswith("Unplain")


def test_versions_name_what_determines_the_bits_of_a_result():
    assert versions()["torch"] == th.__version__.split("+")[0] or versions()["torch"] == th.__version__
    assert versions()["torch threads"] == "1"
    assert {"python", "numpy", "gymnasium", "stable-baselines3", "mujoco"} <= versions().keys()


class Configured(RandomEnv):
    """Takes arguments of all kinds; registered, Gymnasium knows them."""

    def __init__(self, bounds=(0, 1), table=None, grid=None):
        super().__init__()


gym.register("Configured-v0", Configured)
ARGUMENTS = {"bounds": (0.7, 9.0), "table": {"a": [1, 2]}, "grid": np.arange(3)}
OTHERS = {"bounds": (0.2, 1.0), "table": {"a": [1, 3]}, "grid": np.arange(3) + 1}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_that_are_containers_count(name):
    one, same, other = (
        identity(made(gym.make("Configured-v0", **arguments)))
        for arguments in (ARGUMENTS, dict(ARGUMENTS), ARGUMENTS | {name: OTHERS[name]})
    )
    assert differences(one, same) == []
    (difference,) = differences(one, other)
    assert difference.startswith("envs: ")
