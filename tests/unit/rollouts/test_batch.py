"""A batch of one rollout is what its reader reads; a batch of two rollouts has the transitions of both."""

import numpy as np
import pytest
import torch as th
from helpers.buffers import filled
from helpers.recurrent_tools import collected, small_model

from sb3_trpo.recurrent.reader import SegmentReader
from sb3_trpo.rollouts.batch import RolloutBatch
from sb3_trpo.rollouts.reader import TransitionReader

SIZE = 7


def two_rollouts():
    """Make two rollouts of different lengths."""
    return filled(), filled(n_steps=4, seed=1)


def joined(buffers, name, every=1):
    return np.concatenate([getattr(buffer, name)[::every] for buffer in buffers]).squeeze()


@pytest.mark.parametrize(("n_rollouts", "sizes"), [(1, [7, 7, 4]), (2, [7, 7, 4, 7, 5])])
def test_a_batch_has_the_transitions_of_its_rollouts_in_order(n_rollouts, sizes):
    buffers = two_rollouts()[:n_rollouts]
    batch = RolloutBatch(buffers, TransitionReader)
    assert batch.n_transitions == sum(sizes)
    assert np.array_equal(batch.returns, joined(buffers, "returns"))
    assert np.array_equal(batch.values, joined(buffers, "values"))
    chunks = batch.chunks(1, SIZE)
    assert [chunk.weight for chunk in chunks] == sizes
    assert th.cat([chunk.returns for chunk in chunks]).tolist() == batch.returns.tolist()
    assert chunks.advantages.tolist() == joined(buffers, "advantages").tolist()
    assert th.cat([chunk.advantages for chunk in chunks]).tolist() == chunks.advantages.tolist()
    observations = th.cat([chunk.inputs.observations for chunk in chunks])
    assert np.array_equal(observations.numpy(), joined(buffers, "observations"))
    assert batch.chunks(2, SIZE).advantages.tolist() == joined(buffers, "advantages", 2).tolist()
    assert np.array_equal(batch.spread_inputs(100).observations.numpy(), buffers[-1].observations)


def test_the_critic_meets_each_transition_of_two_rollouts_once_in_a_pass():
    buffers = two_rollouts()
    batch = RolloutBatch(buffers, TransitionReader)
    minibatches = [part for (part,) in batch.minibatches(SIZE)]
    epoch = batch.feature_epoch(lambda observations: observations, False, SIZE)
    pairs = [*epoch(), *epoch()]
    expected = joined(buffers, "returns").tolist()
    assert sorted(th.cat([part.returns for part in minibatches]).tolist()) == sorted(expected)
    assert sorted(th.cat([returns for _, returns in pairs]).flatten().tolist()) == sorted(expected * 2)
    by_return = dict(zip(expected, joined(buffers, "observations").tolist(), strict=True))
    for features, returns in pairs:
        assert [by_return[value] for value in returns.flatten().tolist()] == features.tolist()


@pytest.mark.parametrize("size", [5, 100])
def test_a_batch_of_two_rollouts_of_a_policy_with_memory_has_the_segments_of_both(size):
    buffers = [collected(small_model(seed=seed), n_rollouts=1).rollout_buffer for seed in (0, 1)]
    batch = RolloutBatch(buffers, SegmentReader)
    parts = [*batch.chunks(1, size)], [part for minibatch in batch.minibatches(size) for part in minibatch]
    for each in parts:
        seen = [value for part in each for value in part.returns[part.weights > 0].tolist()]
        assert sorted(seen) == sorted(joined(buffers, "returns").tolist())
    assert batch.feature_epoch(lambda observations: observations, False, size) is None


def test_nothing_is_read_when_a_batch_is_made(monkeypatch):
    buffer = filled()
    next(buffer.get(1))
    monkeypatch.setattr(buffer, "get", None)
    monkeypatch.setattr(buffer, "_get_samples", None)
    batch = RolloutBatch([buffer], TransitionReader)
    assert len(batch.chunks(1, SIZE)) == 3
