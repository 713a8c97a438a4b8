"""What masks must look like, and which environments have them."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_trpo.maskable.masks import checked_masks, masks_from, options_of, require_masks

SPACES = {
    "choice": (spaces.Discrete(3), [3]),
    "choices": (spaces.MultiDiscrete([2, 3]), [2, 3]),
    "bits": (spaces.MultiBinary(2), [2, 2]),
    "grid of bits": (spaces.MultiBinary((2, 2)), [2, 2, 2, 2]),
}


@pytest.mark.parametrize(("space", "options"), SPACES.values(), ids=SPACES)
def test_options_are_counted_choice_by_choice(space, options):
    assert options_of(space) == options


class Env(gym.Env):
    observation_space = spaces.Discrete(2)
    action_space = spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        return 0, {}


class WithMasks(Env):
    def __init__(self, mask):
        self.mask = mask

    def action_masks(self):
        return self.mask


def test_environments_without_masks_are_refused():
    require_masks(DummyVecEnv([lambda: WithMasks([1, 1, 1])]))
    with pytest.raises(ValueError, match=r"no method action_masks\(\).*ActionMasker.*sb3_trpo.TRPO"):
        require_masks(DummyVecEnv([Env]))


def test_each_environment_is_asked_for_its_mask():
    venv = DummyVecEnv([lambda mask=mask: WithMasks(mask) for mask in ([1, 0, 1], [True, True, False])])
    masks = masks_from(venv, spaces.Discrete(3), 4)
    assert masks.dtype == bool
    assert masks.tolist() == [[True, False, True], [True, True, False]]
    venv.envs[1].mask = [0, 0, 0]
    with pytest.raises(ValueError, match="environment 1 at step 4 of the rollout allows no option of choice 0"):
        masks_from(venv, spaces.Discrete(3), 4)


@pytest.mark.parametrize("odd", [-np.inf, np.nan, 2.0, -1.0])
def test_masks_of_anything_but_flags_are_refused(odd):
    with pytest.raises(ValueError, match=rf"environment 1 at step 7 of the rollout holds {odd}"):
        checked_masks([np.ones(3), np.array([1.0, 0.0, odd])], spaces.Discrete(3), "at step 7 of the rollout")


def test_a_mask_may_be_one_of_each_choice():
    space = spaces.MultiDiscrete([2, 3])
    (joined,) = checked_masks([([1, 0], [True, False, True])], space, "now")
    assert joined.tolist() == [True, False, True, False, True]
