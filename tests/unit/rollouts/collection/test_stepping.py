"""Stepping without copies gives what SB3's VecEnvs give; VecEnvs that are not exactly SB3's are called as they are."""

from __future__ import annotations

import threading
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from helpers.envs import BOX_ACTION, DICT, IMAGE, VECTOR, BareVecEnv
from helpers.rollouts import assert_same, both, episodes, model_of
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecEnv,
    VecEnvWrapper,
    VecExtractDictObs,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
)

from sb3_trpo import TRPO
from sb3_trpo.rollouts.collection.stepping import Stepper, dummy_below, innermost

N_ENVS, N_STEPS = 3, 40
OBSERVED = spaces.Dict({"vector": VECTOR, "far": BOX_ACTION})
BOXES = spaces.Dict({"vector": VECTOR, "image": IMAGE})


class Reusing(gym.Env):
    """Writes into the same observation arrays and the same info at each step and reset; episodes end or are cut off."""

    def __init__(self, observation_space: spaces.Space, seed: int) -> None:
        self.observation_space, self.action_space = deepcopy(observation_space), BOX_ACTION
        self.observation_space.seed(seed)
        self.generator = np.random.default_rng(seed)
        self.seen, self.n_steps = self.observation_space.sample(), 0
        self.info: dict[str, Any] = {"log": [], "seen": self.seen}

    def observe(self) -> Any:
        drawn = self.observation_space.sample()
        if isinstance(drawn, dict):
            for key, part in drawn.items():
                self.seen[key] = part if np.ndim(part) == 0 else np.copyto(self.seen[key], part) or self.seen[key]
        else:
            np.copyto(self.seen, drawn)
        self.info["log"].append(self.n_steps)
        return self.seen

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.n_steps = 0
        self.info["log"].clear()
        self.info["n_resets"] = self.info.get("n_resets", 0) + 1
        return self.observe(), self.info

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.n_steps += 1
        self.info["reward"] = float(action.mean()) + self.n_steps
        is_over = bool(self.generator.random() < 0.15)
        return self.observe(), self.info["reward"], is_over, self.n_steps >= 6, self.info


class Fresh(Reusing):
    """Returns new arrays and a new info each time."""

    def observe(self) -> Any:
        return deepcopy(super().observe())

    def step(self, action: np.ndarray) -> Any:
        return deepcopy(super().step(action))


def dummy(
    space: spaces.Space = VECTOR,
    kind: type[Reusing] = Reusing,
    wrap: Callable[[Any], gym.Env] = lambda env: env,
    of: type[DummyVecEnv] = DummyVecEnv,
) -> DummyVecEnv:
    return of([lambda seed=seed: wrap(kind(space, seed)) for seed in range(N_ENVS)])


def normalized(venv: VecEnv) -> VecNormalize:
    keys = ["vector"] if isinstance(venv.observation_space, spaces.Dict) else None
    return VecNormalize(venv, norm_obs_keys=keys)


def all_around(venv: VecEnv) -> VecEnv:
    return normalized(VecMonitor(VecFrameStack(VecTransposeImage(venv), 2)))


framed = partial(VecFrameStack, n_stack=3)
WRAPPERS = {
    "nothing": (lambda venv: venv, [VECTOR, IMAGE, BOXES, DICT, spaces.Discrete(4)]),
    "monitor": (VecMonitor, [VECTOR, DICT]),
    "monitor with keywords": (partial(VecMonitor, info_keywords=("reward",)), [VECTOR]),
    "normalize": (normalized, [VECTOR, BOXES]),
    "frames": (framed, [VECTOR, IMAGE, BOXES]),
    "transpose": (VecTransposeImage, [IMAGE, BOXES, DICT]),
    "frames, normalized": (lambda venv: normalized(framed(venv)), [VECTOR, BOXES]),
    "normalized, framed": (lambda venv: framed(normalized(venv)), [VECTOR, BOXES]),
    "normalized twice": (lambda venv: VecNormalize(VecNormalize(venv)), [VECTOR]),
    "monitor and all": (all_around, [IMAGE, BOXES]),
}


def assert_alike(ours: Any, theirs: Any) -> None:
    """Compare bit for bit, except for the time that an episode took."""
    assert type(ours) is type(theirs)
    if isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for key in set(theirs) - ({"t"} if set(theirs) >= {"r", "l", "t"} else set()):
            assert_alike(ours[key], theirs[key])
    elif isinstance(theirs, (list, tuple)):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_alike(one, other)
    elif isinstance(theirs, np.ndarray):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        assert np.array_equal(ours, theirs)
    else:
        assert ours == theirs


def actions_at(step: int) -> np.ndarray:
    return np.random.default_rng(step).normal(size=(N_ENVS, 2)).astype(np.float32)


def run_stepper(venv: VecEnv, n_steps: int = N_STEPS) -> list[Any]:
    stepper = Stepper(venv)
    kept: list[Any] = [venv.reset()]
    for step in range(n_steps):
        *others, infos = stepper.step(actions_at(step))
        kept.append((*others, stepper.copy_of(infos)))
    return kept


def run_sb3(venv: VecEnv, n_steps: int = N_STEPS) -> list[Any]:
    return [venv.reset(), *(venv.step(actions_at(step)) for step in range(n_steps))]


def below(venv: Any) -> VecEnv:
    return below(venv.venv) if isinstance(venv, VecEnvWrapper) else venv


def left_in(venv: Any) -> list[Any]:
    """Read what VecEnv and environments have counted, from the outermost layer down."""
    if isinstance(venv, VecNormalize):
        moments = [*venv.obs_rms.values()] if isinstance(venv.obs_rms, dict) else [venv.obs_rms]
        found = [[each.mean, each.var, each.count] for each in [*moments, venv.ret_rms]]
        return [found, venv.returns, venv.old_reward, venv.get_original_obs(), *left_in(venv.venv)]
    if isinstance(venv, VecMonitor):
        return [venv.episode_count, venv.episode_returns, venv.episode_lengths, *left_in(venv.venv)]
    if isinstance(venv, VecEnvWrapper):
        return left_in(venv.venv)
    found = [venv.get_attr("info"), venv.reset_infos]
    if venv.env_is_wrapped(Monitor)[0]:
        found += [venv.env_method(f"get_{name}") for name in ("total_steps", "episode_rewards", "episode_lengths")]
    return found


@pytest.mark.parametrize("kind", [Reusing, Fresh])
@pytest.mark.parametrize(
    ("name", "space"),
    [
        pytest.param(name, space, id=f"{name}-{index}")
        for name, (_, all_spaces) in WRAPPERS.items()
        for index, space in enumerate(all_spaces)
    ],
)
def test_stepping_gives_what_sb3s_vec_envs_give(name, space, kind):
    """Compared at the end: nothing that was given out may have changed meanwhile."""
    wrap = WRAPPERS[name][0]
    if isinstance(space, spaces.Discrete):
        kind = type("Single", (kind,), {"observe": lambda env: env.observation_space.sample()})
    venvs = [wrap(dummy(space, kind, (lambda env: env) if "monitor" in name else Monitor)) for _ in range(2)]
    assert dummy_below(venvs[0]) is below(venvs[0])
    ours, theirs = run_stepper(venvs[0]), run_sb3(venvs[1])
    assert_alike(ours, theirs)
    assert_alike(*map(left_in, venvs))
    ends = [info for step in theirs[1:] for info in step[3] if "episode" in info]
    assert len({info["TimeLimit.truncated"] for info in ends}) == 2
    assert all("terminal_observation" in info for info in ends)


def test_copies_are_made_only_when_they_are_asked_for():
    venv = dummy()
    stepper, envs = Stepper(venv), venv.envs
    venv.reset()
    n_ended = 0
    for step in range(N_STEPS):
        _, _, dones, infos = stepper.step(actions_at(step))
        owned = [info is env.unwrapped.info for info, env in zip(infos, envs, strict=True)]
        assert owned == [not done for done in dones]
        assert not any(info is env.unwrapped.info for info, env in zip(stepper.copy_of(infos), envs, strict=True))
        assert infos is not venv.buf_infos
        n_ended += dones.sum()
    assert 0 < n_ended < N_ENVS * N_STEPS


def test_what_is_written_to_copies_does_not_reach_the_environments():
    venvs = [dummy(wrap=Monitor), dummy(wrap=Monitor)]
    stepper = Stepper(venvs[0])
    for venv in venvs:
        venv.reset()
    for step in range(N_STEPS):
        observations, rewards, dones, infos = stepper.step(actions_at(step))
        copies = stepper.copy_of(infos)
        theirs = venvs[1].step(actions_at(step))
        assert_alike((observations, rewards, dones, copies), theirs)
        for info in copies:
            info["log"].append("mine")
            info["reward"] = None
        for array in (observations, rewards, dones):
            array[:] = 1
    assert_alike(*map(left_in, venvs))


class Counting(DummyVecEnv):
    """A user's own."""

    n_calls = 0

    def step_wait(self) -> Any:
        self.n_calls += 1
        return super().step_wait()


class Subclass(DummyVecEnv):
    """Somebody else's, although it changes nothing here."""


class OwnNormalize(VecNormalize):
    """A user's own, which keeps what it is given."""

    def step_wait(self) -> Any:
        self.venv.n_calls = getattr(self.venv, "n_calls", 0) + 1
        return super().step_wait()


class Keeping(VecEnvWrapper):
    """A wrapper of the user's that keeps all infos."""

    def reset(self) -> Any:
        self.kept: list[Any] = []
        return self.venv.reset()

    def step_wait(self) -> Any:
        stepped = self.venv.step_wait()
        self.kept.append(stepped[3])
        return stepped


class Bare(BareVecEnv):
    """No DummyVecEnv at all."""

    def __init__(self) -> None:
        super().__init__(N_ENVS, VECTOR, BOX_ACTION)
        self.inner = dummy()

    def reset(self) -> Any:
        return self.inner.reset()

    def step_wait(self) -> Any:
        return self.inner.step(self.actions)


def patched(name: str, owner: Callable[[Any], Any] = lambda venv: venv, wrap: Any = lambda venv: venv) -> Callable[[], VecEnv]:
    """Hide a method behind one of the same effect."""

    def make() -> VecEnv:
        venv = wrap(dummy())
        target = owner(venv)
        original = getattr(target, name)
        setattr(target, name, original)
        return venv

    return make


UNKNOWN: dict[str, Callable[[], VecEnv]] = {
    "own step_wait": lambda: dummy(of=Counting),
    "subclass": lambda: dummy(of=Subclass),
    "subclassed wrapper": lambda: OwnNormalize(dummy()),
    "wrapper of the user's": lambda: Keeping(dummy()),
    "wrapper of the user's below SB3's": lambda: VecMonitor(Keeping(dummy())),
    "wrapper of SB3's that is not listed": lambda: VecExtractDictObs(dummy(BOXES), "vector"),
    "no DummyVecEnv": Bare,
    "no DummyVecEnv below a wrapper": lambda: VecNormalize(Bare()),
    **{f"patched {name}": patched(name) for name in ("step_wait", "step_async", "_save_obs", "_obs_from_buf", "reset")},
    "patched wrapper": patched("step_wait", wrap=VecNormalize),
    "patched below a wrapper": patched("step_wait", lambda venv: venv.venv, VecMonitor),
}


@pytest.mark.parametrize("make", UNKNOWN.values(), ids=UNKNOWN)
def test_whatever_is_not_exactly_sb3s_is_called_as_it_is(make):
    ours, theirs = make(), make()
    assert dummy_below(ours) is None
    assert_alike(run_stepper(ours), run_sb3(theirs))
    stepper = Stepper(ours)
    infos = stepper.step(actions_at(0))[3]
    assert stepper.copy_of(infos) is infos


@pytest.mark.parametrize("wrap", [lambda venv: venv, VecMonitor], ids=["bare", "wrapped"])
def test_an_own_step_wait_is_really_called(wrap):
    venv = dummy(of=Counting)
    run_stepper(wrap(venv))
    assert venv.n_calls == N_STEPS


@pytest.mark.parametrize("name", ["step_wait", "_obs_from_buf"])
def test_a_patched_class_is_called_as_it_is(monkeypatch, name):
    calls, original = [], getattr(DummyVecEnv, name)
    monkeypatch.setattr(DummyVecEnv, name, lambda venv: calls.append(None) or original(venv))
    run_stepper(dummy())
    assert len(calls) == N_STEPS + (name == "_obs_from_buf")  # once more for the reset


def test_a_patch_set_between_two_steps_is_called_and_stays():
    venv = dummy()
    stepper, calls = Stepper(venv), []
    venv.reset()
    stepper.step(actions_at(0))
    venv.step_wait = lambda: calls.append(None) or DummyVecEnv.step_wait(venv)
    for step in (1, 2):
        stepper.step(actions_at(step))
    assert len(calls) == 2
    assert "step_wait" in vars(venv)


@pytest.mark.parametrize("name", ["normalize_obs", "normalize_reward", "step_wait"])
def test_a_patch_set_on_a_wrapper_between_two_steps_is_called(name):
    venv = VecNormalize(dummy())
    stepper, calls = Stepper(venv), []
    venv.reset()
    stepper.step(actions_at(0))
    original = getattr(venv, name)
    setattr(venv, name, lambda *arguments: calls.append(None) or original(*arguments))
    stepper.step(actions_at(1))
    assert len(calls) == 1


class Failing(Reusing):
    """Fails at its fourth step, once."""

    def step(self, action: np.ndarray) -> Any:
        if self.n_steps == 3 and not self.info.get("failed"):
            self.info["failed"] = True
            raise self.error
        return super().step(action)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("wrap", [lambda venv: venv, all_around], ids=["bare", "wrapped"])
def test_an_error_leaves_the_vec_env_as_it_was(wrap, error):
    space, kind = BOXES, type("Failing", (Failing,), {"error": error})
    venv = wrap(dummy(space, kind))
    bottom = below(venv)
    with pytest.raises(error):
        run_stepper(venv)
    assert "step_wait" not in vars(bottom)
    assert dummy_below(venv) is bottom
    assert [info is env.info for info, env in zip(venv.step(actions_at(0))[3], bottom.envs, strict=True)] == [False] * N_ENVS


def test_nothing_of_a_step_is_left_on_the_vec_env():
    venv = all_around(dummy(BOXES))
    before = set(vars(below(venv)))
    run_stepper(venv)
    assert set(vars(below(venv))) - before == {"actions"}


def test_two_threads_step_their_own_vec_envs():
    found: dict[int, Any] = {}
    barrier = threading.Barrier(2)

    def work(index: int) -> None:
        venv = VecMonitor(dummy())
        barrier.wait()
        found[index] = run_stepper(venv, 200)

    run_together(*(partial(work, index) for index in range(2)))
    theirs = run_sb3(VecMonitor(dummy()), 200)
    assert_alike(found[0], theirs)
    assert_alike(found[1], theirs)


def test_a_step_by_another_thread_in_the_middle_of_a_step_makes_neither_fail():
    """SB3's own VecEnv does not fail either, although the actions are whoever's came last."""
    is_inside, may_go_on = threading.Event(), threading.Event()

    class Pausing(Reusing):
        def step(self, action: np.ndarray) -> Any:
            if threading.current_thread().name == "slow":
                is_inside.set()
                assert may_go_on.wait(10)
            return super().step(action)

    venv = dummy(kind=Pausing)
    venv.reset()
    first = Stepper(venv)
    errors: list[BaseException] = []

    def slow() -> None:
        try:
            Stepper(venv).step(actions_at(0))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=slow, name="slow")
    thread.start()
    assert is_inside.wait(10)
    first.step(actions_at(1))  # begins after the other one
    Stepper(venv).step(actions_at(2))
    may_go_on.set()
    thread.join()
    assert errors == []
    assert "step_wait" not in vars(venv)


def run_together(*functions: Callable[[], None]) -> None:
    threads = [threading.Thread(target=function) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("kind", [Reusing, Fresh])
@pytest.mark.parametrize("name", ["nothing", "normalize", "monitor with keywords"])
@pytest.mark.parametrize("space", [VECTOR, OBSERVED], ids=["vector", "dict"])
def test_the_fast_loop_collects_from_them_what_sb3s_collects(space, name, kind):
    def make() -> TRPO:
        wrap = (lambda env: env) if "monitor" in name else Monitor
        return model_of(WRAPPERS[name][0](dummy(space, kind, wrap)))

    ours, theirs = both(make, n_rollouts=2)
    assert_same(ours, theirs)
    assert len(episodes(ours.model)[0]) > 10


def order_of_calls(venv: VecEnv) -> list[str]:
    """Step once, and record in which order actions are sent, other work is done and results are received."""
    calls: list[str] = []
    stepper = Stepper(venv)
    bottom = innermost(venv)
    remote = bottom.remotes[0]

    class Noting:
        def send(self, message: Any) -> None:
            calls.append("send")
            remote.send(message)

        def recv(self) -> Any:
            calls.append("receive")
            return remote.recv()

    venv.reset()
    bottom.remotes = (Noting(),)
    stepper.step(np.zeros((1, 2), np.float32), meanwhile=lambda: calls.append("meanwhile"))
    bottom.remotes = (remote,)
    return calls


@pytest.mark.parametrize("wrap", [lambda venv: venv, VecNormalize, VecMonitor], ids=["bare", "normalized", "monitor"])
def test_environments_in_other_processes_step_while_the_main_process_goes_on(wrap):
    venv = wrap(SubprocVecEnv([partial(Fresh, VECTOR, 0)]))
    try:
        assert order_of_calls(venv) == ["send", "meanwhile", "receive"]
    finally:
        venv.close()


@pytest.mark.parametrize("wrap", [lambda venv: venv, VecNormalize, VecMonitor], ids=["bare", "normalized", "monitor"])
def test_environments_of_this_process_step_after_what_has_to_be_kept_is_kept(wrap):
    venv = wrap(dummy())
    venv.reset()
    kept: list[str] = []
    innermost(venv).envs[0].observe = lambda: kept.append("stepped") or VECTOR.sample()
    Stepper(venv).step(actions_at(0), meanwhile=lambda: kept.append("kept"))
    assert kept[:2] == ["kept", "stepped"]
