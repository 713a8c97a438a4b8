"""Policies with memory: the promises of an update, measured in float64 step by step; masks; kernels; resuming."""

import copy
from collections import Counter
from contextlib import suppress
from functools import partial
from unittest import mock

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from helpers import recurrent_oracle as oracle
from helpers.recurrent_tools import ACTIONS, ALGORITHMS, CHOICES, CRITICS, collected, small_model, vec_env
from helpers.rollouts import AtStart
from helpers.runs import outcome, run_until_done
from hypothesis import given, settings, strategies as st
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from sb3_trpo.checkpoint import ResumableCheckpoint
from sb3_trpo.checkpoint.run_folder import newest_intact
from sb3_trpo.recurrent import MaskableRecurrentTRPO, RecurrentTRPO

POLICY_SIDE = ("lstm_actor", "mlp_extractor.policy_net", "action_net", "log_std")


def is_of_policy(name):
    return name.startswith(POLICY_SIDE)


def changed(before, after):
    """Name the parameters that are not bit for bit the same."""
    return {name for name in before if before[name].numpy().tobytes() != after[name].numpy().tobytes()}


def parameters(model):
    return {name: value.detach().clone() for name, value in model.policy.named_parameters()}


KINDS = [("RecurrentTRPO", name) for name in ("Box", "Discrete", "MultiDiscrete")] + [
    ("MaskableRecurrentTRPO", name) for name in CHOICES
]
CASES = st.fixed_dictionaries(
    {
        "name": st.sampled_from(KINDS),
        "critic": st.sampled_from([*CRITICS]),
        "n_envs": st.integers(1, 3),
        "p_end": st.sampled_from([0.0, 0.1, 0.3, 1.0]),
        "n_steps": st.integers(4, 20),
        "n_lstm_layers": st.integers(1, 2),
        "chunk_size": st.none() | st.integers(1, 20),
        "sub_sampling_factor": st.integers(1, 2),
        "fisher_subsampling": st.integers(1, 2),
        "target_kl": st.floats(-4.0, 0.0).map(lambda exponent: 10.0**exponent),
        "cg_damping": st.sampled_from([1e-4, 0.1]),
        "ent_coef": st.sampled_from([0.0, 0.1]),
        "use_sde": st.booleans(),
        "seed": st.integers(0, 100),
    }
)  # fmt: skip


def build(case):
    """Make a model with a rollout whose first episodes are under way."""
    options = dict(case)
    algorithm, name = options.pop("name")
    options["use_sde"] = options["use_sde"] and name == "Box"
    kwargs = CRITICS[options.pop("critic")] | {"n_lstm_layers": options.pop("n_lstm_layers")}
    env = vec_env(options.pop("n_envs"), action_space=ACTIONS[name], p_end=options.pop("p_end"))
    return collected(small_model(ALGORITHMS[algorithm], env, policy_kwargs=kwargs, **options))


def oracle_of(model):
    rollout, longest = oracle.read(model.rollout_buffer), model.chunk_size or 10**6
    weights = oracle.weights_of_every(rollout, model.sub_sampling_factor, longest)
    return oracle.Oracle(rollout, model.action_space, weights, longest)


def test_an_update_stays_in_its_region_and_improves_or_changes_no_policy_parameter():
    outcomes = Counter()

    @settings(max_examples=20)
    @given(CASES)
    def check(case):
        model = build(case)
        dense, before, old = oracle_of(model), parameters(model), oracle.parameters_of(model.policy)
        model.train()
        log, new = model.logger.name_to_value, oracle.parameters_of(model.policy)
        outcomes[model.policy_outcome.value] += 1
        kl = dense.kl(old, new)
        assert kl >= -1e-15
        assert log["train/kl_divergence_loss"] == pytest.approx(kl, rel=1e-3, abs=1e-7)
        assert log["train/entropy"] == pytest.approx(dense.entropy(old), rel=1e-4) or case["use_sde"]
        if model.policy_outcome.value == "accepted":
            assert kl <= case["target_kl"] * (1 + 1e-4) + 1e-7
            assert dense.surrogate(new, case["ent_coef"]) > dense.surrogate(old, case["ent_coef"]) - 1e-6
        else:
            assert not [name for name in changed(before, parameters(model)) if is_of_policy(name)]

    check()
    assert outcomes["accepted"] >= 10


def moved_by_the_critic(model):
    """Update without advantages; name the parameters that changed."""
    before = parameters(model)
    model.rollout_buffer.advantages[:] = 0.0
    model.train()
    assert model.policy_outcome.value == "zero gradient"
    return changed(before, parameters(model))


@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_critic_moves_itself_and_no_memory_of_the_policys(algorithm, critic):
    model = collected(small_model(ALGORITHMS[algorithm], policy_kwargs=CRITICS[critic], n_critic_updates=3))
    moved = moved_by_the_critic(model)
    assert moved == {name for name in parameters(model) if not is_of_policy(name)}
    assert any(name.startswith("lstm_critic") for name in moved) == (critic == "own LSTM")


@pytest.mark.parametrize("critic", CRITICS)
def test_the_policys_step_moves_all_of_the_policy_and_nothing_else(critic):
    model = collected(small_model(policy_kwargs=CRITICS[critic] | {"n_lstm_layers": 2}, n_critic_updates=0))
    before = parameters(model)
    model.train()
    assert model.policy_outcome.value == "accepted"
    assert changed(before, parameters(model)) == {name for name in before if is_of_policy(name)}


class InjectedError(Exception):
    """Comes from nowhere else."""


def train_with(model, name, fault_at, fault):
    """Train with a fault at one call of a function; give the number of calls."""
    owner = model.policy.optimizer if name == "step" else model.policy
    function = getattr(owner, name)

    def call(*args, **kwargs):
        if called.call_count - 1 == fault_at:
            raise fault
        return function(*args, **kwargs)

    with mock.patch.object(owner, name, side_effect=call) as called:
        model.train()
    return called.call_count


@pytest.mark.parametrize("fault", [InjectedError, KeyboardInterrupt])
@pytest.mark.parametrize("when", [0.0, 0.999])
@pytest.mark.parametrize(
    ("algorithm", "name"),
    [*((name, "get_distribution") for name in ALGORITHMS), ("RecurrentTRPO", "predict_values"), ("RecurrentTRPO", "step")],
)
def test_an_interrupted_update_is_whole_or_undone(algorithm, name, when, fault):
    options = {"n_critic_updates": 2, "cg_max_steps": 3}
    finished, model = (collected(small_model(ALGORITHMS[algorithm], **options)) for _ in range(2))
    before, optimizer = parameters(model), copy.deepcopy(model.policy.optimizer.state_dict())
    assert not changed(before, parameters(finished))
    n_calls = train_with(finished, name, None, fault)
    # The search for what the policy depends on takes an error, but no interrupt, for an answer.
    with suppress(fault) if (name, fault) == ("get_distribution", InjectedError) else pytest.raises(fault):
        train_with(model, name, int(when * n_calls), fault)
        assert not changed(parameters(finished), parameters(model))
        return
    moved = changed(before, parameters(model))
    assert not moved if name == "get_distribution" else moved == {each for each in before if is_of_policy(each)}
    assert not [each for each in changed(parameters(finished), parameters(model)) if is_of_policy(each) and each in moved]
    assert str(model.policy.optimizer.state_dict()) == str(optimizer)
    assert th.backends.cudnn.enabled
    assert not any("forward" in vars(layer) for layer in model.policy.modules())


@pytest.mark.parametrize("critic", CRITICS)
def test_no_gradient_is_taken_through_cudnn_in_evaluation_mode(critic):
    """cuDNN would refuse it, and second derivatives in any mode."""
    seen, forward = [], nn.LSTM.forward

    def note(lstm, *args):
        seen.append((lstm.training, th.backends.cudnn.enabled, th.is_grad_enabled()))
        return forward(lstm, *args)

    with mock.patch.object(nn.LSTM, "forward", note):
        small_model(policy_kwargs=CRITICS[critic]).learn(24)
    assert (False, True, False) in seen, "acting needs no gradient"
    assert (False, True, True) not in seen


@pytest.mark.parametrize("name", CHOICES)
def test_masks_that_allow_all_change_nothing(name):
    space = CHOICES[name]
    masked = collected(small_model(MaskableRecurrentTRPO, vec_env(action_space=space, forbids=False)))
    plain = collected(small_model(RecurrentTRPO, vec_env(action_space=space)))
    if name != "MultiBinary":  # which has two logits per bit where it is masked
        plain.set_parameters(masked.get_parameters())
        arrays = {key: each for key, each in vars(masked.rollout_buffer).items() if isinstance(each, np.ndarray)}
        vars(plain.rollout_buffer).update(copy.deepcopy(arrays))
        for model in (plain, masked):
            np.random.seed(0)
            model.train()
        for key in ("kl_divergence_loss", "policy_objective", "gradient_norm", "entropy", "value_loss", "improvement"):
            values = [model.logger.name_to_value[f"train/{key}"] for model in (plain, masked)]
            assert values[0] == pytest.approx(values[1], rel=1e-4), key
        for one, other in zip(plain.policy.parameters(), masked.policy.parameters(), strict=True):
            th.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    assert masked.rollout_buffer.action_masks.all()


def test_masks_are_asked_for_once_per_step_whatever_callbacks_do():
    model = small_model(MaskableRecurrentTRPO)

    def act(variables, _):
        with th.no_grad():
            model.policy(variables["obs_tensor"], model._last_lstm_states, th.zeros(2))
        return True

    with mock.patch.object(model.env, "env_method", wraps=model.env.env_method) as asked:
        model.learn(24, callback=act)
    assert asked.call_count == 12
    in_force = np.stack(model.env.get_attr("in_force"), 1)
    buffer = model.rollout_buffer
    assert np.array_equal(buffer.action_masks.reshape(2, 12, 3).swapaxes(0, 1), in_force)


@pytest.mark.parametrize("critic", CRITICS)
def test_rollouts_are_those_of_sb3_contrib(critic):
    kwargs = CRITICS[critic] | {"lstm_hidden_size": 3, "net_arch": [4], "share_features_extractor": critic == "shared LSTM"}
    ours = small_model(policy_kwargs={**kwargs, "forget_bias": 0.0}, n_steps=40)
    theirs = RecurrentPPO("MlpLstmPolicy", vec_env(), n_steps=40, gae_lambda=0.95, seed=0, device="cpu", policy_kwargs=kwargs)
    assert not changed(parameters(ours), parameters(theirs))
    for model in (ours, theirs):
        model.set_random_seed(5)
        collected(model)
    assert (ours.rollout_buffer.episode_starts[1:] > 0).any()
    for name, value in vars(theirs.rollout_buffer).items():
        if isinstance(value, np.ndarray):
            np.testing.assert_allclose(getattr(ours.rollout_buffer, name), value, rtol=1e-5, atol=1e-6, err_msg=name)


def forget(callback):
    """Lose the memory when the first rollout starts."""
    if callback.n_calls == 0:
        for part in (*callback.model._last_lstm_states.pi, *callback.model._last_lstm_states.vf):
            assert part.any()
            part.zero_()


def test_a_run_goes_on_with_its_memory_and_would_end_elsewhere_without(tmp_path):
    def script(folder, forgets, crash):
        model = small_model(env=vec_env(3, p_end=0.02), policy_kwargs={"n_lstm_layers": 2})
        resumable = ResumableCheckpoint(tmp_path / folder, every=1, verbose=0)
        is_second = not crash.pending
        model.learn(36 * 4, callback=[resumable, crash, *([AtStart(forget)] if forgets and is_second else [])])
        return outcome(model, None)

    whole, _ = run_until_done(partial(script, "whole", False), 10**6)
    pieces, n_starts = run_until_done(partial(script, "pieces", False), 36 * 2 + 20)
    forgetful, n_forgetful_starts = run_until_done(partial(script, "forgetful", True), 36 * 2 + 20)
    assert n_starts == n_forgetful_starts == 2
    assert pieces == whole
    assert {key for key in whole if key.startswith("policy")} <= {key for key in whole if forgetful[key] != whole[key]}


def test_checkpoints_hold_no_rollout(tmp_path):
    model = small_model(MaskableRecurrentTRPO)
    model.learn(24, callback=ResumableCheckpoint(tmp_path, every=1, verbose=0))
    arrays = newest_intact(tmp_path).arrays
    assert [path for path in arrays if path.startswith("policy")]
    assert not [path for path in arrays if path.startswith("buffer")]


EDGES = {
    "one segment": ({"n_envs": 1, "p_end": 0.0}, {}),
    "one segment, sub-sampled": ({"n_envs": 1, "p_end": 0.0}, {"sub_sampling_factor": 3, "fisher_subsampling": 2}),
    "episodes of one step": ({"p_end": 1.0}, {}),
    "rollouts of one step": ({"n_envs": 4}, {"n_steps": 1}),
    "a batch larger than the rollout": ({}, {"batch_size": 1000}),
    "batches of one": ({}, {"batch_size": 1}),
    "chunks of one": ({}, {"chunk_size": 1}),
    "segments left out": ({"n_envs": 3}, {"sub_sampling_factor": 2, "fisher_subsampling": 2}),
}
OF_ANY_TYPE = ACTIONS | {"Box of float64": spaces.Box(-1.0, 1.0, (2,), np.float64)}
SETTINGS = [(MaskableRecurrentTRPO, *edge) for edge in EDGES.values()]
SETTINGS += [(RecurrentTRPO, {"action_space": space}, {}) for space in OF_ANY_TYPE.values()]


@pytest.mark.parametrize(("algorithm", "of_env", "of_model"), SETTINGS, ids=[*EDGES, *OF_ANY_TYPE])
def test_all_parameters_learn_under_every_action_space_and_in_edge_cases(algorithm, of_env, of_model):
    model = collected(small_model(algorithm, vec_env(**of_env), **of_model))
    before = parameters(model)
    model.train()
    assert model.policy_outcome.value == "accepted"
    idle = {name for name in before if "weight_hh" in name and of_env.get("p_end") == 1.0}  # memory is always zero
    assert changed(before, parameters(model)) == before.keys() - idle


class Normalizing(BaseFeaturesExtractor):
    """Keeps the mean of what it saw last."""

    def __init__(self, observation_space):
        super().__init__(observation_space, 3)
        self.norm = nn.BatchNorm1d(3, momentum=1.0)

    def forward(self, observations):
        return self.norm(observations)


def test_batch_norm_in_an_extractor_follows_the_rollout_without_padding():
    model = collected(small_model(policy_kwargs={"features_extractor_class": Normalizing}))
    mean = oracle.read(model.rollout_buffer).observations.mean((0, 1))
    model.train()
    assert model.policy_outcome.value == "accepted"
    th.testing.assert_close(model.policy.pi_features_extractor.norm.running_mean.double(), mean, rtol=1e-4, atol=1e-6)


def test_the_critic_leaves_a_shared_extractor_alone():
    kwargs = {"features_extractor_class": Normalizing, "share_features_extractor": True}
    moved = moved_by_the_critic(collected(small_model(policy_kwargs=kwargs)))
    assert moved
    assert not [name for name in moved if is_of_policy(name) or "features_extractor" in name]
