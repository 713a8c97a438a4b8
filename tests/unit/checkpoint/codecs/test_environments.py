"""States of environments: read, sent through JSON, set in a fresh environment, and continued."""

import contextlib
import copy
import json
import random
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces, wrappers
from helpers.codecs import OwnState, Slotted, Thing
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
    transfer,
    transfer_vec,
)
from helpers.envs import DICT, IMAGE, RandomEnv
from stable_baselines3.common import atari_wrappers as atari
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecCheckNan,
    VecEnv,
    VecEnvWrapper,
    VecExtractDictObs,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
)

from sb3_trpo.checkpoint.codecs.codec import MismatchError
from sb3_trpo.checkpoint.codecs.environments import describe_env
from sb3_trpo.checkpoint.worker_rpc import CANNOT_BE_CALLED, call

# VecMonitor counts what a Monitor of make_vec_env() counts too; SB3 warns.
pytestmark = pytest.mark.filterwarnings("ignore:The environment is already wrapped with a `Monitor`:UserWarning")

CLASSIC = ("CartPole-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Pendulum-v1", "Acrobot-v1")
TOY_TEXT = ("Blackjack-v1", "CliffWalking-v1", "CliffWalkingSlippery-v1", "FrozenLake-v1", "Taxi-v4")
BOX2D = ("LunarLander-v3", "BipedalWalker-v3")


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("task", CLASSIC)
def test_a_classic_control_task_continues_from_its_state(task, moment):
    one, other = (gym.make(task, max_episode_steps=LIMIT) for _ in range(2))
    stay_up(one, MOMENTS[moment], seed=1)
    roam(other, 7, seed=2)
    assert not is_same(get_state(one).arrays, get_state(other).arrays), "the other must be elsewhere"
    transfer(one, other)
    assert assert_alike(one, other, n_steps=150) >= 150 // LIMIT


@pytest.mark.parametrize("task", TOY_TEXT)
def test_a_toy_text_task_continues_from_its_state(task):
    one, other = roam(gym.make(task), 15, seed=1), roam(gym.make(task), 8, seed=2)
    transfer(one, other)
    assert_alike(one, other, n_steps=300)


def test_an_env_continues_from_its_own_earlier_state():
    env = roam(gym.make("Pendulum-v1", max_episode_steps=30), 20, seed=0)
    state = sent(get_state(env))
    first = [env.step(env.action_space.sample()) for _ in range(9)]
    roam(env, 50, seed=3)
    set_state(env, state)
    assert is_same(first, [env.step(env.action_space.sample()) for _ in range(9)])


def test_reading_a_state_changes_nothing():
    one, other = (roam(gym.make("CartPole-v1"), 30, seed=0) for _ in range(2))
    get_state(one)
    assert is_same(get_state(one), get_state(other))
    assert_alike(one, other, n_steps=50)


class Shift(gym.Wrapper):
    """Has get_state() and set_state(state), and a part that they do not mention."""

    def __init__(self, env):
        super().__init__(env)
        self.hidden, self.amount = object(), np.zeros(3, np.float32)

    def get_state(self):
        return {"amount": self.amount}

    def set_state(self, state):
        self.amount = state["amount"]

    def step(self, action):
        self.amount += np.float32(0.25)
        observation, *rest = self.env.step(action)
        return observation + self.amount, *rest


def five_wrappers(env):
    env = wrappers.NormalizeObservation(wrappers.ClipAction(wrappers.RecordEpisodeStatistics(env)))
    return Monitor(wrappers.FrameStackObservation(wrappers.NormalizeReward(env), 2))


WRAPPERS = {
    "those of gym.make": lambda env: env,
    "Monitor": Monitor,
    "RecordEpisodeStatistics": wrappers.RecordEpisodeStatistics,
    "NormalizeObservation": wrappers.NormalizeObservation,
    "NormalizeReward": wrappers.NormalizeReward,
    "FrameStackObservation": lambda env: wrappers.FrameStackObservation(env, 4),
    "FrameStackObservation of zeros": lambda env: wrappers.FrameStackObservation(env, 3, padding_type="zero"),
    "DelayObservation": lambda env: wrappers.DelayObservation(env, 3),
    "TimeAwareObservation": wrappers.TimeAwareObservation,
    "StickyAction": lambda env: wrappers.StickyAction(env, 0.5),
    "ClipAction": wrappers.ClipAction,
    "RescaleAction": lambda env: wrappers.RescaleAction(env, np.float32(-1.0), np.float32(1.0)),
    "ClipReward": lambda env: wrappers.ClipReward(env, -1.0, 1.0),
    "TransformObservation": lambda env: wrappers.TransformObservation(env, lambda seen: 2 * seen, env.observation_space),
    "TransformReward": lambda env: wrappers.TransformReward(env, lambda reward: reward / 2),
    "MaxAndSkip": lambda env: atari.MaxAndSkipEnv(env, 3),
    "one with get_state()": Shift,
    "five of them": five_wrappers,
}


@pytest.mark.parametrize("n_steps", [0, 31, 34])
@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers_continue_from_their_state(name, n_steps):
    one, other = (WRAPPERS[name](gym.make("Pendulum-v1", max_episode_steps=35)) for _ in range(2))
    roam(one, n_steps, seed=1)
    roam(other, 17, seed=2)
    transfer(one, other)
    assert assert_alike(one, other, n_steps=120) > 0


def test_monitor_keeps_the_time_of_its_first_start():
    one, other = (roam(Monitor(gym.make("CartPole-v1")), 5, seed=1) for _ in range(2))
    one.t_start -= 1000.0
    transfer(one, other)
    assert other.t_start == one.t_start


class Holder(gym.Env):
    """Holds objects: ``begin`` makes them, ``go`` changes them, ``look`` shows them."""

    def __init__(self):
        self.observation_space, self.action_space = spaces.Box(-1.0, 1.0, (1,)), spaces.Discrete(2)
        self.begin()

    def begin(self):
        pass

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.look(), {}

    def step(self, action):
        self.go()
        return self.look(), 0.0, False, False, {}

    def gone(self, n_steps):
        for _ in range(n_steps):
            self.go()
        return self


class Aliases(Holder):
    def begin(self):
        self.one = self.other = np.zeros(2)
        self.balls = [Thing(number=1), Thing(number=2)]
        self.chosen = self.balls[0]

    def go(self):
        self.one += 1.5
        self.chosen.number += 1
        self.chosen = self.balls[self.chosen.number % 2]

    def look(self):
        return self.other.copy(), [ball.number for ball in self.balls], self.chosen.number


class Partners(Holder):
    def begin(self):
        self.left, self.right = Thing(number=0, trace=[]), Thing(number=0)
        self.left.partner, self.right.partner = self.right, self.left

    def go(self):
        self.left.partner.number += 1
        self.left.trace.append(self.right.number / 3)

    def look(self):
        return self.right.number, self.right.partner is self.left, [*self.left.trace]


class Best(Holder):
    """The object that was first under one name is, in a fresh env, another's."""

    def begin(self):
        self.balls = [Thing(number=number) for number in range(3)]
        self.best = self.balls[0]

    def go(self):
        self.best = self.balls[2]
        self.best.number += 1

    def look(self):
        return [ball.number for ball in self.balls], self.best is self.balls[2]


class SharedGenerator(Holder):
    """Parts share a generator until one gets another."""

    def begin(self):
        self.one = self.other = np.random.default_rng(0)
        self.drawn = ()

    def go(self):
        if self.one is self.other:
            self.other = np.random.default_rng(5)
        self.drawn = self.one.random(), self.other.random()

    def look(self):
        return self.drawn


@pytest.mark.parametrize(("n_steps", "elsewhere"), [(9, 2), (1, 12), (0, 3), (4, 0)])
@pytest.mark.parametrize("kind", [Aliases, Partners, Best, SharedGenerator])
def test_what_an_env_holds_is_restored(kind, n_steps, elsewhere):
    one, other = kind().gone(n_steps), kind().gone(elsewhere)
    one.action_space.seed(n_steps)
    transfer(one, other)
    assert is_same(one.look(), other.look())
    assert_alike(one, other, n_steps=20)


class StateMachine(Holder):
    def begin(self):
        self.n, self.phase = 0, self.rising

    def rising(self):
        self.n += 1
        self.phase = self.falling if self.n % 4 == 3 else self.phase

    def falling(self):
        self.n -= 1
        self.phase = self.rising if self.n % 4 == 0 else self.phase

    def go(self):
        self.phase()

    def look(self):
        return self.n


class Rectangle(Holder):
    """Games made with pygame keep positions in its rectangles."""

    def begin(self):
        pygame = pytest.importorskip("pygame")
        self.player, self.speed = pygame.Rect(0, 0, 4, 4), pygame.Vector2(1, 0)

    def go(self):
        self.player.x += 2
        self.speed *= 1.5

    def look(self):
        return tuple(self.player), tuple(self.speed)


@pytest.mark.parametrize("n_steps", [(3, 0), (0, 3)])
@pytest.mark.parametrize("kind", [StateMachine, Rectangle])
def test_what_is_not_restored_is_reported_or_refused(kind, n_steps):
    one, other = (kind().gone(n) for n in n_steps)
    one.action_space.seed(0)
    state = get_state(one)
    if state.unsupported:
        return
    try:
        set_state(other, sent(state))
    except MismatchError:
        return
    assert is_same(one.look(), other.look())
    assert_alike(one, other, n_steps=20)


UNREACHABLE = {
    "an iterator": lambda: iter([1, 2]),
    "a generator function": lambda: (number for number in (1, 2)),
    "a slotted object": Slotted,
    "an array of objects": lambda: np.array([{}, None], dtype=object),
    "a masked array": lambda: np.ma.zeros(2),
    "the system's randomness": random.SystemRandom,
    "a sparse tensor": lambda: th.eye(2).to_sparse(),
    "an object deep inside": lambda: [{"x": iter([1])}],
}


@pytest.mark.parametrize("name", UNREACHABLE)
def test_what_cannot_be_encoded_is_reported_and_the_wrappers_are_encoded_still(name):
    env = Holder()
    env.unreachable = UNREACHABLE[name]()
    state = get_state(wrappers.TimeLimit(env, 5))
    assert [path.startswith("env/env/unreachable") for path in state.unsupported] == [True]
    assert state.encoded["state"]["_elapsed_steps"] is None


@pytest.mark.parametrize("task", ["CartPole-v1", "MountainCar-v0", "Pendulum-v1", "Acrobot-v1", "CliffWalking-v1"])
def test_an_env_that_has_been_rendered_continues_from_its_state(task, monkeypatch):
    pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    one, twin, fresh, drawn = envs = [roam(gym.make(task, render_mode="rgb_array"), 10, seed=seed) for seed in (1, 2, 3, 4)]
    frame = one.render()
    drawn.render()
    for other in (twin, fresh, drawn):
        transfer(one, other)
    assert np.array_equal(fresh.render(), frame)
    assert_alike(twin, fresh, n_steps=30)
    assert_alike(one, drawn, n_steps=30)
    for env in envs:
        env.close()


@pytest.mark.parametrize("task", BOX2D)
def test_an_unsupported_simulator_is_reported_and_its_wrappers_are_encoded(task):
    pytest.importorskip("Box2D")
    one, other = (roam(Monitor(gym.make(task)), n_steps, seed=n_steps) for n_steps in (20, 3))
    state = get_state(one)
    assert all(path.startswith("env/env/env/env/env/") for path in state.unsupported)
    assert any("/world/" in path and "Swig" in name for path, name in state.unsupported.items())
    set_state(other, sent(state))
    assert (other.rewards, other.total_steps) == (one.rewards, 20)
    assert other.env._elapsed_steps == one.env._elapsed_steps == 20
    assert is_same(one.np_random.random(5), other.np_random.random(5))


def test_a_state_of_another_task_or_of_other_wrappers_is_refused():
    cart_pole = roam(Monitor(gym.make("CartPole-v1")), 3, seed=0)
    with pytest.raises(MismatchError, match=r"CartPoleEnv.*PendulumEnv|Pendulum.*CartPole"):
        set_state(gym.make("Pendulum-v1"), get_state(cart_pole.env))
    with pytest.raises(MismatchError, match=r"Monitor"):
        set_state(gym.make("CartPole-v1"), get_state(cart_pole))


def test_layers_are_described_with_their_arguments():
    env = wrappers.FrameStackObservation(gym.make("Pendulum-v1", g=3.5, render_mode="rgb_array"), 4)
    outermost, *_, innermost = layers = describe_env(env)
    assert all(text in outermost for text in ("FrameStackObservation(", "stack_size=4"))
    assert all(text in innermost for text in ("PendulumEnv(", "g=3.5", "id='Pendulum-v1'"))
    assert "render_mode" not in "".join(layers)


# --- vectorized ---

ACTIONS = spaces.Box(-1.0, 1.0, (2,))
forked = partial(SubprocVecEnv, start_method="fork")


def monitored_pendulum():
    return Monitor(gym.make("Pendulum-v1", max_episode_steps=20))


def monitored_dicts():
    return Monitor(RandomEnv(spaces.Dict({name: DICT[name] for name in ("vector", "image")}), ACTIONS))


def monitored_images():
    return Monitor(RandomEnv(IMAGE, ACTIONS))


def bare_env():
    return RandomEnv(action_space=ACTIONS)


def some_actions(vec_env, generator):
    return generator.uniform(-1, 1, (vec_env.num_envs, *vec_env.action_space.shape)).astype(np.float32)


def roam_together(vec_env, n_steps, seed):
    generator = np.random.default_rng(seed)
    vec_env.seed(seed)
    vec_env.reset()
    for _ in range(n_steps):
        vec_env.step(some_actions(vec_env, generator))
    return vec_env


def assert_vec_alike(one, other, n_steps):
    generator, n_resets = np.random.default_rng(7), 0
    for n in range(n_steps):
        actions = some_actions(one, generator)
        steps = one.step(actions), other.step(actions.copy())
        assert is_same(*steps), f"step {n}"
        assert is_same(one.reset_infos, other.reset_infos), f"step {n}"
        n_resets += int(steps[0][2].sum())
    return n_resets


@pytest.fixture
def closing():
    """Close vectorized envs in the end."""
    made = []
    yield lambda vec_env: made.append(vec_env) or vec_env
    for vec_env in made:
        with contextlib.suppress(EOFError, OSError):  # a worker that a test has lost
            vec_env.close()


VEC_WRAPPERS = {
    "none": (monitored_pendulum, lambda vec_env: vec_env),
    "none, not even a monitor": (bare_env, lambda vec_env: vec_env),
    "VecNormalize": (monitored_pendulum, VecNormalize),
    "VecNormalize of dicts": (monitored_dicts, lambda vec_env: VecNormalize(vec_env, norm_obs_keys=["vector"])),
    "VecFrameStack": (monitored_pendulum, lambda vec_env: VecFrameStack(vec_env, 3)),
    "VecFrameStack of dicts": (monitored_dicts, lambda each: VecFrameStack(each, 2, {"vector": "last", "image": "first"})),
    "VecTransposeImage": (monitored_images, VecTransposeImage),
    "VecMonitor": (monitored_pendulum, VecMonitor),
    "VecCheckNan": (monitored_pendulum, lambda vec_env: VecCheckNan(vec_env, raise_exception=True)),
    "VecExtractDictObs": (monitored_dicts, lambda vec_env: VecExtractDictObs(vec_env, "vector")),
    "images, stacked and transposed": (monitored_images, lambda vec_env: VecTransposeImage(VecFrameStack(vec_env, 2))),
    "five of them": (
        monitored_dicts,
        lambda each: VecCheckNan(VecNormalize(VecFrameStack(VecExtractDictObs(VecMonitor(each), "vector"), 4), gamma=0.9)),
    ),
}
IN_WORKERS = ["none", "VecNormalize of dicts", "five of them"]
VEC_CASES = [*((DummyVecEnv, name, n) for name in VEC_WRAPPERS for n in (0, 33)), *((forked, name, 33) for name in IN_WORKERS)]


@pytest.mark.parametrize(("kind", "name", "n_steps"), VEC_CASES)
def test_vectorised_envs_continue_from_their_state(kind, name, n_steps, closing):
    make, wrap = VEC_WRAPPERS[name]
    one, other = (closing(wrap(kind([make, make]))) for _ in range(2))
    roam_together(one, n_steps, seed=1)
    roam_together(other, 11, seed=2)
    transfer_vec(one, other)
    assert assert_vec_alike(one, other, n_steps=60) > 3


def test_statistics_and_running_returns_of_vec_normalize_are_restored():
    one, other = (VecNormalize(DummyVecEnv([monitored_pendulum] * 2)) for _ in range(2))
    roam_together(one, 30, seed=1)
    roam_together(other, 4, seed=2)
    transfer_vec(one, other)
    for name in ("obs_rms", "ret_rms"):
        mine, yours = getattr(one, name), getattr(other, name)
        assert is_same((mine.mean, mine.var, mine.count), (yours.mean, yours.var, yours.count))
    assert is_same(one.returns, other.returns)
    assert is_same(one.get_original_obs(), other.get_original_obs())
    assert is_same(one.get_original_reward(), other.get_original_reward())


def test_seeds_for_the_next_reset_are_restored():
    one, other = (roam_together(DummyVecEnv([monitored_pendulum] * 2), 5, seed) for seed in (1, 2))
    one.seed(17)
    transfer_vec(one, other)
    assert is_same(one.reset(), other.reset())


def without_clocks(path):
    """Read a monitor's rows, without the start and the times."""
    header, *rows = path.read_text().splitlines()
    assert header.startswith("#")
    return [row.split(",")[:2] for row in rows]


@pytest.mark.parametrize("same_folder", [True, False])
def test_the_csv_file_of_vec_monitor_continues(tmp_path, same_folder):
    def monitored(name):
        return VecMonitor(DummyVecEnv([monitored_pendulum] * 2), str(tmp_path / name))

    whole, early = (roam_together(monitored(name), 50, seed=1) for name in ("whole", "early"))
    state = sent(record_of(early))
    roam_together(early, 30, seed=3)
    early.close()
    name = "early" if same_folder else "late"
    late = roam_together(monitored(name), 25, seed=2)
    assert restore(late, state) == []
    assert assert_vec_alike(whole, late, n_steps=60) > 3
    rows = without_clocks(tmp_path / "whole.monitor.csv")
    assert rows == without_clocks(tmp_path / f"{name}.monitor.csv")
    assert len(rows) > 8


@pytest.mark.parametrize("start_method", ["forkserver", "spawn"])
def test_an_env_in_another_worker_continues_from_its_state(start_method, closing):
    vec_env, twin = (closing(SubprocVecEnv([monitored_pendulum], start_method=start_method)) for _ in range(2))
    roam_together(vec_env, 33, seed=1)
    state = sent(record_of(vec_env))
    assert restore(twin, state) == []
    roam_together(vec_env, 7, seed=2)
    assert restore(vec_env, state) == []
    assert assert_vec_alike(vec_env, twin, n_steps=60) > 2


class Growing(RandomEnv):
    """Has an array of bytes that grows with each step."""

    def __init__(self):
        super().__init__(action_space=ACTIONS)
        self.history = bytearray()

    def step(self, action):
        self.history.append(self.n_steps)
        observation, _, *rest = super().step(action)
        return observation, float(sum(self.history)), *rest


def test_an_env_continues_after_its_state_was_read(closing):
    env = roam(Growing(), 3, seed=1)
    state = get_state(env)
    kept = {path: each.copy() for path, each in state.arrays.items()}
    roam(env, 5, seed=2)
    assert is_same(state.arrays, kept)
    vec_env = closing(forked([lambda: Monitor(Growing())]))
    roam_together(vec_env, 3, seed=1)
    assert record_of(vec_env).unsupported == {}
    assert roam_together(vec_env, 3, seed=1).num_envs == 1


def test_a_call_in_a_worker_leaves_no_trace_in_the_state(closing):
    vec_env = roam_together(closing(forked([monitored_pendulum])), 5, seed=1)
    first = sent(record_of(vec_env))
    assert is_same(sent(record_of(vec_env)), first)
    assert "_answer_to_checkpoint" not in json.dumps(first.encoded)


def test_a_bare_env_in_a_worker_is_reported_with_advice(closing):
    vec_env = closing(forked([bare_env, lambda: Monitor(bare_env())]))
    vec_env.reset()
    state = record_of(vec_env)
    assert state.unsupported == {"env/0": CANNOT_BE_CALLED}
    assert "Monitor" in CANNOT_BE_CALLED
    assert [node is None for node in state.encoded["envs"]] == [True, False]
    assert restore(vec_env, sent(state)) == []


class Moody(RandomEnv):
    """Can be made to fail when its state is read or set."""

    fails_to = ""

    def get_state(self):
        if self.fails_to == "get":
            raise KeyError("out of order")
        return {"n_steps": self.n_steps}

    def set_state(self, state):
        if self.fails_to == "set":
            raise KeyError("out of order")
        self.n_steps = state["n_steps"]


def monitored_moody():
    return Monitor(Moody(action_space=ACTIONS))


def make_it_fail(env, to):
    env.unwrapped.fails_to = to


def steps_of(env):
    return env.unwrapped.n_steps


def test_an_error_in_a_worker_reaches_the_parent_and_the_worker_lives(closing):
    vec_env = roam_together(closing(forked([monitored_moody])), 3, seed=1)
    call(vec_env, 0, make_it_fail, "get")
    with pytest.raises(MismatchError, match=r"KeyError.*out of order"):
        record_of(vec_env)
    assert len(roam_together(vec_env, 3, seed=1).step(np.zeros((1, 2)))[0]) == 1
    call(vec_env, 0, make_it_fail, "")
    assert record_of(vec_env).unsupported == {}


@pytest.mark.parametrize("kind", [DummyVecEnv, forked], ids=["here", "in workers"])
def test_an_env_that_cannot_be_restored_does_not_affect_the_others(kind, closing):
    one, other = (roam_together(closing(kind([monitored_moody] * 2)), n, seed=n) for n in (4, 2))
    call(other, 0, make_it_fail, "set")
    (failure,) = restore(other, sent(record_of(one)))
    assert "out of order" in failure
    assert call(other, 1, steps_of) == 4


class Batch(VecEnv):
    """Simulates all envs at once."""

    def __init__(self, n_envs=3):
        super().__init__(n_envs, spaces.Box(-np.inf, np.inf, (2,)), spaces.Box(-1.0, 1.0, (2,)))
        self.positions = np.zeros((n_envs, 2), np.float32)
        self.generator = np.random.default_rng(0)

    def reset(self):
        self.positions = self.generator.normal(size=self.positions.shape).astype(np.float32)
        return self.positions.copy()

    def step_async(self, actions):
        self.actions = actions

    def step_wait(self):
        self.positions += self.actions + self.generator.normal(size=self.positions.shape).astype(np.float32)
        dones = np.abs(self.positions).max(1) > 4
        self.positions[dones] = 0
        return self.positions.copy(), self.positions.sum(1), dones, [{} for _ in dones]

    def get_attr(self, attr_name, indices=None):
        return [getattr(self, attr_name, None)] * self.num_envs

    def env_is_wrapped(self, wrapper_class, indices=None):
        return [False] * self.num_envs

    def close(self, *args, **kwargs):
        pass

    set_attr = env_method = close


class BatchWithOwnState(Batch):
    """Only its methods reach its simulator."""

    def __init__(self, n_envs=3):
        super().__init__(n_envs)
        self.hidden = iter(())

    def get_state(self):
        return {"positions": self.positions, "generator": self.generator.bit_generator.state}

    def set_state(self, state):
        self.positions = state["positions"]
        self.generator.bit_generator.state = state["generator"]


class OwnStateAround(VecEnvWrapper, OwnState):
    """A wrapper that has get_state() and set_state(state), too."""

    def __init__(self, venv):
        super().__init__(venv)
        self.hidden, self.secret = iter(()), 0

    def reset(self):
        return self.venv.reset()

    def step_wait(self):
        self.secret += 1
        observations, rewards, dones, infos = self.venv.step_wait()
        return observations, rewards + self.secret, dones, infos


@pytest.mark.parametrize("make", [Batch, BatchWithOwnState, lambda: VecNormalize(OwnStateAround(BatchWithOwnState()))])
def test_a_custom_vectorised_env_continues_from_its_state(make):
    one, other = roam_together(make(), 12, seed=1), roam_together(make(), 5, seed=2)
    transfer_vec(one, other)
    assert assert_vec_alike(one, other, n_steps=50) > 2


@pytest.mark.parametrize(("kind", "n_there"), [(forked, 2), (DummyVecEnv, 1), (DummyVecEnv, 3)])
def test_a_state_of_another_vectorised_env_or_of_another_number_is_refused(kind, n_there, closing):
    state = sent(record_of(roam_together(DummyVecEnv([monitored_pendulum] * 2), 3, seed=1)))
    there = closing(kind([monitored_pendulum] * n_there))
    with pytest.raises(MismatchError, match=r"DummyVecEnv.*SubprocVecEnv" if kind is forked else None):
        restore(there, state)


def test_the_state_of_one_env_does_not_leak_into_the_eleventh():
    one, other = (roam_together(DummyVecEnv([monitored_pendulum] * 12), n, seed=n) for n in (5, 9))
    transfer_vec(one, other)
    assert_vec_alike(one, other, n_steps=25)


def test_a_state_can_be_restored_twice():
    state = sent(get_state(roam(gym.make("Pendulum-v1"), 9, seed=1)))
    kept = copy.deepcopy(state)
    for seed in (2, 3):
        other = roam(gym.make("Pendulum-v1"), 4, seed=seed)
        set_state(other, state)
        roam(other, 9, seed=4)
    assert is_same(state, kept)
