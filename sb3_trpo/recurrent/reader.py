"""Inputs of a recurrent policy, and the reader of sb3-contrib's recurrent rollout buffers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter

import numpy as np
import torch as th
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.utils import obs_as_tensor

from sb3_trpo.extras import CONTRIB, needs
from sb3_trpo.maskable.reader import MaskedInputs
from sb3_trpo.recurrent.buffers import MaskableRecurrentDictRolloutBuffer, MaskableRecurrentRolloutBuffer
from sb3_trpo.recurrent.segments import Segment, every_kth, grouped_by_length, padded_rows, rows_of, segments_of
from sb3_trpo.rollouts.inputs import PolicyInputs
from sb3_trpo.rollouts.plain_spaces import map_parts
from sb3_trpo.rollouts.reader import Minibatch, RolloutReader, actions_for_log_prob
from sb3_trpo.rollouts.transitions import Chunks, Transitions

with needs(*CONTRIB):
    from sb3_contrib.common.recurrent.buffers import RecurrentDictRolloutBuffer, RecurrentRolloutBuffer
    from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
    from sb3_contrib.common.recurrent.type_aliases import RNNStates


@dataclass(frozen=True, eq=False)
class SegmentInputs:
    """
    Inputs of a recurrent policy over several segments, in the form that sb3-contrib's policies take.

    :param observations: segment after segment, all padded to the same length, shape ``(n_segments * length, ...)``
    :param lstm_states: states before the first step of each segment, shape ``(n_layers, n_segments, n_hidden)``
    :param episode_starts: zeros, shape ``(n_segments * length,)``: no episode starts inside a segment, and where one starts
        with the segment, the initial states are zero already
    """

    observations: PyTorchObs
    lstm_states: RNNStates
    episode_starts: th.Tensor

    def __len__(self) -> int:
        """Return the number of states in all segments."""
        return len(self.episode_starts)

    def distribution(self, policy: ActorCriticPolicy) -> Distribution:
        """Run the policy over the segments."""
        assert isinstance(policy, RecurrentActorCriticPolicy)
        observations, states = self.observations, self.lstm_states.pi
        distribution, _ = policy.get_distribution(observations, states, self.episode_starts)  # type: ignore[arg-type]  # takes dicts
        return distribution

    def values(self, policy: ActorCriticPolicy) -> th.Tensor:
        """Run the critic over the segments."""
        assert isinstance(policy, RecurrentActorCriticPolicy)
        observations, states = self.observations, self.lstm_states.vf
        return policy.predict_values(observations, states, self.episode_starts)  # type: ignore[arg-type]  # takes dicts

    def restrict(self, distribution: Distribution) -> Distribution:
        """Return the distribution as it is: without masks nothing is forbidden."""
        return distribution


class SegmentReader(RolloutReader):
    """Reads a rollout segment by segment; ``every`` counts segments instead of transitions."""

    _buffer: RecurrentRolloutBuffer | RecurrentDictRolloutBuffer

    @staticmethod
    def _starting_inputs(policy: ActorCriticPolicy, observations: PyTorchObs) -> PolicyInputs:
        assert isinstance(policy, RecurrentActorCriticPolicy)
        return SegmentInputs(observations, fresh_states(policy, 1), th.zeros(1, device=policy.device))

    def chunks(self, every: int, size: int) -> Chunks:
        """Cut segments longer than ``size``, choose every k-th segment, and group the chosen ones by length."""
        segments = every_kth(self._segments(size), every)
        groups = grouped_by_length(segments, size)
        return Chunks([partial(self.read, group) for group in groups], self.advantages[rows_of(segments)])

    def minibatches(self, batch_size: int) -> Iterator[Minibatch]:
        """Read the minibatches of segments."""
        for segments in self.shuffled_segments(batch_size):
            yield [self.read(group) for group in grouped_by_length(segments, batch_size)]

    def shuffled_segments(self, batch_size: int) -> Iterator[list[Segment]]:
        """
        Shuffle the segments, and start a new minibatch whenever one ends beyond the next multiple of the size.

        :param batch_size: transitions per minibatch, about
        :return: the segments of each minibatch
        """
        segments = self._segments(batch_size)
        order = np.random.permutation(len(segments))
        ends = np.cumsum([segments[index].length for index in order])
        starts_minibatch = np.diff((ends - 1) // batch_size)  # no minibatch is empty, for no segment is longer than one
        for part in np.split(order, np.flatnonzero(starts_minibatch) + 1):
            yield [segments[index] for index in part]

    def spread_inputs(self, n: int) -> PolicyInputs:
        """Read every k-th transition, with the LSTM state that the acting policy had there."""
        stride = math.ceil(self.n_transitions / n)
        return self.read([Segment(row, 1) for row in range(0, self.n_transitions, stride)], is_rounded=False).inputs

    def read(self, segments: Sequence[Segment], is_rounded: bool = True) -> Transitions:
        """
        Read segments, padded to the same length.

        :param segments: the segments, at least one
        :param is_rounded: whether to pad to one of few lengths and numbers of segments
        :return: their transitions, segment after segment, shape ``(n_segments * longest,)``
        """
        buffer = self._buffer
        rows, starts, weights, n_padding = padded_rows(segments, is_rounded)
        return Transitions(
            inputs=self._inputs(rows, starts),
            actions=actions_for_log_prob(buffer.to_torch(buffer.actions[rows].astype(np.float32)), buffer.action_space),
            old_log_prob=buffer.to_torch(buffer.log_probs[rows].flatten()),
            advantages=buffer.to_torch(buffer.advantages[rows].flatten()),
            returns=buffer.to_torch(buffer.returns[rows].flatten()),
            weights=buffer.to_torch(weights),
            n_padding=n_padding,
        )

    def _segments(self, longest: int) -> list[Segment]:
        return segments_of(self._buffer.episode_starts.reshape(-1), self._buffer.buffer_size, longest)

    def _states(self, kept: np.ndarray, rows: np.ndarray | slice) -> th.Tensor:
        """Arrange states before some rows as an LSTM expects them, zero where episodes start; cuDNN needs contiguous ones."""
        # Where an episode starts, the buffer holds the state in which the one before ended.
        continues = 1.0 - self._buffer.episode_starts[rows].reshape(1, -1, 1)
        return th.as_tensor(np.ascontiguousarray(kept[rows].swapaxes(0, 1) * continues), device=self._buffer.device)

    def critic_states(self) -> tuple[th.Tensor, th.Tensor]:
        """Read the critic's h and c before all rows, zero where episodes start, shape ``(n_layers, n_rows, n_hidden)``."""
        everywhere = slice(None)
        h, c = self._buffer.hidden_states_vf, self._buffer.cell_states_vf
        return self._states(h, everywhere), self._states(c, everywhere)

    def all_observations(self) -> PyTorchObs:
        """Read the observations of all rows."""
        return obs_as_tensor(self._buffer.observations, self._buffer.device)

    def _inputs(self, rows: np.ndarray, starts: np.ndarray) -> PolicyInputs:
        """
        Read what the policy acted on.

        :param rows: indices of rows, segment after segment, shape ``(n_segments * longest,)``
        :param starts: first row of each segment, shape ``(n_segments,)``
        :return: the inputs, on the buffer's device
        """
        buffer = self._buffer
        states = RNNStates(
            (self._states(buffer.hidden_states_pi, starts), self._states(buffer.cell_states_pi, starts)),
            (self._states(buffer.hidden_states_vf, starts), self._states(buffer.cell_states_vf, starts)),
        )
        observations = obs_as_tensor(map_parts(itemgetter(rows), buffer.observations), buffer.device)
        return SegmentInputs(observations, states, th.zeros(len(rows), device=buffer.device))


class MaskedSegmentReader(SegmentReader):
    """Reads segments with the action masks of their transitions."""

    _buffer: MaskableRecurrentRolloutBuffer | MaskableRecurrentDictRolloutBuffer

    def _inputs(self, rows: np.ndarray, starts: np.ndarray) -> PolicyInputs:
        return MaskedInputs(super()._inputs(rows, starts), self._buffer.to_torch(self._buffer.action_masks[rows]))


def fresh_states(policy: RecurrentActorCriticPolicy, n_envs: int) -> RNNStates:
    """
    Make the LSTM states with which episodes start.

    :param policy: the policy; all its LSTMs have states of the same shape
    :param n_envs: number of environments
    :return: four tensors of zeros, shape ``(n_layers, n_envs, n_hidden)``, which share no memory
    """
    n_layers, _, n_hidden = policy.lstm_hidden_state_shape
    like = next(policy.parameters())
    zeros = [like.new_zeros(n_layers, n_envs, n_hidden) for _ in range(4)]
    return RNNStates((zeros[0], zeros[1]), (zeros[2], zeros[3]))
