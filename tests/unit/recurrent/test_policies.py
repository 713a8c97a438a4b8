"""Policies with memory: open forget gates, settings that fit, masks that are forgotten after use."""

import numpy as np
import pytest
import torch as th
from helpers.recurrent_tools import small_model

from sb3_trpo.recurrent import MaskableRecurrentTRPO, RecurrentTRPO


def test_a_policy_forgets_masks_after_use():
    policy = small_model(MaskableRecurrentTRPO).policy
    observations, only_last = np.zeros((50, 3), np.float32), np.tile([False, False, True], (50, 1))
    assert set(policy.predict(observations, action_masks=only_last)[0]) == {2}
    assert policy._action_masks is None
    assert set(policy.predict(observations)[0]) == {0, 1, 2}
    with pytest.raises(TypeError):
        policy.predict(observations, nonsense=1, action_masks=only_last)
    assert policy._action_masks is None


@pytest.mark.parametrize("algorithm", [RecurrentTRPO, MaskableRecurrentTRPO])
def test_forget_gates_of_policies_by_name_are_opened(algorithm):
    kwargs = {"n_lstm_layers": 2, "lstm_hidden_size": 3}
    plain, opened = (small_model(algorithm, policy_kwargs=kwargs | {"forget_bias": bias}).policy for bias in (0.0, 1.0))
    assert small_model(algorithm, policy_kwargs=kwargs).policy.forget_bias == 1.0
    for name, parameter in opened.named_parameters():
        difference = parameter - plain.get_parameter(name)
        expected = th.zeros_like(parameter)
        if "lstm" in name and "bias_ih" in name:
            expected[3:6] = 1.0  # torch's order is input, forget, cell, output
        assert th.allclose(difference, expected, atol=1e-6), name


@pytest.mark.parametrize("option", ["bidirectional", "batch_first", "proj_size"])
def test_lstms_that_cannot_act_step_by_step_are_refused(option):
    with pytest.raises(ValueError, match=f"lstm_kwargs has {option}"):
        small_model(policy_kwargs={"lstm_kwargs": {option: True}})


def test_a_shared_lstm_needs_no_second_switch():
    assert small_model(policy_kwargs={"shared_lstm": True}).policy.lstm_critic is None
