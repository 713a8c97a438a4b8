"""
Value regression for the critic of a plain recurrent policy: by Adam steps on one flat vector, with autograd in the LSTM alone.

It takes the minibatches that the general fit takes, in the same order. See ``update/flat_critic.py`` for the steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple, cast

import numpy as np
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_trpo.networks.lstm import LayerRun, States
from sb3_trpo.networks.prepared.lstm_steps import LstmStack
from sb3_trpo.networks.stack import Stack
from sb3_trpo.numerics.flat import unflatten
from sb3_trpo.parallel.communicator import ALONE, Communicator
from sb3_trpo.parallel.sharding import shard_minibatches
from sb3_trpo.recurrent.networks import RecurrentNetworks
from sb3_trpo.recurrent.reader import SegmentReader
from sb3_trpo.recurrent.segments import Segment, grouped_by_length, padded_rows
from sb3_trpo.rollouts.batch import RolloutBatch
from sb3_trpo.update.critic import CriticFit
from sb3_trpo.update.flat_adam import FlatAdam, flat_adam
from sb3_trpo.update.flat_critic import Errors, fit_by_adam

LARGEST_GROUP = 2**13
"""Rows, padding included, that the LSTM processes at a time."""


class SegmentBatch(NamedTuple):
    """
    Segments side by side, padded to the same length.

    :param x: features, shape ``(n_steps, n_segments, n_inputs)``
    :param states: h and c before the first steps, each of shape ``(n_layers, n_segments, n_hidden)``
    :param returns: shape ``(n_steps * n_segments, 1)``
    :param weights: 1 for a transition and 0 for padding, the same shape
    :param n: number of transitions
    """

    x: th.Tensor
    states: States
    returns: th.Tensor
    weights: th.Tensor
    n: int


class SequenceEpochs:
    """
    The minibatches of a rollout, epoch after epoch.

    :param reader: reads the rollout
    :param networks: the policy's networks, for the features
    """

    def __init__(self, reader: SegmentReader, networks: RecurrentNetworks) -> None:
        self._reader = reader
        self._x = networks.networks.features(reader.all_observations())
        self._returns = th.as_tensor(reader.returns, device=self._x.device)
        self._states = reader.critic_states()

    def epoch(self, batch_size: int) -> Iterator[list[SegmentBatch]]:
        """
        Pass once over the rollout in random order.

        :param batch_size: transitions per minibatch
        :return: the minibatches, each in one or more parts
        """
        for segments in self._reader.shuffled_segments(batch_size):
            yield [self._sequences(group) for group in grouped_by_length(segments, LARGEST_GROUP)]

    def _sequences(self, segments: Sequence[Segment]) -> SegmentBatch:
        rows, starts, weights, n_padding = padded_rows(segments, is_rounded=True)
        n_segments, device = len(starts), self._x.device

        def time_first(values: np.ndarray) -> th.Tensor:
            return th.from_numpy(np.ascontiguousarray(values.reshape(n_segments, -1).T).reshape(-1)).to(device)

        index, first = time_first(rows), th.from_numpy(starts).to(device)
        h, c = (state.index_select(1, first) for state in self._states)
        return SegmentBatch(
            x=self._x.index_select(0, index).view(-1, n_segments, self._x.shape[1]),
            states=(h, c),
            returns=self._returns.index_select(0, index)[:, None],
            weights=time_first(weights)[:, None],
            n=len(rows) - n_padding,
        )


class RecurrentCritic:
    """
    An LSTM and the layers above it, on flat vectors.

    :param lstm: the LSTM
    :param layers: the layers
    :param adam: the optimizer of the LSTM's tensors and then the layers'
    """

    def __init__(self, lstm: LstmStack, layers: Stack, adam: FlatAdam) -> None:
        tensors = [*lstm.tensors, *layers.tensors]
        n_lstm = len(lstm.tensors)
        theta, gradient = unflatten(adam.theta, tensors), unflatten(adam.g, tensors)
        self._lstm = lstm.with_tensors([view.detach().requires_grad_() for view in theta[:n_lstm]])
        self._layers = layers.with_tensors(theta[n_lstm:])
        self._gradient = gradient

    def differentiate(self, minibatch: Sequence[SegmentBatch]) -> Errors:
        """
        Compare values and returns, and write the gradient of the mean of squares.

        :param minibatch: its parts
        :return: the errors
        """
        errors, n = [], sum(part.n for part in minibatch)
        for index, part in enumerate(minibatch):
            found, gradient = self._differentiate(part, 2.0 / n)
            errors.append(found)
            for total, of_part in zip(self._gradient, gradient, strict=True):
                if index == 0:
                    total.copy_(of_part)
                else:
                    total.add_(of_part)
        return Errors(th.cat(errors), n)

    def _differentiate(self, part: SegmentBatch, scale: float) -> tuple[th.Tensor, list[th.Tensor]]:
        """Compute the errors of one part, and its part of the gradient, whose cotangent is the errors times the scale."""
        runs, h = list[LayerRun](), part.x
        for index, weights in enumerate(self._lstm.layers):
            states = (state[index : index + 1] for state in part.states)
            runs.append(LayerRun((h.requires_grad_(index > 0), *states, *weights)))
            h, _ = runs[-1].outputs()
        latents = h.flatten(0, 1)
        kept = self._layers.forward(latents)
        errors = part.weights * (kept.output - part.returns)
        of_layers = [th.empty_like(tensor) for tensor in self._layers.tensors]
        delta = self._layers.vjp(latents, kept, scale * errors, of_layers)
        dh = self._layers.vjp_features(latents, delta).view_as(h)
        return errors, [*_vjp(runs, dh), *of_layers]


def _vjp(runs: Sequence[LayerRun], dh: th.Tensor | None) -> list[th.Tensor]:
    """Compute the part of the gradient that belongs to the LSTM's weights, from the cotangent of its output."""
    gradient: list[th.Tensor] = []
    for run in reversed(runs):
        dh, _, _, *of_weights = run.vjp(dh, None)
        gradient = [*(each for each in of_weights if each is not None), *gradient]
    return gradient


def fit_recurrent_values(
    policy: ActorCriticPolicy,
    networks: RecurrentNetworks,
    parameters: Sequence[nn.Parameter],
    batch: RolloutBatch,
    n_epochs: int,
    batch_size: int,
    max_grad_norm: float | None,
    communicator: Communicator = ALONE,
) -> CriticFit | None:
    """
    Regress the values of a critic with an LSTM of its own on the returns.

    :param policy: the policy that holds the critic; its ``optimizer`` is continued
    :param networks: the policy's networks, on its own tensors
    :param parameters: parameters that the critic may move
    :param batch: what the critic is fitted to
    :param n_epochs: number of epochs over the batch
    :param batch_size: transitions per minibatch, of all ranks together
    :param max_grad_norm: bound on the norm of the gradient, ``None`` or 0 for no bound
    :param communicator: connects the ranks, which have different minibatches and take the same steps
    :return: the record of the fit; ``None`` if critic or optimizer need the general fit
    """
    lstm, layers = networks.critic_lstm, networks.networks.critic
    if lstm is None or not networks.has_own_lstm:
        return None
    tensors = [*lstm.tensors, *layers.tensors]
    if {*map(id, tensors)} != {*map(id, parameters)} or len(tensors) != len(parameters):
        return None
    adam = flat_adam(policy.optimizer, tensors)
    if adam is None:
        return None
    shard = shard_minibatches(batch_size, batch.n_transitions, communicator)
    own_size = batch_size if shard is None else shard.batch_size
    rollouts = [SequenceEpochs(cast("SegmentReader", reader), networks) for reader in batch.readers]

    def epoch() -> Iterable[list[SegmentBatch]]:
        return chain.from_iterable(rollout.epoch(own_size) for rollout in rollouts)

    critic = RecurrentCritic(lstm, layers, adam)
    return fit_by_adam(adam, epoch, critic.differentiate, n_epochs, max_grad_norm, communicator, shard)
