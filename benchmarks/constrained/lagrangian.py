"""
A Lagrangian on the same code, for comparison: TRPO on ``(A - lambda A_C) / (1 + lambda)``, with lambda from dual ascent.

This is OmniSafe's TRPOLag: both advantages are standardized, and Adam raises lambda while the cost is above its limit, with
OmniSafe's learning rate and initial value. Costs, their critics and their estimates are those of ``ConstrainedTRPO``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch as th

from sb3_trpo import TRPO
from sb3_trpo.constrained import ConstrainedTRPO
from sb3_trpo.networks.plain_network import Networks
from sb3_trpo.numerics.trust_region import Step
from sb3_trpo.rollouts.batch import RolloutBatch
from sb3_trpo.settings import Scheduled
from sb3_trpo.update.parameter_split import ParameterSplit

LEARNING_RATE, INITIAL = 0.035, 0.001
"""Of lambda; OmniSafe's."""


class LagrangianTRPO(ConstrainedTRPO):
    """TRPO with costs weighed by multipliers."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.multipliers = th.full((len(self.cost_limits),), INITIAL)
        self._ascent = th.optim.Adam([self.multipliers], LEARNING_RATE)

    def _improve_policy(self, batch: RolloutBatch, networks: Networks | None, split: ParameterSplit, now: Scheduled) -> Step:
        self._measured = self._measure_costs()
        self.multipliers.grad = th.tensor([limit - self.cost_estimates[key] for key, limit in self.cost_limits.items()])
        self._ascent.step()
        self.multipliers.clamp_(min=0.0)
        buffer, weights = self.rollout_buffer, self.multipliers.tolist()
        of_costs = [standardized(each.batch.readers[0].advantages) for each in self._measured]
        costs = [weight * advantages for weight, advantages in zip(weights, of_costs, strict=True)]
        combined = (standardized(buffer.advantages.reshape(-1)) - sum(costs)) / (1.0 + sum(weights))
        buffer.advantages = combined.reshape(buffer.advantages.shape).astype(np.float32)
        step = TRPO._improve_policy(self, batch, networks, split, now)
        self._record_costs(step)
        for key, value in zip(self.cost_limits, weights, strict=True):
            self.logger.record(f"cost/{key}/multiplier", value)
        return step


def standardized(values: np.ndarray) -> np.ndarray:
    """
    Give values mean 0 and standard deviation 1.

    :param values: shape ``(n,)``
    :return: the same shape
    """
    return (values - values.mean()) / (values.std() + 1e-8)
