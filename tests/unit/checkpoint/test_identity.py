"""What a run is, and what tells it from another; ``test_resumable_checkpoint.py`` shows it in use."""

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
from sb3_trpo.checkpoint.identity import (
    differences,
    identity,
    settings_of,
    versions,
)
from sb3_trpo.checkpoint.schedules import present_value, quarters, schedule_differences, schedule_digests


def made(env="CartPole-v1", **settings):
    return TRPO("MlpPolicy", env, n_steps=8, batch_size=8, **settings)


def test_a_run_made_again_is_the_same():
    assert differences(identity(made()), identity(made())) == []


def test_what_may_change_from_start_to_start_does_not_count(tmp_path):
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


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (0.01, 0.02),
        (0.01, lambda progress: 0.01 * progress),
        (LinearSchedule(0.02, 0.0, 1.0), LinearSchedule(0.02, 0.01, 1.0)),
    ],
)
def test_schedules_are_told_apart_by_their_values(one, other):
    (difference,) = differences(identity(made(target_kl=one)), identity(made(target_kl=other)))
    assert difference.startswith("target_kl: ")
    assert differences(identity(made(target_kl=one)), identity(made(target_kl=one))) == []


def stepped(progress, at=0.6):
    return 0.01 if progress > at else 0.005


def bumped(progress, height=0.02):
    return height if 0.3 < progress < 0.31 else 0.01


def falling(progress):
    """Has no value at the end."""
    return 0.01 / progress


BETWEEN_QUARTERS = [
    (stepped, partial(stepped, at=0.7)),
    (bumped, partial(bumped, height=0.01)),
    (bumped, lambda progress: 0.01),
    (falling, lambda progress: max(0.01 / progress, 0.015)),
]


@pytest.mark.parametrize(("one", "other"), BETWEEN_QUARTERS)
def test_schedules_that_differ_somewhere_are_told_apart_by_their_digests(one, other):
    (a,), (b,) = (schedule_digests({"target_kl": each}).values() for each in (one, other))
    assert a != b
    (text,) = schedule_differences({"target_kl": a}, {"target_kl": b})
    assert text.startswith("target_kl: ")
    assert "in between" in text


def test_what_is_written_otherwise_but_has_the_same_values_is_the_same_schedule():
    same = [lambda p: 0.01 * p, lambda p: p / 100, LinearSchedule(0.01, 0.0, 1.0)]
    assert len({schedule_digests({"x": each})["x"] for each in same}) == 1, "but for rounding"


def test_schedules_are_found_in_containers_and_other_settings_are_not_schedules():
    settings = {"a": 0.5, "b": {"c": [stepped, th.nn.ReLU]}, "d": len, "e": None, "f": th.nn.Tanh()}
    assert schedule_digests(settings).keys() == {"b.c.0"}


def test_a_schedule_that_is_not_there_on_one_side_is_no_difference_in_between():
    """Checkpoints of 0.1.0 hold no digests; a schedule in place of a number shows in the settings."""
    assert schedule_differences({}, {"target_kl": "a"}) == schedule_differences({"target_kl": "a"}, {}) == []


class Counted:
    """A schedule that counts its calls."""

    calls = 0

    def __call__(self, progress):
        self.calls += 1
        return 0.01 * 0.9**self.calls


class Noting:
    """A schedule that notes its calls in a list."""

    def __init__(self):
        self.calls = []

    def __call__(self, progress):
        self.calls.append(progress)
        return 0.01 * 0.9 ** len(self.calls)


def test_a_look_at_a_schedule_leaves_what_it_holds_alone():
    noting = Noting()
    for schedule in (noting, noting.__call__):
        assert schedule_digests({"target_kl": schedule})
        assert noting.calls == []


def test_a_schedule_that_counts_its_calls_does_not_count_those_of_a_look_at_it():
    schedule, other = Counted(), Counted()
    assert quarters(schedule) == [0.01 * 0.9**n for n in range(1, 6)]
    assert present_value(schedule, 0.5) == 0.01 * 0.9
    assert schedule_digests({"x": schedule}) == schedule_digests({"x": other})
    assert schedule.calls == 0


def test_a_schedule_that_has_no_value_at_the_end_or_is_not_finite_equals_itself():
    assert identity(made(target_kl=falling))["target_kl"].endswith("falling")
    model = made()
    model.max_grad_norm, model.ent_coef = float("nan"), lambda progress: float("nan")
    one = identity(model)
    assert (one["max_grad_norm"], one["ent_coef"]) == ("nan", ["nan"] * 5)
    assert differences(one, identity(model)) == []


def test_another_function_is_called_once():
    calls = []

    def build(space):
        calls.append(space)
        raise TypeError("no space")

    assert schedule_digests({"x": build}) == {}
    assert quarters(build) is None
    assert len(calls) == 2


def test_workers_tell_what_their_envs_are():
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


def test_aspects_that_are_missing_on_one_side_are_differences():
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


def test_versions_name_what_decides_bits():
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
