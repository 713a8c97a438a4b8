"""Maskable policies: chosen by name, given as a class, or a user's own subclass."""

import numpy as np
import pytest
import torch as th
from helpers.envs import DICT, IMAGE, VECTOR, RandomEnv
from helpers.masked import SPACES, history, model_of, several, theta_of
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy

from sb3_trpo import maskable
from sb3_trpo.maskable import MaskableTRPO, MlpPolicy


@pytest.mark.parametrize(
    ("name", "space"),
    [("MlpPolicy", VECTOR), ("CnnPolicy", IMAGE), ("MultiInputPolicy", DICT)],
    ids=["Mlp", "Cnn", "MultiInput"],
)
def test_policies_by_name_keep_the_extractors_of_policy_and_critic_apart(name, space):
    policy = MaskableTRPO(name, RandomEnv(space), n_steps=8, batch_size=8).policy
    assert type(policy) is getattr(maskable, name)
    assert isinstance(policy, MaskableActorCriticPolicy)
    assert policy.pi_features_extractor is not policy.vf_features_extractor


def test_an_unknown_policy_is_refused_with_the_names_of_the_known_ones():
    with pytest.raises(ValueError, match=r"'MlpLstmPolicy', but MaskableTRPO knows MlpPolicy, CnnPolicy, MultiInputPolicy"):
        MaskableTRPO("MlpLstmPolicy", RandomEnv())


def test_any_policy_is_masked():
    class Own(MlpPolicy):
        def extract_features(self, *arguments, **kwargs):
            return super().extract_features(*arguments, **kwargs)

    envs = several(2, SPACES["choice"]), several(2, SPACES["choice"])
    models = [model_of(env, policy=policy) for env, policy in zip(envs, (MlpPolicy, Own), strict=True)]
    models[1].policy.load_state_dict(models[0].policy.state_dict())
    for model in models:
        model.set_random_seed(5)
        model.learn(192)
    th.testing.assert_close(theta_of(models[1]), theta_of(models[0]), rtol=1e-3, atol=1e-4)
    for one, other in zip(*map(history, envs), strict=True):
        assert np.array_equal(one, other)
