"""MaskableTRPO against dense float64 oracles over the allowed options alone, and against the environments' own records."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from helpers.envs import VECTOR, RandomEnv
from helpers.oracle import SMALL, Case, make_policy, networks_of
from helpers.recurrent_tools import options_of
from helpers.rollouts import ARRAYS, EACH_STEP, Intervening, assert_same_buffers
from hypothesis import given, settings, strategies as st
from sb3_contrib.common.envs import InvalidActionEnvDiscrete, InvalidActionEnvMultiBinary, InvalidActionEnvMultiDiscrete
from sb3_contrib.common.maskable.buffers import MaskableRolloutBuffer
from sb3_contrib.common.maskable.evaluation import evaluate_policy
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv
from torch.autograd.functional import hessian, jacobian

import sb3_trpo
from sb3_trpo import TRPO
from sb3_trpo.maskable import MaskableTRPO, MlpPolicy
from sb3_trpo.maskable.reader import MaskedInputs
from sb3_trpo.networks.plain_network import read_networks
from sb3_trpo.numerics.flat import assign, flatten, unflatten
from sb3_trpo.rollouts.inputs import ObservationInputs
from sb3_trpo.rollouts.transitions import Transitions
from sb3_trpo.update.actor import AutogradActor, NetworkActor
from sb3_trpo.update.constraints import mean_kl
from sb3_trpo.update.surrogate import PolicyObjective

ACTOR = (
    "mlp_extractor.policy_net.0.weight",
    "mlp_extractor.policy_net.0.bias",
    "action_net.weight",
    "action_net.bias",
)
"""The parameters of a policy of one hidden layer of ``WIDTH`` units, in the order of the oracle's theta."""
WIDTH = SMALL["net_arch"][0]
SPACES = {"choice": spaces.Discrete(5), "choices": spaces.MultiDiscrete([3, 2, 4]), "bits": spaces.MultiBinary(3)}
DISTRIBUTIONS = MaskableTRPO.distribution_kinds
CLOSE = {"rtol": 1e-9, "atol": 1e-12}
ROUNDING = 2e-6

each_space = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
each_actor = pytest.mark.parametrize("kind", ["autograd", "network"])
each_loop = pytest.mark.parametrize("loop", ["ours", "SB3's"])


def random_masks(generator: np.random.Generator, sizes: list[int], n: int, share: float = 0.5) -> np.ndarray:
    """Allow each option with probability ``share``, and one of each choice in any case."""
    masks = generator.random((n, sum(sizes))) < share
    for start, size in zip(np.cumsum([0, *sizes[:-1]]), sizes, strict=True):
        masks[np.arange(n), start + generator.integers(size, size=n)] = True
    return masks


def are_allowed(masks: np.ndarray, actions: np.ndarray, sizes: list[int]) -> np.ndarray:
    """Look up the flag of every choice made; both have one row per transition."""
    places = np.cumsum([0, *sizes[:-1]]) + actions.astype(int).reshape(len(masks), -1)
    return np.take_along_axis(masks.astype(bool), places, axis=1)


# The oracle: explicit layers, softmax over nothing but what is allowed.


def unpack(theta: th.Tensor, n_inputs: int, n_options: int) -> list[th.Tensor]:
    shapes = [(WIDTH, n_inputs), (WIDTH,), (n_options, WIDTH), (n_options,)]
    return [piece.reshape(shape) for piece, shape in zip(theta.split([int(np.prod(s)) for s in shapes]), shapes, strict=True)]


def dense_policy(theta: th.Tensor, observations: th.Tensor, masks: th.Tensor, sizes: list[int]) -> th.Tensor:
    """Log-probabilities of all options, shape ``(n, n_options)``; minus infinity for those that are not allowed."""
    first, first_bias, last, last_bias = unpack(theta, observations.shape[1], sum(sizes))
    logits = th.tanh(observations @ first.T + first_bias) @ last.T + last_bias
    allowed = logits.masked_fill(~masks.bool(), -th.inf)
    return th.cat([choice.log_softmax(1) for choice in allowed.split(sizes, 1)], 1)


def dense_kl(old: th.Tensor, new: th.Tensor) -> th.Tensor:
    p, q = old[old.isfinite()], new[old.isfinite()]
    return (p.exp() * (p - q)).sum() / len(old)


def dense_entropy(policy: th.Tensor) -> th.Tensor:
    p = policy[policy.isfinite()]
    return -(p.exp() * p).sum() / len(policy)


def dense_log_prob(policy: th.Tensor, actions: th.Tensor, sizes: list[int]) -> th.Tensor:
    return policy.gather(1, th.as_tensor(np.cumsum([0, *sizes[:-1]])) + actions.reshape(len(policy), -1).long()).sum(1)


class Problem(NamedTuple):
    """A policy in float64, some transitions, and their masks."""

    policy: Any
    parameters: list[th.nn.Parameter]
    observations: th.Tensor
    masks: th.Tensor
    sizes: list[int]
    actions: th.Tensor
    old_log_prob: th.Tensor
    advantages: th.Tensor

    def theta(self) -> th.Tensor:
        return flatten(self.parameters).detach()

    def dense(self, theta: th.Tensor) -> th.Tensor:
        return dense_policy(theta, self.observations, self.masks, self.sizes)

    def surrogate(self, theta: th.Tensor, ent_coef: float = 0.0) -> th.Tensor:
        policy = self.dense(theta)
        ratio = (dense_log_prob(policy, self.actions, self.sizes) - self.old_log_prob).exp()
        return (ratio * self.advantages).mean() + ent_coef * dense_entropy(policy)

    def objective(self, kind: str, size: int = 100, ent_coef: float = 0.0) -> PolicyObjective:
        if kind == "network":
            is_double = self.observations.dtype == th.float64
            networks = networks_of(self.policy, DISTRIBUTIONS) if is_double else read_networks(self.policy, DISTRIBUTIONS)
            actor = NetworkActor(networks, self.parameters, DISTRIBUTIONS)
        else:
            actor = AutogradActor(self.policy, self.parameters, DISTRIBUTIONS)
        starts = range(0, len(self.masks), size)
        chunks = [self.transitions(slice(start, start + size)) for start in starts]
        return PolicyObjective(actor, self.parameters, chunks, [mean_kl(0.01)], ent_coef=ent_coef)

    def transitions(self, rows: slice) -> Transitions:
        inputs = MaskedInputs(ObservationInputs(self.observations[rows]), self.masks[rows])
        advantages = self.advantages[rows]
        return Transitions(inputs, self.actions[rows], self.old_log_prob[rows], advantages, returns=advantages)

    def random_vector(self, length: float, seed: int = 3) -> th.Tensor:
        vector = th.randn(self.theta().shape, generator=th.Generator().manual_seed(seed), dtype=th.float64)
        return length * vector / vector.norm()

    def move(self, length: float = 0.3) -> None:
        assign(self.parameters, unflatten(self.theta() + self.random_vector(length), self.parameters))


def problem(space: spaces.Space, seed: int = 0, n: int = 7, scale: float = 1.0, masks: np.ndarray | None = None) -> Problem:
    policy, sizes = make_policy(Case(MlpPolicy, VECTOR, space, SMALL)), options_of(space)
    named = dict(policy.named_parameters())
    parameters = [named[name] for name in ACTOR]
    generator = np.random.default_rng(seed)
    with th.no_grad():
        for parameter in parameters:
            parameter.copy_(th.as_tensor(scale * generator.standard_normal(parameter.shape)))
    masks = random_masks(generator, sizes, n) if masks is None else masks
    starts = np.cumsum([0, *sizes[:-1]])
    parts = [masks[:, start : start + size] for start, size in zip(starts, sizes, strict=True)]
    actions = th.as_tensor(np.stack([(generator.random(part.shape) * part).argmax(1) for part in parts], axis=1))
    actions = actions.flatten() if isinstance(space, spaces.Discrete) else actions.double()
    observations = th.as_tensor(generator.uniform(-1.0, 1.0, (n, 3)).astype(np.float32)).double()  # which SB3 makes float32
    flags = th.as_tensor(masks.astype(np.float32))
    theta = flatten(parameters).detach()
    log_prob = dense_log_prob(dense_policy(theta, observations, flags, sizes), actions, sizes)
    noise, advantages = th.as_tensor(generator.standard_normal((2, n)))
    return Problem(policy, parameters, observations, flags, sizes, actions, log_prob + 0.1 * noise, advantages)


def matrix(operator: Any, n: int) -> th.Tensor:
    return th.stack([operator @ v for v in th.eye(n, dtype=th.float64)])


@each_actor
@each_space
@pytest.mark.parametrize(("size", "ent_coef"), [(3, 0.0), (3, 0.3), (100, 0.3)])
def test_an_update_uses_what_the_oracle_computes_over_allowed_options(space, kind, size, ent_coef):
    given = problem(space)
    theta, surrogate = given.theta(), partial(given.surrogate, ent_coef=ent_coef)
    old = given.dense(theta)
    model, entropy, _ = given.objective(kind, size, ent_coef).local_model()
    assert model.surrogate == pytest.approx(surrogate(theta).item(), rel=1e-9)
    assert entropy == pytest.approx(dense_entropy(old).item(), rel=1e-9)
    th.testing.assert_close(model.gradient, jacobian(surrogate, theta), **CLOSE)
    fisher = matrix(model.fisher, len(theta))
    th.testing.assert_close(fisher, hessian(lambda new: dense_kl(old, given.dense(new)), theta), **CLOSE)
    assert model.gradient.any()
    assert fisher.any()
    given.move()
    candidate = model.evaluate()
    assert candidate.kl == pytest.approx(dense_kl(old, given.dense(given.theta())).item(), rel=1e-9)
    assert candidate.kl > 1e-4
    assert candidate.surrogate == pytest.approx(surrogate(given.theta()).item(), rel=1e-9)


ACTION_SPACES = st.one_of(
    st.integers(2, 5).map(spaces.Discrete),
    st.lists(st.integers(2, 4), min_size=1, max_size=3).map(spaces.MultiDiscrete),
    st.integers(1, 3).map(spaces.MultiBinary),
)
PROBLEMS = st.builds(
    problem, ACTION_SPACES, st.integers(0, 2**16), st.integers(1, 4), st.sampled_from([0.01, 0.3, 1.0, 3.0, 30.0])
)
KINDS = st.sampled_from(["autograd", "network"])


@settings(max_examples=50)
@given(PROBLEMS, KINDS, st.sampled_from([1e-6, 0.01, 1.0, 100.0]))
def test_the_kl_is_never_negative_and_0_at_the_same_parameters(given, kind, length):
    model = given.objective(kind, 2).local_model().model
    assert model.evaluate() == (model.surrogate, (0.0,))
    given.move(length)
    assert model.evaluate().kl >= 0.0


@settings(max_examples=40)
@given(PROBLEMS, KINDS)
def test_the_fisher_matrix_is_symmetric_and_positive_semidefinite(given, kind):
    fisher = matrix(given.objective(kind).local_model().model.fisher, len(given.theta()))
    largest = max(1.0, fisher.abs().max().item())
    th.testing.assert_close(fisher, fisher.T, rtol=0.0, atol=1e-12 * largest)
    assert th.linalg.eigvalsh(fisher).min() >= -1e-12 * largest


@settings(max_examples=40)
@given(ACTION_SPACES, st.integers(0, 2**16), KINDS, st.sampled_from([-1000.0, -3.0, 1.0, 20.0]), st.data())
def test_nothing_depends_on_the_logits_of_masked_options(space, seed, kind, by, data):
    sizes = options_of(space)
    option = data.draw(st.integers(0, sum(sizes) - 1))
    masks = random_masks(np.random.default_rng(seed), sizes, 4)
    start = max(start for start in np.cumsum([0, *sizes[:-1]]) if start <= option)
    masks[:, start] |= True
    masks[:, start + 1] |= True
    masks[:, option] = False
    results = []
    for change in (0.0, by):
        given = problem(space, seed, n=4, masks=masks)
        with th.no_grad():
            for parameter, sign in zip(given.parameters[2:], (1.0, -1.0), strict=True):
                parameter[option] += sign * change
        model, entropy, _ = given.objective(kind, ent_coef=0.2).local_model()
        vector = given.random_vector(1.0)
        numbers = [model.gradient, model.fisher @ vector, th.tensor([model.surrogate, entropy])]
        for flat in numbers[:2]:
            *_, of_weight, of_bias = unpack(flat, 3, sum(sizes))
            assert th.cat([of_weight[option], of_bias[option, None]]).abs().max() < 1e-12
        given.move()
        results.append(th.cat([*numbers, th.tensor([model.evaluate().surrogate, model.evaluate().kl])]))
    th.testing.assert_close(*results, rtol=1e-8, atol=1e-10)


@each_actor
@each_space
@pytest.mark.parametrize("scale", [1e2, 1e4])
@pytest.mark.parametrize("is_single", [False, True], ids=["float64", "float32"])
def test_huge_logits_give_no_nan(space, kind, scale, is_single):
    for seed in range(5):
        given = problem(space, seed, scale=scale)
        if is_single:
            given.policy.float()
            for module in given.policy.modules():
                module._forward_pre_hooks.clear()
            singles = [part.float() for part in (given.observations, given.old_log_prob, given.advantages)]
            given = given._replace(observations=singles[0], old_log_prob=singles[1], advantages=singles[2])
        model, entropy, _ = given.objective(kind).local_model()
        vector = given.random_vector(1.0).to(given.theta().dtype)
        for numbers in (model.gradient, model.fisher @ vector, th.tensor([model.surrogate, entropy])):
            assert numbers.isfinite().all()
        assign(given.parameters, unflatten(given.theta() + 0.1 * scale * vector, given.parameters))
        kl = model.evaluate().kl
        assert np.isfinite(kl)
        assert kl >= 0.0


@each_actor
@each_space
def test_one_option_left_gives_no_entropy_and_no_kl(space, kind):
    sizes = options_of(space)
    given = problem(space, masks=random_masks(np.random.default_rng(1), sizes, 7, share=0.0))
    assert given.masks.sum() == 7 * len(sizes)
    model, entropy, _ = given.objective(kind).local_model()
    assert entropy == 0.0
    assert not model.gradient.any()
    assert not (model.fisher @ given.random_vector(1.0)).any()
    given.move(10.0)
    assert model.evaluate().kl == 0.0


# Collection, against what the environments remember.


class MaskedEnv(RandomEnv):
    """Allows other options in each state, and remembers what was allowed and done; ``faults`` are masks by step."""

    def __init__(self, action_space: spaces.Space, share: float = 0.5, faults: dict[int, Any] | None = None) -> None:
        super().__init__(VECTOR, action_space)
        self.sizes, self.share, self.faults = options_of(action_space), share, faults or {}
        self.history: list[tuple[np.ndarray, np.ndarray]] = []

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        result = super().reset(**kwargs)
        self.draw()
        return result

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.history.append((self.mask.copy(), np.ravel(action)))
        observation, reward, *_ = super().step(action)
        self.draw()
        is_over = self.observation_space.np_random.random() < 0.1
        return observation, reward, is_over, self.n_steps >= 6, {}

    def draw(self) -> None:
        self.mask = random_masks(self.observation_space.np_random, self.sizes, 1, self.share)[0]

    def action_masks(self) -> Any:
        return self.faults.get(len(self.history), self.mask)


def several(n_envs: int, *arguments: Any, **settings: Any) -> DummyVecEnv:
    return DummyVecEnv([lambda: Monitor(MaskedEnv(*arguments, **settings))] * n_envs)


class OtherBuffer(MaskableRolloutBuffer):
    """Not sb3-contrib's, so that SB3's loop fills it."""


def model_of(env: Any, loop: str = "ours", kind: type[TRPO] = MaskableTRPO, policy: Any = "MlpPolicy", **changes: Any) -> TRPO:
    """Build a model whose policy is far from uniform; count how often SB3's loop is used."""
    options = {"n_steps": 32, "batch_size": 32, "n_critic_updates": 1, "seed": 0, "policy_kwargs": SMALL, "device": "cpu"}
    buffers = {} if loop == "ours" else {"rollout_buffer_class": OtherBuffer}
    model = kind(policy, env, **options | buffers | changes)
    with th.no_grad():
        model.policy.action_net.weight.mul_(100.0)
    general_loop, model.n_general = model._general_loop, 0

    def counted(*arguments: Any) -> bool:
        model.n_general += 1
        return general_loop(*arguments)

    model._general_loop = counted
    return model


def collected(model: TRPO, callback: BaseCallback | None = None) -> Any:
    """Fill the buffer once, by the loop that was asked for."""
    _, root = model._setup_learn(10**6, callback)
    root.on_training_start({"self": model}, {})
    assert model.collect_rollouts(model.env, root, model.rollout_buffer, model.n_steps)
    assert model.n_general == isinstance(model.rollout_buffer, OtherBuffer)
    return model.rollout_buffer


def history(env: Any) -> tuple[np.ndarray, np.ndarray]:
    """Give masks and actions as the environments had them, shape ``(n_steps, n_envs, ...)``."""
    per_env = [zip(*each, strict=True) for each in env.get_attr("history")]
    masks, actions = zip(*((np.stack(masks), np.stack(actions)) for masks, actions in per_env), strict=True)
    return np.stack(masks, axis=1), np.stack(actions, axis=1)


def oracle_inputs(model: TRPO) -> tuple[th.Tensor, th.Tensor, list[int]]:
    """Give what the policy acted on, in float64 and one row per transition, whether SB3 has joined it or not."""
    buffer, sizes = model.rollout_buffer, options_of(model.action_space)
    return (
        th.as_tensor(buffer.observations.reshape(-1, 3).astype(float)),
        th.as_tensor(buffer.action_masks.reshape(-1, sum(sizes))),
        sizes,
    )


def theta_of(model: TRPO) -> th.Tensor:
    named = dict(model.policy.named_parameters())
    return th.cat([named[name].detach().double().flatten() for name in ACTOR])


def act(callback: BaseCallback) -> None:
    """Have the policy act in a callback, by each of its methods."""
    model, observations = callback.model, callback.locals["new_obs"]
    with th.no_grad():
        model.policy(th.as_tensor(observations))
    model.predict(observations)
    model.predict(observations[0])
    model.policy.get_distribution(th.as_tensor(observations))


@pytest.mark.filterwarnings(r"ignore:predict\(\) was given no action_masks:UserWarning")  # on purpose
@each_loop
@each_space
@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("acts", [False, True], ids=["looks on", "acts too"])
def test_the_buffer_holds_the_masks_and_actions_that_the_environments_saw(space, loop, n_envs, acts):
    env, seen = several(n_envs, space), []

    def look(callback: BaseCallback) -> None:
        seen.append(callback.locals["action_masks"].copy())
        if acts:
            act(callback)

    model = model_of(env, loop)
    buffer = collected(model, Intervening(look, EACH_STEP))
    masks, actions = history(env)
    assert np.array_equal(buffer.action_masks, masks)
    assert np.array_equal(buffer.actions, actions)
    assert np.array_equal(seen, masks)
    assert are_allowed(masks.reshape(-1, masks.shape[2]), actions, options_of(space)).all()
    assert len(np.unique(masks, axis=0)) > 10
    policy = dense_policy(theta_of(model), *oracle_inputs(model))
    log_probs = dense_log_prob(policy, th.as_tensor(actions), options_of(space))
    assert np.allclose(buffer.log_probs.flatten(), log_probs, atol=1e-5)
    assert buffer.log_probs.min() < -1.0


@pytest.mark.filterwarnings(r"ignore:predict\(\) was given no action_masks:UserWarning")  # on purpose
@each_loop
@each_space
def test_the_update_reads_the_masks_that_the_environments_saw(space, loop):
    env = several(3, space)
    model = model_of(env, loop)
    for n_rollouts in (1, 2):
        model.learn(96, Intervening(act, EACH_STEP), reset_num_timesteps=False)
        masks, actions = (each[-32:].swapaxes(0, 1).reshape(96, -1) for each in history(env))  # env after env
        assert np.array_equal(model.rollout_buffer.action_masks, masks)
        assert np.array_equal(model.rollout_buffer.actions, actions)
        assert len(history(env)[0]) == 32 * n_rollouts


@each_loop
@pytest.mark.parametrize("method", ["_on_rollout_start", "_on_step", "_on_rollout_end"])
@pytest.mark.parametrize("rows", [slice(0, 1), slice(None)], ids=["one", "all"])
def test_callbacks_may_call_the_policy_at_any_time(method, rows, loop):
    env, callback = several(3, SPACES["choices"]), Intervening(lambda _: None)

    def act_on_some() -> bool:
        with th.no_grad():
            callback.model.policy(th.as_tensor(callback.model._last_obs[rows]))
        return True

    setattr(callback, method, act_on_some)
    buffer = collected(model_of(env, loop), callback)
    masks, actions = history(env)
    assert np.array_equal(buffer.action_masks, masks)
    assert np.array_equal(buffer.actions, actions)


@each_loop
def test_callbacks_may_give_the_policy_masks_of_their_own(loop):
    env, masks = several(2, SPACES["choice"]), th.tensor([[0.0, 0.0, 1.0, 0.0, 0.0]] * 2)
    actions = []

    def act_masked(variables: dict[str, Any], _: Any) -> bool:
        policy, observations = variables["self"].policy, th.as_tensor(variables["new_obs"])
        actions.extend([*policy(observations, False, masks)[0], *policy(observations, action_masks=masks)[0]])
        return True

    model = model_of(env, loop).learn(64, act_masked)
    assert len(actions) == 4 * 32
    assert set(map(int, actions)) == {2}
    assert np.array_equal(model.rollout_buffer.action_masks, history(env)[0].swapaxes(0, 1).reshape(64, -1))


@each_loop
def test_a_copy_that_a_callback_makes_of_the_policy_knows_no_environment(loop):
    copies = []
    model = model_of(several(2, SPACES["choice"]), loop)
    model.learn(64, lambda variables, _: copies.append(copy.deepcopy(variables["self"].policy)) or True)
    copies[0](th.zeros((5, 3)))


@each_space
@pytest.mark.parametrize("n_envs", [1, 3])
def test_both_loops_leave_the_same_buffer(space, n_envs):
    buffers, states = [], []
    for loop in ("ours", "SB3's"):
        buffers.append(collected(model_of(several(n_envs, space), loop)))
        states.append(th.get_rng_state())
    assert th.equal(*states)
    assert_same_buffers(*buffers, (*ARRAYS, "action_masks"))
    assert 2 < buffers[0].episode_starts.sum() < buffers[0].episode_starts.size


class TableEnv(MaskedEnv):
    """Quick: masks from a table, which always forbid the first option, the likeliest in the test, and allow the second."""

    def __init__(self, action_space: spaces.Space) -> None:
        super().__init__(action_space)
        self.table = random_masks(np.random.default_rng(0), self.sizes, 997)
        self.table[:, 0], self.table[:, 1] = False, True

    def draw(self) -> None:
        self.mask = self.table[len(self.history) % 997]


@pytest.mark.parametrize(("loop", "n_draws"), [("ours", 10**5), ("SB3's", 4000)], ids=["ours", "SB3's"])
@each_space
def test_masked_actions_are_never_taken(space, loop, n_draws):
    env = DummyVecEnv([partial(TableEnv, space)] * 8)
    model = model_of(env, loop, n_steps=n_draws // (8 * len(options_of(space))) + 1)
    with th.no_grad():
        model.policy.action_net.bias[0] = 20.0
    collected(model)
    masks, actions = history(env)
    assert are_allowed(masks.reshape(-1, masks.shape[2]), actions, options_of(space)).all()
    assert len(np.unique(actions)) == max(options_of(space)) - (len(options_of(space)) == 1)


@each_space
def test_masked_actions_have_probability_0(space):
    masks = random_masks(np.random.default_rng(0), options_of(space), 64)
    policy = model_of(several(1, space)).policy
    with th.no_grad():
        distribution = policy.get_distribution(th.rand(64, 3), action_masks=masks)
    factors = getattr(distribution, "distributions", None) or [distribution.distribution]
    probabilities = th.cat([factor.probs for factor in factors], dim=1).numpy()
    assert (probabilities[~masks] == 0.0).all()
    assert (probabilities[masks] > 0.0).all()


# Updates.


def test_any_policy_is_masked():
    class Own(MlpPolicy):
        def extract_features(self, *arguments: Any, **kwargs: Any) -> Any:
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


@pytest.mark.parametrize("name", ["choice", "choices"])
def test_with_everything_allowed_it_is_trpo(name):
    """To 1e-5 after three updates: masking normalises the log-probabilities once more, which rounds."""
    models = []
    for kind in (TRPO, MaskableTRPO):
        model = model_of(several(2, SPACES[name], share=1.0), kind=kind, n_critic_updates=2)
        models.append((theta_of(model), model.learn(3 * 64)))
    (start, trpo), (_, maskable) = models
    for one, other in zip(trpo.policy.parameters(), maskable.policy.parameters(), strict=True):
        th.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert (theta_of(trpo) - start).abs().max() > 0.01
    for key in ("train/kl_divergence_loss", "train/entropy", "train/policy_objective"):
        assert maskable.logger.name_to_value[key] == pytest.approx(trpo.logger.name_to_value[key], rel=1e-3, abs=1e-6)


def kl_since(model: TRPO, old: th.Tensor, every: int = 1) -> float:
    observations, masks, sizes = oracle_inputs(model)
    policies = [dense_policy(theta, observations[::every], masks[::every], sizes) for theta in (old, theta_of(model))]
    return dense_kl(*policies).item()


def entropy_of(model: TRPO, theta: th.Tensor) -> float:
    return dense_entropy(dense_policy(theta, *oracle_inputs(model))).item()


@each_loop
@each_space
@pytest.mark.parametrize("changes", [{}, {"target_kl": 0.1, "ent_coef": 0.1}], ids=["", "wide"])
def test_every_step_stays_within_the_trust_region_over_allowed_options(space, loop, changes):
    model = model_of(several(2, space), loop, **changes)
    n_accepted = 0
    for _ in range(3):
        old = theta_of(model)
        model.learn(2 * model.n_steps, reset_num_timesteps=False)
        log, kl = model.logger.name_to_value, kl_since(model, old)
        assert log["train/entropy"] == pytest.approx(entropy_of(model, old), abs=1e-5)
        n_accepted += model.policy_outcome.value == "accepted"
        assert kl <= model.target_kl + ROUNDING
        assert kl == pytest.approx(log["train/kl_divergence_loss"] * (model.policy_outcome.value == "accepted"), abs=ROUNDING)
    assert n_accepted > 1


@each_loop
@each_space
def test_chunks_change_nothing_beyond_rounding(space, loop):
    whole, *others = (model_of(several(3, space), loop, chunk_size=size).learn(96) for size in (None, 1, 20))
    for other in others:
        for one, another in zip(whole.policy.parameters(), other.policy.parameters(), strict=True):
            th.testing.assert_close(one, another, rtol=1e-3, atol=1e-4)
        assert np.array_equal(whole.rollout_buffer.action_masks, other.rollout_buffer.action_masks)


@each_space
def test_every_second_transition_may_make_the_update(space):
    model = model_of(several(2, space), sub_sampling_factor=2)
    old = theta_of(model)
    model.learn(64)
    assert model.policy_outcome.value == "accepted"
    assert kl_since(model, old, every=2) == pytest.approx(model.logger.name_to_value["train/kl_divergence_loss"], abs=ROUNDING)
    assert kl_since(model, old, every=2) <= 0.01 + ROUNDING
    assert kl_since(model, old) != pytest.approx(kl_since(model, old, every=2), rel=1e-3)


@each_space
def test_every_second_state_may_make_the_fisher_matrix(space):
    models = []
    for k in (1, 2):
        models.append(model := model_of(several(2, space), fisher_subsampling=k))
        old = theta_of(model)
        model.learn(64)
        assert model.policy_outcome.value == "accepted"
        assert 0.0 < kl_since(model, old) <= 0.01 + ROUNDING
    exact, subsampled = models
    assert not th.allclose(theta_of(exact), theta_of(subsampled), atol=1e-5)
    assert exact.logger.name_to_value["train/gradient_norm"] == subsampled.logger.name_to_value["train/gradient_norm"]


# Errors.


def emptied(space: spaces.Space, choice: int | None) -> np.ndarray:
    """Give a mask that allows no option of one choice, or of any."""
    rows = [np.full(size, choice not in (None, index)) for index, size in enumerate(options_of(space))]
    return np.concatenate(rows)


def env_with_fault(fault: Any, step: int, space: spaces.Space) -> DummyVecEnv:
    """Give three environments, of which the one in the middle gives this mask at this step."""
    faults = ({}, {step: fault}, {})
    return DummyVecEnv([partial(MaskedEnv, space, faults=each) for each in faults])


def assert_refused(model: TRPO, match: str) -> None:
    before = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
    with pytest.raises(ValueError, match=match):
        model.learn(96, reset_num_timesteps=False)
    for name, tensor in model.policy.state_dict().items():
        assert th.equal(tensor, before[name])
    assert not model.policy._forward_pre_hooks


@each_loop
@pytest.mark.parametrize("step", [0, 5])
@pytest.mark.parametrize(("name", "choice"), [("choice", None), ("choices", None), ("choices", 2), ("bits", 1)], ids=str)
def test_a_mask_that_allows_nothing_is_refused(name, choice, step, loop):
    model = model_of(env_with_fault(emptied(SPACES[name], choice), step, SPACES[name]), loop)
    assert_refused(model, rf"environment 1 at step {step} of the rollout .*choice {choice or 0} of")


@each_loop
def test_a_later_rollout_is_refused_alike(loop):
    space = SPACES["choices"]
    model = model_of(env_with_fault(emptied(space, 1), 32 + 7, space), loop)
    model.learn(96)
    assert_refused(model, "environment 1 at step 7 of the rollout")
    assert model._n_updates == 1


@each_loop
@each_space
@pytest.mark.parametrize("change", [-1, 1, None], ids=["short", "long", "scalar"])
def test_a_mask_of_the_wrong_size_is_refused(space, loop, change):
    fault = np.ones(()) if change is None else np.ones(sum(options_of(space)) + change)
    model = model_of(env_with_fault(fault, 4, space), loop)
    assert_refused(model, rf"environment 1 at step 4 of the rollout has .* entries.*needs {sum(options_of(space))} flags")


@each_loop
def test_an_environment_without_masks_is_refused(loop):
    assert_refused(model_of(RandomEnv(), loop), r"no method action_masks\(\).*ActionMasker.*sb3_trpo.TRPO")


def test_box_actions_are_refused():
    with pytest.raises((AssertionError, ValueError), match="Box"):
        MaskableTRPO("MlpPolicy", RandomEnv(action_space=VECTOR))


@pytest.mark.parametrize(
    "changes", [{"policy": sb3_trpo.MlpPolicy}, {"rollout_buffer_class": RolloutBuffer}], ids=["policy", "buffer"]
)
def test_classes_that_know_no_masks_are_refused(changes):
    with pytest.raises(ValueError, match=f"{next(iter(changes))} is {next(iter(changes.values())).__name__}.*Maskable"):
        MaskableTRPO(**{"policy": "MlpPolicy", "env": MaskedEnv(SPACES["choice"])} | changes)


@each_space
def test_predict_refuses_masks_that_allow_nothing_or_have_the_wrong_size(space):
    model, n_options = model_of(several(2, space)), sum(options_of(space))
    one = np.zeros(3, np.float32)
    for masks in (np.zeros(n_options), emptied(space, 0)):
        with pytest.raises(ValueError, match=r"environment 0 .*allows no option of choice 0"):
            model.predict(one, action_masks=masks)
    with pytest.raises(ValueError, match=r"environment 1 .*allows no option"):
        model.predict(np.stack([one, one]), action_masks=np.stack([np.ones(n_options), np.zeros(n_options)]))
    for masks in (np.ones(n_options + 1), np.ones((1, n_options - 1))):
        with pytest.raises(ValueError, match=f"needs {n_options} flags"):
            model.predict(one, action_masks=masks)


# Learning.

LEARNABLE = {
    "choice": partial(InvalidActionEnvDiscrete, dim=20, n_invalid_actions=10),
    "choices": partial(InvalidActionEnvMultiDiscrete, dims=[5, 5], n_invalid_actions=3),
    "bits": partial(InvalidActionEnvMultiBinary, dims=6, n_invalid_actions=3),
}


@pytest.mark.parametrize("make_env", LEARNABLE.values(), ids=LEARNABLE)
def test_it_learns(make_env):
    model = MaskableTRPO("MlpPolicy", make_env(), n_steps=512, gamma=0.4, seed=1, device="cpu")
    model.learn(4096)
    mean, _ = evaluate_policy(model, model.env, n_eval_episodes=10)
    assert mean > 95.0


def test_predicting_without_masks_warns():
    model = MaskableTRPO("MlpPolicy", InvalidActionEnvDiscrete(dim=3, n_invalid_actions=1), n_steps=8, batch_size=8)
    with pytest.warns(UserWarning, match="no action_masks"):
        model.predict(0)


def test_an_unknown_policy_is_refused_with_the_names_of_the_known_ones():
    with pytest.raises(ValueError, match=r"'MlpLstmPolicy', but MaskableTRPO knows MlpPolicy, CnnPolicy, MultiInputPolicy"):
        MaskableTRPO("MlpLstmPolicy", InvalidActionEnvDiscrete(dim=3, n_invalid_actions=1))
