"""Hybrid action spaces, environments that take them, and the joint KL from torch's own distributions."""

from __future__ import annotations

from copy import copy
from itertools import product
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from helpers.contract_tools import assign, observations, parameters
from stable_baselines3.common.distributions import BernoulliDistribution, CategoricalDistribution, MultiCategoricalDistribution
from torch.distributions import kl_divergence

from sb3_trpo import TRPO
from sb3_trpo.distributions.product import Activity, ProductDistribution

PAIR = spaces.Tuple((spaces.Discrete(3), spaces.Box(-1.0, 1.0, (2,))))
PLATFORM = spaces.Tuple((spaces.Discrete(3), spaces.Tuple([spaces.Box(-1.0, 1.0, (1,))] * 3)))
NESTED = spaces.Dict(
    {
        "kind": spaces.Discrete(3, start=-1),
        "aim": spaces.Tuple((spaces.Box(-2.0, 3.0, (2,)), spaces.MultiBinary(2))),
        "grid": spaces.MultiDiscrete([[2], [3]]),
        "power": spaces.Box(-1.0, 1.0, (), np.float64),
        "level": spaces.Box(0, 5, (1, 2), np.int32),
    }
)
"""Every kind of part, at two levels, with a start, a table, a number without an axis, and integers."""
NESTED_PARAMETERS = {"kind": [["aim", "power"], "aim/0", None]}
PLATFORM_PARAMETERS = {0: ["1/0", "1/1", "1/2"]}
CASES: dict[str, tuple[spaces.Space[Any], dict[Any, Any] | None]] = {
    "pair": (PAIR, None),
    "platform": (PLATFORM, PLATFORM_PARAMETERS),
    "nested": (NESTED, None),
    "nested, parameters": (NESTED, NESTED_PARAMETERS),
    "choices alone": (spaces.Tuple((spaces.Discrete(2), spaces.MultiBinary(3))), None),
}


class HybridEnv(gym.Env[np.ndarray, Any]):
    """
    Random observations of three numbers.

    The reward is the mean of all numbers in the action, which must be in the space, down to types and shapes.
    """

    def __init__(self, action_space: spaces.Space[Any] = NESTED) -> None:
        self.observation_space = spaces.Box(-1.0, 1.0, (3,))
        self.action_space = action_space
        self.n_steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.n_steps = 0
        return self._observation(), {}

    def _observation(self) -> np.ndarray:
        return self.np_random.uniform(-1.0, 1.0, 3).astype(np.float32)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), f"{action} is not in {self.action_space}"
        self.n_steps += 1
        reward = float(np.mean(np.concatenate([np.ravel(leaf) for leaf in leaves(action)])))
        return self._observation(), reward, self.n_steps % 7 == 0, self.n_steps >= 10, {}


class Aim(gym.Env[np.ndarray, Any]):
    """
    Hit a target by one of two throws, each with a strength of its own; the other throw's strength changes nothing.

    Near targets (x < 0) are hit by the first throw, at strength ``-x``; far ones by the second, at strength ``x - 1``. The
    reward is 1 less the square of the error, or 0 for the wrong throw.
    """

    observation_space = spaces.Box(-1.0, 1.0, (1,))
    action_space = spaces.Dict(
        {"near": spaces.Box(-1.0, 1.0, (1,)), "far": spaces.Box(-1.0, 1.0, (1,)), "throw": spaces.Discrete(2)}
    )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.target = self.np_random.uniform(-1.0, 1.0, 1).astype(np.float32)
        return self.target.copy(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        is_far = self.target[0] >= 0.0
        wanted, strength = (self.target - 1.0, action["far"]) if is_far else (-self.target, action["near"])
        reward = float(1.0 - (wanted - strength)[0] ** 2) if bool(action["throw"]) == is_far else 0.0
        return self.target.copy(), reward, True, False, {}


def leaves(action: Any) -> list[Any]:
    """List the values of all parts."""
    if isinstance(action, dict):
        return [leaf for each in action.values() for leaf in leaves(each)]
    return [leaf for each in action for leaf in leaves(each)] if isinstance(action, tuple) else [action]


THROWS = {"throw": ["near", "far"]}


def torch_parts(distribution: ProductDistribution) -> list[list[Any]]:
    """List torch's distributions of each part."""
    inner = [part.distribution for part in distribution.parts]
    return [each if isinstance(each, list) else [each] for each in inner]


def true_kl(old: ProductDistribution, new: ProductDistribution) -> th.Tensor:
    """
    Compute the joint KL(old || new) from its definition: the mean over all options of all choices that decide about others.

    :return: shape ``(n,)``
    """
    divergences = [
        sum(each.flatten(1).sum(1) if each.dim() > 1 else each for each in map(kl_divergence, *pair))
        for pair in zip(torch_parts(old), torch_parts(new), strict=True)
    ]
    return expected(old, divergences)


def true_log_prob(distribution: ProductDistribution, actions: th.Tensor) -> th.Tensor:
    """
    Add up the log-probabilities of the parts that are active in each action, by torch's own distributions.

    :return: shape ``(n,)``
    """
    numbers, total = th.split(actions, distribution.n_numbers, dim=1), th.zeros(len(actions))
    for own, inner, activity in zip(numbers, torch_parts(distribution), distribution.activities, strict=True):
        values = own.T if isinstance(inner[0], th.distributions.Categorical) else [own]
        terms = sum(each.log_prob(value).reshape(len(own), -1).sum(1) for each, value in zip(inner, values, strict=True))
        if activity is not None:
            terms = terms * th.tensor(activity.options)[numbers[activity.choice][:, 0].long()]
        total = total + terms
    return total


@th.no_grad()
def measured_kl(model: TRPO, old: dict[str, th.Tensor]) -> float:
    """Measure the mean joint KL(old || current) over the rollout from its definition."""
    seen, new = observations(model), parameters(model.policy)
    assign(model.policy, old)
    before = copy(model.policy.get_distribution(seen))
    assign(model.policy, new)
    return float(true_kl(before, model.policy.get_distribution(seen)).mean())


def expected(distribution: ProductDistribution, terms: list[Any]) -> th.Tensor:
    """Add up a term of each part where it is active, in the mean over the options of the choices."""
    parts = torch_parts(distribution)
    total = th.zeros_like(terms[0])
    for term, activity in zip(terms, distribution.activities, strict=True):
        if activity is None:
            total = total + term
            continue
        (choice,) = parts[activity.choice]
        for option, is_active in enumerate(activity.options):
            total = total + (choice.probs[:, option] * term if is_active else 0.0)
    return total


ACTIVITIES = (None, Activity(0, (True, False, True)), Activity(0, (False, True, False)), None)


def of_choices(seed: int, activities: Any = ACTIVITIES, n: int = 4) -> ProductDistribution:
    """Make a product whose actions can be listed: three options, two, 1 x 3, and a bit."""
    parts = (
        CategoricalDistribution(3),
        CategoricalDistribution(2),
        MultiCategoricalDistribution([1, 3]),
        BernoulliDistribution(1),
    )
    made = ProductDistribution(parts, [1, 1, 2, 1], activities)
    made.proba_distribution_net(1)
    output = th.randn((n, 10), generator=th.Generator().manual_seed(seed), dtype=th.float64)
    return made.proba_distribution(output)


def outcomes(distribution: ProductDistribution) -> th.Tensor:
    """List one action for each outcome: of parts that are not active, the first alone."""
    found = []
    for action in product(range(3), range(2), [0], range(3), range(2)):
        numbers = th.split(th.tensor(action), distribution.n_numbers)
        off = [each is not None and not each.options[action[each.choice]] for each in distribution.activities]
        if not any(is_off and own.any() for is_off, own in zip(off, numbers, strict=True)):
            found.append(action)
    return th.tensor(found, dtype=th.float64)


def log_probs(distribution: ProductDistribution, actions: th.Tensor, n: int = 4) -> th.Tensor:
    """Give log p of each action in each state, shape ``(n_actions, n)``."""
    return th.stack([distribution.log_prob(action.expand(n, -1)) for action in actions])
