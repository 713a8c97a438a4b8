"""Rollout buffers with both LSTM states and action masks, which sb3-contrib does not have."""

from __future__ import annotations

from typing import Any

import numpy as np
from stable_baselines3.common.buffers import RolloutBuffer

from sb3_trpo.extras import CONTRIB, needs
from sb3_trpo.maskable.masks import options_of

with needs(*CONTRIB):
    from sb3_contrib.common.recurrent.buffers import RecurrentDictRolloutBuffer, RecurrentRolloutBuffer


class _WithMasks(RolloutBuffer):
    """Adds action masks to a buffer."""

    action_masks: np.ndarray

    def reset(self) -> None:
        super().reset()
        self.action_masks = np.ones((self.buffer_size, self.n_envs, sum(options_of(self.action_space))), dtype=bool)

    def get(self, batch_size: int | None = None) -> Any:
        if self.full and not self.generator_ready:
            self.action_masks = self.swap_and_flatten(self.action_masks)
        yield from super().get(batch_size)


class MaskableRecurrentRolloutBuffer(_WithMasks, RecurrentRolloutBuffer):
    """sb3-contrib's ``RecurrentRolloutBuffer`` with action masks."""


class MaskableRecurrentDictRolloutBuffer(_WithMasks, RecurrentDictRolloutBuffer):
    """sb3-contrib's ``RecurrentDictRolloutBuffer`` with action masks."""
