"""Limits on costs together with action masks."""

import numpy as np
import pytest
from gymnasium import spaces
from helpers.contract_tools import same_parameters
from helpers.costs import SMALL, CostlyEnv
from helpers.envs import VECTOR
from stable_baselines3.common.env_util import make_vec_env

import sb3_trpo.constrained
from sb3_trpo.constrained import MaskableConstrainedTRPO


class Masked(CostlyEnv):
    """The costly action, 2, is the best of the allowed ones; 3 would be better but is forbidden."""

    def __init__(self):
        super().__init__(VECTOR, spaces.Discrete(4))

    def action_masks(self):
        return np.array([True, True, True, False])

    def step(self, action):
        assert action != 3
        *rest, info = super().step(action)
        return *rest, {**info, "cost": float(action == 2)}


def test_masks_and_limits_are_kept_at_once(tmp_path):
    settings = SMALL | {
        "n_steps": 32,
        "batch_size": 128,
        "learning_rate": 1e-2,
        "target_kl": 0.1,
        "cost_limits": {"cost": 2.0},
    }
    model = MaskableConstrainedTRPO("MlpPolicy", make_vec_env(Masked, 4, seed=0), **settings).learn(2500)
    assert 0.5 <= np.mean(model._episode_costs) <= 2.2
    model.save(tmp_path / "model")
    loaded = MaskableConstrainedTRPO.load(tmp_path / "model")
    assert same_parameters(loaded.cost_critics[0], model.cost_critics[0])


def test_other_names_are_not_there():
    with pytest.raises(AttributeError, match="has no attribute 'Recurrent'"):
        sb3_trpo.constrained.Recurrent  # noqa: B018
