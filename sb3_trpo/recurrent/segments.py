"""
A rollout as sequences, for policies with memory.

A sequence is what one environment did in one episode, or what of it is in the rollout. Its first state of memory is the one
that the acting policy had, or zeros where the episode starts; from there on, memory is computed anew by whatever policy is
looked at. Sequences of about the same length are put side by side, and shorter ones filled up by their last transition, which
then does not count: every mean is ``sum(w x) / sum(w)`` with ``w`` 0 for what fills up.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial, singledispatch
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.utils import obs_as_tensor

from sb3_trpo.extras import CONTRIB, needs
from sb3_trpo.rollouts.advantages import Standardise, as_they_are
from sb3_trpo.rollouts.batch import Chunk, Transitions, join, kept_if_single, map_parts, split_rollout, spread_inputs, taken
from sb3_trpo.rollouts.inputs import (
    Inputs,
    action_distribution,
    inputs_in,
    minibatches_of,
    observations_in,
    some_inputs,
    state_values,
)
from sb3_trpo.update.critic import SquaredErrors, squared_errors

with needs(*CONTRIB):
    from sb3_contrib.common.recurrent.buffers import RecurrentDictRolloutBuffer, RecurrentRolloutBuffer
    from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
    from sb3_contrib.common.recurrent.type_aliases import RNNStates


class Sequences(NamedTuple):
    """
    Inputs of a recurrent policy, as sb3-contrib's take them.

    :param observations: sequence after sequence, each of the same length
    :param lstm_states: before the first step of each, shape ``(n_layers, n_sequences, n_hidden)``
    :param episode_starts: 0 for each observation: no episode starts but with a sequence
    """

    observations: PyTorchObs
    lstm_states: RNNStates
    episode_starts: th.Tensor


class Span(NamedTuple):
    """Where a sequence lies in a buffer with (step, env) joined."""

    start: int
    length: int


class SequenceSamples(NamedTuple):
    """What a buffer holds of some sequences, filled up to the same length; ``weights`` is 0 for what fills up."""

    inputs: Inputs
    actions: th.Tensor
    old_log_prob: th.Tensor
    advantages: th.Tensor
    returns: th.Tensor
    weights: th.Tensor
    n_padding: int


@action_distribution.register
def _(inputs: Sequences, policy: Any) -> Distribution:
    distribution: Distribution
    distribution, _ = policy.get_distribution(inputs.observations, inputs.lstm_states.pi, inputs.episode_starts)
    return distribution


@state_values.register
def _(inputs: Sequences, policy: Any) -> th.Tensor:
    values: th.Tensor = policy.predict_values(inputs.observations, inputs.lstm_states.vf, inputs.episode_starts)
    return values


@observations_in.register
def _(inputs: Sequences) -> PyTorchObs:
    return inputs.observations


@some_inputs.register
def _(policy: RecurrentActorCriticPolicy, observations: PyTorchObs) -> Sequences:
    return Sequences(observations, fresh_states(policy, 1), th.zeros(1, device=policy.device))


@inputs_in.register
def _(samples: SequenceSamples) -> Inputs:
    return samples.inputs


def fresh_states(policy: RecurrentActorCriticPolicy, n_envs: int) -> RNNStates:
    """
    Make the states that episodes start with.

    :param policy: whose LSTMs they are for, which are all of one shape
    :param n_envs: number of environments
    :return: zeros
    """
    n_layers, _, n_hidden = policy.lstm_hidden_state_shape
    like = next(policy.parameters())
    zeros = [like.new_zeros(n_layers, n_envs, n_hidden) for _ in range(4)]
    return RNNStates((zeros[0], zeros[1]), (zeros[2], zeros[3]))


def spans_of(buffer: RolloutBuffer, longest: int) -> list[Span]:
    """
    Cut a rollout where episodes start and environments change.

    :param buffer: a full rollout buffer, with (step, env) joined
    :param longest: sequences that are longer are cut again
    :return: the sequences, which cover it, in order
    """
    is_start = buffer.episode_starts.reshape(-1) > 0
    is_start[:: buffer.buffer_size] = True
    starts = np.flatnonzero(is_start)
    return [
        Span(int(start), int(min(longest, end - start)))
        for first, end in zip(starts, [*starts[1:], len(is_start)], strict=True)
        for start in range(first, end, longest)
    ]


def side_by_side(spans: list[Span], size: int) -> list[list[Span]]:
    """
    Group sequences of about the same length, so that not more than half of a group fills up.

    :param spans: the sequences
    :param size: transitions per group at most, what fills up included; a longer sequence is alone
    :return: the groups, longest sequences first
    """
    groups: list[list[Span]] = []
    for span in sorted(spans, key=lambda span: -span.length):
        longest = groups[-1][0].length if groups else 0
        if groups and 2 * span.length >= longest and (len(groups[-1]) + 1) * longest <= size:
            groups[-1].append(span)
        else:
            groups.append([span])
    return groups


@singledispatch
def inputs_at(buffer: Any, rows: np.ndarray, starts: np.ndarray) -> Inputs:
    """
    Read what a recurrent policy acted on.

    :param buffer: with (step, env) joined
    :param rows: indices of transitions, sequence after sequence
    :param starts: index of the first one of each
    :return: the inputs, on the buffer's device
    """
    goes_on = 1.0 - buffer.episode_starts[starts].reshape(1, -1, 1)

    def states(kept: np.ndarray) -> th.Tensor:
        return th.as_tensor(np.ascontiguousarray(kept[starts].swapaxes(0, 1) * goes_on), device=buffer.device)  # for cuDNN

    policy, critic = (
        (states(getattr(buffer, f"hidden_states_{name}")), states(getattr(buffer, f"cell_states_{name}")))
        for name in ("pi", "vf")
    )
    observations = obs_as_tensor(map_parts(itemgetter(rows), buffer.observations), buffer.device)
    return Sequences(observations, RNNStates(policy, critic), th.zeros(len(rows), device=buffer.device))


def read(buffer: Any, spans: list[Span]) -> SequenceSamples:
    """
    Read sequences side by side.

    :param buffer: a full recurrent rollout buffer, with (step, env) joined
    :param spans: the sequences
    :return: the samples
    """
    starts, lengths = np.array(spans).T
    steps = np.arange(lengths.max())
    rows = (starts[:, None] + np.minimum(steps, lengths[:, None] - 1)).reshape(-1)
    weights = (steps < lengths[:, None]).astype(np.float32).reshape(-1)
    return SequenceSamples(
        inputs=inputs_at(buffer, rows, starts),
        actions=taken(buffer.to_torch(buffer.actions[rows].astype(np.float32)), buffer),
        old_log_prob=buffer.to_torch(buffer.log_probs[rows].flatten()),
        advantages=buffer.to_torch(buffer.advantages[rows].flatten()),
        returns=buffer.to_torch(buffer.returns[rows].flatten()),
        weights=buffer.to_torch(weights),
        n_padding=len(rows) - int(lengths.sum()),
    )


@split_rollout.register(RecurrentRolloutBuffer)
@split_rollout.register(RecurrentDictRolloutBuffer)
def _(buffer: Any, every: int, chunk_size: int, standardise: Standardise = as_they_are) -> list[Chunk]:
    join(buffer)
    by_length = sorted(spans_of(buffer, longest=chunk_size), key=itemgetter(1))
    spans = by_length[::every]  # some of each length, so that about a k-th of the transitions, whatever repeats itself
    rows = np.concatenate([np.arange(start, start + length) for start, length in spans])
    shift, scale = standardise(buffer, rows)

    def load(group: list[Span]) -> Transitions:
        inputs, actions, old_log_prob, advantages, _, weights, n_padding = read(buffer, group)
        return Transitions(inputs, actions, old_log_prob, (advantages - shift) * scale, weights, n_padding)

    return kept_if_single([partial(load, group) for group in side_by_side(spans, chunk_size)])


@spread_inputs.register(RecurrentRolloutBuffer)
@spread_inputs.register(RecurrentDictRolloutBuffer)
def _(buffer: Any, n: int) -> Inputs:
    join(buffer)
    n_transitions = len(buffer.episode_starts)
    return read(buffer, [Span(row, 1) for row in range(0, n_transitions, math.ceil(n_transitions / n))]).inputs


@minibatches_of.register(RecurrentRolloutBuffer)
@minibatches_of.register(RecurrentDictRolloutBuffer)
def _(buffer: Any, batch_size: int) -> Iterator[list[SequenceSamples]]:
    join(buffer)
    spans = spans_of(buffer, longest=batch_size)
    order = np.random.permutation(len(spans))
    ends = np.cumsum([spans[index].length for index in order])
    for part in np.split(order, np.flatnonzero(np.diff((ends - 1) // batch_size)) + 1):  # none is empty: no span is longer
        yield [read(buffer, group) for group in side_by_side([spans[index] for index in part], batch_size)]


@squared_errors.register(list)
def _(minibatch: list[SequenceSamples], policy: RecurrentActorCriticPolicy) -> SquaredErrors:
    errors = [part.weights.dot((state_values(part.inputs, policy).flatten() - part.returns).square()) for part in minibatch]
    return SquaredErrors(th.stack(errors).sum(), sum(len(part.returns) - part.n_padding for part in minibatch))
