"""The transitions that an update learns from. All its parts read them here, and none reads an SB3 buffer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np
from stable_baselines3.common.buffers import RolloutBuffer

from sb3_trpo.networks.reading.features import Features
from sb3_trpo.rollouts.inputs import PolicyInputs
from sb3_trpo.rollouts.reader import FeatureEpoch, Minibatch, RolloutReader
from sb3_trpo.rollouts.transitions import Chunks


class RolloutBatch:
    """
    The transitions of one rollout, or of several.

    No chunk or minibatch mixes transitions of two rollouts. Nothing is copied until it is read.

    :param buffers: full rollout buffers, at least one, the newest last
    :param reader: the class that reads buffers of this kind
    """

    def __init__(self, buffers: Sequence[RolloutBuffer], reader: type[RolloutReader]) -> None:
        self.readers = [reader(buffer) for buffer in buffers]
        """One for each rollout."""

    @property
    def n_transitions(self) -> int:
        """Number of transitions, without padding."""
        return sum(reader.n_transitions for reader in self.readers)

    @property
    def values(self) -> np.ndarray:
        """Values that the critic gave while the rollouts were collected, shape ``(n_transitions,)``."""
        return np.concatenate([reader.values for reader in self.readers])

    @property
    def returns(self) -> np.ndarray:
        """Lambda-returns, shape ``(n_transitions,)``."""
        return np.concatenate([reader.returns for reader in self.readers])

    def chunks(self, every: int, size: int) -> Chunks:
        """
        Split every k-th transition into chunks.

        :param every: k; 1 takes every transition
        :param size: maximum number of transitions per chunk, padding included
        :return: the chunks, with the advantages as they were estimated
        """
        return Chunks.joined([reader.chunks(every, size) for reader in self.readers])

    def minibatches(self, batch_size: int) -> Iterator[Minibatch]:
        """
        Pass once over all transitions, in random order within each rollout.

        :param batch_size: transitions per minibatch
        :return: the minibatches; their order is drawn from NumPy's generator
        """
        return chain.from_iterable(reader.minibatches(batch_size) for reader in self.readers)

    def feature_epoch(self, features: Features, is_costly: bool, batch_size: int) -> FeatureEpoch | None:
        """
        Prepare epochs like those of :meth:`minibatches`, with features in place of the observations.

        :param features: maps n observations to a tensor of shape ``(n, ...)``; must not change between epochs
        :param is_costly: whether to compute all features once, rather than those of each minibatch when it is needed
        :param batch_size: transitions per minibatch
        :return: starts an epoch when called; ``None`` if the critic's value depends on more than an observation
        """
        epochs = [reader.feature_epoch(features, is_costly, batch_size) for reader in self.readers]
        prepared = [epoch for epoch in epochs if epoch is not None]
        return None if len(prepared) < len(epochs) else lambda: chain.from_iterable(epoch() for epoch in prepared)

    def spread_inputs(self, n: int) -> PolicyInputs:
        """
        Read inputs that are spread evenly over the newest rollout.

        :param n: maximum number of states
        :return: the inputs, without padding
        """
        return self.readers[-1].spread_inputs(n)
