"""Steps of an LSTM on arrays, and whole rollouts, against torch's own LSTM in float64."""

import numpy as np
import pytest
import torch as th
from hypothesis import given, strategies as st
from torch import nn

from sb3_trpo.networks.prepared.lstm_steps import ArrayStates, Gates, LstmStack, LstmStep, run_sequences, sequences_of

SHAPES = st.tuples(
    st.integers(1, 3), st.integers(1, 4), st.integers(1, 12), st.integers(1, 5), st.booleans(), st.integers(0, 99)
)


def lstm_of(n_inputs, n_hidden, n_layers, has_bias):
    lstm = nn.LSTM(n_inputs, n_hidden, n_layers, bias=has_bias)
    return lstm, LstmStack(tuple(tuple(weights) for weights in lstm.all_weights))


def states_of(rng, *shape):
    return ArrayStates(*(rng.standard_normal(shape).astype(np.float32) for _ in range(2)))


@th.no_grad()
def one_by_one(lstm, x, starts, initial):
    """Run step by step, as sb3-contrib does; give h and c after each step."""
    h, c = (th.from_numpy(part).double() for part in initial)
    lstm, found = lstm.double(), []
    for x_t, start in zip(x.double(), th.from_numpy(starts), strict=True):
        stays = (1.0 - start.double())[:, None]
        _, (h, c) = lstm(x_t[None], (h * stays, c * stays))
        found.append((h.numpy(), c.numpy()))
    return [np.stack(part) for part in zip(*found, strict=True)]


@given(SHAPES, st.sampled_from([0.0, 0.2, 1.0]))
def test_a_rollout_is_that_of_torchs_lstm_step_by_step(shape, p_start):
    n_layers, n_envs, n_steps, n_hidden, has_bias, seed = shape
    rng = np.random.default_rng(seed)
    lstm, stack = lstm_of(2, n_hidden, n_layers, has_bias)
    x = th.from_numpy(rng.standard_normal((n_steps, n_envs, 2)).astype(np.float32))
    starts = (rng.random((n_steps, n_envs)) < p_start).astype(np.float32)
    initial = states_of(rng, n_layers, n_envs, n_hidden)
    kept = [part.copy() for part in (*initial, starts)]
    after = run_sequences(stack, x.flatten(0, 1), starts, initial)
    for own, exact in zip(after, one_by_one(lstm, x, starts, initial), strict=True):
        assert (own.shape, own.dtype) == (exact.shape, np.float32)
        np.testing.assert_allclose(own, exact, atol=1e-6)
    assert all(np.array_equal(*pair) for pair in zip(kept, (*initial, starts), strict=True))


@pytest.mark.parametrize("n_hidden", [3, 70])
@pytest.mark.parametrize("n_rows", [1, 2, 9])
def test_prepared_steps_are_those_of_torchs_lstm_and_see_new_weights(n_rows, n_hidden):
    rng = np.random.default_rng(0)
    lstm, stack = lstm_of(2, n_hidden, 2, True)
    before, after = (states_of(rng, 2, n_rows, n_hidden) for _ in range(2))
    step = LstmStep(stack, before, after)
    for _ in range(3):
        step.input[:] = rng.standard_normal(step.input.shape)
        for _ in range(2):  # a repeated step gives the same
            step.run()
        with th.no_grad():
            output, (h, c) = lstm(th.from_numpy(step.input)[None], tuple(map(th.from_numpy, before)))
            lstm.weight_hh_l1.mul_(1.5)
        for own, exact in ((after.h, h), (after.c, c), (step.output, output[0])):
            np.testing.assert_allclose(own, exact.numpy(), atol=1e-6)
        before.h[:], before.c[:] = after


def test_gates_keep_their_digits_where_they_are_shut_or_open():
    a = np.linspace(-200.0, 200.0, 41, dtype=np.float32)
    gates = Gates(len(a), 1)
    gates.a[:] = a[:, None]
    c, next_h, next_c = (np.ones((len(a), 1), np.float32) for _ in range(3))
    gates.apply(c, next_h, next_c)
    exact = th.from_numpy(a).double()
    expected = exact.sigmoid() * (1.0 + exact.tanh())
    np.testing.assert_allclose(next_c[:, 0], expected, atol=1e-6)
    np.testing.assert_allclose(next_h[:, 0], exact.sigmoid() * expected.tanh(), atol=1e-6)


def test_parts_of_a_rollout_lie_side_by_side():
    """Environment 0 begins an episode at step 2; environment 1 at step 0."""
    sequences = sequences_of(np.array([[0, 1], [0, 0], [1, 0]], np.float32))
    rows = [divmod(int(row), 2) for row in sequences.order]
    assert sequences.counts.tolist() == [3, 2, 1]
    assert rows == [(0, 1), (0, 0), (2, 0), (1, 1), (1, 0), (2, 1)]
    assert sequences.initial.tolist() == [-1, 0, -1]


def test_a_stack_knows_its_sizes_and_is_copied():
    lstm, stack = lstm_of(2, 3, 2, True)
    assert (stack.n_inputs, stack.n_hidden, stack.device) == (2, 3, th.device("cpu"))
    assert [id(tensor) for tensor in stack.tensors] == [id(parameter) for parameter in lstm.parameters()]
    copied = stack.on_cpu()
    with th.no_grad():
        lstm.weight_ih_l0.add_(1.0)
    assert not th.equal(copied.layers[0][0], stack.layers[0][0])
    assert th.equal(copied.layers[1][1], stack.layers[1][1])
