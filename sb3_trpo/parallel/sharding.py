"""Each rank's part of a run: its seed, its steps, its part of each minibatch; and what all of them share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch as th

from sb3_trpo.parallel.communicator import Communicator

T = TypeVar("T")


def seed_of_rank(seed: int | None, communicator: Communicator) -> int | None:
    """
    Derive a rank's seed. The first rank keeps the run's, so that a single rank gives the same run as without a launcher.

    :param seed: seed of the run
    :param communicator: connects this rank to the others
    :return: the seed; ``None`` if the run has none
    """
    if seed is None or communicator.is_first:
        return seed
    derived = np.random.SeedSequence((seed, communicator.rank)).generate_state(1)[0]
    return int(derived >> 1)  # SB3 adds the index of the environment, and NumPy takes 32 bits


def steps_of_rank(n_steps: int, communicator: Communicator) -> int:
    """
    Divide the steps of a rollout among the ranks, as evenly as possible.

    :param n_steps: steps per environment, of all ranks together
    :param communicator: connects this rank to the others
    :return: this rank's steps per environment
    :raises ValueError: if there are fewer steps than ranks
    """
    n_ranks = communicator.size
    if n_steps < n_ranks:
        raise ValueError(f"n_steps is {n_steps}, which {n_ranks} ranks share; it must be at least {n_ranks}. Raise n_steps.")
    return n_steps // n_ranks + (communicator.rank < n_steps % n_ranks)


class MinibatchShard(NamedTuple):
    """
    A rank's part of the minibatches of an epoch.

    :param batch_size: transitions of this rank in each minibatch
    :param n_minibatches: number of minibatches that this rank's transitions fill
    :param n_steps: number of minibatches on the rank with the most, and thus of optimizer steps on every rank
    """

    batch_size: int
    n_minibatches: int
    n_steps: int


def shard_minibatches(batch_size: int, n_transitions: int, communicator: Communicator) -> MinibatchShard | None:
    """
    Divide minibatches among the ranks, in proportion to how many transitions each has.

    :param batch_size: transitions per minibatch, of all ranks together
    :param n_transitions: transitions of this rank
    :param communicator: connects this rank to the others
    :return: this rank's part; ``None`` if it is alone and has everything
    """
    if communicator.size == 1:
        return None
    numbers = communicator.gather(th.tensor(n_transitions)).tolist()
    sizes = [-(-batch_size * each // sum(numbers)) for each in numbers]
    counts = [-(-each // size) for each, size in zip(numbers, sizes, strict=True)]
    return MinibatchShard(sizes[communicator.rank], counts[communicator.rank], max(counts))


def weighted_minibatches(minibatches: Iterable[T], shard: MinibatchShard | None) -> Iterator[tuple[T, float]]:
    """
    Go through minibatches in step with the other ranks, which may have more: each must take part in every reduction.

    :param minibatches: minibatches of this rank
    :param shard: how many there should be; ``None`` if this rank is alone
    :return: each minibatch with the weight 1, and then, while other ranks still have some, the last one with the weight 0
    :raises ValueError: if there are more or fewer than ``shard.n_minibatches``
    """
    n_given = 0
    for n_given, minibatch in enumerate(minibatches, start=1):
        if shard is not None and n_given > shard.n_minibatches:
            break
        yield minibatch, 1.0
    if shard is None:
        return
    if n_given != shard.n_minibatches:
        raise ValueError(
            f"The rollout buffer's get({shard.batch_size}) gives {n_given} minibatches or more, but its size makes "
            f"{shard.n_minibatches}; ranks must know how many there are. It must give each transition exactly once."
        )
    for _ in range(shard.n_steps - shard.n_minibatches):
        yield minibatch, 0.0


def mean_gradients(
    gradients: Sequence[th.Tensor | None], parameters: Sequence[th.Tensor], n: float, communicator: Communicator
) -> list[th.Tensor | None]:
    """
    Average gradients over the states of all ranks, in one reduction.

    :param gradients: gradients of a sum over this rank's states, one for each parameter; ``None`` for a parameter without one
    :param parameters: the parameters, at least one
    :param n: number of this rank's states
    :param communicator: connects this rank to the others
    :return: the averages, the same on all ranks; ``None`` where no rank has a gradient, so that an optimizer skips it
    """
    if communicator.size == 1:
        return [None if gradient is None else gradient / n for gradient in gradients]
    pairs = [*zip(gradients, parameters, strict=True)]
    parts = [(th.zeros_like(parameter) if gradient is None else gradient).flatten() for gradient, parameter in pairs]
    is_there = parts[0].new_tensor([gradient is not None for gradient in gradients])  # ranks may use different parameters
    averages = communicator.mean(th.cat([*parts, is_there]), n)
    *means, counts = th.split(averages, [*map(len, parts), len(parts)])
    zipped = zip(means, parameters, (counts > 0.0).tolist(), strict=True)
    return [mean.view_as(parameter) if is_used else None for mean, parameter, is_used in zipped]


def first_numbers(own: Sequence[float | None], communicator: Communicator) -> list[float | None]:
    """
    Give every rank the first rank's numbers, in one message.

    :param own: numbers of this rank, none of them NaN; ``None`` where there is none
    :param communicator: connects the ranks
    :return: the first rank's
    """
    numbers = th.tensor([math.nan if number is None else number for number in own], dtype=th.float64)
    return [None if math.isnan(number) else number for number in communicator.gather(numbers)[0].tolist()]
