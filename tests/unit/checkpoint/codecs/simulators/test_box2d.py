"""Tasks on Box2D, which are replayed: the state of its joints cannot be written."""

import gymnasium as gym
import pytest
from helpers.env_states import assert_alike, is_same, lander, recorded, roam, transfer

LUNAR = {"discrete": {}, "continuous": {"continuous": True, "enable_wind": True}}
N_STEPS = {"just after a reset": 0, "mid-episode": 40, "in a later episode": 230}


@pytest.mark.parametrize("moment", N_STEPS)
@pytest.mark.parametrize("kind", LUNAR)
def test_a_lander_continues_from_its_state(kind, moment):
    one, other = roam(lander(**LUNAR[kind]), N_STEPS[moment], seed=1), roam(lander(**LUNAR[kind]), 57, seed=2)
    transfer(one, other)
    assert (other.total_steps, other.rewards) == (one.total_steps, one.rewards)
    assert assert_alike(one, other, n_steps=300) >= 1


def test_a_lander_on_the_ground_continues_from_its_state():
    """Contacts and joints hold impulses, of which the next step makes use."""
    one, other = (lander().unwrapped for _ in range(2))  # which go on when the body has touched the ground
    one.reset(seed=3)
    while not one.legs[0].ground_contact:
        one.step(0)
    transfer(one, other)
    for n in range(60):
        assert is_same(one.step(n % 4), other.step(n % 4)), f"step {n}"


def test_a_racing_car_continues_from_its_state():
    pytest.importorskip("Box2D")
    one, other = (recorded(gym.make("CarRacing-v3", max_episode_steps=25)) for _ in range(2))
    roam(one, 32, seed=1)
    roam(other, 4, seed=2)
    transfer(one, other)
    assert assert_alike(one, other, n_steps=30) == 1


@pytest.mark.parametrize("task", ["LunarLander-v3", "CarRacing-v3"])
def test_an_episode_owes_nothing_to_earlier_ones(task):
    """BipedalWalker's do, since it keeps its world: a replayed one would come out differently."""
    pytest.importorskip("Box2D")
    fresh, used = gym.make(task, max_episode_steps=40), roam(gym.make(task, max_episode_steps=40), 100, seed=2)
    for env in (fresh, used):
        roam(env, 0, seed=5)
    assert is_same(*(env.step(env.action_space.sample()) for env in (fresh, used)))
    assert_alike(fresh, used, n_steps=60)
