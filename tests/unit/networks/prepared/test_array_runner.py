"""The runner by NumPy: it computes what the modules do, up to rounding, and differentiates it."""

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch as th
from helpers.stacks import FUNCTIONS, PassesLastInput, mlp, read_stack, with_functions
from hypothesis import given, strategies as st
from torch import nn

from sb3_trpo.networks.prepared.array_runner import SINGLE_THREADED, SMALL_LAYER, ArrayRunner, pays_by_arrays, product_call
from sb3_trpo.rollouts.floating_point import quietly_if_needed


@th.no_grad()
def assert_runs_as(modules, runner, x):
    """Compare with the modules in float64, relative to the largest entry."""
    np.copyto(runner.input, x)
    runner.run()
    expected = copy.deepcopy(modules).double()(th.from_numpy(x).double()).numpy()
    assert runner.output.dtype == np.float32
    np.testing.assert_allclose(runner.output, expected, rtol=0.0, atol=1e-5 * max(1.0, np.abs(expected).max()))
    assert np.array_equal(runner.input, x)


@given(
    widths=st.lists(st.sampled_from([1, 2, 3, 7, 33]), min_size=2, max_size=5),
    names=st.lists(st.sampled_from(list(FUNCTIONS)), min_size=4, max_size=4),
    biases=st.lists(st.booleans(), min_size=4, max_size=4),
    passes_input=st.booleans(),
    n_rows=st.integers(1, 9),
    seed=st.integers(0, 2**31),
)
def test_an_array_runner_computes_what_the_modules_do(widths, names, biases, passes_input, n_rows, seed):
    th.manual_seed(seed)
    names = names[: len(widths) - 1]
    names[-1] = "none" if passes_input else names[-1]
    sizes = zip(widths[:-1], widths[1:], biases, strict=False)
    modules = with_functions([nn.Linear(n_in, n_out, bias) for n_in, n_out, bias in sizes], names)
    stack, whole = read_stack(modules), PassesLastInput(modules) if passes_input else modules
    runner = ArrayRunner(stack.with_last_input() if passes_input else stack, n_rows)
    for scale in (1.0, 30.0):
        assert_runs_as(whole, runner, scale * th.randn(n_rows, widths[0]).numpy())


@pytest.mark.parametrize("passes_input", [False, True])
@pytest.mark.parametrize("name", ["tanh", "elu-0.5"])
def test_an_array_runner_sees_weights_written_in_place(name, passes_input):
    th.manual_seed(0)
    modules = mlp([3, 7, 2], [name, "none"], dtype=th.float32)
    stack, whole = read_stack(modules), PassesLastInput(modules) if passes_input else modules
    runner, x = ArrayRunner(stack.with_last_input() if passes_input else stack, 4), th.randn(4, 3).numpy()
    assert_runs_as(whole, runner, x)
    for tensor in stack.tensors:
        tensor.data.normal_()  # which no version counter shows
    assert_runs_as(whole, runner, x)


def test_two_array_runners_of_one_stack_do_not_mix():
    th.manual_seed(0)
    modules = mlp([3, 7, 2], ["tanh", "none"], dtype=th.float32)
    runners, inputs = [ArrayRunner(read_stack(modules), 4) for _ in range(2)], th.randn(2, 4, 3).numpy()
    for runner, x in zip(runners, inputs, strict=True):
        np.copyto(runner.input, x)
        runner.run()
    for runner, x in zip(runners, inputs, strict=True):
        expected = runner.output.copy()
        assert_runs_as(modules, runner, x)
        assert np.array_equal(runner.output, expected)


@pytest.mark.parametrize("passes_input", [False, True])
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("exponents", [(-30.0, -30.0), (-38.5, 0.0), (0.0, -38.5)], ids=str)
def test_an_array_runner_can_run_where_numbers_underflow_and_numpy_is_to_raise(exponents, name, passes_input):
    th.manual_seed(0)
    modules = mlp([3, 7, 2], [name, "none"], dtype=th.float32)
    weights, inputs = (10.0**exponent for exponent in exponents)
    with th.no_grad():
        for parameter in modules.parameters():
            parameter.mul_(weights)
    stack, whole = read_stack(modules), PassesLastInput(modules) if passes_input else modules
    runner, x = ArrayRunner(stack.with_last_input() if passes_input else stack, 4), (inputs * th.randn(4, 3)).numpy()
    np.copyto(runner.input, x)
    with np.errstate(all="raise"):
        quietly_if_needed(runner.run)
    ours = runner.output.copy()
    with np.errstate(all="ignore"):
        assert_runs_as(whole, runner, x)
    assert np.array_equal(ours, runner.output)


@given(
    widths=st.lists(st.sampled_from([1, 2, 3, 7, 33]), min_size=2, max_size=5),
    names=st.lists(st.sampled_from(list(FUNCTIONS)), min_size=4, max_size=4),
    biases=st.lists(st.booleans(), min_size=4, max_size=4),
    n_rows=st.integers(1, 9),
    seed=st.integers(0, 2**31),
)
def test_an_array_runner_differentiates_as_autograd_does_in_float64(widths, names, biases, n_rows, seed):
    th.manual_seed(seed)
    sizes = zip(widths[:-1], widths[1:], biases, strict=False)
    modules = with_functions([nn.Linear(n_in, n_out, bias) for n_in, n_out, bias in sizes], names[: len(widths) - 1])
    assert_differentiates(modules, n_rows)


@pytest.mark.parametrize(("widths", "n_rows"), [([17, 64, 64, 1], 128), ([300, 700, 2], 2)], ids=str)
def test_products_beyond_numpys_single_thread_are_torchs(widths, n_rows):
    th.manual_seed(0)
    assert n_rows * max(one * other for one, other in pairwise(widths)) > SINGLE_THREADED
    assert_differentiates(mlp(widths, ["tanh"] * (len(widths) - 2) + ["none"], dtype=th.float32), n_rows)


def assert_differentiates(modules, n_rows):
    """Compare J^T u with autograd's in float64, relative to the largest entry, for two cotangents after one forward pass."""
    stack, exact = read_stack(modules), copy.deepcopy(modules).double()
    gradient = [th.full_like(tensor, th.nan) for tensor in stack.tensors]
    runner, x = ArrayRunner(stack, n_rows, gradient), th.randn(n_rows, stack.layers[0].weight.shape[1])
    with th.no_grad():
        h = runner(x)
    expected_h = exact(x.double())
    th.testing.assert_close(h.double(), expected_h, rtol=1e-5, atol=1e-5 * max(1.0, float(expected_h.detach().abs().max())))
    for _ in range(2):
        u = th.randn_like(h)
        before = u.clone()
        runner.vjp(u)
        expected = th.autograd.grad(expected_h, list(exact.parameters()), u.double(), retain_graph=True)
        for ours, theirs in zip(gradient, expected, strict=True):
            scale = max(1.0, float(theirs.abs().max()))
            th.testing.assert_close(ours.double(), theirs, rtol=0.0, atol=3e-5 * scale)
        assert th.equal(u, before)


@pytest.mark.parametrize(
    ("n_rows", "widths", "dtype", "pays"),
    [
        (1, [1000, 1000, 1], th.float32, True),
        (128, [17, 64, 64, 1], th.float32, True),
        (129, [17, 64, 64, 1], th.float32, False),
        (128, [65, 2], th.float32, False),
        (1, [2, 2], th.float64, False),
        (SMALL_LAYER, [1, 1], th.float32, True),
        (SMALL_LAYER + 1, [1, 1], th.float32, False),
    ],
)
def test_arrays_pay_where_every_layer_is_small(n_rows, widths, dtype, pays):
    assert pays_by_arrays(read_stack(mlp(widths, ["none"] * (len(widths) - 1), dtype=dtype)), n_rows) is pays


def test_arrays_do_not_run_convolutions():
    assert not pays_by_arrays(read_stack(nn.Sequential(nn.Conv2d(1, 1, 1), nn.Flatten(), nn.Linear(4, 1))), 1)


@pytest.mark.parametrize("shape", [(1, 700, 500), (3, 40, 30), (200, 40, 60)], ids=str)
def test_products_large_and_small_are_products(shape):
    n, k, m = shape
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((n, k)).astype(np.float32), rng.standard_normal((m, k)).astype(np.float32).T
    out = np.empty((n, m), np.float32)
    call = product_call(left, right, out)
    for _ in range(2):
        call()
        np.testing.assert_allclose(out, left.astype(float) @ right.astype(float), atol=1e-3)
        left *= -2.0  # it reads what is there when it is called
