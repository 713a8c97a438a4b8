"""The rollout as data for the update: checked for finiteness, read in chunks of bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial, singledispatch
from operator import itemgetter
from typing import NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.preprocessing import get_flattened_obs_dim
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.utils import obs_as_tensor

from sb3_trpo.rollouts.advantages import Standardise, as_they_are
from sb3_trpo.rollouts.inputs import Inputs, inputs_in
from sb3_trpo.rollouts.plain_spaces import Observation


class ChunkLimits(NamedTuple):
    """
    How large a chunk may be.

    :param entries: of all its observations
    :param transitions: for hidden layers need memory too, however small the observations
    """

    entries: int
    transitions: int


GRAPH_LIMITS = ChunkLimits(2**24, 2**15)
"""For autograd, which must build the graphs of several chunks anew for each product: 594 stacks of 84x84x4, Atari's."""
PASS_LIMITS = ChunkLimits(2**20, 2**13)
"""For one pass without derivatives over the rollout, and for minibatches gathered ahead."""
CACHE_LIMITS = ChunkLimits(2**20, 2**11)
"""For stacks of layers on a CPU, which are quickest while a chunk's activations fit into its cache: 37 such stacks."""


DIRECT_BUFFERS: set[type[RolloutBuffer]] = {RolloutBuffer, DictRolloutBuffer}
"""Whose arrays may be read and written without calling them."""


class Transitions(NamedTuple):
    """
    Some transitions of a rollout, on the policy's device; the first dimension of everything counts them.

    :param inputs: what the policy acted on
    :param actions: as ``log_prob`` expects them
    :param old_log_prob: log-probability under the policy that acted, shape ``(n,)``
    :param advantages: as the surrogate weighs them, shape ``(n,)``
    :param weights: 1 for a transition and 0 for one that only fills up a sequence, shape ``(n,)``; ``None`` if all count
    :param n_padding: how many do not count
    """

    inputs: Inputs
    actions: th.Tensor
    old_log_prob: th.Tensor
    advantages: th.Tensor
    weights: th.Tensor | None = None
    n_padding: int = 0

    @property
    def weight(self) -> float:
        """How many transitions count."""
        return float(len(self.advantages) - self.n_padding)

    def total(self, terms: th.Tensor) -> th.Tensor:
        """
        Sum what was computed for each transition over those that count.

        :param terms: shape ``(n,)``
        :return: a scalar
        """
        return terms.sum() if self.weights is None else self.weights.dot(terms)


Chunk = Callable[[], Transitions]
"""Reads some transitions when called."""


def inputs_of(chunk: Chunk) -> Inputs:
    """
    Read what the policy acted on in a chunk.

    :param chunk: the chunk
    :return: its inputs alone
    """
    return chunk().inputs


def map_parts(function: Callable[[np.ndarray], np.ndarray], observation: Observation) -> Observation:
    """
    Apply a function to each array of an observation.

    :param function: from array to array
    :param observation: an array or a dict of them
    :return: likewise
    """
    if isinstance(observation, dict):
        return {key: function(part) for key, part in observation.items()}
    return function(observation)


def default_chunk_size(observation_space: spaces.Space[np.ndarray], limits: ChunkLimits) -> int:
    """
    Choose how many transitions to differentiate at a time.

    :param observation_space: images give small chunks, vectors large ones
    :param limits: how large they may be
    :return: at least 1
    """
    return int(np.clip(limits.entries // max(1, get_flattened_obs_dim(observation_space)), 1, limits.transitions))


@singledispatch
def split_rollout(buffer: RolloutBuffer, every: int, chunk_size: int, standardise: Standardise = as_they_are) -> list[Chunk]:
    """
    Split every k-th transition of the rollout into chunks.

    Each call of a chunk copies it out of the buffer anew, so that only one is in memory at a time; a single chunk is kept.

    :param buffer: a full rollout buffer
    :param every: k
    :param chunk_size: transitions per chunk
    :param standardise: gives shift and scale of the advantages read
    :return: the chunks, in the buffer's order
    """
    join(buffer)
    indices = np.arange(0, buffer.buffer_size * buffer.n_envs, every)
    shift, scale = standardise(buffer, indices)

    def load(chosen: np.ndarray) -> Transitions:
        samples = buffer._get_samples(chosen)
        advantages = (samples.advantages - shift) * scale
        return Transitions(inputs_in(samples), taken(samples.actions, buffer), samples.old_log_prob, advantages)

    chunks = [partial(load, indices[start : start + chunk_size]) for start in range(0, len(indices), chunk_size)]
    return kept_if_single(chunks)


@singledispatch
def spread_inputs(buffer: RolloutBuffer, n: int) -> Inputs:
    """
    Read what the policy acted on in some transitions, spread evenly over the rollout.

    :param buffer: a full rollout buffer
    :param n: how many at most
    :return: the inputs
    """
    stride = math.ceil(buffer.buffer_size * buffer.n_envs / n)
    (spread,) = split_rollout(buffer, stride, n)
    return spread().inputs


def join(buffer: RolloutBuffer) -> None:
    """
    Have a buffer join (step, env) into one, env after env.

    :param buffer: a full rollout buffer
    """
    if not buffer.generator_ready:
        next(buffer.get(batch_size=1))  # draws from NumPy's generator, as sb3-contrib's read does


def kept_if_single(chunks: Sequence[Chunk]) -> list[Chunk]:
    """
    Let a single chunk be read once only.

    :param chunks: chunks that are read anew at each call
    :return: the chunks
    """
    return [cache(chunks[0])] if len(chunks) == 1 else [*chunks]


def taken(actions: th.Tensor, buffer: RolloutBuffer) -> th.Tensor:
    """
    Give actions the form that ``log_prob`` expects.

    :param actions: as the buffer keeps them, shape ``(n, n_dimensions)``
    :param buffer: whose they are
    :return: numbers of options, shape ``(n,)``, if the space is Discrete, else the same
    """
    return actions.long().flatten() if isinstance(buffer.action_space, spaces.Discrete) else actions


def observation_blocks(buffer: RolloutBuffer, size: int) -> Iterator[PyTorchObs]:
    """
    Read all observations in order.

    :param buffer: a full rollout buffer of SB3's own, with (step, env) joined
    :param size: transitions at a time
    :return: tensors, or dicts of them, on the buffer's device
    """
    for start in range(0, buffer.buffer_size * buffer.n_envs, size):
        rows = map_parts(itemgetter(slice(start, start + size)), buffer.observations)
        yield obs_as_tensor(rows, buffer.device)


def minibatches(
    buffer: RolloutBuffer, rows: th.Tensor, features: Callable[[th.Tensor], th.Tensor], batch_size: int, n_ahead: int
) -> Iterator[tuple[th.Tensor, th.Tensor]]:
    """
    Pass once over the rollout in random order: the order in which SB3's buffer would go, from the same generator.

    :param buffer: a full rollout buffer of SB3's own, with (step, env) joined
    :param rows: what the features are made of, one row per transition
    :param features: maps rows to the features
    :param batch_size: transitions at a time
    :param n_ahead: transitions gathered at a time
    :return: pairs of features and returns, the latter of shape ``(n, 1)``
    """
    size = int(batch_size)
    returns = th.from_numpy(buffer.returns.reshape(-1, 1)).to(buffer.device)
    order = th.from_numpy(np.random.permutation(len(returns)))
    for chosen in th.split(order, max(1, n_ahead // size) * size):
        gathered = rows.index_select(0, chosen.to(rows.device)), returns.index_select(0, chosen.to(buffer.device))
        for part, part_of_returns in zip(*(th.split(tensor, size) for tensor in gathered), strict=True):
            yield features(part), part_of_returns
