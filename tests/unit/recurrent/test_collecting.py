"""The fast loop with memory leaves what RecurrentPPO's leaves, also where callbacks look on, stop it or change things."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from helpers.recurrent_tools import ALGORITHMS, CHOICES, CRITICS, TINY, RestlessEnv, small_model
from helpers.rollouts import (
    ACTIONS,
    EACH_STEP,
    OBSERVATIONS,
    PER_STEP,
    AtStart,
    Intervening,
    Trace,
    assert_close,
    assert_same,
    both,
)
from hypothesis import given, settings, strategies as st
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import nn

from sb3_trpo.recurrent import MaskableRecurrentTRPO, MlpLstmPolicy, RecurrentTRPO
from sb3_trpo.rollouts.collection.fast_collector import FastCollector

STATES = ("hidden_states_pi", "cell_states_pi", "hidden_states_vf", "cell_states_vf")
LOCALS = (*PER_STEP, "episode_starts", "lstm_states")


def model_of(algorithm: Any = RecurrentTRPO, n_envs: int = 2, wrap: Any = None, p_end: float = 0.2, **settings: Any) -> Any:
    """Build a model whose policy is far from the initial one and remembers much."""
    of_env = {key: settings.pop(key) for key in ("observation_space", "action_space") if key in settings}

    def make() -> Any:
        env = RestlessEnv(p_end=p_end, **of_env)
        env.observation_space.seed(0)
        return Monitor(env)

    env = DummyVecEnv([make] * n_envs)
    env.seed(3)
    is_dict = isinstance(env.observation_space, spaces.Dict)
    policy = settings.pop("policy", "MultiInputLstmPolicy" if is_dict else "MlpLstmPolicy")
    model = small_model(algorithm, wrap(env) if wrap else env, policy, normalize_advantage=False, **settings)
    with th.no_grad():
        model.policy.action_net.weight.mul_(50)
        for name, parameter in model.policy.named_parameters():
            if "lstm" in name:
                parameter.mul_(2)
    return model


def assert_same_memory(ours: Trace, theirs: Trace) -> None:
    assert_same(ours, theirs)
    for one, other in zip(ours.buffers, theirs.buffers, strict=True):
        for name in STATES:
            assert_close(getattr(one, name), getattr(other, name))
        if hasattr(other, "action_masks"):
            assert np.array_equal(one.action_masks, other.action_masks)
    assert_close(*(flat(trace.model._last_lstm_states) for trace in (ours, theirs)))


def flat(states: Any) -> dict[str, Any]:
    return dict(zip(STATES, (*states.pi, *states.vf), strict=True))


CASES = st.fixed_dictionaries(
    {
        "n_envs": st.integers(1, 3),
        "p_end": st.sampled_from([0.0, 0.1, 0.3, 1.0]),
        "n_steps": st.integers(1, 20),
        "policy_kwargs": st.tuples(
            st.sampled_from([*CRITICS.values()]),
            st.fixed_dictionaries(
                {"n_lstm_layers": st.integers(1, 2), "lstm_kwargs": st.sampled_from([{}, {"bias": False}])},
                optional={"net_arch": st.sampled_from([[], {"pi": [5], "vf": [6, 3]}])},
            ),
        ).map(lambda parts: parts[0] | parts[1]),
    }
)


@settings(max_examples=15)
@given(CASES, st.sampled_from([*ACTIONS]), st.booleans())
def test_the_buffer_is_that_of_recurrent_ppos_loop(case, name, is_sb3_contribs):
    policy = RecurrentActorCriticPolicy if is_sb3_contribs else MlpLstmPolicy
    assert_same_memory(*both(lambda: model_of(policy=policy, action_space=ACTIONS[name], **case), n_rollouts=2))


@settings(max_examples=8)
@given(CASES, st.sampled_from([*CHOICES]))
def test_the_same_with_masks(case, name):
    assert_same_memory(*both(lambda: model_of(MaskableRecurrentTRPO, action_space=CHOICES[name], **case), n_rollouts=2))


def test_values_depend_on_memory_while_an_episode_lasts():
    """Or the comparisons above would say little about it."""

    def fill(callback: BaseCallback) -> None:
        for part in callback.model._last_lstm_states.vf:
            part.fill_(3.0 * bool(callback.n_calls))

    make = partial(model_of, n_steps=40, p_end=0.1)
    one, other = (Trace(make, False, start, n_rollouts=2).buffers[1] for start in (None, AtStart(fill)))
    first_end = np.flatnonzero(one.episode_starts[:, 0])[0]
    assert first_end > 0
    assert np.array_equal(one.observations, other.observations)
    assert (one.values[:first_end, 0] != other.values[:first_end, 0]).all()
    assert np.array_equal(one.values[first_end:, 0], other.values[first_end:, 0])


# An LSTM does not take the int64 that the one-hot size of a MultiDiscrete is, nor does sb3-contrib's policy.
VECTORS = {name: space for name, space in OBSERVATIONS.items() if name not in ("image, flattened", "choices")}
VARIANTS = {
    **{f"on {name}": {"observation_space": space} for name, space in VECTORS.items()},
    "normalized": {"wrap": VecNormalize},
    "many units, one environment": {"n_envs": 1, "policy_kwargs": {"lstm_hidden_size": 80}},
    "many units": {"n_envs": 5, "policy_kwargs": {"lstm_hidden_size": 80, "n_lstm_layers": 2}},
    "gSDE": {"use_sde": True, "sde_sample_freq": 3, "action_space": ACTIONS["box"]},
    "Beta": {"policy_kwargs": {"action_distribution": "beta"}, "action_space": ACTIONS["box"]},
    "one extractor": {"policy_kwargs": {"share_features_extractor": True}},
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_spaces_and_sizes(variant):
    assert_same_memory(*both(lambda: model_of(**variant), n_rollouts=2))


class Reader(BaseCallback):
    """Copies what it finds in ``locals``."""

    def __init__(self, at: Any = EACH_STEP) -> None:
        super().__init__()
        self.at, self.seen = at, []

    def _on_step(self) -> bool:
        if self.n_calls in self.at:
            self.seen.append({name: copy.deepcopy(self.locals[name]) for name in LOCALS if name != "lstm_states"})
            self.seen[-1] |= flat(self.locals["lstm_states"])
        return True

    def _on_rollout_end(self) -> None:
        self.seen.append({name: copy.deepcopy(self.locals[name]) for name in ("values", "n_steps", "episode_starts")})


@pytest.mark.parametrize("at", [EACH_STEP, (2, 7, 12)], ids=["each step", "some"])
@pytest.mark.parametrize("critic", CRITICS)
def test_a_callback_reads_the_variables_of_recurrent_ppos_loop(critic, at):
    readers = Reader(at), Reader(at)
    left = iter(readers)
    assert_same_memory(*both(lambda: model_of(policy_kwargs=CRITICS[critic]), lambda: next(left), n_rollouts=2))
    ours, theirs = (reader.seen for reader in readers)
    assert len(ours) > 4
    for one, other in zip(ours, theirs, strict=True):
        assert_close(one, other)


def test_the_names_in_locals_are_those_of_recurrent_ppos_loop():
    found: list[set[str]] = []
    transient = {"idx", "done_", "terminal_obs", "terminal_value", "terminal_lstm_state", "__class__"}
    both(model_of, lambda: Intervening(lambda callback: found.append({*callback.locals} - transient), EACH_STEP))
    assert found[0]
    assert found[: len(found) // 2] == found[len(found) // 2 :]


def read_values(callback: BaseCallback) -> None:
    callback.locals["values"]


def scale(callback: BaseCallback) -> None:
    with th.no_grad():
        for parameter in callback.model.policy.parameters():
            parameter.mul_(1.1)


def replace(callback: BaseCallback) -> None:
    policy = callback.model.policy
    nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(policy.parameters()) * 0.9, policy.parameters())


def read_then_end(callback: BaseCallback) -> bool:
    read_values(callback)
    return False


ACTS = {
    "changes weights": scale,
    "replaces weights": replace,
    "reads values, then changes weights": lambda callback: (read_values(callback), scale(callback)),
    "ends": lambda callback: False,
    "reads values, then ends": read_then_end,
}


@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)
@pytest.mark.parametrize("critic", CRITICS)
def test_what_a_callback_does_counts_as_in_recurrent_ppos_loop(critic, act):
    """It acts where episodes are truncated, too."""
    model = partial(model_of, n_steps=30, p_end=0.6, policy_kwargs=CRITICS[critic])
    assert_same_memory(*both(model, lambda: Intervening(act, (4, 9, 10, 11, 17, 23)), n_rollouts=2))


def test_memory_that_a_callback_takes_when_a_rollout_starts_is_gone():
    def forget(callback: BaseCallback) -> None:
        for part in (*callback.model._last_lstm_states.pi, *callback.model._last_lstm_states.vf):
            part.zero_()

    ours, theirs = both(lambda: model_of(p_end=0.0), lambda: AtStart(forget), n_rollouts=2)
    assert_same_memory(ours, theirs)
    assert not ours.buffers[1].hidden_states_pi[0].any()
    assert ours.buffers[1].hidden_states_pi[1].all()


class OtherPolicy(MlpLstmPolicy):
    """Processes sequences in its own way."""

    @staticmethod
    def _process_sequence(*args: Any) -> Any:
        return MlpLstmPolicy._process_sequence(*args)


class OtherLstm(nn.LSTM):
    """Might compute anything."""


def hooked() -> Any:
    model = model_of()
    model.policy.lstm_actor.register_forward_hook(lambda *_: None)
    return model


def with_other_lstm() -> Any:
    model = model_of()
    model.policy.lstm_critic = OtherLstm(3, TINY["lstm_hidden_size"])
    return model


UNKNOWN: dict[str, Callable[[], Any]] = {
    "method": lambda: model_of(policy=OtherPolicy),
    "lstm": with_other_lstm,
    "hook": hooked,
    "activation": lambda: model_of(policy_kwargs={"activation_fn": nn.Softplus}),
    "squashed": lambda: model_of(use_sde=True, action_space=ACTIONS["box"], policy_kwargs={"squash_output": True}),
    "dropout": lambda: model_of(policy_kwargs={"n_lstm_layers": 2, "lstm_kwargs": {"dropout": 0.5}}),
}


@pytest.mark.parametrize("make", UNKNOWN.values(), ids=UNKNOWN)
def test_anything_that_the_fast_loop_does_not_know_is_left_to_recurrent_ppos(make):
    assert_same_memory(*both(make, quick=False))


@pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS)
def test_nan_is_reported(algorithm):
    model = model_of(algorithm, action_space=CHOICES["Discrete"])
    with th.no_grad():
        model.policy.lstm_actor.bias_hh_l0.fill_(th.nan)
    with pytest.raises(ValueError, match="NaN"):
        model.learn(12)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_memory_is_that_of_the_last_step_after_an_error(error):
    """Training that goes on later then continues the episodes with what they remember."""

    class Failing(BaseCallback):
        def _on_step(self) -> bool:
            if self.n_calls == 6:
                raise error
            return True

    states = []
    for is_fast in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            if not is_fast:
                patch.setattr(FastCollector, "prepare", lambda *_: None)
            model = model_of()
            with pytest.raises(error):
                model.learn(10**4, callback=Failing())
        states.append(model._last_lstm_states)
        assert model.num_timesteps == 6 * model.n_envs
    for ours, theirs in zip(states[0], states[1], strict=True):
        for one, other in zip(ours, theirs, strict=True):
            th.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_variables_can_be_read_after_the_training():
    """By then the update has rearranged the buffer."""

    class ReadsAtTheEnd(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_training_end(self) -> None:
            names = ("obs_tensor", "values", "log_probs", "episode_starts", "lstm_states")
            self.seen = [copy.deepcopy(self.locals[name]) for name in names]

    readers = ReadsAtTheEnd(), ReadsAtTheEnd()
    for reader in readers:
        with pytest.MonkeyPatch.context() as patch:
            if reader is readers[1]:
                patch.setattr(FastCollector, "prepare", lambda *_: None)
            model_of().learn(1, callback=reader)
    ours, theirs = (reader.seen for reader in readers)
    th.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
