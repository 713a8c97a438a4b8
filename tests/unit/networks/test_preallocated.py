"""Runners: they compute what the stack does, whatever its tensors hold and whatever they are given."""

import copy
from itertools import product

import pytest
import torch as th
from helpers.stacks import FUNCTIONS, close, mlp
from torch import nn

from sb3_trpo.networks.plain_network import _read_stack
from sb3_trpo.networks.preallocated import AllocatingRunner, PreallocatedRunner

WIDTHS, N_ROWS = [3, 7, 4, 2], 6


class Case:
    """A stack, the modules it was read from, and tensors to write a gradient to."""

    def __init__(self, name="tanh", bias=True, dtype=th.float64, widths=WIDTHS):
        th.manual_seed(0)
        self.modules = mlp(widths, [name] * (len(widths) - 1), bias, dtype)
        self.stack = _read_stack(self.modules)
        self.gradient = [th.full_like(tensor, th.nan) for tensor in self.stack.tensors]
        self.dtype, self.widths = dtype, widths

    def draw(self, n_rows=N_ROWS):
        return th.randn(n_rows, self.widths[0], dtype=self.dtype), th.randn(n_rows, self.widths[-1], dtype=self.dtype)

    def make(self, kind):
        """Make a new runner."""
        if kind == "preallocated":
            return PreallocatedRunner(self.stack, N_ROWS, self.gradient)
        return AllocatingRunner(self.stack, self.gradient)

    @th.no_grad()
    def check(self, runner, x, u):
        """Compare output and gradient with autograd's."""
        with th.enable_grad():
            h = self.modules(x)
            expected = th.autograd.grad(h, self.stack.tensors, u)
        given = x.clone(), u.clone()
        close(runner(x), h.detach())
        runner.vjp(u)
        for actual, value in zip(self.gradient, expected, strict=True):
            close(actual, value)
        assert th.equal(x, given[0])
        assert th.equal(u, given[1])


@pytest.fixture(params=["preallocated", "allocating"])
def kind(request):
    return request.param


@pytest.mark.parametrize("dtype", [th.float64, th.float32], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_runner_computes_what_the_stack_does(kind, name, bias, dtype):
    case = Case(name, bias, dtype)
    case.check(case.make(kind), *case.draw())


@pytest.mark.parametrize("name", FUNCTIONS)
def test_calls_do_not_mix(kind, name):
    case = Case(name)
    runner, one, other = case.make(kind), case.draw(), case.draw()
    for x, u in (one, other, one):
        case.check(runner, x, u)


def test_two_runners_of_one_stack_do_not_mix(kind):
    case = Case()
    runners, inputs = [case.make(kind) for _ in range(2)], [case.draw()[0] for _ in range(2)]
    with th.no_grad():
        outputs = [runner(x) for runner, x in zip(runners, inputs, strict=True)]
        for output, x in zip(outputs, inputs, strict=True):
            close(output, case.modules(x))


@pytest.mark.parametrize("name", ["tanh", "elu-0.5"])
def test_weights_written_in_place_are_seen(kind, name):
    case = Case(name)
    runner = case.make(kind)
    case.check(runner, *case.draw())
    with th.no_grad():
        for tensor in case.stack.tensors:
            tensor.copy_(th.randn_like(tensor))
    case.check(runner, *case.draw())


def test_the_gradient_is_overwritten_and_goes_nowhere_else(kind):
    case = Case()
    before = copy.deepcopy(case.modules.state_dict())
    runner, (x, u) = case.make(kind), case.draw()
    with th.no_grad():
        runner(x)
        runner.vjp(u)
        once = [tensor.clone() for tensor in case.gradient]
        runner.vjp(u)
    assert all(map(th.equal, case.gradient, once))
    assert all(th.equal(value, before[name]) for name, value in case.modules.state_dict().items())
    assert all(tensor.grad is None for tensor in case.stack.tensors)


def test_an_allocating_runner_takes_any_number_of_rows():
    case = Case()
    runner = case.make("allocating")
    for n_rows in (1, 5, 2):
        case.check(runner, *case.draw(n_rows))


@pytest.mark.parametrize("n_rows", [1, 2, 8, 1000])
@pytest.mark.parametrize("widths", [[3, 64, 64, 2], [17, 5, 1]], ids=str)
@pytest.mark.parametrize(("name", "bias"), [*product(FUNCTIONS, [True, False])])
def test_an_exact_runner_has_the_bits_of_the_modules(name, bias, widths, n_rows):
    case = Case(name, bias, th.float32, widths)
    runner, inputs = PreallocatedRunner(case.stack, n_rows, exact=True), [case.draw(n_rows)[0] for _ in range(2)]
    with th.no_grad():
        for x in inputs:
            assert th.equal(runner(x), case.modules(x))


def test_an_exact_runner_runs_from_its_own_input():
    case = Case(dtype=th.float32)
    runner, (x, _) = PreallocatedRunner(case.stack, N_ROWS, exact=True), case.draw()
    with th.no_grad():
        runner.input.copy_(x)
        runner.run()
        assert th.equal(runner.output, case.modules(x))


@pytest.mark.parametrize("n_rows", [1, 2, 5])
def test_an_allocating_runner_runs_convolutions(n_rows):
    th.manual_seed(0)
    modules = nn.Sequential(nn.Conv2d(2, 3, 3, 2), nn.ELU(0.5), nn.Flatten(), nn.Linear(12, 2)).double()
    stack = _read_stack(modules)
    gradient = [th.empty_like(tensor) for tensor in stack.tensors]
    runner, x, u = AllocatingRunner(stack, gradient), th.randn(n_rows, 2, 6, 6).double(), th.randn(n_rows, 2).double()
    h = modules(x)
    expected = th.autograd.grad(h, stack.tensors, u)
    with th.no_grad():
        close(runner(x), h.detach())
        runner.vjp(u)
    for actual, value in zip(gradient, expected, strict=True):
        close(actual, value)
