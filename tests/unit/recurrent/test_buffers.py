"""Buffers for policies with memory keep action masks like everything else."""

import numpy as np
import pytest
from gymnasium import spaces
from helpers.envs import DICT, VECTOR

from sb3_trpo.recurrent import MaskableRecurrentDictRolloutBuffer, MaskableRecurrentRolloutBuffer

BUFFERS = {"vector": (VECTOR, MaskableRecurrentRolloutBuffer), "dict": (DICT, MaskableRecurrentDictRolloutBuffer)}
CHOICES = spaces.MultiDiscrete([2, 3])


@pytest.mark.parametrize(("space", "buffer_class"), BUFFERS.values(), ids=BUFFERS)
def test_masks_are_flattened_with_the_rest_and_allow_everything_after_a_reset(space, buffer_class):
    buffer = buffer_class(4, space, CHOICES, (4, 1, 2, 3), device="cpu", n_envs=2)
    assert buffer.action_masks.shape == (4, 2, 5)
    assert buffer.action_masks.all()
    masks = np.random.default_rng(0).random((4, 2, 5)) < 0.5
    buffer.action_masks[:] = masks
    buffer.full = True
    for _ in range(2):  # flattened once
        next(buffer.get(1))
        assert np.array_equal(buffer.action_masks, np.concatenate([masks[:, 0], masks[:, 1]]))
    buffer.reset()
    assert buffer.action_masks.shape == (4, 2, 5)
    assert buffer.action_masks.all()
