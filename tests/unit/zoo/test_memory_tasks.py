import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from sb3_trpo.zoo.memory_tasks import TMaze


@pytest.mark.parametrize(
    ("env_id", "n_actions"), [("TMaze-v0", 4), ("MaskedTMaze-v0", 4), ("InvalidActionEnvDiscrete-v0", 20)]
)
def test_importing_the_module_registers_its_environments(env_id, n_actions):
    env = gym.make(env_id)
    env.reset(seed=0)
    assert len(env.unwrapped.action_masks()) == n_actions


def test_the_maze_is_a_valid_environment():
    check_env(gym.make("TMaze-v0", render_mode="rgb_array").unwrapped)


def walk(env, action):
    """Step to the junction, and turn."""
    first, _ = env.reset(seed=0)
    seen = [env.step(env.FORTH)[0] for _ in range(10)]
    return first, seen, env.step(action(first))


@pytest.mark.parametrize(("is_right", "reward"), [(True, 4.0), (False, -0.1)])
def test_only_the_sign_at_the_beginning_shows_the_treasure(is_right, reward):
    first, seen, (_, found, terminated, truncated, info) = walk(TMaze(), lambda first: int(first[1] == is_right))
    assert first[:2].sum() == 1.0
    assert not any(each[:2].any() for each in seen)
    assert seen[-1].tolist() == [0.0, 0.0, 0.0, 1.0]
    assert (found, terminated, truncated, info) == (reward, True, False, {"is_success": is_right})


@pytest.mark.parametrize("is_deadly", [False, True])
def test_a_wall_costs_a_step_or_the_episode(is_deadly):
    env = TMaze(is_deadly=is_deadly)
    before, _ = env.reset(seed=0)
    assert not env.action_masks()[env.UP]
    after, reward, terminated, _, info = env.step(env.UP)
    np.testing.assert_array_equal(after, before)
    assert (reward, terminated, info) == (-0.1, is_deadly, {"is_success": False})


def test_an_episode_that_runs_out_of_time_is_no_success():
    env = gym.make("TMaze-v0")
    env.reset(seed=0)
    for _ in range(100):
        *_, truncated, info = env.step(TMaze.BACK)
    assert truncated
    assert info["is_success"] is False


def test_a_maze_without_a_corridor_is_refused():
    with pytest.raises(ValueError, match="length is 0, but must be at least 1"):
        TMaze(length=0)
