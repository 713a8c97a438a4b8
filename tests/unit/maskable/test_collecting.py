"""Callers that know no masks get them from the environments: SB3's evaluation, and loops that collect rollouts."""

from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
from gymnasium import spaces
from helpers.recurrent_tools import vec_env

from sb3_trpo.maskable.collecting import AlgorithmWithPolicy, CollectingPolicy, SelfMaskingModel

CHOICE = spaces.Discrete(3)


def masks_of(env):
    return np.stack(env.env_method("action_masks"))


def test_a_model_is_given_the_masks_of_the_environments_unless_the_caller_has_some():
    env, model = vec_env(action_space=CHOICE), Mock(num_timesteps=7)
    env.reset()
    masking = SelfMaskingModel(model, env)
    masking.predict("observations", deterministic=True)
    (observations,), keywords = model.predict.call_args
    assert observations == "observations"
    assert np.array_equal(keywords.pop("action_masks"), masks_of(env))
    assert keywords == {"deterministic": True}
    masking.predict("observations", action_masks="own")
    assert model.predict.call_args.kwargs == {"action_masks": "own"}
    assert masking.num_timesteps == 7


def test_a_policy_that_collects_stores_the_masks_under_which_it_acts_and_passes_them_to_callbacks():
    env, callback = vec_env(action_space=CHOICE), Mock()
    env.reset()
    algorithm = SimpleNamespace(policy=Mock(training=False))
    buffer = SimpleNamespace(pos=1, action_space=CHOICE, action_masks=np.zeros((2, 2, 3), dtype=bool))
    policy = CollectingPolicy(algorithm, env, buffer, callback)
    masks = masks_of(env)
    for call in (policy, policy.forward):
        buffer.action_masks[:] = False
        assert call("observations") is algorithm.policy.return_value
        assert algorithm.policy.call_args.args == ("observations",)
        assert np.array_equal(algorithm.policy.call_args.kwargs["action_masks"], masks)
        assert np.array_equal(buffer.action_masks, [np.zeros_like(masks), masks])
        assert np.array_equal(callback.update_locals.call_args.args[0]["action_masks"], masks)
    assert policy.training is False


def test_an_algorithm_with_another_policy_is_else_the_algorithm():
    algorithm = SimpleNamespace(policy="its own", num_timesteps=1)
    other = AlgorithmWithPolicy(algorithm, "another")
    other.num_timesteps += 1
    assert other.policy == "another"
    assert other.num_timesteps == algorithm.num_timesteps == 2
    assert algorithm.policy == "its own"
