"""
Action masks: random ones, an environment that remembers its own, and a dense float64 policy over the allowed options alone.

The dense policy has explicit layers, and a softmax over nothing but what is allowed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from helpers.envs import VECTOR, RandomEnv
from helpers.oracle import SMALL
from helpers.recurrent_tools import options_of
from sb3_contrib.common.maskable.buffers import MaskableRolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_trpo import TRPO
from sb3_trpo.maskable import MaskableTRPO

ACTOR = (
    "mlp_extractor.policy_net.0.weight",
    "mlp_extractor.policy_net.0.bias",
    "action_net.weight",
    "action_net.bias",
)
"""The parameters of a policy of one hidden layer of ``WIDTH`` units, in the order of the oracle's theta."""
WIDTH = SMALL["net_arch"][0]
SPACES = {"choice": spaces.Discrete(5), "choices": spaces.MultiDiscrete([3, 2, 4]), "bits": spaces.MultiBinary(3)}
each_space = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
each_loop = pytest.mark.parametrize("loop", ["ours", "SB3's"])


def random_masks(generator: np.random.Generator, sizes: list[int], n: int, share: float = 0.5) -> np.ndarray:
    """Allow each option with probability ``share``, and one of each choice in any case."""
    masks = generator.random((n, sum(sizes))) < share
    for start, size in zip(np.cumsum([0, *sizes[:-1]]), sizes, strict=True):
        masks[np.arange(n), start + generator.integers(size, size=n)] = True
    return masks


def are_allowed(masks: np.ndarray, actions: np.ndarray, sizes: list[int]) -> np.ndarray:
    """Look up the flag of every choice made; both have one row per transition."""
    places = np.cumsum([0, *sizes[:-1]]) + actions.astype(int).reshape(len(masks), -1)
    return np.take_along_axis(masks.astype(bool), places, axis=1)


def unpack(theta: th.Tensor, n_inputs: int, n_options: int) -> list[th.Tensor]:
    shapes = [(WIDTH, n_inputs), (WIDTH,), (n_options, WIDTH), (n_options,)]
    return [piece.reshape(shape) for piece, shape in zip(theta.split([int(np.prod(s)) for s in shapes]), shapes, strict=True)]


def dense_policy(theta: th.Tensor, observations: th.Tensor, masks: th.Tensor, sizes: list[int]) -> th.Tensor:
    """Log-probabilities of all options, shape ``(n, n_options)``; minus infinity for those that are not allowed."""
    first, first_bias, last, last_bias = unpack(theta, observations.shape[1], sum(sizes))
    logits = th.tanh(observations @ first.T + first_bias) @ last.T + last_bias
    allowed = logits.masked_fill(~masks.bool(), -th.inf)
    return th.cat([choice.log_softmax(1) for choice in allowed.split(sizes, 1)], 1)


def dense_kl(old: th.Tensor, new: th.Tensor) -> th.Tensor:
    p, q = old[old.isfinite()], new[old.isfinite()]
    return (p.exp() * (p - q)).sum() / len(old)


def dense_entropy(policy: th.Tensor) -> th.Tensor:
    p = policy[policy.isfinite()]
    return -(p.exp() * p).sum() / len(policy)


def dense_log_prob(policy: th.Tensor, actions: th.Tensor, sizes: list[int]) -> th.Tensor:
    return policy.gather(1, th.as_tensor(np.cumsum([0, *sizes[:-1]])) + actions.reshape(len(policy), -1).long()).sum(1)


class MaskedEnv(RandomEnv):
    """Allows other options in each state, and remembers what was allowed and done; ``faults`` are masks by step."""

    def __init__(self, action_space: spaces.Space, share: float = 0.5, faults: dict[int, Any] | None = None) -> None:
        super().__init__(VECTOR, action_space)
        self.sizes, self.share, self.faults = options_of(action_space), share, faults or {}
        self.history: list[tuple[np.ndarray, np.ndarray]] = []

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        result = super().reset(**kwargs)
        self.draw()
        return result

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.history.append((self.mask.copy(), np.ravel(action)))
        observation, reward, *_ = super().step(action)
        self.draw()
        is_over = self.observation_space.np_random.random() < 0.1
        return observation, reward, is_over, self.n_steps >= 6, {}

    def draw(self) -> None:
        self.mask = random_masks(self.observation_space.np_random, self.sizes, 1, self.share)[0]

    def action_masks(self) -> Any:
        return self.faults.get(len(self.history), self.mask)


def several(n_envs: int, *arguments: Any, **settings: Any) -> DummyVecEnv:
    return DummyVecEnv([lambda: Monitor(MaskedEnv(*arguments, **settings))] * n_envs)


class OtherBuffer(MaskableRolloutBuffer):
    """Not sb3-contrib's, so that SB3's loop fills it."""


def model_of(env: Any, loop: str = "ours", kind: type[TRPO] = MaskableTRPO, policy: Any = "MlpPolicy", **changes: Any) -> TRPO:
    """Build a model whose policy is far from uniform; count how often SB3's loop is used."""
    options = {"n_steps": 32, "batch_size": 32, "n_critic_updates": 1, "seed": 0, "policy_kwargs": SMALL, "device": "cpu"}
    buffers = {} if loop == "ours" else {"rollout_buffer_class": OtherBuffer}
    model = kind(policy, env, **options | buffers | changes)
    with th.no_grad():
        model.policy.action_net.weight.mul_(100.0)
    general_loop, model.n_general = model._general_loop, 0

    def counted(*arguments: Any) -> bool:
        model.n_general += 1
        return general_loop(*arguments)

    model._general_loop = counted
    return model


def collected(model: TRPO, callback: BaseCallback | None = None) -> Any:
    """Fill the buffer once, by the loop that was asked for."""
    _, root = model._setup_learn(10**6, callback)
    root.on_training_start({"self": model}, {})
    assert model.collect_rollouts(model.env, root, model.rollout_buffer, model.n_steps)
    assert model.n_general == isinstance(model.rollout_buffer, OtherBuffer)
    return model.rollout_buffer


def history(env: Any) -> tuple[np.ndarray, np.ndarray]:
    """Give masks and actions as the environments had them, shape ``(n_steps, n_envs, ...)``."""
    per_env = [zip(*each, strict=True) for each in env.get_attr("history")]
    masks, actions = zip(*((np.stack(masks), np.stack(actions)) for masks, actions in per_env), strict=True)
    return np.stack(masks, axis=1), np.stack(actions, axis=1)


def oracle_inputs(model: TRPO) -> tuple[th.Tensor, th.Tensor, list[int]]:
    """Give what the policy acted on, in float64 and one row per transition, whether SB3 has joined it or not."""
    buffer, sizes = model.rollout_buffer, options_of(model.action_space)
    return (
        th.as_tensor(buffer.observations.reshape(-1, 3).astype(float)),
        th.as_tensor(buffer.action_masks.reshape(-1, sum(sizes))),
        sizes,
    )


def theta_of(model: TRPO) -> th.Tensor:
    named = dict(model.policy.named_parameters())
    return th.cat([named[name].detach().double().flatten() for name in ACTOR])
