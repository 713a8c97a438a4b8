"""Drawing actions as SB3's distributions do, from the same generator, with fewer calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    Distribution,
    MultiCategoricalDistribution,
)

from sb3_trpo.distributions.floating_point import SPURIOUS, quietly

NAN_ADVICE = (
    "The policy gave NaN where it was to act. If what it saw is finite, its weights are not: load the last good ones, and "
    "lower target_kl or learning_rate."
)
Draw = Callable[[], np.ndarray]
"""Draws actions from whatever the actor's output is when it is called: flat, one row or number per environment."""


def _gaussian(_: Distribution, output: th.Tensor, log_std: th.Tensor) -> Draw:
    noise, log_std = th.empty_like(output), log_std.detach()
    noise_array, mean, live = noise.numpy(), output.numpy(), log_std.numpy()
    seen, std = live.copy(), log_std.exp().numpy()

    def move() -> np.ndarray:
        actions: np.ndarray = mean + noise_array * std
        return actions

    def draw() -> np.ndarray:
        nonlocal seen, std
        if not (live == seen).all():
            seen, std = live.copy(), log_std.exp().numpy()
            if np.isnan(std).any():
                raise ValueError(NAN_ADVICE)
        noise.normal_()
        try:
            return move()
        except SPURIOUS:
            return quietly(move)

    return draw


def choice(_: Distribution, output: th.Tensor, log_std: None) -> Draw:
    """
    Draw for one choice.

    :param output: its logits
    :return: draws from them
    """
    return _race(output)


def choices(distribution: Any, output: th.Tensor, log_std: None) -> Draw:
    """
    Draw for several choices.

    :param distribution: has their numbers of options as ``action_dims``
    :param output: their logits, joined
    :return: draws from them
    """
    races = [_race(part) for part in th.split(output, list(distribution.action_dims), dim=1)]
    return lambda: np.stack([race() for race in races], axis=1)


def _bits(_: Distribution, output: th.Tensor, log_std: None) -> Draw:
    return lambda: th.bernoulli(output.sigmoid()).numpy()


def _race(logits: th.Tensor) -> Draw:
    """
    Draw as ``th.multinomial`` does: option i rings after an exponential time of rate ``p_i``, and the first one wins.

    Its many checks of its argument take longer than that.
    """
    clocks = th.empty_like(logits, memory_format=th.contiguous_format)
    times, scores = clocks.numpy(), logits.numpy()

    def first() -> np.ndarray:
        shifted = scores - scores.max(axis=-1, keepdims=True)  # lest a common offset take digits
        choices: np.ndarray = (shifted - np.log(times)).argmax(axis=-1)
        return choices

    def draw() -> np.ndarray:
        clocks.exponential_()
        try:
            return first()
        except SPURIOUS:
            return quietly(first)

    return draw


DRAWS: dict[type[Distribution], Callable[..., Draw]] = {
    DiagGaussianDistribution: _gaussian,
    CategoricalDistribution: choice,
    MultiCategoricalDistribution: choices,
    BernoulliDistribution: _bits,
}
"""Makes a ``Draw`` from a distribution, the actor's output and the logarithm of the standard deviation, if there is one."""
