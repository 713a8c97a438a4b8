"""The critic's fit without autograd ends where the general fit ends."""

import copy

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from helpers.recurrent_tools import ALGORITHMS, CRITICS, collected, small_model, vec_env
from hypothesis import given, settings, strategies as st
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trpo.recurrent import RecurrentTRPO, trpo
from sb3_trpo.recurrent.networks import read_recurrent_networks
from sb3_trpo.recurrent.regression import fit_recurrent_values
from sb3_trpo.rollouts.batch import RolloutBatch
from sb3_trpo.update.flat_critic import fit_values
from sb3_trpo.update.modes import critic_mode


def fitted(model, is_fast, n_epochs=3, batch_size=8, max_grad_norm=None, change=lambda model: None):
    """Fit a copy of a model's critic; give the record, the parameters and the optimizer's state."""
    policy, buffer = copy.deepcopy((model.policy, model.rollout_buffer))
    change(policy)
    batch = RolloutBatch([buffer], model.rollout_reader)
    networks = read_recurrent_networks(policy, model.distribution_kinds)
    of_policy = {id(tensor) for tensor in networks.policy_tensors}
    parameters = [each for each in policy.parameters() if each.requires_grad and id(each) not in of_policy]
    settings = parameters, batch, n_epochs, batch_size, max_grad_norm
    np.random.seed(0)
    with critic_mode(policy):
        fit = fit_recurrent_values(policy, networks, *settings) if is_fast else fit_values(policy, None, *settings)
    drawn = np.random.random()
    return fit, [*policy.parameters()], policy.optimizer.state_dict()["state"], drawn


def assert_same(one, other):
    (fit, parameters, state, drawn), (their_fit, theirs, their_state, their_drawn) = one, other
    assert fit.outcome == their_fit.outcome
    assert fit.loss == pytest.approx(their_fit.loss, rel=1e-4)
    assert drawn == their_drawn
    for ours, their in zip(parameters, theirs, strict=True):
        th.testing.assert_close(ours, their, rtol=1e-3, atol=2e-5)
    assert {key: value["step"] for key, value in state.items()} == {key: value["step"] for key, value in their_state.items()}
    for key, value in their_state.items():
        for name in ("exp_avg", "exp_avg_sq"):
            scale = float(value[name].abs().max()) + 1e-6
            assert float((state[key][name] - value[name]).abs().max()) <= 1e-3 * scale


CASES = st.fixed_dictionaries(
    {"n_envs": st.integers(1, 3), "p_end": st.sampled_from([0.0, 0.1, 0.3, 1.0]), "normalized": st.booleans()}
)


@settings(max_examples=6)
@given(CASES, st.integers(1, 2), st.sampled_from([3, 8, 100]), st.sampled_from([None, 0.5]), st.booleans())
def test_a_fit_is_the_general_one(case, n_layers, batch_size, max_grad_norm, has_bias):
    env = vec_env(case["n_envs"], p_end=case["p_end"])
    kwargs = {"n_lstm_layers": n_layers, "lstm_kwargs": {"bias": has_bias}, "net_arch": {"pi": [], "vf": [4, 3]}}
    model = small_model(env=VecNormalize(env) if case["normalized"] else env, policy_kwargs=kwargs, n_steps=20)
    collected(model).train()  # so that the optimizer has a state
    collected(model)
    fits = [fitted(model, is_fast, batch_size=batch_size, max_grad_norm=max_grad_norm) for is_fast in (True, False)]
    assert_same(*fits)
    assert not all(th.equal(*pair) for pair in zip(fits[0][1], model.policy.parameters(), strict=True))


def frozen(policy):
    next(policy.lstm_critic.parameters()).requires_grad_(False)


def with_another_optimizer(policy):
    policy.optimizer = th.optim.SGD(policy.parameters(), lr=0.1)


@pytest.mark.parametrize("change", [frozen, with_another_optimizer])
def test_what_it_cannot_do_is_left_to_the_general_fit(change):
    assert fitted(collected(small_model()), True, change=change)[0] is None


@pytest.mark.parametrize("critic", ["shared LSTM", "no LSTM"])
def test_a_critic_without_an_lstm_of_its_own_is_left_to_the_general_fit(critic):
    assert fitted(collected(small_model(policy_kwargs=CRITICS[critic])), True)[0] is None


def test_a_fit_that_diverges_changes_nothing():
    model = collected(small_model())
    model.rollout_buffer.returns[:] = 1e30
    fit, parameters, state, _ = fitted(model, True)
    assert fit.outcome.value == "diverged"
    assert all(th.equal(*pair) for pair in zip(parameters, model.policy.parameters(), strict=True))
    assert not state


@pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS)
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_an_update_takes_it_unless_dropout_is_on(algorithm, dropout, monkeypatch):
    found = []

    def noted(*arguments):
        found.append(fit_recurrent_values(*arguments))
        return found[-1]

    monkeypatch.setattr(trpo, "fit_recurrent_values", noted)
    model = small_model(algorithm, policy_kwargs={"n_lstm_layers": 2, "lstm_kwargs": {"dropout": dropout}})
    collected(model).train()
    assert len([fit for fit in found if fit is not None]) == (dropout == 0.0)


def test_a_fit_on_dict_observations_is_the_general_one():
    pair = spaces.Dict(far=spaces.Box(-1.0, 1.0, (2, 2)), choice=spaces.Discrete(3))
    model = collected(small_model(RecurrentTRPO, vec_env(observation_space=pair), "MultiInputLstmPolicy"))
    assert_same(fitted(model, True), fitted(model, False))
