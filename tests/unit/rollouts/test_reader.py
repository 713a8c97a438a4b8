"""How SB3's buffers are read: chunks and minibatches hold what the buffer holds, and direct reading changes nothing."""

import copy

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from helpers.buffers import N_ENVS, N_STEPS, filled
from helpers.envs import BOX_ACTION, DICT, IMAGE, VECTOR
from stable_baselines3.common.buffers import RolloutBuffer

from sb3_trpo import MlpPolicy
from sb3_trpo.rollouts.plain_spaces import map_parts
from sb3_trpo.rollouts.reader import RolloutReader, TransitionReader
from sb3_trpo.rollouts.transitions import ChunkLimits

SPACES = {
    "discrete": (VECTOR, spaces.Discrete(3)),
    "continuous": (VECTOR, BOX_ACTION),
    "bits": (VECTOR, spaces.MultiBinary(2)),
    "choices": (VECTOR, spaces.MultiDiscrete([2, 3])),
    "image": (IMAGE, spaces.Discrete(3)),
    "dict": (DICT, BOX_ACTION),
    "number": (spaces.Discrete(5), spaces.Discrete(3)),
}


@pytest.mark.parametrize("read_before", [False, True], ids=["fresh", "read"])
@pytest.mark.parametrize("chunk_size", [1, 4, 7, 18, 100])
@pytest.mark.parametrize("every", [1, 2, 5])
@pytest.mark.parametrize(("observation_space", "action_space"), SPACES.values(), ids=SPACES)
def test_chunks_together_are_every_kth_transition_environment_after_environment(
    observation_space, action_space, every, chunk_size, read_before
):
    buffer = filled(observation_space, action_space)

    def joined(array):
        return np.concatenate([array[:, env] for env in range(N_ENVS)])[::every]

    observations = map_parts(joined, buffer.observations)
    actions, log_probs, advantages = (joined(array) for array in (buffer.actions, buffer.log_probs, buffer.advantages))
    is_choice, n = isinstance(action_space, spaces.Discrete), len(actions)
    assert n == -(-N_STEPS * N_ENVS // every)
    if read_before:
        next(buffer.get())

    read = list(TransitionReader(buffer).chunks(every, chunk_size))
    assert [len(chunk.actions) for chunk in read] == [chunk_size] * (n // chunk_size) + [n % chunk_size] * (n % chunk_size > 0)
    for key, part in observations.items() if isinstance(observations, dict) else [(None, observations)]:
        seen = [chunk.inputs.observations if key is None else chunk.inputs.observations[key] for chunk in read]
        assert np.array_equal(th.cat(seen), part)
    assert all((chunk.actions.dtype == th.long) == is_choice for chunk in read)
    assert np.array_equal(th.cat([chunk.actions for chunk in read]), actions[:, 0] if is_choice else actions)
    assert np.array_equal(th.cat([chunk.old_log_prob for chunk in read]), log_probs)
    assert np.array_equal(th.cat([chunk.advantages for chunk in read]), advantages)


def test_a_buffer_is_flattened_once_and_by_one_draw():
    buffer, other = filled(), filled()
    np.random.seed(0)
    reader = TransitionReader(buffer)
    state = np.random.get_state()[1].tolist()
    np.random.seed(0)
    next(other.get(1))
    assert state == np.random.get_state()[1].tolist()
    assert np.array_equal(reader.returns, other.returns.flatten())
    TransitionReader(buffer)
    assert state == np.random.get_state()[1].tolist()


def test_minibatches_are_those_of_the_buffer():
    buffer = filled()
    reader = TransitionReader(buffer)
    np.random.seed(0)
    seen = [part for (part,) in reader.minibatches(7)]
    np.random.seed(0)
    for part, samples in zip(seen, buffer.get(7), strict=True):
        assert th.equal(part.inputs.observations, samples.observations)
        assert th.equal(part.returns, samples.returns)
        assert th.equal(part.actions, samples.actions.long().flatten())
        assert part.weight == len(samples.returns)


def doubled(observations):
    """Make features of observations that tell them apart."""
    parts = observations.values() if isinstance(observations, dict) else [observations]
    return th.cat([2.0 * part.flatten(1).float() for part in parts], dim=1)


class Subclass(RolloutBuffer):
    """Doubles the returns of its samples, so reading its arrays would be wrong."""

    def _get_samples(self, batch_inds, env=None):
        samples = super()._get_samples(batch_inds, env)
        return samples._replace(returns=2.0 * samples.returns)


def patched():
    """Double the returns by a method of the buffer's own."""
    buffer = filled()
    buffer._get_samples = Subclass._get_samples.__get__(filled(buffer_class=Subclass))
    next(buffer._get_samples.__self__.get(1))
    return buffer


@pytest.mark.parametrize("is_costly", [False, True])
@pytest.mark.parametrize("n_ahead", [1, 7, 100])
@pytest.mark.parametrize(
    "make",
    [
        filled,
        lambda: filled(DICT),
        lambda: filled(IMAGE),
        lambda: filled(spaces.Box(-1.0, 1.0, (3,), np.float64)),
        lambda: filled(buffer_class=Subclass),
        patched,
    ],
    ids=["vector", "dict", "image", "float64", "subclass", "patched"],
)
def test_a_feature_epoch_pairs_the_features_and_returns_of_minibatches(make, n_ahead, is_costly, monkeypatch):
    monkeypatch.setattr("sb3_trpo.rollouts.reader.PASS_LIMITS", ChunkLimits(10**9, n_ahead))
    reader = TransitionReader(make())
    epoch = reader.feature_epoch(doubled, is_costly, 7)
    for _ in range(2):
        state = np.random.get_state()
        pairs = list(epoch())
        after = np.random.get_state()[1].tolist()
        np.random.set_state(state)
        for (features, returns), (part,) in zip(pairs, reader.minibatches(7), strict=True):
            assert th.equal(features, doubled(part.inputs.observations))
            assert th.equal(returns, part.returns[:, None])
        assert after == np.random.get_state()[1].tolist()


@pytest.mark.parametrize("is_costly", [False, True])
def test_costly_features_are_computed_once(is_costly):
    calls = []

    def features(observations):
        calls.append(len(observations))
        return observations

    epoch = TransitionReader(filled()).feature_epoch(features, is_costly, N_STEPS)
    for _ in range(2):
        list(epoch())
    assert calls == ([N_STEPS * N_ENVS] if is_costly else [N_STEPS] * N_ENVS * 2)


@pytest.mark.parametrize("n", [1, 2, 5, 18, 100])
def test_spread_inputs_are_evenly_spread(n):
    reader = TransitionReader(filled())
    inputs, stride = reader.spread_inputs(n), -(-N_STEPS * N_ENVS // n)
    (whole,) = reader.chunks(1, 100)
    assert len(inputs) <= n
    assert th.equal(inputs.observations, whole.inputs.observations[::stride])


def test_any_inputs_are_the_same_each_time_and_leave_the_space_alone():
    policy = MlpPolicy(copy.deepcopy(VECTOR), spaces.Discrete(3), lambda _: 1e-3)
    policy.observation_space.seed(3)
    one = TransitionReader.any_inputs(policy)
    drawn = policy.observation_space.sample()
    other = TransitionReader.any_inputs(policy)
    assert th.equal(one.observations, other.observations)
    assert len(one) == 1
    policy.observation_space.seed(3)
    assert np.array_equal(policy.observation_space.sample(), drawn)


def test_a_reader_offers_no_feature_epoch_unless_it_has_one():
    class Other(RolloutReader):
        chunks = minibatches = spread_inputs = None

    assert Other(filled()).feature_epoch(doubled, False, 7) is None
