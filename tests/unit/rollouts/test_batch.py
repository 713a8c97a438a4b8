"""A batch of one rollout is what its reader reads; a batch of two rollouts has the transitions of both."""

import numpy as np
import pytest
import torch as th
from helpers.buffers import filled
from helpers.recurrent_tools import small_model

from sb3_trpo.recurrent.reader import SegmentReader
from sb3_trpo.rollouts.batch import RolloutBatch
from sb3_trpo.rollouts.reader import TransitionReader

SIZE = 7


def two_rollouts():
    """Make two rollouts of different lengths."""
    return filled(), filled(n_steps=4, seed=1)


def returns_of(buffers):
    return np.concatenate([buffer.returns.flatten() for buffer in buffers])


def test_a_batch_of_one_rollout_is_what_its_reader_reads():
    batch, reader = RolloutBatch([filled()], TransitionReader), TransitionReader(filled())
    assert batch.n_transitions == reader.n_transitions == 18
    assert np.array_equal(batch.values, reader.values)
    assert np.array_equal(batch.returns, reader.returns)
    for one, other in zip(batch.chunks(2, SIZE), reader.chunks(2, SIZE), strict=True):
        assert th.equal(one.old_log_prob, other.old_log_prob)
        assert th.equal(one.inputs.observations, other.inputs.observations)
    assert th.equal(batch.spread_inputs(4).observations, reader.spread_inputs(4).observations)
    np.random.seed(0)
    drawn = [part.returns for (part,) in batch.minibatches(SIZE)]
    np.random.seed(0)
    assert all(th.equal(part, other.returns) for part, (other,) in zip(drawn, reader.minibatches(SIZE), strict=True))


def test_a_batch_of_two_rollouts_has_the_transitions_of_both():
    buffers = two_rollouts()
    batch = RolloutBatch(buffers, TransitionReader)
    assert batch.n_transitions == 30
    assert np.array_equal(batch.returns, returns_of(buffers))
    assert np.array_equal(batch.values, np.concatenate([buffer.values.flatten() for buffer in buffers]))
    chunks = batch.chunks(1, SIZE)
    assert [chunk.weight for chunk in chunks] == [7, 7, 4, 7, 5]
    assert th.cat([chunk.returns for chunk in chunks]).tolist() == batch.returns.tolist()
    expected = np.concatenate([buffer.advantages.flatten() for buffer in buffers])
    assert th.cat([chunk.advantages for chunk in chunks]).tolist() == chunks.advantages.tolist() == expected.tolist()
    observations = np.concatenate([buffer.observations for buffer in buffers])
    assert np.array_equal(th.cat([chunk.inputs.observations for chunk in chunks]).numpy(), observations)


def test_the_critic_meets_each_transition_of_two_rollouts_once_in_a_pass():
    buffers = two_rollouts()
    batch = RolloutBatch(buffers, TransitionReader)
    minibatches = [part for (part,) in batch.minibatches(SIZE)]
    epoch = batch.feature_epoch(lambda observations: observations, False, SIZE)
    pairs = [*epoch(), *epoch()]
    expected = returns_of(buffers).tolist()
    assert sorted(th.cat([part.returns for part in minibatches]).tolist()) == sorted(expected)
    assert sorted(th.cat([returns for _, returns in pairs]).flatten().tolist()) == sorted(expected * 2)
    by_return = dict(zip(expected, np.concatenate([buffer.observations for buffer in buffers]).tolist(), strict=True))
    for features, returns in pairs:
        assert [by_return[value] for value in returns.flatten().tolist()] == features.tolist()


def test_statistics_see_the_newest_rollout():
    buffers = two_rollouts()
    batch = RolloutBatch(buffers, TransitionReader)
    assert np.array_equal(batch.spread_inputs(100).observations.numpy(), buffers[-1].observations)


@pytest.mark.parametrize("size", [5, 100])
def test_a_batch_of_two_rollouts_of_a_policy_with_memory_has_the_segments_of_both(size):
    buffers = []
    for seed in (0, 1):
        model = small_model(seed=seed)
        _, callback = model._setup_learn(1, None)
        model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
        buffers.append(model.rollout_buffer)
    batch = RolloutBatch(buffers, SegmentReader)
    parts = [*batch.chunks(1, size)], [part for minibatch in batch.minibatches(size) for part in minibatch]
    for each in parts:
        seen = [value for part in each for value in part.returns[part.weights > 0].tolist()]
        assert sorted(seen) == sorted(returns_of(buffers).tolist())
    assert batch.feature_epoch(lambda observations: observations, False, size) is None


def test_nothing_is_read_when_a_batch_is_made(monkeypatch):
    buffer = filled()
    next(buffer.get(1))
    monkeypatch.setattr(buffer, "get", None)
    monkeypatch.setattr(buffer, "_get_samples", None)
    batch = RolloutBatch([buffer], TransitionReader)
    assert len(batch.chunks(1, SIZE)) == 3
