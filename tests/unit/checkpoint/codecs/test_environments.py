"""States of environments: read, sent through JSON, set in a fresh environment, and gone on with."""

from __future__ import annotations

import contextlib
import copy
import enum
import json
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces, wrappers
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


def assert_differ_now(one: gym.Env, other: gym.Env) -> None:
    states = get_state(one), get_state(other)
    assert not is_same(*({**state.arrays, "": json.dumps(state.encoded)} for state in states)), "the other must be elsewhere"


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("task", CLASSIC)
def test_a_classic_control_task_continues_from_its_state(task: str, moment: str) -> None:
    one, other = (gym.make(task, max_episode_steps=LIMIT) for _ in range(2))
    stay_up(one, MOMENTS[moment], seed=1)
    roam(other, 7, seed=2)
    assert_differ_now(one, other)
    set_state(other, sent(get_state(one)))
    assert assert_alike(one, other, n_steps=150) >= 150 // LIMIT


@pytest.mark.parametrize("task", TOY_TEXT)
def test_a_toy_text_task_continues_from_its_state(task: str) -> None:
    one, other = roam(gym.make(task), 15, seed=1), roam(gym.make(task), 8, seed=2)
    state = get_state(one)
    assert state.unsupported == {}
    set_state(other, sent(state))
    assert_alike(one, other, n_steps=300)


def test_an_env_continues_from_its_own_earlier_state() -> None:
    env = roam(gym.make("Pendulum-v1", max_episode_steps=30), 20, seed=0)
    state = sent(get_state(env))
    first = [env.step(env.action_space.sample()) for _ in range(9)]
    roam(env, 50, seed=3)
    set_state(env, state)
    assert is_same(first, [env.step(env.action_space.sample()) for _ in range(9)])


def test_reading_a_state_changes_nothing() -> None:
    one, other = (roam(gym.make("CartPole-v1"), 30, seed=0) for _ in range(2))
    get_state(one)
    assert is_same(get_state(one), get_state(other))
    assert_alike(one, other, n_steps=50)


class Shift(gym.Wrapper):
    """Has get_state() and set_state(state) of its own, and a part that they do not mention."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.hidden = object()
        self.amount = np.zeros(3, np.float32)

    def get_state(self) -> dict[str, Any]:
        return {"amount": self.amount}

    def set_state(self, state: dict[str, Any]) -> None:
        self.amount = state["amount"]

    def step(self, action: Any) -> Any:
        self.amount += np.float32(0.25)
        observation, *rest = self.env.step(action)
        return observation + self.amount, *rest


WRAPPERS: dict[str, Callable[[gym.Env], gym.Env]] = {
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
    "one with its own state": Shift,
    "all together": lambda env: Monitor(
        wrappers.FrameStackObservation(
            wrappers.NormalizeReward(
                wrappers.NormalizeObservation(wrappers.ClipAction(wrappers.RecordEpisodeStatistics(env)))
            ),
            2,
        )
    ),
}


@pytest.mark.parametrize("n_steps", [0, 31, 34])
@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers_continue_from_their_state(name: str, n_steps: int) -> None:
    one, other = (WRAPPERS[name](gym.make("Pendulum-v1", max_episode_steps=35)) for _ in range(2))
    roam(one, n_steps, seed=1)
    roam(other, 17, seed=2)
    state = get_state(one)
    assert state.unsupported == {}
    set_state(other, sent(state))
    assert assert_alike(one, other, n_steps=120) > 0


def test_the_time_limit_continues() -> None:
    one, other = (gym.make("Pendulum-v1", max_episode_steps=10) for _ in range(2))
    roam(one, 7, seed=1)
    roam(other, 0, seed=2)
    set_state(other, sent(get_state(one)))
    assert [other.step(np.zeros(1, np.float32))[3] for _ in range(3)] == [False, False, True]


def test_monitor_keeps_the_time_of_its_first_start() -> None:
    one, other = (roam(Monitor(gym.make("CartPole-v1")), 5, seed=1) for _ in range(2))
    one.t_start -= 1000.0
    set_state(other, sent(get_state(one)))
    assert other.t_start == one.t_start


class Lives:
    """What EpisodicLifeEnv asks of an emulator."""

    def __init__(self) -> None:
        self.n_left = 3

    def lives(self) -> int:
        return self.n_left


class Console(RandomEnv):
    """As much of an Atari game as SB3's wrappers need."""

    def __init__(self) -> None:
        super().__init__(IMAGE)
        self.ale = Lives()

    def get_action_meanings(self) -> list[str]:
        return ["NOOP", "FIRE", "RIGHT"]

    def reset(self, **kwargs: Any) -> Any:
        self.ale.n_left = 3
        gym.Env.reset(self, seed=kwargs.get("seed"))
        return super().reset(**kwargs)

    def step(self, action: Any) -> Any:
        self.n_steps += 1
        self.ale.n_left -= int(self.np_random.random() < 0.05)
        return self.observation_space.sample(), float(action), self.ale.n_left == 0, self.n_steps > 60, {}


def console() -> gym.Env:
    env = atari.StickyActionEnv(Console(), 0.25)
    env = atari.MaxAndSkipEnv(atari.NoopResetEnv(env, noop_max=5), skip=2)
    return Monitor(atari.ClipRewardEnv(atari.FireResetEnv(atari.EpisodicLifeEnv(env))))


@pytest.mark.parametrize("n_steps", [0, 3, 20, 41])
def test_wrappers_of_atari_continue_from_their_state(n_steps: int) -> None:
    one, other = roam(console(), n_steps, seed=1), roam(console(), 13, seed=2)
    set_state(other, sent(get_state(one)))
    assert assert_alike(one, other, n_steps=150) > 4


class Holder(gym.Env):
    """Shows what it holds: ``begin`` makes it, ``go`` changes it, ``look`` tells it."""

    def __init__(self) -> None:
        self.observation_space, self.action_space = spaces.Box(-1.0, 1.0, (1,)), spaces.Discrete(2)
        self.begin()

    def begin(self) -> None:
        self.thing: Any = 0

    def go(self) -> None:
        raise NotImplementedError

    def look(self) -> Any:
        return self.thing

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        return self.look(), {}

    def step(self, action: Any) -> Any:
        self.go()
        return self.look(), 0.0, False, False, {}

    def gone(self, n_steps: int) -> Holder:
        for _ in range(n_steps):
            self.go()
        return self


class Colour(enum.Enum):
    RED = 1
    GREEN = 2
    BLUE = 3


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Pair(NamedTuple):
    left: int
    right: int


class Ball:
    def __init__(self, number: int = 0) -> None:
        self.number = number
        self.trace: list[float] = []


class NestedObjects(Holder):
    def begin(self) -> None:
        self.thing = Ball()
        self.thing.inner = Ball(7)

    def go(self) -> None:
        self.thing.number += 1
        self.thing.inner.trace.append(self.thing.number / 3)

    def look(self) -> Any:
        return self.thing.number, self.thing.inner.number, [*self.thing.inner.trace]


class ListOfObjects(Holder):
    def begin(self) -> None:
        self.thing = [Ball(number) for number in range(3)]

    def go(self) -> None:
        self.thing.append(self.thing.pop(0))
        self.thing[0].number += 10

    def look(self) -> Any:
        return [ball.number for ball in self.thing]


class AliasedArrays(Holder):
    def begin(self) -> None:
        self.one = self.other = np.zeros(2)
        self.balls = [Ball(1), Ball(2)]
        self.chosen = self.balls[0]

    def go(self) -> None:
        self.one += 1.5
        self.chosen.number += 1
        self.chosen = self.balls[self.chosen.number % 2]

    def look(self) -> Any:
        return self.other.copy(), [ball.number for ball in self.balls], self.chosen.number


class PartsKnowEachOther(Holder):
    def begin(self) -> None:
        self.left, self.right = Ball(), Ball()
        self.left.partner, self.right.partner = self.right, self.left

    def go(self) -> None:
        self.left.partner.number += 1

    def look(self) -> Any:
        return self.right.number, self.right.partner is self.left


def assert_comes_back(kind: type[Holder]) -> None:
    for n_steps, elsewhere in ((9, 2), (1, 12), (0, 3), (4, 0)):
        one, other = kind().gone(n_steps), kind().gone(elsewhere)
        one.action_space.seed(n_steps)
        state = get_state(one)
        assert state.unsupported == {}
        set_state(other, sent(state))
        assert is_same(one.look(), other.look())
        assert_alike(one, other, n_steps=20)


@pytest.mark.parametrize("kind", [NestedObjects, ListOfObjects, AliasedArrays, PartsKnowEachOther])
def test_what_an_env_holds_is_restored(kind: type[Holder]) -> None:
    assert_comes_back(kind)


class Best(Holder):
    """The object that was first under one name is, in a fresh env, another's."""

    def begin(self) -> None:
        self.best = Ball(0)
        self.balls = [self.best, Ball(1), Ball(2)]

    def go(self) -> None:
        self.best = self.balls[2]
        self.best.number += 1

    def look(self) -> Any:
        return [ball.number for ball in self.balls], self.best is self.balls[2]


class SharedGenerator(Holder):
    """Parts share a generator until one gets its own."""

    def begin(self) -> None:
        self.one = self.other = np.random.default_rng(0)
        self.drawn: Any = ()

    def go(self) -> None:
        if self.one is self.other:
            self.other = np.random.default_rng(5)
        self.drawn = self.one.random(), self.other.random()

    def look(self) -> Any:
        return self.drawn


class GrowingPairs(Holder):
    def begin(self) -> None:
        self.thing: list[Pair] = []

    def go(self) -> None:
        self.thing.append(Pair(len(self.thing), 0))

    def look(self) -> Any:
        return [*self.thing]


class GrowingObjects(ListOfObjects):
    def begin(self) -> None:
        self.thing = []

    def go(self) -> None:
        self.thing.append(Ball(len(self.thing)))


class GrowingEnums(GrowingPairs):
    def go(self) -> None:
        self.thing.append(Colour.RED)  # type: ignore[arg-type]


class TextWithSlash(Holder):
    def begin(self) -> None:
        self.thing = "wait"

    def go(self) -> None:
        self.thing += "/left"


class StateMachine(Holder):
    def begin(self) -> None:
        self.n, self.phase = 0, self.rising

    def rising(self) -> None:
        self.n += 1
        if self.n % 4 == 3:
            self.phase = self.falling

    def falling(self) -> None:
        self.n -= 1
        if self.n % 4 == 0:
            self.phase = self.rising

    def go(self) -> None:
        self.phase()

    def look(self) -> Any:
        return self.n


class Rectangle(Holder):
    """Games made with pygame keep positions in its rectangles."""

    def begin(self) -> None:
        pygame = pytest.importorskip("pygame")
        self.player, self.speed = pygame.Rect(0, 0, 4, 4), pygame.Vector2(1, 0)

    def go(self) -> None:
        self.player.x += 2
        self.speed *= 1.5

    def look(self) -> Any:
        return tuple(self.player), tuple(self.speed)


class Elsewhere(Holder):
    """Of a module whose name begins like that of a library that draws."""

    __module__ = "pygame_learning.snake"

    def go(self) -> None:
        self.thing += 1


class ForeignPart(Holder):
    def begin(self) -> None:
        self.part = type("Part", (Ball,), {"__module__": "socketball.parts"})()

    def go(self) -> None:
        self.part.number += 1

    def look(self) -> Any:
        return self.part.number


HARD = (
    *(
        Best,
        SharedGenerator,
        GrowingPairs,
        GrowingObjects,
        GrowingEnums,
        TextWithSlash,
    ),
    *(StateMachine, Rectangle, Elsewhere, ForeignPart),
)


@pytest.mark.parametrize("n_steps", [(3, 0), (0, 3)])
@pytest.mark.parametrize("kind", HARD)
def test_what_is_not_restored_is_reported_or_refused(kind: type[Holder], n_steps: tuple[int, int]) -> None:
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


class Slotted:
    __slots__ = ("number",)

    def __init__(self) -> None:
        self.number = 0


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
def test_what_cannot_be_encoded_is_reported_and_the_wrappers_are_encoded_still(name: str) -> None:
    env = Holder()
    env.unreachable = UNREACHABLE[name]()
    state = get_state(wrappers.TimeLimit(env, 5))
    assert [path.startswith("env/env/unreachable") for path in state.unsupported] == [True]
    assert state.encoded["state"]["_elapsed_steps"] is None


@pytest.mark.parametrize("task", ["CartPole-v1", "MountainCar-v0", "Pendulum-v1", "Acrobot-v1", "CliffWalking-v1"])
def test_an_env_that_has_been_rendered_continues_from_its_state(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    one, fresh, drawn = (gym.make(task, render_mode="rgb_array") for _ in range(3))
    for env, seed in ((one, 1), (fresh, 2), (drawn, 3)):
        roam(env, 10, seed=seed)
    frame = one.render()
    drawn.render()
    state = get_state(one)
    assert state.unsupported == {}
    set_state(fresh, sent(state))
    assert np.array_equal(fresh.render(), frame)
    set_state(drawn, sent(state))
    assert_alike(copy_of(one), fresh, n_steps=30)
    assert_alike(one, drawn, n_steps=30)
    for env in (one, fresh, drawn):
        env.close()


def copy_of(env: gym.Env) -> gym.Env:
    """Give an env in the same state."""
    made = gym.make(env.spec.id, render_mode=env.render_mode)
    made.reset()
    set_state(made, sent(get_state(env)))
    return made


@pytest.mark.parametrize("task", BOX2D)
def test_an_unsupported_simulator_is_reported_and_its_wrappers_are_encoded(task: str) -> None:
    pytest.importorskip("Box2D")
    one, other = (Monitor(gym.make(task)) for _ in range(2))
    roam(one, 20, seed=1)
    roam(other, 3, seed=2)
    state = get_state(one)
    assert all(path.startswith("env/env/env/env/env/") for path in state.unsupported)
    assert any("/world/" in path and "Swig" in name for path, name in state.unsupported.items())
    set_state(other, sent(state))
    assert (other.rewards, other.total_steps) == (one.rewards, 20)
    assert other.env._elapsed_steps == one.env._elapsed_steps == 20
    assert is_same(one.np_random.random(5), other.np_random.random(5))


def test_a_state_of_another_task_is_refused() -> None:
    with pytest.raises(MismatchError, match=r"CartPoleEnv.*PendulumEnv|Pendulum.*CartPole"):
        set_state(gym.make("Pendulum-v1"), get_state(roam(gym.make("CartPole-v1"), 3, seed=0)))


def test_a_state_of_other_wrappers_is_refused() -> None:
    with pytest.raises(MismatchError, match=r"Monitor"):
        set_state(gym.make("CartPole-v1"), get_state(Monitor(gym.make("CartPole-v1"))))


def test_layers_are_described_with_their_arguments() -> None:
    env = wrappers.FrameStackObservation(gym.make("Pendulum-v1", g=3.5, render_mode="rgb_array"), 4)
    outermost, *_, innermost = describe_env(env)
    assert "FrameStackObservation(" in outermost
    assert "stack_size=4" in outermost
    assert "PendulumEnv(" in innermost
    assert "g=3.5" in innermost
    assert "id='Pendulum-v1'" in innermost
    assert "render_mode" not in "".join(describe_env(env))


# --- vectorised ---


def monitored_pendulum() -> gym.Env:
    return Monitor(gym.make("Pendulum-v1", max_episode_steps=20))


def bare_env() -> gym.Env:
    return RandomEnv()


def monitored_dicts() -> gym.Env:
    space = spaces.Dict({name: DICT[name] for name in ("vector", "image")})
    return Monitor(RandomEnv(space, spaces.Box(-1.0, 1.0, (2,))))


def monitored_images() -> gym.Env:
    return Monitor(RandomEnv(IMAGE, spaces.Box(-1.0, 1.0, (2,))))


class Moody(RandomEnv):
    """Can be made to fail when its state is read or set."""

    fails_to = ""

    def get_state(self) -> dict[str, Any]:
        if self.fails_to == "get":
            raise KeyError("out of order")
        return {"n_steps": self.n_steps}

    def set_state(self, state: dict[str, Any]) -> None:
        if self.fails_to == "set":
            raise KeyError("out of order")
        self.n_steps = state["n_steps"]


def monitored_moody() -> gym.Env:
    return Monitor(Moody(action_space=spaces.Box(-1.0, 1.0, (2,))))


def roam_together(venv: VecEnv, n_steps: int, seed: int) -> VecEnv:
    generator = np.random.default_rng(seed)
    venv.seed(seed)
    venv.reset()
    for _ in range(n_steps):
        venv.step(generator.uniform(-1, 1, (venv.num_envs, *venv.action_space.shape)).astype(np.float32))
    return venv


def assert_vec_alike(one: VecEnv, other: VecEnv, n_steps: int) -> int:
    generator, n_resets = np.random.default_rng(7), 0
    for n in range(n_steps):
        actions = generator.uniform(-1, 1, (one.num_envs, *one.action_space.shape)).astype(np.float32)
        steps = one.step(actions), other.step(actions.copy())
        assert is_same(*steps), f"step {n}"
        assert is_same(one.reset_infos, other.reset_infos), f"step {n}"
        n_resets += int(steps[0][2].sum())
    return n_resets


@pytest.fixture
def venvs() -> Iterator[Callable[[VecEnv], VecEnv]]:
    """Close vectorised envs in the end."""
    made: list[VecEnv] = []
    yield lambda venv: made.append(venv) or venv
    for venv in made:
        with contextlib.suppress(EOFError, OSError):  # a worker that a test has lost
            venv.close()


VEC_WRAPPERS: dict[str, tuple[Callable[[], gym.Env], Callable[[VecEnv], VecEnv]]] = {
    "none": (monitored_pendulum, lambda venv: venv),
    "VecNormalize": (monitored_pendulum, VecNormalize),
    "VecNormalize of dicts": (monitored_dicts, lambda venv: VecNormalize(venv, norm_obs_keys=["vector"])),
    "VecFrameStack": (monitored_pendulum, lambda venv: VecFrameStack(venv, 3)),
    "VecFrameStack of dicts": (monitored_dicts, lambda venv: VecFrameStack(venv, 2, {"vector": "last", "image": "first"})),
    "VecTransposeImage": (monitored_images, VecTransposeImage),
    "VecMonitor": (monitored_pendulum, VecMonitor),
    "VecCheckNan": (monitored_pendulum, lambda venv: VecCheckNan(venv, raise_exception=True)),
    "VecExtractDictObs": (monitored_dicts, lambda venv: VecExtractDictObs(venv, "vector")),
    "images, stacked and transposed": (monitored_images, lambda venv: VecTransposeImage(VecFrameStack(venv, 2))),
    "five of them": (
        monitored_dicts,
        lambda venv: VecCheckNan(VecNormalize(VecFrameStack(VecExtractDictObs(VecMonitor(venv), "vector"), 4), gamma=0.9)),
    ),
}


@pytest.mark.parametrize("n_steps", [0, 33])
@pytest.mark.parametrize("name", VEC_WRAPPERS)
def test_vectorised_envs_continue_from_their_state(name: str, n_steps: int) -> None:
    make, wrap = VEC_WRAPPERS[name]
    one, other = (wrap(DummyVecEnv([make, make])) for _ in range(2))
    roam_together(one, n_steps, seed=1)
    roam_together(other, 11, seed=2)
    state = record_of(one)
    assert state.unsupported == {}
    assert restore(other, sent(state)) == []
    assert assert_vec_alike(one, other, n_steps=60) > 3


def test_statistics_and_running_returns_of_vec_normalize_are_restored() -> None:
    one, other = (VecNormalize(DummyVecEnv([monitored_pendulum] * 2)) for _ in range(2))
    roam_together(one, 30, seed=1)
    roam_together(other, 4, seed=2)
    assert restore(other, sent(record_of(one))) == []
    for name in ("obs_rms", "ret_rms"):
        mine, yours = getattr(one, name), getattr(other, name)
        assert is_same((mine.mean, mine.var, mine.count), (yours.mean, yours.var, yours.count))
    assert is_same(one.returns, other.returns)
    assert is_same(one.get_original_obs(), other.get_original_obs())
    assert is_same(one.get_original_reward(), other.get_original_reward())


def test_seeds_for_the_next_reset_are_restored() -> None:
    one, other = (DummyVecEnv([monitored_pendulum] * 2) for _ in range(2))
    roam_together(one, 5, seed=1)
    roam_together(other, 5, seed=2)
    one.seed(17)
    restore(other, sent(record_of(one)))
    assert is_same(one.reset(), other.reset())


def without_clocks(path: Any) -> list[list[str]]:
    """Read a monitor's rows, without the start and the times."""
    header, *rows = path.read_text().splitlines()
    assert header.startswith("#")
    return [row.split(",")[:2] for row in rows]


@pytest.mark.parametrize("same_folder", [True, False])
def test_the_csv_file_of_vec_monitor_continues(tmp_path: Any, same_folder: bool) -> None:
    names = ("whole", "early", "early" if same_folder else "late")
    whole, early = (VecMonitor(DummyVecEnv([monitored_pendulum] * 2), str(tmp_path / name)) for name in names[:2])
    for venv in (whole, early):
        roam_together(venv, 50, seed=1)
    state = sent(record_of(early))
    roam_together(early, 30, seed=3)
    early.close()
    late = roam_together(VecMonitor(DummyVecEnv([monitored_pendulum] * 2), str(tmp_path / names[2])), 25, seed=2)
    assert restore(late, state) == []
    assert assert_vec_alike(whole, late, n_steps=60) > 3
    files = [tmp_path / f"{name}.monitor.csv" for name in (names[0], names[2])]
    assert without_clocks(files[0]) == without_clocks(files[1])
    assert len(without_clocks(files[0])) > 8


@pytest.mark.parametrize("name", ["none", "VecNormalize of dicts", "five of them"])
def test_envs_in_forked_workers_continue_from_their_state(name: str, venvs: Any) -> None:
    make, wrap = VEC_WRAPPERS[name]
    one, other = (venvs(wrap(SubprocVecEnv([make, make], start_method="fork"))) for _ in range(2))
    roam_together(one, 33, seed=1)
    roam_together(other, 11, seed=2)
    state = record_of(one)
    assert state.unsupported == {}
    assert restore(other, sent(state)) == []
    assert assert_vec_alike(one, other, n_steps=60) > 3


@pytest.mark.parametrize("start_method", ["forkserver", "spawn"])
def test_an_env_in_another_worker_continues_from_its_state(start_method: str, venvs: Any) -> None:
    venv = venvs(SubprocVecEnv([monitored_pendulum], start_method=start_method))
    twin = venvs(SubprocVecEnv([monitored_pendulum], start_method=start_method))
    roam_together(venv, 33, seed=1)
    state = sent(record_of(venv))
    assert restore(twin, state) == []
    roam_together(venv, 7, seed=2)
    assert restore(venv, state) == []
    assert assert_vec_alike(venv, twin, n_steps=60) > 2


class Growing(RandomEnv):
    """Has an array of bytes that grows with each step."""

    def __init__(self) -> None:
        super().__init__(action_space=spaces.Box(-1.0, 1.0, (2,)))
        self.history = bytearray()

    def step(self, action: Any) -> Any:
        self.history.append(self.n_steps)
        observation, _, *rest = super().step(action)
        return observation, float(sum(self.history)), *rest


def test_an_env_continues_after_its_state_was_read() -> None:
    env = roam(Growing(), 3, seed=1)
    state = get_state(env)
    kept = {path: each.copy() for path, each in state.arrays.items()}
    roam(env, 5, seed=2)
    assert is_same(state.arrays, kept)


def test_an_env_in_a_worker_continues_after_its_state_was_read(venvs: Any) -> None:
    venv = venvs(SubprocVecEnv([lambda: Monitor(Growing())], start_method="fork"))
    roam_together(venv, 3, seed=1)
    assert record_of(venv).unsupported == {}
    assert roam_together(venv, 3, seed=1).num_envs == 1


def test_a_call_in_a_worker_leaves_no_trace_in_the_state(venvs: Any) -> None:
    venv = venvs(SubprocVecEnv([monitored_pendulum], start_method="fork"))
    roam_together(venv, 5, seed=1)
    first = sent(record_of(venv))
    assert is_same(sent(record_of(venv)), first)
    assert "_answer_to_checkpoint" not in json.dumps(first.encoded)


def test_a_bare_env_in_a_worker_is_reported_with_advice(venvs: Any) -> None:
    venv = venvs(SubprocVecEnv([bare_env, lambda: Monitor(RandomEnv())], start_method="fork"))
    venv.reset()
    state = record_of(venv)
    assert state.unsupported == {"env/0": CANNOT_BE_CALLED}
    assert "Monitor" in CANNOT_BE_CALLED
    assert [node is None for node in state.encoded["envs"]] == [True, False]
    assert restore(venv, sent(state)) == []


def test_a_bare_env_in_this_process_continues_from_its_state() -> None:
    one, other = (DummyVecEnv([lambda: RandomEnv(action_space=spaces.Box(-1, 1, (2,)))]) for _ in range(2))
    roam_together(one, 5, seed=1)
    roam_together(other, 2, seed=2)
    assert restore(other, sent(record_of(one))) == []
    assert assert_vec_alike(one, other, n_steps=30) > 2


def test_an_error_in_a_worker_reaches_the_parent_and_the_worker_lives(venvs: Any) -> None:
    venv = venvs(SubprocVecEnv([monitored_moody], start_method="fork"))
    roam_together(venv, 3, seed=1)
    venv.set_attr("fails_to", "get")
    call(venv, 0, make_it_fail, "get")
    with pytest.raises(MismatchError, match=r"KeyError.*out of order"):
        record_of(venv)
    assert len(roam_together(venv, 3, seed=1).step(np.zeros((1, 2)))[0]) == 1
    call(venv, 0, make_it_fail, "")
    assert record_of(venv).unsupported == {}


def make_it_fail(env: gym.Env, to: str) -> None:
    env.unwrapped.fails_to = to


@pytest.mark.parametrize("kind", [DummyVecEnv, lambda makers: SubprocVecEnv(makers, start_method="fork")])
def test_an_env_that_cannot_be_restored_does_not_affect_the_others(kind: Any, venvs: Any) -> None:
    one, other = (venvs(kind([monitored_moody, monitored_moody])) for _ in range(2))
    roam_together(one, 4, seed=1)
    roam_together(other, 2, seed=2)
    call(other, 0, make_it_fail, "set")
    (failure,) = restore(other, sent(record_of(one)))
    assert "out of order" in failure
    assert call(other, 1, steps_of) == 4


def steps_of(env: gym.Env) -> int:
    return env.unwrapped.n_steps


class Batch(VecEnv):
    """Simulates all envs at once; ``hidden`` is out of anybody's reach."""

    def __init__(self, n_envs: int = 3) -> None:
        super().__init__(n_envs, spaces.Box(-np.inf, np.inf, (2,)), spaces.Box(-1.0, 1.0, (2,)))
        self.positions = np.zeros((n_envs, 2), np.float32)
        self.generator = np.random.default_rng(0)

    def reset(self) -> np.ndarray:
        self.positions = self.generator.normal(size=self.positions.shape).astype(np.float32)
        return self.positions.copy()

    def step_async(self, actions: np.ndarray) -> None:
        self.actions = actions

    def step_wait(self) -> Any:
        self.positions += self.actions + self.generator.normal(size=self.positions.shape).astype(np.float32)
        dones = np.abs(self.positions).max(1) > 4
        self.positions[dones] = 0
        return self.positions.copy(), self.positions.sum(1), dones, [{} for _ in dones]

    def close(self) -> None:
        pass

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self, attr_name, None)] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        setattr(self, attr_name, value)

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        return []

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * self.num_envs


class BatchWithOwnState(Batch):
    """Its simulator is reached by its own methods only."""

    def __init__(self, n_envs: int = 3) -> None:
        super().__init__(n_envs)
        self.hidden = iter(())

    def get_state(self) -> Any:
        return {"positions": self.positions, "generator": self.generator.bit_generator.state}

    def set_state(self, state: Any) -> None:
        self.positions = state["positions"]
        self.generator.bit_generator.state = state["generator"]


class OwnStateAround(VecEnvWrapper):
    """A wrapper with a state of its own."""

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv)
        self.hidden, self.n_steps = iter(()), 0

    def get_state(self) -> int:
        return self.n_steps

    def set_state(self, state: int) -> None:
        self.n_steps = state

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        self.n_steps += 1
        observations, rewards, dones, infos = self.venv.step_wait()
        return observations, rewards + self.n_steps, dones, infos


@pytest.mark.parametrize("make", [Batch, BatchWithOwnState, lambda: VecNormalize(OwnStateAround(BatchWithOwnState()))])
def test_a_custom_vectorised_env_continues_from_its_state(make: Callable[[], VecEnv]) -> None:
    one, other = roam_together(make(), 12, seed=1), roam_together(make(), 5, seed=2)
    state = record_of(one)
    assert state.unsupported == {}
    assert restore(other, sent(state)) == []
    assert assert_vec_alike(one, other, n_steps=50) > 2


def test_a_state_of_another_vectorised_env_is_refused(venvs: Any) -> None:
    state = sent(record_of(roam_together(DummyVecEnv([monitored_pendulum]), 3, seed=1)))
    with pytest.raises(MismatchError, match=r"DummyVecEnv.*SubprocVecEnv"):
        restore(venvs(SubprocVecEnv([monitored_pendulum], start_method="fork")), state)


@pytest.mark.parametrize("n_there", [1, 3])
def test_a_state_of_more_or_fewer_envs_is_refused(n_there: int) -> None:
    state = sent(record_of(roam_together(DummyVecEnv([monitored_pendulum] * 2), 3, seed=1)))
    there = roam_together(DummyVecEnv([monitored_pendulum] * n_there), 3, seed=2)
    with pytest.raises(MismatchError):
        restore(there, state)


def test_the_state_of_one_env_does_not_leak_into_the_eleventh() -> None:
    one, other = (DummyVecEnv([monitored_pendulum] * 12) for _ in range(2))
    roam_together(one, 5, seed=1)
    roam_together(other, 9, seed=2)
    assert restore(other, sent(record_of(one))) == []
    assert_vec_alike(one, other, n_steps=25)


def test_a_state_can_be_restored_twice() -> None:
    one = roam(gym.make("Pendulum-v1"), 9, seed=1)
    state = sent(get_state(one))
    kept = copy.deepcopy(state)
    for seed in (2, 3):
        other = roam(gym.make("Pendulum-v1"), 4, seed=seed)
        set_state(other, state)
        roam(other, 9, seed=4)
    assert is_same(state, kept)
