"""A policy with any distribution: SB3's own to the last bit, or one that SB3 refuses."""

import pytest
import torch as th
from gymnasium import spaces
from helpers.envs import BOX_ACTION, VECTOR
from stable_baselines3.common.distributions import DiagGaussianDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from torch.distributions import Normal

from sb3_trpo.distributions.policy import AnyDistributionPolicy


class Foreign(DiagGaussianDistribution.__base__):
    """A normal distribution that SB3 does not know, with or without a parameter besides the layer's."""

    def __init__(self, has_parameter):
        super().__init__()
        self.has_parameter = has_parameter

    def proba_distribution_net(self, latent_dim):
        layer = th.nn.Linear(latent_dim, 2)
        return (layer, th.nn.Parameter(th.full((2,), -1.0))) if self.has_parameter else layer

    def proba_distribution(self, mean, log_std=None):
        self.distribution = Normal(mean, th.ones_like(mean) if log_std is None else log_std.exp().expand_as(mean))
        return self

    def log_prob(self, actions):
        return self.distribution.log_prob(actions).sum(1)

    def entropy(self):
        return self.distribution.entropy().sum(1)

    def sample(self):
        return self.distribution.rsample()

    def mode(self):
        return self.distribution.mean

    actions_from_params = log_prob_from_params = None


class ForeignPolicy(AnyDistributionPolicy):
    has_parameter = True

    def _choose_distribution(self):
        return Foreign(self.has_parameter)


class WithoutParameter(ForeignPolicy):
    has_parameter = False


def made(policy, action_space=BOX_ACTION, **kwargs):
    th.manual_seed(0)
    return policy(VECTOR, action_space, lambda _: 1e-3, **kwargs), th.get_rng_state()


@pytest.mark.parametrize("use_sde", [False, True])
@pytest.mark.parametrize("action_space", [BOX_ACTION, spaces.Discrete(3), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2)])
def test_with_a_distribution_of_sb3s_everything_is_sb3s_bit_for_bit(action_space, use_sde):
    if use_sde and action_space is not BOX_ACTION:
        pytest.skip("gSDE is for Box actions")
    (ours, after), (theirs, expected) = (
        made(cls, action_space, use_sde=use_sde) for cls in (AnyDistributionPolicy, ActorCriticPolicy)
    )
    th.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0.0, atol=0.0)
    assert th.equal(after, expected)
    assert type(ours.action_dist) is type(theirs.action_dist)
    observations = th.randn(5, *VECTOR.shape)
    for policy in (ours, theirs):
        th.manual_seed(1)
        policy.outcome = policy(observations)
    for own, other in zip(ours.outcome, theirs.outcome, strict=True):
        assert th.equal(own, other)


@pytest.mark.parametrize("policy", [ForeignPolicy, WithoutParameter])
def test_a_distribution_that_sb3_refuses_is_built_initialized_and_optimized_like_sb3s(policy):
    (ours, after), (theirs, expected) = made(policy), made(ActorCriticPolicy)
    assert type(ours.action_dist) is Foreign
    weights, others = ours.state_dict(), theirs.state_dict()
    assert ("log_std" in weights) is policy.has_parameter
    others.pop("log_std")
    assert th.equal(weights.pop("log_std", th.tensor(-1.0)).unique(), th.tensor([-1.0]))
    th.testing.assert_close(weights, others, rtol=0.0, atol=0.0)  # orthogonal, with SB3's gains
    assert th.equal(after, expected)
    optimized = {id(parameter) for group in ours.optimizer.param_groups for parameter in group["params"]}
    assert optimized == {id(parameter) for parameter in ours.parameters()}
    distribution = ours.get_distribution(th.zeros(3, *VECTOR.shape))
    std = th.tensor(-1.0).exp() if policy.has_parameter else th.tensor(1.0)
    th.testing.assert_close(distribution.distribution.stddev, std.expand(3, 2))


def test_without_a_distribution_that_sb3_refuses_there_is_no_policy():
    class Refused(ActorCriticPolicy):
        def _build(self, lr_schedule):
            self.action_dist = Foreign(True)
            super()._build(lr_schedule)

    with pytest.raises(NotImplementedError, match="Unsupported distribution"):
        made(Refused)
