"""
What must hold for any space, network, rollout and setting.

The oracle shares no code with the package: it reads the buffer itself, takes KL divergences from ``torch.distributions`` and
log-probabilities from SB3's ``evaluate_actions``, and does its arithmetic in float64 on what the networks give in float32.
"""

import io
import sys
from collections import Counter
from contextlib import suppress
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from helpers.contract_tools import parameters
from helpers.envs import RandomEnv
from helpers.states import same, training_state
from hypothesis import given, settings, strategies as st
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.preprocessing import get_flattened_obs_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv
from torch.distributions import Bernoulli, Categorical, Independent, Normal, kl_divergence

import sb3_trpo
from sb3_trpo import TRPO
from sb3_trpo.networks.plain_network import read_networks


class Extractor(BaseFeaturesExtractor):
    """A layer with parameters on any observation, and NaN in one state at ``poison`` calls made while ``moved()`` is true."""

    def __init__(self, observation_space):
        super().__init__(observation_space, 6)
        self.linear = th.nn.Linear(get_flattened_obs_dim(observation_space), 6)
        self.moved, self.poison = None, 0

    def forward(self, observations):
        parts = observations.values() if isinstance(observations, dict) else [observations]
        features = self.linear(th.cat([part.flatten(1) for part in parts], 1)).tanh()
        if self.poison and self.moved():
            self.poison -= 1
            features = features.index_fill(0, th.zeros(1, dtype=th.long), th.nan)
        return features


class Case(NamedTuple):
    """Everything that makes a model and its rollout."""

    observation_space: spaces.Space
    action_space: spaces.Space
    policy_kwargs: dict[str, Any]
    settings: dict[str, Any]
    n_envs: int
    reward_scale: float
    seed: int


def log_uniform(low, high):
    return st.floats(np.log(low), np.log(high)).map(lambda exponent: float(np.exp(exponent)))


def boxes(shapes):
    return st.sampled_from(shapes).map(lambda shape: spaces.Box(-1.0, 1.0, shape, np.float32))


VECTORS = boxes([(1,), (2,), (3,), (5,), (2, 3)])
DICTS = VECTORS.map(lambda box: spaces.Dict(vector=box, choice=spaces.Discrete(3)))
ACTIONS = st.one_of(
    boxes([(1,), (2,), (3,)]),  # twice as often: it comes with and without gSDE and squashing
    boxes([(4,), (5,), (2, 2)]),
    st.integers(2, 5).map(spaces.Discrete),
    st.lists(st.integers(2, 4), min_size=1, max_size=4).map(spaces.MultiDiscrete),
    st.integers(1, 5).map(spaces.MultiBinary),
)
WIDTHS = st.lists(st.integers(2, 12), max_size=2)
NETWORKS = st.fixed_dictionaries(
    {
        "net_arch": WIDTHS | st.fixed_dictionaries({"pi": WIDTHS, "vf": WIDTHS}),
        "activation_fn": st.sampled_from([th.nn.Tanh, th.nn.ReLU, th.nn.ELU]),
        "ortho_init": st.booleans(),
        "share_features_extractor": st.booleans(),
    },
    optional={"features_extractor_class": st.just(Extractor)},
)
WITH_EXTRACTOR = st.just({"features_extractor_class": Extractor})
SETTINGS = {
    "n_steps": st.integers(8, 24),
    "target_kl": log_uniform(1e-4, 0.5),
    "cg_damping": st.just(0.0) | st.floats(1e-3, 1.0),
    "cg_max_steps": st.integers(1, 20),
    "line_search_shrinking_factor": st.floats(0.1, 0.95),
    "line_search_max_iter": st.integers(1, 15),
    "sub_sampling_factor": st.integers(1, 3),
    "fisher_subsampling": st.integers(1, 2),
    "normalize_advantage": st.booleans(),
    "ent_coef": st.just(0.0) | st.floats(-0.1, 0.1),
    "chunk_size": st.none() | st.integers(1, 24),
    "n_critic_updates": st.integers(1, 2),
    "batch_size": st.integers(4, 24),
    "gae_lambda": st.floats(0.0, 1.0),
    "max_state_kl": st.none() | log_uniform(0.1, 5.0),  # as a multiple of target_kl, so that it often binds
    "state_kl_quantile": st.sampled_from([0.5, 0.9, 1.0]),
}


@st.composite
def cases(draw, policy_kwargs=st.just({}), **some_settings):  # noqa: B008
    action_space = draw(ACTIONS)
    network, values = draw(NETWORKS) | draw(policy_kwargs), draw(st.fixed_dictionaries(SETTINGS | some_settings))
    if values["max_state_kl"] is not None:
        values["max_state_kl"] *= values["target_kl"]
    if isinstance(action_space, spaces.Box):
        network["log_std_init"] = draw(st.floats(-2.0, 0.5))
        values["use_sde"] = draw(st.booleans())
        if values["use_sde"]:
            network |= {
                "squash_output": draw(st.booleans()),
                "full_std": draw(st.booleans()),
                "use_expln": draw(st.booleans()),
            }
    return Case(
        draw(VECTORS | DICTS),
        action_space,
        network,
        values,
        draw(st.integers(1, 2)),
        draw(log_uniform(0.01, 100.0)),
        draw(st.integers(0, 2**16)),
    )


def build(case: Case) -> TRPO:
    """Make the model and fill its rollout buffer as SB3's loop would, with random observations and rewards."""
    kind = "MultiInputPolicy" if isinstance(case.observation_space, spaces.Dict) else "MlpPolicy"
    env = DummyVecEnv([lambda: RandomEnv(case.observation_space, case.action_space)] * case.n_envs)
    model = TRPO(kind, env, policy_kwargs=case.policy_kwargs, seed=case.seed, device="cpu", **case.settings)
    model.set_logger(Logger(folder=None, output_formats=[]))
    fill(model, case)
    return model


def fill(model: TRPO, case: Case) -> None:
    rng = np.random.default_rng(case.seed)
    set_random_seed(case.seed)  # for the critic's minibatches too
    policy, buffer, n = model.policy, model.rollout_buffer, case.n_envs
    policy.set_training_mode(False)
    buffer.reset()
    if model.use_sde:
        policy.reset_noise(n * model.n_steps)
    observations = random_observation(case.observation_space, rng, n * model.n_steps)
    seen = policy.obs_to_tensor(observations)[0]  # numpy's memory: torch's is aligned, which the last digit depends on
    with th.no_grad():
        actions, values, log_probs = policy(each(th.clone, seen))
    for step in range(model.n_steps):
        now = slice(n * step, n * (step + 1))
        reward = case.reward_scale * rng.standard_normal(n)
        buffer.add(
            each(itemgetter(now), observations), actions[now].numpy(), reward, rng.random(n) < 0.1, values[now], log_probs[now]
        )
    buffer.compute_returns_and_advantage(values[now], rng.random(n) < 0.5)


def each(function, observations):
    """Apply a function to an observation, or to every part of it."""
    if isinstance(observations, dict):
        return {key: function(part) for key, part in observations.items()}
    return function(observations)


def random_observation(space, rng, n):
    if isinstance(space, spaces.Dict):
        return {key: random_observation(part, rng, n) for key, part in space.items()}
    if isinstance(space, spaces.Discrete):
        return rng.integers(space.n, size=n)
    return rng.standard_normal((n, *space.shape)).astype(np.float32)


class Batch(NamedTuple):
    observations: Any
    actions: th.Tensor
    old_log_prob: th.Tensor
    advantages: th.Tensor


def read(model: TRPO) -> Batch:
    """Read the transitions that the update will use out of a buffer that was not read before."""
    buffer = model.rollout_buffer
    assert not buffer.generator_ready

    def joined(array):
        return th.as_tensor(array.swapaxes(0, 1).reshape(-1, *array.shape[2:])[:: model.sub_sampling_factor].copy())

    actions, advantages = joined(buffer.actions).float(), joined(buffer.advantages).double()
    return Batch(
        each(joined, buffer.observations),
        actions.long().flatten() if isinstance(model.action_space, spaces.Discrete) else actions,
        joined(buffer.log_probs).double(),
        (advantages - advantages.mean()) / advantages.std() if model.normalize_advantage else advantages,
    )


def joint(distribution) -> list[th.distributions.Distribution]:
    """Rebuild the factors of the joint action in float64."""
    inner = distribution.distribution
    if isinstance(inner, Normal):
        return [Independent(Normal(inner.mean.double(), inner.stddev.double()), 1)]
    if isinstance(inner, Bernoulli):
        return [Independent(Bernoulli(logits=inner.logits.double()), 1)]
    return [Categorical(logits=factor.logits.double()) for factor in (inner if isinstance(inner, list) else [inner])]


@th.no_grad()
def joint_kl(old, new, batch: Batch) -> np.ndarray:
    """Compute KL(old || new) of the joint action at each state."""
    pairs = zip(*(joint(policy.get_distribution(batch.observations)) for policy in (old, new)), strict=True)
    return sum(kl_divergence(p, q) for p, q in pairs).numpy()


@th.no_grad()
def surrogate(policy, batch: Batch, ent_coef: float) -> tuple[float, float]:
    """Give the surrogate and the mean size of its terms, which its rounding error is a fraction of."""
    _, log_prob, entropy = policy.evaluate_actions(batch.observations, batch.actions)
    ratio = (log_prob.double() - batch.old_log_prob).exp()
    entropy = -ratio * log_prob.double() if entropy is None else entropy.double()
    terms = ratio * batch.advantages + ent_coef * entropy
    size = ratio * batch.advantages.abs() * (1.0 + log_prob.abs()) + abs(ent_coef) * entropy.abs()
    return float(terms.mean()), float(size.mean())


def changed(before: dict[str, th.Tensor], after: dict[str, th.Tensor]) -> set[str]:
    """Name the parameters that are not bit for bit the same."""
    return {name for name in before if not same(before[name], after[name])}


def policy_side(model: TRPO, batch: Batch) -> set[str]:
    """Name the parameters that log-probabilities have a gradient in."""
    log_prob = model.policy.evaluate_actions(batch.observations, batch.actions)[1]
    named = dict(model.policy.named_parameters())
    gradients = th.autograd.grad(log_prob.sum(), named.values(), allow_unused=True)
    return {name for name, gradient in zip(named, gradients, strict=True) if gradient is not None}


def test_an_update_stays_in_its_region_and_improves_or_changes_no_policy_parameter():
    outcomes = Counter()

    @settings(max_examples=100)
    @given(cases())
    def check(case):
        model, old = build(case), build(case).policy  # the same twice: gSDE policies cannot be copied
        batch, before = read(model), parameters(model.policy)
        names = policy_side(model, batch)
        model.train()

        log, target_kl, ent_coef = model.logger.name_to_value, case.settings["target_kl"], case.settings["ent_coef"]
        outcomes[model.policy_outcome.value] += 1
        accepted = model.policy_outcome.value == "accepted"
        assert log["train/n_rejected_steps"] == (not accepted)
        kl_of_states = joint_kl(old, model.policy, batch)
        kl, max_state_kl = kl_of_states.mean(), case.settings["max_state_kl"]
        (old_surrogate, _), (new_surrogate, size) = (surrogate(policy, batch, ent_coef) for policy in (old, model.policy))
        assert log["train/is_line_search_success"] == accepted
        assert log["train/target_kl"] == target_kl
        assert log["train/kl_divergence_loss"] == pytest.approx(kl, rel=1e-3, abs=1e-8)
        assert log["train/policy_objective"] == pytest.approx(new_surrogate, abs=1e-6 * size)
        if max_state_kl is not None:
            quantile = np.quantile(kl_of_states, case.settings["state_kl_quantile"], method="inverted_cdf")
            assert log["train/state_kl"] == pytest.approx(quantile, rel=1e-3, abs=1e-7)
            assert quantile <= max_state_kl * (1 + 1e-4) + 1e-7
            outcomes["close to max_state_kl"] += quantile > 0.5 * max_state_kl
        if accepted:
            assert kl <= target_kl * (1 + 1e-4) + 1e-8
            assert new_surrogate > old_surrogate
            assert log["train/improvement"] == pytest.approx(new_surrogate - old_surrogate, abs=1e-6 * size)
        else:
            assert not changed(before, parameters(model.policy)) & names

    check()
    # Usually there are two to six times as many. What hypothesis draws depends on the modules that are loaded.
    assert outcomes["accepted"] >= 30
    assert outcomes["KL never satisfied"] >= 5
    assert outcomes["close to max_state_kl"] >= 5


OPTIMIZERS = st.sampled_from(
    [
        {},
        {"optimizer_class": th.optim.AdamW, "optimizer_kwargs": {"weight_decay": 0.1}},
        {"optimizer_class": th.optim.SGD, "optimizer_kwargs": {"momentum": 0.9, "weight_decay": 0.1}},
    ]
)


@settings(max_examples=40)
@given(cases(policy_kwargs=OPTIMIZERS, ent_coef=st.just(0.0)), st.none() | st.floats(0.1, 1.0))
def test_the_critic_moves_itself_and_nothing_that_the_policy_depends_on(case, max_grad_norm):
    model = build(case)
    model.max_grad_norm = max_grad_norm
    batch, before = read(model), parameters(model.policy)
    names = policy_side(model, batch)
    model.rollout_buffer.advantages[:] = 0.0  # no signal: the policy stays, but the returns are still there to be learned
    for _ in range(2):
        model.train()
        assert model.policy_outcome.value == "zero gradient"
    moved = changed(before, parameters(model.policy))
    assert not moved & names
    assert moved


class InjectedError(Exception):
    """Comes from nowhere else."""


def train_with(model: TRPO, name: str, fault_at: int | None, fault: type[BaseException], late: bool) -> int:
    """Train with a fault at one call of a function, before or after it acts; give the number of calls."""
    owner, calls = model.policy.optimizer if name == "step" else model.policy, 0
    function = getattr(owner, name)

    def wrapper(*args, **kwargs):
        nonlocal calls
        calls += 1
        if late:
            result = function(*args, **kwargs)
        if calls - 1 == fault_at:
            raise fault
        return result if late else function(*args, **kwargs)

    with mock.patch.object(owner, name, wrapper):
        model.train()
    return calls


@settings(max_examples=40)
@given(
    cases(),
    st.sampled_from(["get_distribution", "get_distribution", "predict_values", "step"]),
    st.floats(0.0, 1.0, exclude_max=True) | st.just(0.999),  # the last calls are those of the line search
    st.sampled_from([InjectedError, KeyboardInterrupt]),
    st.booleans(),
)
def test_an_update_interrupted_anywhere_leaves_a_sound_model(case, name, when, fault, late):
    finished = build(case)
    n_calls = train_with(finished, name, None, fault, late)
    model = build(case)  # not before: it seeds the generator of the minibatches
    names, (before, optimizer) = policy_side(model, read(model)), training_state(model.policy)

    with suppress(fault):
        train_with(model, name, int(when * n_calls), fault, late)
        # Not stopped: the search for what the policy depends on takes an error, but no interrupt, for an answer.
        assert (name, fault) == ("get_distribution", InjectedError)
        assert not changed(parameters(finished.policy), parameters(model.policy))
        return
    if name == "get_distribution":  # only the policy step calls it: it was not finished
        assert not changed(before, parameters(model.policy))
    else:
        assert changed(before, parameters(model.policy)) <= names
        assert not changed(parameters(finished.policy), parameters(model.policy)) & names
    assert same(model.policy.optimizer.state_dict(), optimizer)
    assert th.distributions.Distribution._validate_args is __debug__  # torch's default
    assert not any(module.training for module in model.policy.modules())
    assert not any(value.grad is not None for value in model.policy.parameters())

    file = io.BytesIO()
    model.save(file)
    loaded = TRPO.load(file, env=model.get_env())
    loaded.set_logger(Logger(folder=None, output_formats=[]))
    assert not changed(parameters(model.policy), parameters(loaded.policy))
    for survivor in (model, loaded):
        fill(survivor, case)
        survivor.train()
    assert not changed(parameters(model.policy), parameters(loaded.policy))


def train_until_line(model: TRPO, fault_at: int | None) -> int:
    """Train with a KeyboardInterrupt before one line of the package, as a signal would come; give the number of lines."""
    lines, tracer_before, package = 0, sys.gettrace(), str(Path(sb3_trpo.__file__).parent)

    def tracer(frame, kind, _):
        nonlocal lines
        if not frame.f_code.co_filename.startswith(package):
            return None
        if kind == "line":
            lines += 1
            if lines - 1 == fault_at:
                raise KeyboardInterrupt
        return tracer

    sys.settrace(tracer)
    try:
        model.train()
    finally:
        sys.settrace(tracer_before)
    return lines


@settings(max_examples=40)
@given(cases(), st.floats(0.0, 1.0, exclude_max=True))
def test_an_interrupt_before_any_line_leaves_whole_steps_only(case, when):
    finished = build(case)
    n_lines = train_until_line(finished, None)
    model = build(case)  # not before: it seeds the generator of the minibatches
    names, (before, optimizer) = policy_side(model, read(model)), training_state(model.policy)
    with pytest.raises(KeyboardInterrupt):
        train_until_line(model, int(when * n_lines))
    after, optimizer_after = training_state(model.policy)
    from_before, from_finished = changed(before, after), changed(parameters(finished.policy), after)
    assert not from_before & names or not from_finished & names
    if from_before - names:
        assert not from_finished - names
        assert same(optimizer_after, finished.policy.optimizer.state_dict())
    else:
        assert same(optimizer_after, optimizer)


def test_a_candidate_with_nan_is_never_taken():
    outcomes = Counter()

    @settings(max_examples=40)
    @given(cases(policy_kwargs=WITH_EXTRACTOR, line_search_shrinking_factor=st.floats(0.5, 0.95)), st.integers(1, 15))
    def check(case, n_poisoned):
        model = build(case)
        before, names = parameters(model.policy), policy_side(model, read(model))
        n_candidates, factor = case.settings["line_search_max_iter"], case.settings["line_search_shrinking_factor"]
        n_chunks = chunks_of(model)
        extractor = model.policy.pi_features_extractor
        extractor.moved, extractor.poison = lambda: changed(before, parameters(model.policy)) & names, n_poisoned * n_chunks
        model.train()

        log = model.logger.name_to_value
        outcomes[model.policy_outcome.value] += 1
        if n_poisoned >= n_candidates:
            assert model.policy_outcome.value == "non-finite surrogate or KL"
        if model.policy_outcome.value == "accepted":
            assert log["train/line_search_steps"] > n_poisoned
            assert log["train/step_fraction"] <= factor**n_poisoned * (1 + 1e-9)
            assert all(value.isfinite().all() for value in model.policy.parameters())
        else:
            assert log["train/kl_divergence_loss"] == 0.0
            assert not changed(before, parameters(model.policy)) & names

    check()
    assert outcomes["accepted"] >= 5
    assert outcomes["non-finite surrogate or KL"] >= 10


def moves(before, names: set[str], *models: TRPO) -> list[th.Tensor]:
    """Give how far each model has moved the named parameters, as a vector."""
    return [
        th.cat([(now[name] - before[name]).flatten() for name in sorted(names)])
        for now in (parameters(model.policy) for model in models)
    ]


def to_float64(policy) -> None:
    policy.double()
    for extractor in {policy.features_extractor, policy.pi_features_extractor, policy.vf_features_extractor}:
        extractor.register_forward_pre_hook(lambda _, inputs: (each(th.Tensor.double, inputs[0]),))


def chunks_of(model: TRPO) -> int:
    n_transitions = -(-model.n_steps * model.n_envs // model.sub_sampling_factor)
    return -(-n_transitions // (model.chunk_size or n_transitions))


@settings(max_examples=40)
@given(
    cases(
        chunk_size=st.none(), cg_max_steps=st.integers(1, 5), cg_damping=st.floats(0.1, 1.0), line_search_max_iter=st.just(30)
    ),
    st.integers(1, 24),
)
def test_the_chunk_size_changes_nothing_beyond_rounding(case, chunk_size):
    """In float64 and few iterations, for conjugate gradient loses conjugacy, and turns rounding into digits that show."""
    whole, chunked = build(case), build(case._replace(settings={**case.settings, "chunk_size": chunk_size}))
    for model in (whole, chunked):
        to_float64(model.policy)
    before, names = parameters(whole.policy), policy_side(whole, read(whole))
    whole.train()
    chunked.train()
    step, other = moves(before, names, whole, chunked)
    assert step.dtype is th.float64
    assert (step - other).norm() <= 1e-6 * step.norm()
    assert whole.policy_outcome is chunked.policy_outcome
    assert whole.logger.name_to_value["train/line_search_steps"] == chunked.logger.name_to_value["train/line_search_steps"]


def test_the_fast_update_differs_from_the_slow_one_by_rounding_only():
    n_plain = 0

    @settings(max_examples=40)
    @given(cases(cg_max_steps=st.integers(1, 5), cg_damping=st.floats(0.1, 1.0), line_search_max_iter=st.just(30)))
    def check(case):
        nonlocal n_plain
        fast = build(case)
        before, names = parameters(fast.policy), policy_side(fast, read(fast))
        n_plain += read_networks(fast.policy) is not None
        fast.train()
        slow = build(case)  # not before: it seeds the generator of the minibatches
        with mock.patch.object(sb3_trpo.trpo, "read_networks", return_value=None):
            slow.train()
        assert (fast.policy_outcome, fast.critic_outcome) == (slow.policy_outcome, slow.critic_outcome)
        for key in ("train/line_search_steps", "train/cg_iterations"):
            assert fast.logger.name_to_value[key] == slow.logger.name_to_value[key]
        for side in (names, before.keys() - names):
            step, other = moves(before, side, fast, slow)
            assert (step - other).norm() <= 1e-3 * other.norm()

    check()
    assert n_plain >= 10
