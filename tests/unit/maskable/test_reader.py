"""What a masked policy acts on is read with its masks, and policies are asked under them."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from helpers.buffers import N_ENVS, N_STEPS, filled
from helpers.envs import DICT, VECTOR
from sb3_contrib.common.maskable.buffers import MaskableDictRolloutBuffer, MaskableRolloutBuffer

from sb3_trpo.maskable import MlpPolicy
from sb3_trpo.maskable.reader import MaskedInputs, MaskedTransitionReader
from sb3_trpo.rollouts.inputs import ObservationInputs

BUFFERS = {"vector": (VECTOR, MaskableRolloutBuffer), "dict": (DICT, MaskableDictRolloutBuffer)}


def masked_buffer(space, buffer_class):
    """Fill a buffer with masks that tell transitions apart."""
    buffer = filled(space, buffer_class=buffer_class)
    buffer.action_masks[:] = np.random.default_rng(0).random(buffer.action_masks.shape) < 0.5
    return buffer


@pytest.mark.parametrize(("space", "buffer_class"), BUFFERS.values(), ids=BUFFERS)
def test_transitions_are_read_with_their_masks(space, buffer_class):
    buffer = masked_buffer(space, buffer_class)
    masks = th.as_tensor(np.concatenate([buffer.action_masks[:, env] for env in range(N_ENVS)]))
    reader = MaskedTransitionReader(buffer)
    chunks = [*reader.chunks(1, 7)]
    assert th.equal(th.cat([chunk.inputs.action_masks for chunk in chunks]), masks)
    assert [len(chunk.inputs) for chunk in chunks] == [7, 7, 4]
    by_return = dict(zip(reader.returns.tolist(), masks.tolist(), strict=True))
    for (part,) in reader.minibatches(5):
        assert part.inputs.action_masks.tolist() == [by_return[value] for value in part.returns.tolist()]
        assert part.actions.dtype == th.long


@pytest.mark.parametrize(("space", "buffer_class"), BUFFERS.values(), ids=BUFFERS)
def test_sb3_contribs_own_buffers_are_read_directly(space, buffer_class, monkeypatch):
    reader = MaskedTransitionReader(masked_buffer(space, buffer_class))
    monkeypatch.setattr(buffer_class, "get", None)
    epoch = reader.feature_epoch(lambda seen: next(iter(seen.values())) if space is DICT else seen, False, 7)
    assert [len(returns) for _, returns in epoch()] == [7, 7, 4]


def test_a_policy_is_asked_under_the_masks_and_its_critic_without():
    policy = MlpPolicy(VECTOR, spaces.Discrete(3), lambda _: 1e-3)
    observations, masks = th.rand(N_STEPS, 3), th.tensor([[1.0, 0.0, 1.0]] * N_STEPS)
    unmasked = ObservationInputs(observations)
    inputs = MaskedInputs(unmasked, masks)
    free = unmasked.distribution(policy).distribution.probs.clone()
    probabilities = inputs.distribution(policy).distribution.probs
    assert not probabilities[:, 1].any()
    th.testing.assert_close(probabilities[:, 0], free[:, 0] / (free[:, 0] + free[:, 2]))
    assert th.equal(inputs.values(policy), unmasked.values(policy))
    assert inputs.observations is observations
    assert len(inputs) == N_STEPS
    assert th.equal(inputs.restrict(unmasked.distribution(policy)).distribution.probs, probabilities)


def test_where_there_is_no_rollout_everything_is_allowed():
    policy = MlpPolicy(VECTOR, spaces.Discrete(3), lambda _: 1e-3)
    inputs = MaskedTransitionReader.any_inputs(policy)
    assert len(inputs) == 1
    assert (inputs.distribution(policy).distribution.probs > 0.0).all()
