"""States of environments, encoded, sent as through a checkpoint, and restored."""

from __future__ import annotations

import collections
import json
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv

from sb3_trpo.checkpoint.codecs.codec import Codecs, Decoder, Encoded, Encoder
from sb3_trpo.checkpoint.codecs.environments import EnvState, decode_env, encode_env
from sb3_trpo.checkpoint.codecs.registry import CODECS, REPLAYED
from sb3_trpo.checkpoint.codecs.simulators.episode_recorder import start_recording

CLOCKS = frozenset(("t",))
"""Seconds that monitors report."""
LIMIT = 12
MOMENTS = {"just after a reset": 0, "mid-episode": 5, "just before the time limit": LIMIT - 1}


def is_same(one: Any, other: Any) -> bool:
    """Check whether two values are the same to the last bit, and of the same types."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return [*one] == [*other] and all(key in CLOCKS or is_same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple, collections.deque)):
        return len(one) == len(other) and all(map(is_same, one, other))
    if isinstance(one, (np.ndarray, np.generic)):
        return (one.shape, one.dtype, one.tobytes()) == (other.shape, other.dtype, other.tobytes())
    if isinstance(one, th.Tensor):
        return one.dtype == other.dtype and th.equal(one, other)
    return repr(one) == repr(other)


def get_state(env: gym.Env, codecs: Codecs = CODECS) -> EnvState:
    """Encode an env in this process."""
    return encode_env(env, Encoder(codecs))


def set_state(env: gym.Env, state: EnvState, codecs: Codecs = CODECS) -> None:
    """Restore an env in this process."""
    decode_env(env, state.encoded, Decoder(codecs, state.arrays))


def sent(state: EnvState) -> EnvState:
    """Send a state through JSON and bytes, as a checkpoint does."""
    arrays = {name: np.frombuffer(each.tobytes(), each.dtype).reshape(each.shape) for name, each in state.arrays.items()}
    return EnvState(json.loads(json.dumps(state.encoded, allow_nan=False)), arrays, dict(state.unsupported))


def transfer(one: gym.Env, other: gym.Env, codecs: Codecs = CODECS) -> None:
    """Bring an env into the state of another, as a checkpoint does."""
    state = get_state(one, codecs)
    assert state.unsupported == {}
    set_state(other, sent(state), codecs)


def transfer_vec(one: VecEnv, other: VecEnv) -> None:
    """Bring a vectorized env into the state of another, as a checkpoint does."""
    state = record_of(one)
    assert state.unsupported == {}
    assert restore(other, sent(state)) == []


def roam(env: gym.Env, n_steps: int, seed: int) -> gym.Env:
    """Reset an env and take random steps in it."""
    env.reset(seed=seed)
    env.action_space.seed(seed)
    for _ in range(n_steps):
        *_, terminated, truncated, _ = env.step(env.action_space.sample())
        if terminated or truncated:
            env.reset()
    return env


def stay_up(env: gym.Env, n_steps: int, seed: int) -> gym.Env:
    """Reset an env until as many steps end no episode."""
    env.action_space.seed(seed)
    still = [
        n % 2 if isinstance(env.action_space, spaces.Discrete) else np.zeros(env.action_space.shape) for n in range(n_steps)
    ]
    env.reset(seed=seed)
    for _ in range(200):
        if not any(any(env.step(action)[2:4]) for action in still):
            return env
        env.reset()
    raise AssertionError("each episode ended too soon")


def assert_alike(one: gym.Env, other: gym.Env, n_steps: int) -> int:
    """Step two envs, each by the actions that its own action space draws, and count the resets."""
    n_resets = 0
    for n in range(n_steps):
        actions = one.action_space.sample(), other.action_space.sample()
        assert is_same(*actions), f"drawn in step {n}"
        steps = one.step(actions[0]), other.step(actions[1])
        assert is_same(*steps), f"step {n}"
        if steps[0][2] or steps[0][3]:
            assert is_same(one.reset(), other.reset()), f"reset after step {n}"
            n_resets += 1
    return n_resets


def record_of(vec_env: VecEnv) -> EnvState:
    encoder = Encoder(CODECS)
    node = encoder.encode(vec_env, "env")
    return EnvState(node, encoder.arrays, encoder.unsupported)


def restore(vec_env: VecEnv, state: EnvState) -> list[str]:
    decoder = Decoder(CODECS, state.arrays)
    assert decoder.decode(state.encoded, vec_env, "env") is vec_env
    return decoder.failures


def replayed_part(state: EnvState) -> Encoded:
    """Find what was recorded of the env itself, inside its wrappers."""
    node = state.encoded
    while "replayed" not in node:
        node = node["state"]["env"]
    return node


def changed(state: EnvState, **parts: Any) -> EnvState:
    """Change parts of what was recorded of the env itself."""
    node = replayed_part(state)
    node |= {name: value for name, value in parts.items() if name in node}
    for name, value in parts.items():
        if name not in node:
            state.arrays[node[name.removeprefix("array_")]] = value
    return state


def recorded(env: gym.Env) -> gym.Env:
    """Record the episodes of an environment, to replay them."""
    start_recording(env, REPLAYED)
    return env


def lander(**arguments: Any) -> gym.Env:
    """Make a LunarLander whose episodes are recorded."""
    pytest.importorskip("Box2D")
    return recorded(Monitor(gym.make("LunarLander-v3", **arguments)))
