"""Rollouts collected by our loop and by SB3's, compared."""

from __future__ import annotations

import copy
from collections.abc import Callable, Container
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from helpers.envs import IMAGE, VECTOR, RandomEnv
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_trpo import TRPO, MlpPolicy, MultiInputPolicy
from sb3_trpo.rollouts.collection.fast_collector import FastCollector

N_STEPS = 24
ARRAYS = ("actions", "rewards", "episode_starts", "values", "log_probs", "advantages", "returns")
EACH_STEP = range(1, 10**6)
EXACT = ("episode_starts",)
PER_STEP = ("obs_tensor", "actions", "values", "log_probs", "clipped_actions", "new_obs", "rewards", "dones", "n_steps")
UNEVEN = spaces.Box(-0.5, np.array([0.2, 1e9], np.float32), (2,))
PAIR = spaces.Dict(far=spaces.Box(-1.0, 1.0, (2, 2)), near=VECTOR, choice=spaces.Discrete(3), bits=spaces.MultiBinary(2))
ACTIONS = {
    "box": UNEVEN,
    "one number": spaces.Box(-1.0, 1.0, (1,)),
    "box without dimensions": spaces.Box(-1.0, 1.0, ()),
    "matrix": spaces.Box(-1.0, 1.0, (2, 3)),
    "doubles": spaces.Box(-1.0, 1.0, (2,), np.float64),
    "choice": spaces.Discrete(4),
    "choices": spaces.MultiDiscrete([2, 3, 4]),
    "bits": spaces.MultiBinary(3),
}
OBSERVATIONS = {
    "doubles": spaces.Box(-1.0, 1.0, (3,), np.float64),
    "integers": spaces.Box(-5, 5, (3,), np.int64),
    "bytes": spaces.Box(0, 255, (3,), np.uint8),
    "matrix": spaces.Box(-1.0, 1.0, (2, 3)),
    "choice": spaces.Discrete(4),
    "choices": spaces.MultiDiscrete([2, 3]),
    "bits": spaces.MultiBinary(3),
    "vectors": PAIR,
    "image, flattened": IMAGE,
}


class Episodes(RandomEnv):
    """Episodes end by themselves now and then, or are cut off after five steps."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.n_steps += 1
        chance, noise = self.observation_space.np_random.random(2)
        over, cut_off = bool(chance < 0.1), self.n_steps >= 5
        info = {"is_success": bool(noise < 0.5)} if over or cut_off else {}
        return self.observation_space.sample(), float(np.mean(action) + noise), over, cut_off, info


def several(n_envs: int, observation_space: spaces.Space = VECTOR, action_space: spaces.Space | None = None) -> VecEnv:
    def make() -> gym.Env:
        env = Episodes(observation_space, action_space)
        env.observation_space.seed(0)  # where its draws come from until it is reset with a seed
        return Monitor(env)

    return DummyVecEnv([make] * n_envs)


def model_of(env: gym.Env | VecEnv, policy: str | None = None, n_steps: int = N_STEPS, **settings: Any) -> TRPO:
    """Build a model whose policy is far from the initial one, which is all but uniform."""
    policy = policy or ("MultiInputPolicy" if isinstance(env.observation_space, spaces.Dict) else "MlpPolicy")
    settings = {"seed": 0, "batch_size": n_steps, "device": "cpu", "policy_kwargs": {"net_arch": [16, 16]}} | settings
    model = TRPO(policy, env, n_steps=n_steps, **settings)
    with th.no_grad():
        model.policy.action_net.weight.mul_(50)
    return model


def wrong(reason: str) -> pytest.MarkDecorator:
    """Mark what our loop does not do as SB3's does."""
    return pytest.mark.xfail(strict=True, reason=reason)


def cases(named: dict[str, Any], known: dict[tuple[str, ...], str]) -> list[Any]:
    """Give the cases, those known to be wrong marked."""
    reasons = {name: reason for names, reason in known.items() for name in names}
    return [
        pytest.param(case, id=name, marks=[wrong(reasons[name])] if name in reasons else []) for name, case in named.items()
    ]


class Trace:
    """
    What is left after some rollouts by one of the loops.

    The callback is called as ``learn`` would; training between the rollouts is a change of all weights.
    """

    def __init__(
        self, make: Callable[[], TRPO], by_sb3: bool, callback: BaseCallback | None = None, n_rollouts: int = 1
    ) -> None:
        self.model = model = make()
        _, root = model._setup_learn(10**6, callback)
        root.on_training_start({"self": model}, {})
        self.buffers, self.complete, self.n_quick = [], [], 0
        with pytest.MonkeyPatch.context() as patch:
            collect = FastCollector.collect
            patch.setattr(FastCollector, "collect", lambda *arguments: self._count() or collect(*arguments))
            if by_sb3:
                patch.setattr(FastCollector, "prepare", lambda *_: None)
            for _ in range(n_rollouts):
                self.complete.append(model.collect_rollouts(model.env, root, model.rollout_buffer, model.n_steps))
                self.buffers.append(copy.deepcopy(model.rollout_buffer))
                scale_weights(model)
        self.generators = th.get_rng_state().numpy(), np.random.get_state()[1], np.array(np.random.get_state()[2:])

    def _count(self) -> None:
        self.n_quick += 1


class GeneralMlp(MlpPolicy):
    """A policy that the fast loop does not know."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


class GeneralMultiInput(MultiInputPolicy):
    """The same for Dict observations."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


def policy_for(is_fast: bool, observation_space: spaces.Space = VECTOR) -> type[MlpPolicy | MultiInputPolicy]:
    """Choose a policy that the fast loop knows, or one that SB3's loop has to collect with."""
    if isinstance(observation_space, spaces.Dict):
        return MultiInputPolicy if is_fast else GeneralMultiInput
    return MlpPolicy if is_fast else GeneralMlp


def scale_weights(model: TRPO) -> None:
    with th.no_grad():
        for parameter in model.policy.parameters():
            parameter.mul_(1.1)


def both(
    make: Callable[[], TRPO], callback: Callable[[], BaseCallback] | None = None, n_rollouts: int = 1, quick: bool = True
) -> tuple[Trace, Trace]:
    """Collect by our loop and by SB3's."""
    ours, theirs = (Trace(make, by_sb3, callback and callback(), n_rollouts) for by_sb3 in (False, True))
    assert (ours.n_quick, theirs.n_quick) == (n_rollouts if quick else 0, 0)
    return ours, theirs


def assert_close(ours: Any, theirs: Any, tolerance: float = 1e-5) -> None:
    """Compare arrays, tensors, and dicts of them, relative to the largest entry."""
    if isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for key, value in theirs.items():
            assert_close(ours[key], value, tolerance)
        return
    assert type(ours) is type(theirs)
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    assert np.abs(ours.astype(float) - theirs).max(initial=0.0) <= tolerance * np.abs(theirs.astype(float)).max(initial=0.0)


def assert_same_buffers(ours: RolloutBuffer, theirs: RolloutBuffer, names: tuple[str, ...] = ARRAYS) -> None:
    assert (ours.pos, ours.full) == (theirs.pos, theirs.full)
    assert_close(ours.observations, theirs.observations)
    for name in names:
        tolerance = 0.0 if name in EXACT else 1e-6 if name == "rewards" else 1e-5
        assert_close(getattr(ours, name), getattr(theirs, name), tolerance)


def assert_same(ours: Trace, theirs: Trace) -> None:
    for one, other in zip(ours.buffers, theirs.buffers, strict=True):
        assert_same_buffers(one, other)
    assert ours.complete == theirs.complete
    assert ours.model.num_timesteps == theirs.model.num_timesteps
    (ended, successes), (their_ended, their_successes) = episodes(ours.model), episodes(theirs.model)
    assert_close(np.array(ended, float), np.array(their_ended, float))
    assert successes == their_successes
    assert_close(ours.model._last_obs, theirs.model._last_obs)
    assert_close(ours.model._last_episode_starts, theirs.model._last_episode_starts, 0.0)
    assert all(np.array_equal(*pair) for pair in zip(ours.generators, theirs.generators, strict=True))


def episodes(model: TRPO) -> tuple[list[Any], list[Any]]:
    return [(info["r"], info["l"]) for info in model.ep_info_buffer], list(model.ep_success_buffer)


class Intervening(BaseCallback):
    """Does something at some steps; goes on if that gives nothing."""

    def __init__(self, act: Callable[[Intervening], Any], at: Container[int] = (4, 9, 10)) -> None:
        super().__init__()
        self.act, self.at = act, at

    def _on_step(self) -> bool:
        return self.n_calls not in self.at or self.act(self) is not False


class AtStart(BaseCallback):
    """Does something when a rollout starts."""

    def __init__(self, act: Callable[[BaseCallback], Any]) -> None:
        super().__init__()
        self.act = act

    def _on_rollout_start(self) -> None:
        self.act(self)

    def _on_step(self) -> bool:
        return True
