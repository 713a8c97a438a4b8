"""What a policy acts on: observations alone are counted, and given to SB3's own methods."""

import pytest
import torch as th
from gymnasium import spaces
from helpers.envs import VECTOR

from sb3_trpo import MlpPolicy, MultiInputPolicy
from sb3_trpo.rollouts.inputs import ObservationInputs

PAIR = spaces.Dict(one=VECTOR, two=spaces.Box(-1.0, 1.0, (2, 2)))


@pytest.mark.parametrize(("policy_class", "space"), [(MlpPolicy, VECTOR), (MultiInputPolicy, PAIR)], ids=["vector", "dict"])
def test_observations_are_counted_and_given_to_sb3s_own_methods(policy_class, space):
    policy = policy_class(space, spaces.Discrete(3), lambda _: 1e-3)
    observations, _ = policy.obs_to_tensor(space.sample())
    inputs = ObservationInputs(observations)
    assert len(inputs) == 1
    assert th.equal(inputs.values(policy), policy.predict_values(observations))
    probabilities = policy.get_distribution(observations).distribution.probs
    distribution = inputs.distribution(policy)
    assert th.equal(distribution.distribution.probs, probabilities)
    assert inputs.restrict(distribution) is distribution
