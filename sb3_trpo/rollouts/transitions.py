"""Transitions of a rollout as tensors, read in chunks so that memory stays bounded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from operator import attrgetter
from typing import NamedTuple, TypeVar, overload

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_flattened_obs_dim

from sb3_trpo.rollouts.floating_point import quietly
from sb3_trpo.rollouts.inputs import PolicyInputs

T = TypeVar("T")
U = TypeVar("U")


class ChunkLimits(NamedTuple):
    """
    Upper limits on the size of a chunk.

    :param entries: numbers in all its observations together
    :param transitions: number of transitions: hidden layers need memory too, however small the observations are
    """

    entries: int
    transitions: int


GRAPH_LIMITS = ChunkLimits(2**24, 2**15)
"""For autograd, which rebuilds the graphs for every product if there are several chunks: 594 Atari observations of 84x84x4."""
PASS_LIMITS = ChunkLimits(2**20, 2**13)
"""For evaluating a rollout without derivatives, and for minibatches gathered ahead."""
CACHE_LIMITS = ChunkLimits(2**20, 2**11)
"""For layer stacks on a CPU, which are fastest while a chunk's activations fit into the cache: 37 Atari observations."""


def default_chunk_size(observation_space: spaces.Space[np.ndarray], limits: ChunkLimits) -> int:
    """
    Choose how many transitions to process at a time.

    :param observation_space: decides how many numbers a transition holds: images make small chunks, vectors large ones
    :param limits: upper limits on the size of a chunk
    :return: number of transitions, at least 1
    """
    return int(np.clip(limits.entries // max(1, get_flattened_obs_dim(observation_space)), 1, limits.transitions))


class Transitions(NamedTuple):
    """
    n transitions of a rollout, on the policy's device.

    :param inputs: what the policy acted on
    :param actions: in the form that ``log_prob`` expects: shape ``(n,)`` for Discrete, else ``(n, n_dimensions)``
    :param old_log_prob: log-probabilities under the policy that acted, in nats, shape ``(n,)``
    :param advantages: as the surrogate weighs them, shape ``(n,)``
    :param returns: lambda-returns that the critic is regressed on, shape ``(n,)``
    :param weights: 1 for a transition and 0 for padding, shape ``(n,)``; ``None`` if there is no padding
    :param n_padding: number of zeros in ``weights``; counting them on the device would make the CPU wait for it
    :param cost_advantages: advantages of each limited cost, shape ``(n, n_costs)``; ``None`` if there are none
    """

    inputs: PolicyInputs
    actions: th.Tensor
    old_log_prob: th.Tensor
    advantages: th.Tensor
    returns: th.Tensor
    weights: th.Tensor | None = None
    n_padding: int = 0
    cost_advantages: th.Tensor | None = None

    @property
    def weight(self) -> float:
        """Sum of the weights: the number of transitions that are not padding."""
        return float(len(self.advantages) - self.n_padding)

    def total(self, terms: th.Tensor) -> th.Tensor:
        """
        Sum over the transitions that are not padding.

        :param terms: one term x per transition, shape ``(n,)``
        :return: ``sum(w x)``, a scalar
        """
        return terms.sum() if self.weights is None else self.weights.dot(terms)

    def without_padding(self, terms: th.Tensor) -> th.Tensor:
        """
        Select the terms of the transitions that are not padding.

        :param terms: one term per transition, shape ``(n,)``
        :return: shape ``(n - n_padding,)``
        """
        return terms if self.weights is None else terms[self.weights > 0.0]


class LazySequence(Sequence[T]):
    """
    A sequence that makes an item each time it is asked for, so that only one is in memory at a time.

    A single item is made once and kept: it would be needed again anyway, and there is no other to make room for.

    :param makers: functions that make the items
    """

    def __init__(self, makers: Sequence[Callable[[], T]]) -> None:
        self._makers = makers
        self._single: list[T] = []

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self._makers)

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...

    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        """Make an item, or return a lazy sequence of some."""
        if isinstance(index, slice):
            return LazySequence(self._makers[index])
        if len(self._makers) != 1:
            return self._makers[index]()
        if not self._single:
            self._single.append(self._makers[index]())
        return self._single[index]

    def __iter__(self) -> Iterator[T]:
        """Make the items in order. The inherited method would end at an ``IndexError`` that a maker raises."""
        return (self[index] for index in range(len(self)))

    def map(self, function: Callable[[T], U]) -> LazySequence[U]:
        """
        Apply a function to each item when it is made.

        :param function: maps an item of this sequence to one of the result
        :return: the sequence of the results
        """
        return LazySequence([partial(_applied, function, make) for make in self._makers])


def _applied(function: Callable[[T], U], make: Callable[[], T]) -> U:
    return function(make())


class Chunks(LazySequence[Transitions]):
    """
    The transitions that a part of the update uses, read from the rollout a chunk at a time.

    :param readers: functions that read one chunk each
    :param advantages: advantages of all transitions in the chunks, without padding, shape ``(n,)``
    """

    def __init__(self, readers: Sequence[Callable[[], Transitions]], advantages: np.ndarray) -> None:
        super().__init__(readers)
        self.advantages = advantages

    @classmethod
    def joined(cls, parts: Sequence[Chunks]) -> Chunks:
        """
        Join the chunks of several rollouts.

        :param parts: each rollout's chunks
        :return: all chunks, in the same order
        """
        advantages = np.concatenate([part.advantages for part in parts])
        return cls([read for part in parts for read in part._makers], advantages)

    @property
    def inputs(self) -> Sequence[PolicyInputs]:
        """What the policy acted on, chunk by chunk."""
        return self.map(attrgetter("inputs"))

    def with_advantages(self, shift: float, scale: float) -> Chunks:
        """
        Replace each advantage A by ``(A - shift) * scale``.

        :param shift: what is subtracted
        :param scale: what the difference is multiplied by
        :return: the same transitions with the new advantages
        """

        def rescale(part: Transitions) -> Transitions:
            return part._replace(advantages=(part.advantages - shift) * scale)

        rescaled = quietly(lambda: (self.advantages - shift) * scale)
        return Chunks([partial(_applied, rescale, read) for read in self._makers], rescaled)

    def with_cost_advantages(self, cost_advantages: np.ndarray, size: int) -> Chunks:
        """
        Add the advantages of costs to chunks of one rollout that have no padding.

        :param cost_advantages: one row for each of :attr:`advantages`, shape ``(n, n_costs)``
        :param size: number of transitions in each chunk but the last
        :return: the same transitions with them
        """

        def extend(start: int, part: Transitions) -> Transitions:
            rows = th.from_numpy(cost_advantages[start : start + len(part.advantages)])
            return part._replace(cost_advantages=rows.to(part.advantages))

        extended = [partial(_applied, partial(extend, i * size), read) for i, read in enumerate(self._makers)]
        return Chunks(extended, self.advantages)
