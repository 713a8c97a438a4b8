"""
The expected cost of an episode, estimated for the policy that has just acted.

The average over episodes that have ended is late: with episodes of 1,000 steps and rollouts of 512 in each environment, most
of what they hold was done by earlier policies. So the estimate is

    J_C = T * mean cost of a step,

where T is the mean length of an episode. Over a long time both sides are equal, since an episode costs its length times the
average cost of its steps (the renewal-reward theorem; Ross 2014, Introduction to Probability Models, Proposition 7.3). The
second factor uses every step of the newest rollout, whether its episode has ended or not. T changes slowly and is taken from
the last episodes that have ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

N_LENGTHS = 10
"""Number of ended episodes whose lengths are averaged, if the rollout itself has fewer."""


class StepCosts(NamedTuple):
    """
    What the steps of a rollout cost, of all ranks together.

    :param n_steps: number of steps
    :param totals: their cost, one number for each cost
    :param duration: steps of each environment
    """

    n_steps: float
    totals: tuple[float, ...]
    duration: int


def mean_length(recent: Sequence[int], underway: Sequence[float]) -> float:
    """
    Estimate T.

    :param recent: lengths of the last episodes that have ended
    :param underway: lengths so far of the present ones, which are at least as long
    :return: the mean of the former; if no episode has ended yet, of the latter
    """
    return float(np.mean(recent if len(recent) else underway))


def newest(lengths: Sequence[int], n_new: int) -> list[int]:
    """
    Choose the lengths to average.

    :param lengths: lengths of episodes, in the order in which they ended
    :param n_new: number of those that ended in the newest rollout
    :return: these, or the last :data:`N_LENGTHS` if they are fewer
    """
    return [*lengths[-max(n_new, N_LENGTHS) :]]


def covering(rollouts: Sequence[StepCosts], length: float) -> list[StepCosts]:
    """
    Choose the rollouts to average over: enough for one episode.

    Environments that are reset together all are at the same phase of an episode. A rollout that is shorter than an episode may
    see only its cheap part.

    :param rollouts: the last rollouts, the newest last
    :param length: T
    :return: the newest, and earlier ones while these are together shorter than an episode
    """
    n = 1
    while n < len(rollouts) and sum(each.duration for each in rollouts[-n:]) < length:
        n += 1
    return [*rollouts[-n:]]


def episode_costs(rollouts: Sequence[StepCosts], length: float) -> np.ndarray:
    """
    Estimate J_C.

    :param rollouts: the result of :func:`covering`
    :param length: T
    :return: one number for each cost
    """
    totals = np.sum([each.totals for each in rollouts], axis=0)
    costs: np.ndarray = length * totals / sum(each.n_steps for each in rollouts)
    return costs
