"""States of MuJoCo's simulations, and of models that a task changes."""

from functools import partial

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
    roam,
    sent,
    set_state,
    stay_up,
    transfer,
    transfer_vec,
)
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from sb3_trpo.checkpoint.codecs.codec import MismatchError
from sb3_trpo.checkpoint.codecs.simulators.mujoco import CONSTRAINT_ARRAYS, SHAPE_ARRAYS, float_arrays

mujoco = pytest.importorskip("mujoco")
pytestmark = pytest.mark.filterwarnings("ignore:.*is out of date")

TASKS = sorted(
    name
    for name, spec in gym.envs.registry.items()
    if name.endswith(("-v4", "-v5"))
    and str(spec.entry_point).startswith("gymnasium.envs.mujoco")
    and not spec.additional_wrappers
)


def make(task, **arguments):
    try:
        return gym.make(task, **arguments)
    except ImportError as error:
        pytest.skip(str(error))


def test_all_of_gymnasiums_tasks_are_tested():
    assert len([name for name in TASKS if name.endswith("-v5")]) == 11


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("task", TASKS)
def test_a_task_continues_from_its_state(task, moment):
    one, other = (make(task, max_episode_steps=LIMIT) for _ in range(2))
    stay_up(one, MOMENTS[moment], seed=1)
    roam(other, 17, seed=2)
    transfer(one, other)
    assert assert_alike(one, other, n_steps=100) >= 100 // LIMIT


@pytest.mark.parametrize("task", ["Ant-v5", "Humanoid-v5", "Walker2d-v5", "Pusher-v5"])
def test_a_task_continues_from_its_state_during_contacts(task):
    one, other = roam(gym.make(task), 237, seed=1), roam(gym.make(task), 60, seed=2)
    transfer(one, other)
    assert_alike(one, other, n_steps=250)


def test_a_task_in_wrappers_continues_from_its_state():
    def wrapped():
        env = gym.wrappers.NormalizeObservation(gym.wrappers.ClipAction(make("Ant-v5", max_episode_steps=50)))
        return Monitor(gym.wrappers.NormalizeReward(env))

    one, other = roam(wrapped(), 70, seed=1), roam(wrapped(), 20, seed=2)
    transfer(one, other)
    assert assert_alike(one, other, n_steps=150) > 1


def test_without_the_derived_quantities_ants_next_reward_would_differ():
    one, exact, naive = (roam(gym.make("Ant-v5"), 30, seed=seed) for seed in (1, 2, 3))
    transfer(one, exact)
    transfer(one, naive)
    mujoco.mj_forward(naive.unwrapped.model, naive.unwrapped.data)  # derives them from the present positions
    action = one.action_space.sample()
    reward = one.step(action)[1]
    assert is_same(exact.step(action)[1], reward)
    assert naive.step(action)[1] != reward


def test_every_number_of_the_simulation_is_restored():
    one, other = roam(gym.make("Humanoid-v5"), 40, seed=1), roam(gym.make("Humanoid-v5"), 25, seed=2)
    transfer(one, other)
    mine, yours = ([*float_arrays(env.unwrapped.data, skip=CONSTRAINT_ARRAYS)] for env in (one, other))
    assert len(mine) > 50
    assert all(map(is_same, mine, yours))
    assert one.unwrapped.data.time == other.unwrapped.data.time > 0


OPTIONS = {"timestep": 0.004, "density": 2000.0, "viscosity": 0.3, "impratio": 2.0}


def test_a_model_that_the_task_has_changed_is_restored_in_place():
    """Tasks change it that train for robustness."""
    one, other, unchanged = (roam(gym.make("Walker2d-v5"), 5, seed=seed) for seed in (1, 2, 3))
    mine, yours, initial = (env.unwrapped.model for env in (one, other, unchanged))
    mine.body_mass[1:] *= 1.5
    mine.geom_friction[:, 0] = 0.3
    mine.actuator_gear[:, 0] *= 0.7
    mine.dof_damping[:] += 0.1
    mine.opt.gravity[2], mine.opt.wind[0] = -3.0, 2.0
    for option, value in OPTIONS.items():
        setattr(mine.opt, option, value)
    roam(one, 12, seed=1)
    data = other.unwrapped.data
    transfer(one, other)
    for name in ("body_mass", "geom_friction", "actuator_gear", "dof_damping"):
        assert is_same(getattr(mine, name), getattr(yours, name))
        assert not np.array_equal(getattr(mine, name), getattr(initial, name))
    assert {option: getattr(yours.opt, option) for option in OPTIONS} == OPTIONS
    assert (yours.opt.gravity.tolist(), yours.opt.wind.tolist()) == ([0, 0, -3], [2, 0, 0])
    assert (other.unwrapped.model, other.unwrapped.data) == (yours, data)
    assert all(each.dtype.kind == "f" for each in float_arrays(yours, skip=SHAPE_ARRAYS)), "indices stay"
    assert_alike(one, other, n_steps=150)


@pytest.mark.parametrize("pair", [("HalfCheetah-v5", "Hopper-v5"), ("Ant-v4", "Ant-v5"), ("Hopper-v5", "CartPole-v1")])
def test_a_state_of_another_task_is_refused(pair):
    one, other = (roam(gym.make(task), 3, seed=1) for task in pair)
    with pytest.raises(MismatchError, match=r"was a .*, but is a "):
        set_state(other, sent(get_state(one)))


XML = """
<mujoco><option timestep="0.01"/><worldbody><geom type="plane" size="9 9 .1"/>{bodies}</worldbody></mujoco>
"""
BODY = '<body name="b{n}" pos="{n} 0 {height}"><freejoint/><geom size=".1" solref="-500 -5"/></body>'


class Balls(gym.Env):
    """Balls that fall and bounce, seen through windows into the simulator's memory."""

    def __init__(self, n_balls=2):
        bodies = "".join(BODY.format(n=n, height=0.5 + n / 7) for n in range(n_balls))
        self.model = mujoco.MjModel.from_xml_string(XML.format(bodies=bodies))
        self.data = mujoco.MjData(self.model)
        self.observation_space, self.action_space = spaces.Box(-9, 9, (2,)), spaces.Discrete(2)
        self.positions = self.data.qpos
        self.first = self.data.xpos[1]
        self.masses = self.model.body_mass

    def reset(self, **kwargs):
        super().reset(seed=kwargs.get("seed"))
        mujoco.mj_resetData(self.model, self.data)
        self.positions[:2] = self.np_random.normal(size=2)
        mujoco.mj_forward(self.model, self.data)
        return self.look(), {}

    def look(self):
        return np.concatenate([self.positions, self.first, self.masses])

    def step(self, action):
        self.masses[1] += 0.01 * action
        mujoco.mj_step(self.model, self.data)
        return self.look(), float(self.data.ncon), False, self.data.time > 0.98, {}


def test_views_of_the_simulators_memory_stay_views():
    one, other = roam(Balls(), 40, seed=1), roam(Balls(), 15, seed=2)
    transfer(one, other)
    assert np.shares_memory(other.positions, other.data.qpos)
    assert np.shares_memory(other.masses, other.model.body_mass)
    assert np.shares_memory(other.first, other.data.xpos), "of one body as well"
    assert is_same(one.look(), other.look())
    assert_alike(one, other, n_steps=150)


@pytest.mark.parametrize("n_there", [1, 3])
def test_a_state_of_another_number_of_bodies_is_refused(n_there):
    state = sent(get_state(roam(Balls(2), 9, seed=1)))
    for name in ("positions", "first", "masses"):
        state.encoded["state"].pop(name)
    with pytest.raises(MismatchError, match="numbers"):
        set_state(roam(Balls(n_there), 9, seed=1), state)


def arrays_of(state):
    """Name the arrays of a simulation and its model."""
    data, model = (state.encoded["state"][name] for name in ("data", "model"))
    return [data["mujoco_data"], data["derived"], model["mujoco_model"], model["options"]]


CHANGES = {
    "one number less": lambda array: array[:-1],
    "one number more": lambda array: np.append(array, 1.0),
    "none": lambda array: array[:0],
    "no array": lambda array: None,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("which", range(4), ids=["state", "derived", "model", "options"])
def test_a_state_of_the_wrong_size_is_refused(which, change):
    env = roam(Balls(), 9, seed=1)
    state = sent(get_state(env))
    path = arrays_of(state)[which]
    array = CHANGES[change](state.arrays.pop(path))
    state.arrays.update({} if array is None else {path: array})
    with pytest.raises(MismatchError):
        set_state(env, state)


@pytest.mark.parametrize("live", [None, 3, "text"])
def test_a_simulation_is_not_made_where_there_is_none(live):
    env = roam(Balls(), 9, seed=1)
    state = sent(get_state(env))
    env.data = live
    with pytest.raises(MismatchError):
        set_state(env, state)


def monitored_ant():
    return Monitor(gym.make("Ant-v5", max_episode_steps=15))


@pytest.mark.parametrize("kind", [DummyVecEnv, partial(SubprocVecEnv, start_method="fork")], ids=["here", "in workers"])
def test_vectorised_tasks_continue_from_their_state(kind):
    one, other = (VecNormalize(kind([monitored_ant] * 2)) for _ in range(2))
    try:
        for vec_env, n_steps in ((one, 22), (other, 5)):
            vec_env.seed(n_steps)
            vec_env.reset()
            for _ in range(n_steps):
                vec_env.step(np.full((2, 8), 0.3, np.float32))
        transfer_vec(one, other)
        for n in range(40):
            actions = np.full((2, 8), np.sin(n), np.float32)
            assert is_same(one.step(actions), other.step(actions)), f"step {n}"
    finally:
        one.close()
        other.close()
