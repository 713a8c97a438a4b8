"""Gaussian distributions: small steps, squashing, changed standard deviations; state-dependent noise is SB3's."""

from itertools import product
from typing import NamedTuple

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from helpers.envs import VECTOR
from helpers.kinds import kl
from helpers.oracle import dense_metric, parameters_of, rebuild, some_observations, torch_distributions
from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution, StateDependentNoiseDistribution
from torch.autograd.functional import jacobian

from sb3_trpo import MlpPolicy
from sb3_trpo.distributions.gaussian import Gaussian, GaussianSampler, StateDependentHead
from sb3_trpo.networks.plain_network import read_networks


def test_squashing_leaves_the_kl_as_it_is():
    old, new = (squashed(*parameters) for parameters in ((0.3, -0.5), (-0.2, 0.1)))
    u = th.linspace(-8.0, 8.0, 4001, dtype=th.float64)[:, None]
    actions, slope = u.tanh(), 1.0 - u.tanh().square()
    old_log, new_log = (each.log_prob(actions, u) for each in (old, new))
    integral = th.trapezoid(old_log.exp() * (old_log - new_log) * slope[:, 0], u[:, 0])
    th.testing.assert_close(kl(old, new), integral[None], rtol=1e-3, atol=0.0)


def squashed(mean, log_std):
    mean, log_std = th.tensor([mean, log_std], dtype=th.float64).view(2, 1, 1)
    return SquashedDiagGaussianDistribution(1).proba_distribution(mean, log_std)


@pytest.mark.parametrize("change", [1e-1, 1e-2, 1e-3, 1e-4, 1e-5])
def test_gaussian_kl_of_a_small_step_keeps_its_digits_in_float32(change):
    std = th.rand((1000, 1), generator=th.Generator().manual_seed(0)) + 0.5
    mean = th.zeros_like(std)
    for old, new in [((mean, std), (mean, std * (1.0 + change))), ((mean, std), (mean + change * std, std))]:
        single = Gaussian().kl(old, new)
        double = Gaussian().kl(tuple(z.double() for z in old), tuple(z.double() for z in new))
        assert single.dtype is th.float32
        assert ((single - double).abs() <= 8 * th.finfo(th.float32).eps * double.sqrt()).all()


def test_a_standard_deviation_written_in_place_counts_at_the_next_sample():
    log_std = th.zeros(2)
    sampler = GaussianSampler(th.zeros(1000, 2), log_std)
    for value in (0.0, 2.0):
        log_std.data.fill_(value)
        sampler.draw()
        assert sampler.actions().std() == pytest.approx(np.exp(value), rel=0.1)


@pytest.mark.parametrize("is_nan_from_the_start", [True, False])
def test_a_standard_deviation_that_is_nan_is_refused_before_anything_is_drawn(is_nan_from_the_start):
    log_std = th.full((2,), th.nan if is_nan_from_the_start else 0.0)
    sampler, state = GaussianSampler(th.zeros(3, 2), log_std), th.get_rng_state()
    log_std[1] = th.nan
    with pytest.raises(ValueError, match="gave NaN"):
        sampler.draw()
    assert th.equal(state, th.get_rng_state())


class Noise(NamedTuple):
    """The settings of gSDE, and numbers of units and actions."""

    n_hidden: int
    n_actions: int
    full_std: bool
    use_expln: bool
    squash_output: bool
    learn_features: bool

    def head(self, dtype: th.dtype = th.float64) -> StateDependentHead:
        """Build a head whose log_std has both signs, and a zero."""
        distribution = StateDependentNoiseDistribution(self.n_actions, *self[2:5], learn_features=self.learn_features)
        _, log_std = distribution.proba_distribution_net(self.n_hidden)
        values = th.linspace(-1.5, 1.5, 2 * (log_std.numel() // 2) + 1)[: log_std.numel()].view_as(log_std)
        return StateDependentHead(distribution, values.flip(0).to(dtype))

    def output(self, n_states: int, dtype: th.dtype = th.float64, seed: int = 0) -> th.Tensor:
        shape, generator = (n_states, self.n_actions + self.n_hidden), th.Generator().manual_seed(seed)
        return th.randn(shape, generator=generator, dtype=th.float64).to(dtype)


SETTINGS = [Noise(*sizes, *flags) for sizes in [(5, 2), (1, 1), (3, 1), (2, 4)] for flags in product([True, False], repeat=4)]
noises = pytest.mark.parametrize("noise", SETTINGS, ids=lambda noise: "-".join(map(str, map(int, noise))))


def sb3s(noise, output, log_std):
    """Compute z by SB3's distribution, as one row per state."""
    mean, hidden = output[:, : noise.n_actions], output[:, noise.n_actions :]
    return parameters_of(torch_distributions(noise.head().action_dist.proba_distribution(mean, log_std, hidden)))


@noises
def test_a_state_dependent_heads_products_are_autograds_through_sb3s_distribution(noise):
    head, output = noise.head(), noise.output(6)
    derivative, inputs = head.linearize(output), (output, head.log_std)
    d_output, d_log_std = th.randn_like(output), th.randn_like(head.log_std)
    z, dz = th.func.jvp(lambda *inputs: sb3s(noise, *inputs), inputs, (d_output, d_log_std))
    th.testing.assert_close(th.cat(derivative.jvp(d_output, [d_log_std]), 1), dz)
    u = th.randn_like(z)
    _, pullback = th.func.vjp(lambda *inputs: sb3s(noise, *inputs), *inputs)
    of_output, of_parameters = derivative.vjp(u.split(noise.n_actions, dim=1))
    th.testing.assert_close((of_output, *of_parameters), pullback(u))


@noises
def test_a_state_dependent_heads_fisher_product_is_the_dense_matrixs(noise):
    """In all that the head reads: outputs of all states, then log_std."""
    head, output = noise.head(), noise.output(4)
    matrices = jacobian(lambda *inputs: sb3s(noise, *inputs), (output, head.log_std))
    jac = th.cat([part.reshape(4, 2 * noise.n_actions, -1) for part in matrices], dim=2)
    distributions = rebuild(torch_distributions(head.distribution(output)), sb3s(noise, output, head.log_std))
    dense = th.einsum("nkp,nkl,nlq->pq", jac, dense_metric(distributions), jac)

    d_output, d_log_std = th.randn_like(output), th.randn_like(head.log_std)
    derivative, metric = head.linearize(output), Gaussian().fisher_metric(Gaussian().parameters(head.distribution(output)))
    of_output, (of_log_std,) = derivative.vjp(metric(derivative.jvp(d_output, [d_log_std])))
    ours = th.cat([of_output.flatten(), of_log_std.flatten()])
    th.testing.assert_close(ours, dense @ th.cat([d_output.flatten(), d_log_std.flatten()]))


@noises
def test_log_std_may_differ_from_state_to_state(noise):
    head, output = noise.head(), noise.output(3)
    rows = th.stack([head.log_std, head.log_std + 0.5, head.log_std - 1.0])
    alone = th.cat([sb3s(noise, output[state : state + 1], rows[state]) for state in range(3)])
    distribution = head.with_parameters([rows]).distribution(output)
    th.testing.assert_close(parameters_of(torch_distributions(distribution)), alone)
    actions = 0.9 * th.rand(3, noise.n_actions, dtype=th.float64)
    ours = distribution.log_prob(actions)
    singly = [
        head.with_parameters([row]).distribution(output[k : k + 1]).log_prob(actions[k : k + 1]) for k, row in enumerate(rows)
    ]
    th.testing.assert_close(ours, th.cat(singly))


@pytest.mark.parametrize("net_arch", [[], [1], [7], [16, 5], {"pi": [64, 64], "vf": [3]}], ids=str)
@pytest.mark.parametrize(("full_std", "use_expln", "squash_output"), [*product([True, False], repeat=3)])
def test_the_distribution_of_a_policy_with_state_dependent_noise_has_its_bits(net_arch, full_std, use_expln, squash_output):
    settings = {"use_sde": True, "full_std": full_std, "use_expln": use_expln, "squash_output": squash_output}
    th.manual_seed(0)
    policy = MlpPolicy(VECTOR, spaces.Box(-1.0, 1.0, (2,)), lambda _: 1e-3, net_arch=net_arch, log_std_init=-0.3, **settings)
    networks, seen = read_networks(policy), some_observations(VECTOR, 50)
    with th.no_grad():
        theirs = policy.get_distribution(seen)
        mode, actions, z = theirs.mode(), theirs.sample(), Gaussian().parameters(theirs)
        log_prob = theirs.log_prob(actions)
        ours = networks.head.distribution(networks.actor(networks.features(seen)))
        assert all(map(th.equal, Gaussian().parameters(ours), z))
        assert th.equal(ours.mode(), mode)
        assert th.equal(ours.sample(), actions)
        assert th.equal(ours.log_prob(actions), log_prob)


@pytest.mark.parametrize("n_drawn", [1, 3, 8], ids="matrices for {}".format)
@pytest.mark.parametrize("n_envs", [1, 3, 8])
@pytest.mark.parametrize("noise", SETTINGS[::7], ids=str)
def test_state_dependent_noise_is_sb3s_and_draws_nothing(noise, n_envs, n_drawn):
    """Matrices that were drawn for another number of environments are not used: all have the single one then."""
    head, output = noise.head(th.float32), th.empty(n_envs, noise.n_actions + noise.n_hidden)
    sampler = head.sampler(output)
    for seed, (_, draws_again) in enumerate(product(range(2), [True, False, True])):
        output.copy_(noise.output(n_envs, th.float32, seed))
        if draws_again:
            head.action_dist.sample_weights(head.log_std, batch_size=n_drawn)
        state = th.get_rng_state()
        sampler.draw()
        ours, again = sampler.actions(), sampler.actions()
        assert th.equal(state, th.get_rng_state())
        theirs = head.distribution(output).sample().numpy()
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, rtol=0.0, atol=1e-6 * max(1.0, np.abs(theirs).max()))
        assert np.array_equal(ours, again)


def test_matrices_of_nan_are_refused_at_every_step():
    noise = SETTINGS[0]
    head = noise.head(th.float32)
    sampler = head.sampler(noise.output(3, th.float32))
    head.action_dist.exploration_mat = head.action_dist.exploration_mat * th.nan
    for _ in range(2):
        with pytest.raises(ValueError, match="gave NaN"):
            sampler.draw()
