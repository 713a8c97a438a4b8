"""Reading SB3's rollout buffers for the update. Each algorithm names the reader that fits its buffers."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from operator import itemgetter
from typing import ClassVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs, RolloutBufferSamples
from stable_baselines3.common.utils import obs_as_tensor

from sb3_trpo.networks.plain_network import is_patched
from sb3_trpo.networks.reading.features import Features
from sb3_trpo.rollouts.inputs import ObservationInputs, PolicyInputs
from sb3_trpo.rollouts.plain_spaces import map_parts
from sb3_trpo.rollouts.transitions import PASS_LIMITS, Chunks, Transitions, default_chunk_size

Minibatch = Sequence[Transitions]
"""What one optimizer step of the critic uses, in one or more parts: segments of different lengths are separate parts."""
FeatureEpoch = Callable[[], Iterable[tuple[th.Tensor, th.Tensor]]]
"""Starts an epoch when called; yields the features, ``(n, ...)``, and returns, ``(n, 1)``, of each minibatch."""


class RolloutReader(ABC):
    """
    Reads one full rollout buffer.

    Buffers are filled by (step, env). A reader first has the buffer flatten both into one dimension, environment after
    environment; a *row* is an index into that dimension.

    :param buffer: the full buffer
    """

    def __init__(self, buffer: RolloutBuffer) -> None:
        if not buffer.generator_ready:
            next(buffer.get(batch_size=1))  # flattens, and draws from NumPy's generator once, as sb3-contrib's TRPO does
        self._buffer = buffer

    @classmethod
    def any_inputs(cls, policy: ActorCriticPolicy) -> PolicyInputs:
        """
        Make up inputs when there is no rollout to read them from.

        :param policy: the policy that is to act on them
        :return: the inputs of one state, the same at each call
        """
        space = copy.deepcopy(policy.observation_space)  # so that the policy's space keeps its generator
        space.seed(0)
        observations, _ = policy.obs_to_tensor(space.sample())
        return cls._starting_inputs(policy, observations)

    @staticmethod
    def _starting_inputs(policy: ActorCriticPolicy, observations: PyTorchObs) -> PolicyInputs:
        """Make inputs of observations at which episodes start."""
        return ObservationInputs(observations)

    @property
    def n_transitions(self) -> int:
        """Number of transitions in the buffer."""
        return int(self._buffer.buffer_size * self._buffer.n_envs)

    @property
    def values(self) -> np.ndarray:
        """Values that the critic gave while the rollout was collected, shape ``(n_transitions,)``."""
        return self._buffer.values.reshape(-1)

    @property
    def returns(self) -> np.ndarray:
        """Lambda-returns, shape ``(n_transitions,)``."""
        return self._buffer.returns.reshape(-1)

    @property
    def advantages(self) -> np.ndarray:
        """Advantages as they were estimated, shape ``(n_transitions,)``."""
        return self._buffer.advantages.reshape(-1)

    @abstractmethod
    def chunks(self, every: int, size: int) -> Chunks:
        """
        Split every k-th transition into chunks.

        :param every: k; 1 takes every transition
        :param size: maximum number of transitions per chunk, padding included
        :return: the chunks, with the advantages as they were estimated
        """

    @abstractmethod
    def minibatches(self, batch_size: int) -> Iterator[Minibatch]:
        """
        Pass once over all transitions in random order.

        :param batch_size: transitions per minibatch
        :return: the minibatches; their order is drawn from NumPy's generator
        """

    @abstractmethod
    def spread_inputs(self, n: int) -> PolicyInputs:
        """
        Read inputs that are spread evenly over the rollout.

        :param n: maximum number of states
        :return: the inputs, without padding
        """

    def feature_epoch(self, features: Features, is_costly: bool, batch_size: int) -> FeatureEpoch | None:
        """
        Prepare epochs like those of :meth:`minibatches`, with features in place of the observations.

        :param features: maps n observations to a tensor of shape ``(n, ...)``; must not change between epochs
        :param is_costly: whether to compute all features once, rather than those of each minibatch when it is needed
        :param batch_size: transitions per minibatch
        :return: starts an epoch when called; ``None`` if the critic's value depends on more than an observation
        """
        return None


class TransitionReader(RolloutReader):
    """Reads SB3's buffers, and buffers derived from them, transition by transition."""

    direct_buffers: ClassVar[tuple[type[RolloutBuffer], ...]] = (RolloutBuffer, DictRolloutBuffer)
    """Buffers with arrays that may be read directly; samples of their subclasses may differ from what the arrays hold."""

    def chunks(self, every: int, size: int) -> Chunks:
        """Let the buffer sample rows in order."""
        rows = np.arange(0, self.n_transitions, every)
        parts = [rows[start : start + size] for start in range(0, len(rows), size)]
        return Chunks([partial(self._read, part) for part in parts], self.advantages[rows])

    def minibatches(self, batch_size: int) -> Iterator[Minibatch]:
        """Yield the buffer's own minibatches."""
        for samples in self._buffer.get(batch_size):
            yield [self._transitions(samples)]

    def spread_inputs(self, n: int) -> PolicyInputs:
        """Read every k-th transition, with the smallest k that is large enough."""
        (chunk,) = self.chunks(every=math.ceil(self.n_transitions / n), size=n)
        return chunk.inputs

    def _read(self, rows: np.ndarray) -> Transitions:
        return self._transitions(self._buffer._get_samples(rows))

    def _transitions(self, samples: RolloutBufferSamples) -> Transitions:
        return Transitions(
            self._inputs(samples),
            actions_for_log_prob(samples.actions, self._buffer.action_space),
            samples.old_log_prob,
            samples.advantages,
            samples.returns,
        )

    def _inputs(self, samples: RolloutBufferSamples) -> PolicyInputs:
        return ObservationInputs(samples.observations)

    def feature_epoch(self, features: Features, is_costly: bool, batch_size: int) -> FeatureEpoch:
        """
        Read the buffer's arrays directly where that gives the same minibatches, in the same order, at less cost.

        Features are computed once if they are costly or take no more memory than the observations that they are made of.
        Otherwise those of a minibatch are computed when its turn comes.
        """
        buffer = self._buffer
        if type(buffer) not in self.direct_buffers or is_patched(buffer):
            return lambda: ((features(batch.observations), batch.returns[:, None]) for batch in buffer.get(batch_size))
        size, observations = default_chunk_size(buffer.observation_space, PASS_LIMITS), buffer.observations
        if is_costly or isinstance(observations, dict) or observations.dtype == np.float64:
            return partial(self._shuffled, self._all_features(features, size), lambda part: part, batch_size, size)
        rows = th.from_numpy(observations)
        return partial(self._shuffled, rows, lambda part: features(part.to(buffer.device)), batch_size, size)

    def _all_features(self, features: Features, size: int) -> th.Tensor:
        """Compute the features of the whole rollout, some at a time, into one tensor."""
        # Concatenating blocks would hold them twice.
        blocks = map(features, self._observation_blocks(size))
        first = next(blocks)
        made = first.new_empty(self.n_transitions, *first.shape[1:])
        made[: len(first)] = first
        for index, block in enumerate(blocks, start=1):
            made[index * size : index * size + len(block)] = block
        return made

    def _observation_blocks(self, size: int) -> Iterator[PyTorchObs]:
        """Read all observations in order, some at a time."""
        for start in range(0, self.n_transitions, size):
            rows = map_parts(itemgetter(slice(start, start + size)), self._buffer.observations)
            yield obs_as_tensor(rows, self._buffer.device)

    def _shuffled(
        self, rows: th.Tensor, features: Callable[[th.Tensor], th.Tensor], batch_size: int, n_ahead: int
    ) -> Iterator[tuple[th.Tensor, th.Tensor]]:
        """
        Pass once over the rollout in random order, which is drawn as SB3's ``get()`` draws it.

        Rows are gathered for several minibatches at a time, because many small gathers take longer than a large one.

        :param rows: what the features are made of, shape ``(n_transitions, ...)``
        :param features: maps n rows to features of shape ``(n, ...)``
        :param batch_size: transitions per minibatch
        :param n_ahead: approximate number of transitions to gather at a time
        :return: each minibatch's features and returns, the returns of shape ``(n, 1)``
        """
        size, device = int(batch_size), self._buffer.device
        returns = th.from_numpy(self._buffer.returns.reshape(-1, 1)).to(device)
        order = th.from_numpy(np.random.permutation(len(returns)))
        for chosen in th.split(order, max(1, n_ahead // size) * size):
            gathered = rows.index_select(0, chosen.to(rows.device)), returns.index_select(0, chosen.to(device))
            for part, part_of_returns in zip(*(th.split(tensor, size) for tensor in gathered), strict=True):
                yield features(part), part_of_returns


def actions_for_log_prob(actions: th.Tensor, action_space: spaces.Space[np.ndarray]) -> th.Tensor:
    """
    Convert actions to the form that a distribution's ``log_prob`` takes.

    :param actions: actions as a buffer holds them, shape ``(n, n_dimensions)``
    :param action_space: the action space
    :return: indices of options, shape ``(n,)``, if the space is Discrete; otherwise the same actions
    """
    return actions.long().flatten() if isinstance(action_space, spaces.Discrete) else actions
