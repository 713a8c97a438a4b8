"""
Exchanges between ranks: sums, means, and objects of each rank.

A rank is one of the processes that train one policy together. :class:`Communicator` is that of a process on its own, and every
exchange is the identity. :class:`~sb3_trpo.parallel.distributed.DistributedCommunicator` exchanges through
``torch.distributed``. Every rank gets the same bits, so a decision that depends on a result is the same on all ranks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import torch as th

T = TypeVar("T")


class Communicator:
    """One process on its own: every exchange is the identity."""

    rank = 0
    size = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that logs, evaluates and writes."""
        return self.rank == 0

    def sum(self, values: th.Tensor) -> th.Tensor:
        """
        Add up over the ranks.

        :param values: terms of this rank, of the same shape on every rank, on any device
        :return: the sums, on the same device
        """
        return values

    def mean(self, total: th.Tensor, weight: float) -> th.Tensor:
        """
        Average over the states of all ranks. Numerator and denominator are summed separately, as ranks may have uneven parts.

        :param total: sums over this rank's states, shape ``(n,)``
        :param weight: the number of these states, or the sum of their weights
        :return: the means, shape ``(n,)``
        """
        return total / weight

    def quantile(self, values: th.Tensor, level: float) -> float:
        """
        Find the smallest value that at least a share of the values of all ranks does not exceed.

        :param values: of this rank, shape ``(n,)``; ranks may have different numbers of them
        :param level: the share, in (0, 1]; 1 finds the largest value
        :return: the value; NaN if any of those above it is NaN
        """
        n = int(self.sum(th.tensor(len(values), device=values.device)))
        n_largest = n - math.ceil(level * n) + 1  # the value is the smallest of these
        own = values.new_full((n_largest,), -math.inf)
        n_own = min(n_largest, len(values))
        own[:n_own] = values.topk(n_own).values  # which counts NaN as largest
        return float(self.gather(own).flatten().topk(n_largest).values[-1])

    def gather(self, values: th.Tensor) -> th.Tensor:
        """
        Collect a tensor from each rank.

        :param values: tensor of this rank, of the same shape and type on every rank
        :return: the tensors of all ranks, stacked in the order of the ranks, shape ``(size, ...)``
        """
        return values[None]

    def gather_objects(self, value: T) -> list[T]:
        """
        Collect a small object from each rank.

        :param value: object of this rank; plain data, because it is pickled
        :return: the objects of all ranks, in the order of the ranks
        """
        return [value]

    def broadcast(self, tensors: Sequence[th.Tensor]) -> None:
        """
        Overwrite tensors with the first rank's, in place.

        :param tensors: tensors of the same shapes and types on every rank
        """

    def broadcast_object(self, value: T) -> T:
        """
        Give every rank the first rank's object.

        :param value: plain data, because it is pickled; only the first rank's matters
        :return: the first rank's object
        """
        return value

    def leave(self, error: BaseException) -> None:
        """
        Leave the other ranks for good, so that they stop waiting for this one, and report why.

        :param error: what ends this rank
        """


ALONE = Communicator()
"""The communicator of a process on its own."""
