"""The LSTM with a formula for J v, compared in float64 with torch's own, differentiated twice."""

import gc
import weakref

import pytest
import torch as th
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from sb3_trpo.networks.double_backward import twice_differentiable
from sb3_trpo.networks.lstm import is_supported
from sb3_trpo.numerics.gauss_newton import linearize

SIZES = {
    "n_steps": st.integers(1, 6),
    "n_sequences": st.integers(1, 3),
    "n_inputs": st.integers(1, 4),
    "n_hidden": st.integers(1, 4),
}
LAYERS = {"n_layers": st.integers(1, 3), "bias": st.booleans(), "seed": st.integers(0, 99)}


def make(n_steps, n_sequences, n_inputs, n_hidden, n_layers, bias, seed, dtype=th.float64):
    th.manual_seed(seed)
    layer = nn.LSTM(n_inputs, n_hidden, n_layers, bias=bias).to(dtype).eval()
    x = th.randn(n_steps, n_sequences, n_inputs, dtype=dtype, requires_grad=True)
    h, c = (th.randn(n_layers, n_sequences, n_hidden, dtype=dtype, requires_grad=True) for _ in range(2))
    return layer, x, (h, c)


def run(layer, x, states):
    outputs, (h, c) = layer(x, states)
    return outputs, h, c


def vector(theta):
    return th.randn(sum(each.numel() for each in theta), dtype=theta[0].dtype)


@settings(max_examples=40)
@given(**SIZES, **LAYERS)
def test_values_and_products_are_those_of_double_backward(**sizes):
    layer, x, states = make(**sizes)
    theta = [*layer.parameters(), x, *states]
    own = run(layer, x, states)
    with twice_differentiable(layer):
        ours = run(layer, x, states)
    theirs, mine = linearize(own, theta), linearize(ours, theta)
    v = vector(theta)
    u = tuple(map(th.randn_like, own))
    for expected, found in zip((*own, *theirs.jvp(v), theirs.vjp(u)), (*ours, *mine.jvp(v), mine.vjp(u)), strict=True):
        th.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("wanted", ["x", "weights", "states"])
def test_frozen_tensors_count_as_constants(wanted):
    layer, x, states = make(4, 2, 3, 3, 2, True, 0)
    theta = {"x": [x], "weights": [layer.weight_hh_l0, layer.bias_ih_l1], "states": list(states)}[wanted]
    for each in (*layer.parameters(), x, *states):
        each.requires_grad_(any(each is one for one in theta))
    own = run(layer, x, states)[:1]
    with twice_differentiable(layer):
        ours = run(layer, x, states)[:1]
    v = vector(theta)
    th.testing.assert_close(linearize(ours, theta).jvp(v), linearize(own, theta).jvp(v))
    th.testing.assert_close(linearize(ours, theta).vjp(own), linearize(own, theta).vjp(own))


def test_states_passed_on_step_by_step_keep_their_derivatives():
    layer, x, states = make(5, 2, 3, 4, 2, True, 1)
    theta = list(layer.parameters())
    whole = run(layer, x, states)[0]
    with twice_differentiable(layer):
        steps, last = [], states
        for step in x.split(1):
            output, last = layer(step, last)
            steps.append(output)
    v = vector(theta)
    th.testing.assert_close(linearize((th.cat(steps),), theta).jvp(v), linearize((whole,), theta).jvp(v))


def test_single_precision_agrees_with_double():
    layer, x, states = make(20, 5, 6, 8, 1, True, 2, th.float32)
    theta = list(layer.parameters())
    with twice_differentiable(layer):
        ours = run(layer, x, states)[:1]
    v = vector(theta)
    (found,) = linearize(ours, theta).jvp(v)
    precise, x, states = layer.double(), x.detach().double(), tuple(state.detach().double() for state in states)
    (expected,) = linearize(run(precise, x, states)[:1], list(precise.parameters())).jvp(v.double())
    th.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-5)


def test_without_derivatives_the_layer_runs_its_own_forward_and_gets_it_back_afterwards():
    layer, x, states = make(4, 2, 3, 3, 2, True, 3, th.float32)
    with th.no_grad():
        own = run(layer, x, states)
        with twice_differentiable(layer):
            ours = run(layer, x, states)
    assert all(map(th.equal, own, ours))
    with pytest.raises(KeyError), twice_differentiable(layer):
        raise KeyError
    assert "forward" not in vars(layer)


def test_states_may_be_left_out_or_given_by_name():
    layer, x, states = make(4, 2, 3, 3, 2, True, 4)
    with twice_differentiable(layer):
        without_states, by_name = layer(x)[0], layer(x, hx=states)[0]
    th.testing.assert_close(without_states, layer(x)[0])
    th.testing.assert_close(by_name, layer(x, states)[0])


@pytest.mark.parametrize("form", ["unbatched", "packed"])
def test_sequences_of_other_forms_are_left_to_torch(form):
    layer, x, _ = make(4, 2, 3, 3, 1, True, 5)
    given_x = x[:, 0] if form == "unbatched" else pack_sequence([x[:3, 0], x[:2, 1]])
    with twice_differentiable(layer):
        ours, _ = layer(given_x)
    own, _ = layer(given_x)
    assert all(map(th.equal, ours, own)) if form == "unbatched" else th.equal(ours.data, own.data)


OTHERS = [nn.LSTM(3, 4, **{option: True}) for option in ("bidirectional", "batch_first")]
OTHERS += [nn.LSTM(3, 4, proj_size=2), type("Own", (nn.LSTM,), {})(3, 4), nn.GRU(3, 4)]


@pytest.mark.parametrize("layer", OTHERS, ids=repr)
def test_other_recurrent_layers_are_differentiated_by_autograd(layer):
    layer = layer.double()
    assert not is_supported(layer)
    x, theta = th.randn(5, 2, 3, dtype=th.float64), list(layer.parameters())
    with twice_differentiable(layer):
        outputs = layer(x)[:1]
    v = vector(theta)
    th.testing.assert_close(linearize(outputs, theta).jvp(v), linearize(layer(x)[:1], theta).jvp(v))


def test_dropout_is_supported_only_in_evaluation_mode():
    layer = nn.LSTM(3, 4, 2, dropout=0.5)
    assert not is_supported(layer)
    assert is_supported(layer.eval())


def test_memory_is_freed_without_the_garbage_collector():
    layer, x, states = make(4, 2, 3, 3, 2, True, 6)
    gc.disable()
    try:
        with twice_differentiable(layer):
            outputs = run(layer, x, states)[:1]
        alive = weakref.ref(outputs[0].grad_fn.run)
        linear = linearize(outputs, list(layer.parameters()))
        linear.vjp(linear.jvp(vector([*layer.parameters()])))
        assert alive() is not None
        del outputs, linear
        assert alive() is None, "no reference cycle"
    finally:
        gc.enable()
