"""Activations: their values and slopes are those of torch's modules."""

import numpy as np
import pytest
import torch as th
from helpers.stacks import FUNCTIONS, TOLERANCES, check, mlp, read_stack
from torch import nn

from sb3_trpo.networks.activations import ACTIVATIONS


def test_the_activations_tried_are_all_there_are(monkeypatch):
    tried = set()
    for function, make in list(ACTIVATIONS.items()):
        monkeypatch.setitem(ACTIVATIONS, function, lambda *args, make=make, **kwargs: tried.add(make) or make(*args, **kwargs))
    for name in FUNCTIONS:
        read_stack(mlp([1, 1], [name]))
    monkeypatch.undo()
    assert tried == set(ACTIVATIONS.values())


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_activation_is_torchs_forward_and_in_both_products(name, bias, dtype):
    th.manual_seed(0)
    check(mlp([3, 7, 4, 2], [name] * 3, bias, dtype), 3.0 * th.randn(9, 3, dtype=dtype))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_activation_is_torchs_at_zero_and_far_out(name):
    modules = mlp([1, 1], [name])
    with th.no_grad():
        modules[0].weight.fill_(1.0)
        modules[0].bias.zero_()
    check(modules, th.tensor([0.0, -0.0, 1e-300, -1e-300, 40.0, -40.0, 1e3, -1e3], dtype=th.float64)[:, None])


@pytest.mark.parametrize("module", [nn.Tanh(), nn.ReLU()], ids=str)
@pytest.mark.parametrize("is_contiguous", [True, False])
def test_an_activation_by_numpy_is_torchs_and_lets_nan_through(module, is_contiguous):
    values = th.tensor([0.0, -0.0, 1e-30, -1e-30, 0.1, -0.1, 3.0, -3.0, 100.0, -100.0, th.inf, -th.inf, th.nan])
    h = values.numpy().copy() if is_contiguous else values.repeat_interleave(2).numpy()[::2]
    read_stack([nn.Linear(1, 1), module]).layers[-1].activation.array(h, out=h)
    assert np.isnan(h).sum() == 1
    th.testing.assert_close(th.from_numpy(h), module(values), rtol=1e-6, atol=0.0, equal_nan=True)
