"""The velocity tasks: what they cost, and that Gymnasium knows them."""

from typing import ClassVar

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.env_util import make_vec_env

from sb3_trpo.constrained.velocity_tasks import THRESHOLDS, SpeedCost, velocity_task


class Moving(gym.Env):
    """Moves at the speeds that are given as actions."""

    observation_space: ClassVar = gym.spaces.Box(-1.0, 1.0, (1,))
    action_space: ClassVar = gym.spaces.Box(-9.0, 9.0, (2,))

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), 0.0, False, False, {"x_velocity": action[0], "y_velocity": action[1]}


@pytest.mark.parametrize(("in_the_plane", "expected"), [(False, [0.0, 1.0, 0.0, 0.0]), (True, [0.0, 1.0, 1.0, 1.0])])
def test_a_step_that_is_too_fast_costs_1(in_the_plane, expected):
    env = SpeedCost(Moving(), 2.0, in_the_plane)
    for _ in range(2):
        env.reset()
        infos = [env.step(np.array(speed))[4] for speed in [(2.0, 0.0), (2.1, 0.0), (0.0, 2.1), (-1.5, 1.5)]]
        assert [info["cost"] for info in infos] == expected
        assert [info["episode_cost"] for info in infos] == np.cumsum(expected).tolist()
        assert infos[0]["x_velocity"] == 2.0


@pytest.mark.parametrize("task", THRESHOLDS)
def test_each_task_is_gymnasiums_but_for_the_cost(task):
    ours, theirs = gym.make(velocity_task(task)), gym.make(task)
    assert ours.spec.max_episode_steps == theirs.spec.max_episode_steps == 1000
    assert ours.spec.reward_threshold is None
    ours.reset(seed=0)
    theirs.reset(seed=0)
    ours.action_space.seed(0)
    seen = []
    for _ in range(30):
        action = ours.action_space.sample()
        *mine, info = ours.step(action)
        *others, _ = theirs.step(action)
        np.testing.assert_array_equal(mine[0], others[0])
        assert mine[1:] == others[1:]
        speed = np.hypot(info["x_velocity"], info["y_velocity"]) if task == "Ant-v5" else info["x_velocity"]
        assert info["cost"] == float(speed > THRESHOLDS[task])
        seen.append(info["cost"])
    assert info["episode_cost"] == sum(seen)


def test_monitor_notes_the_cost_of_each_episode():
    kwargs = {"max_episode_steps": 5}
    env = make_vec_env("SwimmerVelocity-v5", 2, seed=0, env_kwargs=kwargs, monitor_kwargs={"info_keywords": ("episode_cost",)})
    env.reset()
    for _ in range(5):
        *_, infos = env.step(np.ones((2, 2), np.float32))
    assert all(info["episode"]["episode_cost"] == info["episode_cost"] for info in infos)
