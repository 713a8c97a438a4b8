"""Beta-distributed actions: exact in float32, strictly inside the bounds, and learned as they act."""

import copy

import mpmath
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from helpers.envs import IMAGE, VECTOR, RandomEnv
from helpers.recurrent_tools import RestlessEnv
from stable_baselines3.common.vec_env import DummyVecEnv
from torch.distributions import AffineTransform, TransformedDistribution, kl_divergence

from sb3_trpo import TRPO, MlpPolicy
from sb3_trpo.distributions.beta import Beta, BetaDistribution, BetaSampler
from sb3_trpo.networks.plain_network import read_networks
from sb3_trpo.numerics.trust_region import Outcome
from sb3_trpo.recurrent import RecurrentTRPO
from sb3_trpo.recurrent.networks import read_recurrent_networks

UNEVEN = spaces.Box(np.array([-3.0, 0.0], np.float32), np.array([1.0, 7.0], np.float32))
AWKWARD = {
    "float64 bounds between floats": spaces.Box(-0.1, 0.7, (2,), np.float64),
    "from zero": spaces.Box(0.0, 1.0, (2,)),
    "far from zero": spaces.Box(999_999.0, 1_000_000.0, (2,)),
    "tiny": spaces.Box(-1e-30, 1e-30, (2,)),
    "huge": spaces.Box(-1e38, 1e38, (2,)),
    "few numbers between": spaces.Box(np.float32(1.0), np.float32(1.0 + 2**-21), (2,)),
    "uneven": UNEVEN,
}
BETA = {"action_distribution": "beta"}


def random_outputs(n, scale=1.0, dtype=th.float32, seed=0):
    return (scale * th.randn(n, 4, generator=th.Generator().manual_seed(seed), dtype=th.float64)).to(dtype)


def made(output, space=UNEVEN):
    return BetaDistribution(space).proba_distribution(output)


def exact_kl(old, new):
    """Compute the divergence of single numbers with 50 digits."""
    with mpmath.workdps(50):
        (a, b), (c, d) = ([mpmath.mpf(float(part)) for part in z] for z in (old, new))
        return float(
            mpmath.log(mpmath.beta(c, d) / mpmath.beta(a, b))
            + (a - c) * mpmath.psi(0, a)
            + (b - d) * mpmath.psi(0, b)
            + (c - a + d - b) * mpmath.psi(0, a + b)
        )


@pytest.mark.parametrize("size", [1.0, 1.7, 30.0, 1000.0])
@pytest.mark.parametrize("change", [0.3, 1e-2, 1e-4])
def test_the_kl_of_a_small_step_keeps_its_digits_in_float32(size, change):
    for direction in ((1.0, 1.0), (1.0, -1.0), (0.0, 1.0)):
        old = tuple(th.tensor([[size * factor]]) for factor in (1.0, 1.5))
        new = tuple(part * (1.0 + change * way) for part, way in zip(old, direction, strict=True))
        kl, expected = Beta().kl(old, new), exact_kl(old, new)
        assert kl.dtype is th.float32
        assert float(kl) == pytest.approx(expected, rel=1e-6, abs=1e-11)
        assert expected > 0.0


@pytest.mark.parametrize("dtype", [th.float32, th.float64])
def test_the_kl_to_itself_is_0_and_no_kl_is_negative(dtype):
    z = Beta().parameters(made(random_outputs(5000, 5.0, dtype)))
    assert (Beta().kl(z, tuple(part.clone() for part in z)) == 0.0).all()
    near = tuple(th.nextafter(part, th.full_like(part, th.inf)) for part in z)
    assert (Beta().kl(z, near) >= 0.0).all()


def test_kl_and_metric_are_autograds_in_float64():
    z, other = (Beta().parameters(made(random_outputs(50, 3.0, th.float64, seed))) for seed in (0, 1))
    theirs = [th.distributions.Beta(*each) for each in (z, other)]
    th.testing.assert_close(Beta().kl(z, other), kl_divergence(*theirs).sum(1), rtol=1e-8, atol=1e-10)
    new = tuple(part.detach().requires_grad_() for part in z)
    slopes = th.autograd.grad(
        kl_divergence(th.distributions.Beta(*z), th.distributions.Beta(*new)).sum(), new, create_graph=True
    )
    dz = tuple(th.randn_like(part) for part in z)
    products = th.autograd.grad(slopes, new, dz)
    th.testing.assert_close(Beta().fisher_metric(z)(dz), products, rtol=1e-8, atol=1e-8)


def test_the_metric_is_that_of_trigamma_with_50_digits():
    for alpha, beta in ((1.0, 1.0), (1.2, 3.4), (50.0, 2.0), (400.0, 600.0)):
        with mpmath.workdps(50):
            of_alpha, of_beta, of_sum = (float(mpmath.psi(1, part)) for part in (alpha, beta, alpha + beta))
        metric = Beta().fisher_metric(tuple(th.full((1, 1), part, dtype=th.float64) for part in (alpha, beta)))
        one, zero = th.ones(1, 1, dtype=th.float64), th.zeros(1, 1, dtype=th.float64)
        first, second = metric((one, zero)), metric((zero, one))
        assert [float(part) for part in (*first, *second)] == pytest.approx(
            [of_alpha - of_sum, -of_sum, -of_sum, of_beta - of_sum], rel=1e-8, abs=1e-9
        )


def test_the_metric_of_a_narrow_density_stays_positive_in_float32():
    """Along (1, 1) the entries cancel but for a share of 1 / alpha."""
    z = tuple(th.full((1, 1), size) for size in (3000.0, 3000.0))
    direction = (th.ones(1, 1), th.ones(1, 1))
    product = Beta().fisher_metric(z)(direction)
    with mpmath.workdps(50):
        exact = float(2 * mpmath.psi(1, 3000) - 4 * mpmath.psi(1, 6000))
    assert float(sum(product)) == pytest.approx(exact, rel=0.01)


def test_log_prob_and_entropy_are_those_of_the_action_in_its_own_unit():
    distribution = made(random_outputs(200, 2.0, th.float64))
    low, high = (th.as_tensor(bound).double() for bound in (UNEVEN.low, UNEVEN.high))
    theirs = TransformedDistribution(distribution.distribution, AffineTransform(low, high - low))
    actions = distribution.sample()
    th.testing.assert_close(distribution.log_prob(actions), theirs.log_prob(actions).sum(1), rtol=1e-8, atol=1e-8)
    expected = (distribution.distribution.entropy() + (high - low).log()).sum(1)
    th.testing.assert_close(distribution.entropy(), expected)


def test_samples_have_the_density_and_the_spread_that_are_stated():
    n = 100_000
    distribution = made(th.tensor([[0.3, -1.0, 1.5, 2.0]]).expand(n, -1))
    th.manual_seed(0)
    actions = distribution.sample()
    assert float(-distribution.log_prob(actions).mean()) == pytest.approx(float(distribution.entropy()[0]), abs=0.01)
    th.testing.assert_close(actions.std(0), Beta().spread(distribution)[0].float(), rtol=0.01, atol=0.0)
    low, high = (th.as_tensor(bound) for bound in (UNEVEN.low, UNEVEN.high))
    mean = (low + (high - low) * distribution.distribution.mean[0]).double()
    th.testing.assert_close(actions.mean(0).double(), mean, rtol=0.02, atol=0.0)
    th.testing.assert_close(distribution.get_actions(deterministic=True)[0].double(), mean)


def test_the_mode_is_the_most_likely_action():
    distribution = made(random_outputs(1, 2.0, th.float64))
    mode, grid = distribution.mode()[0], np.linspace(UNEVEN.low, UNEVEN.high, 2001)
    for dimension, points in enumerate(grid.T):
        actions = mode.repeat(len(points), 1)
        actions[:, dimension] = th.as_tensor(points)
        log_prob = distribution.log_prob(actions)
        assert abs(points[int(log_prob.argmax())] - float(mode[dimension])) <= points[1] - points[0]
        assert (log_prob <= distribution.log_prob(mode[None]) + 1e-12).all()


@pytest.mark.parametrize("size", [300.0, 30_000.0])
def test_the_log_prob_of_a_narrow_density_keeps_its_digits_in_float32(size):
    """The terms are as large as alpha, their sum is not."""
    output = th.tensor([[size, 2.0 * size, 3.0 * size, size]])
    actions = made(output.double()).mean().float()
    found, expected = made(output).log_prob(actions), made(output.double()).log_prob(actions.double())
    assert float(found) == pytest.approx(float(expected), rel=1e-6)
    assert found.dtype is th.float32


@pytest.mark.parametrize("space", AWKWARD.values(), ids=AWKWARD)
def test_a_sampler_draws_the_distributions_actions_to_the_last_bit(space):
    """On outputs for which some shares of the range round to 0 and to 1."""
    outputs = 40.0 * random_outputs(2000)
    distribution, sampler = made(outputs, space), BetaSampler(BetaDistribution(space), outputs)
    th.manual_seed(1)
    expected, after = distribution.sample().numpy(), th.get_rng_state()
    th.manual_seed(1)
    sampler.draw()
    assert np.array_equal(sampler.actions(), expected)
    assert th.equal(th.get_rng_state(), after)


@pytest.mark.parametrize("space", AWKWARD.values(), ids=AWKWARD)
@pytest.mark.parametrize("x", [(-200.0, -200.0), (-30.0, 8.0), (8.0, -30.0), (1e6, 2.0), (0.0, 0.0), (12.0, 12.0)])
def test_actions_are_strictly_inside_and_finite_whatever_the_bounds(space, x):
    distribution = made(th.tensor([x[0], x[0], x[1], x[1]]).expand(500, -1), space)
    for actions in (distribution.sample(), distribution.mode(), distribution.mean()):
        array = actions.numpy()
        assert array.dtype == np.float32
        assert (space.low < array).all()
        assert (array < space.high).all()
        assert np.array_equal(np.clip(array, space.low, space.high), array)  # as SB3 clips, in any precision
        assert distribution.log_prob(actions).isfinite().all()
    assert distribution.entropy().isfinite().all()


def test_an_action_on_a_bound_counts_as_the_nearest_inside():
    distribution = made(random_outputs(3).requires_grad_())
    for bound in (UNEVEN.low, UNEVEN.high, UNEVEN.high + 1.0):
        log_prob = distribution.log_prob(th.as_tensor(bound).expand(3, -1))
        assert log_prob.isfinite().all()
        assert (log_prob <= distribution.log_prob(distribution.mode())).all()


def test_a_sampler_refuses_an_output_that_has_overflowed():
    sampler = BetaSampler(BetaDistribution(UNEVEN), th.full((2, 4), th.inf))
    sampler.draw()
    with pytest.raises(ValueError, match="gave NaN"), np.errstate(invalid="ignore"):
        sampler.actions()


class GeneralMlp(MlpPolicy):
    """A policy that the fast loop does not read as layers."""

    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


@pytest.mark.parametrize("policy", [MlpPolicy, GeneralMlp])
def test_a_policy_that_has_become_nan_does_not_act(policy):
    model = TRPO(policy, RandomEnv(VECTOR, UNEVEN), policy_kwargs=BETA, n_steps=16, batch_size=16, device="cpu")
    th.nn.init.constant_(model.policy.action_net.weight, th.nan)
    with pytest.raises(ValueError, match="gave NaN in place of an action"):
        model.learn(16)
    for deterministic in (False, True):
        with pytest.raises(ValueError, match="invalid values"):  # as of SB3's own distributions
            model.predict(VECTOR.sample(), deterministic=deterministic)


REFUSED = {
    "Discrete": (spaces.Discrete(3), {}, r'is "beta", but the action space is Discrete\(3\), .* for a Box with bounds'),
    "MultiBinary": (spaces.MultiBinary(3), {}, "for a Box with bounds"),
    "all of float32": (spaces.Box(-3e38, 3e38, (2,)), {}, "which lacks bounds"),
    "integers": (spaces.Box(0, 5, (2,), np.int64), {}, "which rounds actions to int64"),
    "float16": (spaces.Box(0.0, 1.0, (2,), np.float16), {}, "which rounds actions to float16"),
    "a constant": (spaces.Box(np.array([0.0, 1.0]), np.array([1.0, 1.0]), dtype=np.float64), {}, "has no numbers: widen them"),
    "gSDE": (UNEVEN, {"use_sde": True}, 'use_sde is True, which is for Gaussians, but action_distribution is "beta"'),
    "a standard deviation": (UNEVEN, {"log_std_init": -1.0}, "log_std_init is -1.0, which is for Gaussians"),
    "another name": (UNEVEN, {"action_distribution": "gamma"}, """is 'gamma', but must be "beta", or None"""),
    "no name": (UNEVEN, {"action_distribution": 3}, 'is 3, but must be "beta", or None'),
}


@pytest.mark.parametrize(("algorithm", "policy"), [(TRPO, "MlpPolicy"), (RecurrentTRPO, "MlpLstmPolicy")])
@pytest.mark.parametrize(("space", "settings", "message"), REFUSED.values(), ids=REFUSED)
def test_what_a_beta_distribution_cannot_do_is_refused_before_any_work(algorithm, policy, space, settings, message):
    of_model = {name: settings[name] for name in settings if name == "use_sde"}
    of_policy = BETA | {name: value for name, value in settings.items() if name not in of_model}
    with pytest.raises(ValueError, match=message):
        algorithm(policy, RandomEnv(VECTOR, space), policy_kwargs=of_policy, device="cpu", **of_model)


@pytest.mark.parametrize("low", [-np.inf, 0.0])
def test_a_box_without_bounds_is_refused(low):
    """SB3's algorithms refuse it, too, but not SB3's policies."""
    with pytest.raises(ValueError, match="which lacks bounds: set them in a wrapper"):
        MlpPolicy(VECTOR, spaces.Box(low, np.inf, (2,)), lambda _: 1e-3, **BETA)


class Recorder(RestlessEnv):
    """Keeps the actions that it gets."""

    def __init__(self, *args):
        super().__init__(*args)
        self.actions = []

    def step(self, action):
        self.actions.append(np.array(action))
        return super().step(action)


SMALL_DICT = spaces.Dict({"vector": VECTOR, "number": spaces.Box(0.0, 1.0, (2,))})
POLICIES = {
    "MLP": (TRPO, "MlpPolicy", VECTOR, {}),
    "CNN": (TRPO, "CnnPolicy", IMAGE, {"features_extractor_kwargs": {"features_dim": 8}}),
    "Dict": (TRPO, "MultiInputPolicy", SMALL_DICT, {}),
    "shared": (TRPO, "MlpPolicy", VECTOR, {"share_features_extractor": True}),
    "LSTM": (RecurrentTRPO, "MlpLstmPolicy", VECTOR, {"lstm_hidden_size": 8}),
}


def model_of(name, env=None, **settings):
    algorithm, policy, observations, kwargs = POLICIES[name]
    env = env or DummyVecEnv([lambda: Recorder(observations, UNEVEN)])
    small = {"n_steps": 64, "batch_size": 32, "n_critic_updates": 2, "seed": 0, "device": "cpu"}
    return algorithm(policy, env, policy_kwargs=BETA | kwargs, **small | settings)


def is_read(model):
    if isinstance(model, RecurrentTRPO):
        return read_recurrent_networks(model.policy, model.distribution_kinds) is not None
    return read_networks(model.policy, model.distribution_kinds) is not None


def observations_of(model):
    seen = model.rollout_buffer.observations
    if isinstance(seen, dict):
        return {key: th.as_tensor(part).reshape(-1, *SMALL_DICT[key].shape) for key, part in seen.items()}
    return th.as_tensor(seen).reshape(-1, *model.observation_space.shape)


@pytest.mark.parametrize("name", POLICIES)
def test_the_action_that_acts_is_the_one_that_is_learned(name):
    model = model_of(name)
    model.learn(64)
    acted = np.stack(model.env.envs[0].unwrapped.actions)
    assert np.array_equal(acted, model.rollout_buffer.actions.reshape(acted.shape)) or isinstance(model, RecurrentTRPO)
    assert ((UNEVEN.low < acted) & (acted < UNEVEN.high)).all()
    assert len(np.unique(acted)) > 60
    assert is_read(model)


@pytest.mark.parametrize("name", ["MLP", "Dict", "shared"])
def test_accepted_steps_stay_within_target_kl_by_torchs_divergence(name):
    model = model_of(name)
    for _ in range(3):
        old = copy.deepcopy(model.policy)
        model.learn(64, reset_num_timesteps=False)
        assert model.policy_outcome is Outcome.ACCEPTED
        seen = observations_of(model)
        with th.no_grad():
            of_old, of_new = (each.get_distribution(seen).distribution for each in (old, model.policy))
        double = [
            th.distributions.Beta(each.concentration1.double(), each.concentration0.double()) for each in (of_old, of_new)
        ]
        kl = float(kl_divergence(*double).sum(1).mean())
        assert 1e-4 < kl <= 0.01 * (1.0 + 1e-4)
        assert model.logger.name_to_value["train/kl_divergence_loss"] == pytest.approx(kl, rel=1e-4)


@pytest.mark.parametrize("name", POLICIES)
def test_policies_and_models_are_saved_with_their_distribution(name, tmp_path):
    model = model_of(name)
    model.learn(64)
    model.policy.save(tmp_path / "policy.zip")
    policy = type(model.policy).load(tmp_path / "policy.zip", device="cpu")
    assert policy.action_distribution == "beta"
    assert type(policy.action_dist) is BetaDistribution
    model.save(tmp_path / "model.zip")
    loaded = type(model).load(tmp_path / "model.zip", device="cpu")
    observation = model.observation_space.sample()
    expected, _ = model.predict(observation, deterministic=True)
    assert UNEVEN.contains(expected)
    for each in (policy, loaded):
        assert np.array_equal(each.predict(observation, deterministic=True)[0], expected)
    th.manual_seed(0)
    sampled = model.predict(observation)[0]
    th.manual_seed(0)
    assert np.array_equal(loaded.predict(observation)[0], sampled)


def test_the_deterministic_action_is_the_mean():
    policy = MlpPolicy(VECTOR, UNEVEN, lambda _: 1e-3, **BETA)
    observation = VECTOR.sample()
    distribution = policy.get_distribution(th.as_tensor(observation)[None])
    assert np.array_equal(policy.predict(observation, deterministic=True)[0], distribution.mean()[0].detach().numpy())


@pytest.mark.parametrize("name", ["MLP", "LSTM"])
def test_the_mean_standard_deviation_is_logged(name):
    model = model_of(name)
    model.learn(64)
    logged = model.logger.name_to_value["train/std"]
    uniform = float(np.mean(UNEVEN.high - UNEVEN.low)) / np.sqrt(12.0)
    assert 0.5 * uniform < logged < uniform
    if name == "MLP":
        seen = observations_of(model)
        assert logged == pytest.approx(float(model.policy.get_distribution(seen).std().mean().detach()), rel=1e-5)


def test_a_gaussian_logs_its_own_standard_deviation():
    model = TRPO(
        "MlpPolicy", RandomEnv(VECTOR, UNEVEN), n_steps=32, batch_size=32, policy_kwargs={"log_std_init": -1.0}, device="cpu"
    )
    model.learn(32)
    assert model.logger.name_to_value["train/std"] == pytest.approx(float(model.policy.log_std.detach().exp().mean()))
