"""States of MuJoCo's simulations, and of models that a task changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from helpers.env_states import (
    LIMIT,
    MOMENTS,
    assert_alike,
    get_state,
    is_same,
    record_of,
    restore,
    roam,
    sent,
    set_state,
    stay_up,
)
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from sb3_trpo.checkpoint.codecs.codec import MismatchError
from sb3_trpo.checkpoint.codecs.environments import EnvState
from sb3_trpo.checkpoint.codecs.simulators.mujoco import CONSTRAINT_ARRAYS, SHAPE_ARRAYS, float_arrays

mujoco = pytest.importorskip("mujoco")
pytestmark = pytest.mark.filterwarnings("ignore:.*is out of date")

TASKS = sorted(
    name
    for name, spec in gym.envs.registry.items()
    if name.endswith(("-v4", "-v5")) and isinstance(spec.entry_point, str) and "envs.mujoco" in spec.entry_point
)


def make(task: str, **arguments: Any) -> gym.Env:
    try:
        return gym.make(task, **arguments)
    except ImportError as error:
        pytest.skip(str(error))


def test_all_of_gymnasiums_tasks_are_tested() -> None:
    assert len([name for name in TASKS if name.endswith("-v5")]) == 11


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("task", TASKS)
def test_a_task_continues_from_its_state(task: str, moment: str) -> None:
    one, other = (make(task, max_episode_steps=LIMIT) for _ in range(2))
    stay_up(one, MOMENTS[moment], seed=1)
    roam(other, 17, seed=2)
    state = get_state(one)
    assert state.unsupported == {}
    set_state(other, sent(state))
    assert assert_alike(one, other, n_steps=100) >= 100 // LIMIT


@pytest.mark.parametrize("task", ["Ant-v5", "Humanoid-v5", "Walker2d-v5", "Pusher-v5"])
def test_a_task_continues_from_its_state_during_contacts(task: str) -> None:
    one, other = roam(gym.make(task), 237, seed=1), roam(gym.make(task), 60, seed=2)
    set_state(other, sent(get_state(one)))
    assert_alike(one, other, n_steps=250)


@pytest.mark.parametrize("task", ["Ant-v5", "Humanoid-v5"])
def test_wrapped_tasks_continue_from_their_state(task: str) -> None:
    def wrapped() -> gym.Env:
        env = gym.wrappers.NormalizeObservation(gym.wrappers.ClipAction(gym.make(task, max_episode_steps=50)))
        return Monitor(gym.wrappers.NormalizeReward(env))

    one, other = roam(wrapped(), 70, seed=1), roam(wrapped(), 20, seed=2)
    set_state(other, sent(get_state(one)))
    assert assert_alike(one, other, n_steps=150) > 1


def test_without_the_derived_quantities_ants_next_reward_would_differ() -> None:
    one, exact, naive = (roam(gym.make("Ant-v5"), 30, seed=seed) for seed in (1, 2, 3))
    state = sent(get_state(one))
    set_state(exact, state)
    set_state(naive, state)
    mujoco.mj_forward(naive.unwrapped.model, naive.unwrapped.data)  # derives them from the present positions
    action = one.action_space.sample()
    reward = one.step(action)[1]
    assert is_same(exact.step(action)[1], reward)
    assert naive.step(action)[1] != reward


def test_every_number_of_the_simulation_is_restored() -> None:
    one, other = roam(gym.make("Humanoid-v5"), 40, seed=1), roam(gym.make("Humanoid-v5"), 25, seed=2)
    set_state(other, sent(get_state(one)))
    mine, yours = ([*float_arrays(env.unwrapped.data, skip=CONSTRAINT_ARRAYS)] for env in (one, other))
    assert len(mine) > 50
    assert all(map(is_same, mine, yours))
    assert one.unwrapped.data.time == other.unwrapped.data.time > 0


def change(model: Any) -> None:
    """Change a model as tasks do that train for robustness."""
    model.body_mass[1:] *= 1.5
    model.geom_friction[:, 0] = 0.3
    model.actuator_gear[:, 0] *= 0.7
    model.dof_damping[:] += 0.1
    model.opt.gravity[2] = -3.0
    model.opt.wind[0] = 2.0


def test_a_model_that_the_task_has_changed_is_restored() -> None:
    one, other, unchanged = (roam(gym.make("Walker2d-v5"), 5, seed=seed) for seed in (1, 2, 3))
    change(one.unwrapped.model)
    roam(one, 12, seed=1)
    set_state(other, sent(get_state(one)))
    mine, yours, initial = (env.unwrapped.model for env in (one, other, unchanged))
    for name in ("body_mass", "geom_friction", "actuator_gear", "dof_damping"):
        assert is_same(getattr(mine, name), getattr(yours, name))
        assert not np.array_equal(getattr(mine, name), getattr(initial, name))
    assert other.unwrapped.model.opt.gravity.tolist() == [0, 0, -3]
    assert other.unwrapped.model.opt.wind.tolist() == [2, 0, 0]
    assert_alike(one, other, n_steps=150)


@pytest.mark.parametrize(
    ("option", "value"), [("timestep", 0.004), ("density", 2000.0), ("viscosity", 0.3), ("impratio", 2.0)]
)
def test_a_number_among_the_options_of_a_model_is_restored(option: str, value: float) -> None:
    one, other = (roam(gym.make("Swimmer-v5"), 5, seed=seed) for seed in (1, 2))
    setattr(one.unwrapped.model.opt, option, value)
    set_state(other, sent(get_state(one)))
    assert getattr(other.unwrapped.model.opt, option) == value
    assert_alike(one, other, n_steps=20)


def test_a_model_restored_is_changed_in_place_and_its_indices_stay() -> None:
    env = roam(gym.make("Hopper-v5"), 5, seed=1)
    model, data = env.unwrapped.model, env.unwrapped.data
    set_state(env, sent(get_state(roam(gym.make("Hopper-v5"), 9, seed=2))))
    assert (env.unwrapped.model, env.unwrapped.data) == (model, data)
    assert all(each.dtype.kind == "f" for each in float_arrays(model, skip=SHAPE_ARRAYS))


@pytest.mark.parametrize("pair", [("HalfCheetah-v5", "Hopper-v5"), ("Ant-v4", "Ant-v5"), ("Hopper-v5", "CartPole-v1")])
def test_a_state_of_another_task_is_refused(pair: tuple[str, str]) -> None:
    one, other = (roam(gym.make(task), 3, seed=1) for task in pair)
    with pytest.raises(MismatchError, match=r"was a .*, but is a "):
        set_state(other, sent(get_state(one)))


XML = """
<mujoco><option timestep="0.01"/><worldbody><geom type="plane" size="9 9 .1"/>{bodies}</worldbody></mujoco>
"""
BODY = '<body name="b{n}" pos="{n} 0 {height}"><freejoint/><geom size=".1" solref="-500 -5"/></body>'


class Balls(gym.Env):
    """Balls that fall and bounce, seen through windows into the simulator's memory."""

    def __init__(self, n_balls: int = 2) -> None:
        bodies = "".join(BODY.format(n=n, height=0.5 + n / 7) for n in range(n_balls))
        self.model = mujoco.MjModel.from_xml_string(XML.format(bodies=bodies))
        self.data = mujoco.MjData(self.model)
        self.observation_space, self.action_space = spaces.Box(-9, 9, (2,)), spaces.Discrete(2)
        self.positions = self.data.qpos
        self.first = self.data.xpos[1]
        self.masses = self.model.body_mass

    def reset(self, **kwargs: Any) -> Any:
        super().reset(seed=kwargs.get("seed"))
        mujoco.mj_resetData(self.model, self.data)
        self.positions[:2] = self.np_random.normal(size=2)
        mujoco.mj_forward(self.model, self.data)
        return self.look(), {}

    def look(self) -> np.ndarray:
        return np.concatenate([self.positions, self.first, self.masses])

    def step(self, action: Any) -> Any:
        self.masses[1] += 0.01 * action
        mujoco.mj_step(self.model, self.data)
        return self.look(), float(self.data.ncon), False, self.data.time > 0.98, {}


def test_views_of_the_simulators_memory_stay_views() -> None:
    one, other = roam(Balls(), 40, seed=1), roam(Balls(), 15, seed=2)
    set_state(other, sent(get_state(one)))
    assert np.shares_memory(other.positions, other.data.qpos)
    assert np.shares_memory(other.masses, other.model.body_mass)
    assert is_same(one.look(), other.look())


def test_a_view_of_one_body_stays_a_view() -> None:
    one, other = roam(Balls(), 40, seed=1), roam(Balls(), 15, seed=2)
    state = get_state(one)
    set_state(other, sent(state))
    assert np.shares_memory(other.first, other.data.xpos)
    assert_alike(one, other, n_steps=150)


@pytest.mark.parametrize("n_there", [1, 3])
def test_a_state_of_another_number_of_bodies_is_refused(n_there: int) -> None:
    state = sent(get_state(roam(Balls(2), 9, seed=1)))
    for name in ("positions", "first", "masses"):
        state.encoded["state"].pop(name)
    with pytest.raises(MismatchError, match="numbers"):
        set_state(roam(Balls(n_there), 9, seed=1), state)


def arrays_of(state: EnvState) -> dict[str, str]:
    """Name the arrays of a simulation and its model."""
    node = state.encoded["state"]
    data, model = node["data"], node["model"]
    return {
        "state": data["mujoco_data"],
        "derived": data["derived"],
        "model": model["mujoco_model"],
        "options": model["options"],
    }


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "one number less": lambda array: array[:-1],
    "one number more": lambda array: np.append(array, 1.0),
    "none": lambda array: array[:0],
}


@pytest.mark.parametrize("how", CHANGES)
@pytest.mark.parametrize("which", ["state", "derived", "model", "options"])
def test_a_state_of_the_wrong_size_is_refused(which: str, how: str) -> None:
    env = roam(Balls(), 9, seed=1)
    state = sent(get_state(env))
    path = arrays_of(state)[which]
    state.arrays[path] = CHANGES[how](state.arrays[path])
    with pytest.raises(MismatchError):
        set_state(env, state)


@pytest.mark.parametrize("which", ["state", "derived", "model", "options"])
def test_a_state_without_an_array_is_refused(which: str) -> None:
    env = roam(Balls(), 9, seed=1)
    state = sent(get_state(env))
    del state.arrays[arrays_of(state)[which]]
    with pytest.raises(MismatchError):
        set_state(env, state)


@pytest.mark.parametrize("live", [None, 3, "text"])
def test_a_simulation_is_not_made_where_there_is_none(live: Any) -> None:
    env = roam(Balls(), 9, seed=1)
    state = sent(get_state(env))
    env.data = live
    with pytest.raises(MismatchError):
        set_state(env, state)


def monitored_ant() -> gym.Env:
    return Monitor(gym.make("Ant-v5", max_episode_steps=15))


@pytest.mark.parametrize("kind", [DummyVecEnv, lambda makers: SubprocVecEnv(makers, start_method="fork")])
def test_vectorised_tasks_continue_from_their_state(kind: Any) -> None:
    one, other = (VecNormalize(kind([monitored_ant] * 2)) for _ in range(2))
    try:
        for venv, n_steps in ((one, 22), (other, 5)):
            venv.seed(n_steps)
            venv.reset()
            for _ in range(n_steps):
                venv.step(np.full((2, 8), 0.3, np.float32))
        assert restore(other, sent(record_of(one))) == []
        for n in range(40):
            actions = np.full((2, 8), np.sin(n), np.float32)
            assert is_same(one.step(actions), other.step(actions)), f"step {n}"
    finally:
        one.close()
        other.close()
