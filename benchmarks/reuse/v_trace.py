"""
Advantages and targets of the newest policy, estimated from what earlier policies did: V-trace (arXiv:1802.01561).

All truncation levels are 1. Beside the paper, traces decay with GAE's lambda, as its remark 2 has it.

=======  ================================================================================
V        values of the present critic
rho      ``pi_k(a|s) / pi_b(a|s)``: the newest policy over the one that acted; rho' is the lesser of rho and 1
delta    ``r + gamma V(s_next) - V(s)``; the second term is 0 after the last step of an episode
vs       what the critic is to learn: estimated values of the newest policy
A        advantages of the newest policy
=======  ================================================================================
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Steps(NamedTuple):
    """
    Consecutive steps of some environments.

    :param rewards: shape ``(n_steps, n_envs)``; at a time limit with the discounted value of the last observation added
    :param values: V of each observation, and of the one after the last step, shape ``(n_steps + 1, n_envs)``
    :param ends: whether an episode ended with a step, shape ``(n_steps, n_envs)``
    """

    rewards: np.ndarray
    values: np.ndarray
    ends: np.ndarray


class Estimates(NamedTuple):
    """
    What is estimated of the newest policy, in float64.

    :param advantages: A, shape ``(n_steps, n_envs)``
    :param targets: vs, of the same shape
    """

    advantages: np.ndarray
    targets: np.ndarray


def v_trace(steps: Steps, rho: np.ndarray, gamma: float, gae_lambda: float) -> Estimates:
    """
    Compute, backwards, ``A_t = delta_t + gamma lambda d_{t+1}`` with ``d_t = vs_t - V_t = rho'_t A_t``.

    Where rho is 1 this is GAE with its lambda-returns.

    :param steps: the steps
    :param rho: shape ``(n_steps, n_envs)``
    :param gamma: discount factor
    :param gae_lambda: lambda
    :return: A and vs
    """
    values, goes_on = steps.values.astype(np.float64), 1.0 - steps.ends
    deltas = steps.rewards + gamma * goes_on * values[1:] - values[:-1]
    truncated = np.minimum(1.0, rho)
    advantages, corrections = np.empty_like(deltas), np.zeros_like(values)
    for t in reversed(range(len(deltas))):
        advantages[t] = deltas[t] + gamma * gae_lambda * goes_on[t] * corrections[t + 1]
        corrections[t] = truncated[t] * advantages[t]
    return Estimates(advantages, (values + corrections)[:-1])
