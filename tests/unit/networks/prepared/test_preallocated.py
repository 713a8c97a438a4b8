"""Runners: they compute what the stack does, whatever its tensors hold and whatever they are given."""

import pytest
import torch as th
from helpers.contract_tools import moved_since, parameters
from helpers.stacks import FUNCTIONS, close, mlp, read_stack
from helpers.states import same
from torch import nn

from sb3_trpo.networks.prepared.preallocated import AllocatingRunner, PreallocatedRunner

WIDTHS, N_ROWS = [3, 7, 4, 2], 6


class Case:
    """A stack, the modules it was read from, and tensors to write a gradient to."""

    def __init__(self, name="tanh", bias=True, dtype=th.float64, widths=WIDTHS, modules=None):
        th.manual_seed(0)
        self.modules = modules or mlp(widths, [name] * (len(widths) - 1), bias, dtype)
        self.stack = read_stack(self.modules)
        self.gradient = [th.full_like(tensor, th.nan) for tensor in self.stack.tensors]

    def draw(self, n_rows=N_ROWS, shape=None):
        first, last = self.stack.tensors[0], self.stack.layers[-1].weight
        return th.randn(n_rows, *(shape or first.shape[1:])).to(first), th.randn(n_rows, len(last)).to(first)

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
        assert same((x, u), given)


@pytest.fixture(params=["preallocated", "allocating"])
def kind(request):
    return request.param


@pytest.mark.parametrize("dtype", [th.float64, th.float32], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_runner_computes_what_the_stack_does_at_every_call(kind, name, bias, dtype):
    case = Case(name, bias, dtype)
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
    before, runner, (x, u) = parameters(case.modules), case.make(kind), case.draw()
    with th.no_grad():
        runner(x)
        runner.vjp(u)
        once = [tensor.clone() for tensor in case.gradient]
        runner.vjp(u)
    assert same(case.gradient, once)
    assert not moved_since(before, case.modules)
    assert all(tensor.grad is None for tensor in case.stack.tensors)


CONVOLUTION = nn.Sequential(nn.Conv2d(2, 3, 3, 2), nn.ELU(0.5), nn.Flatten(), nn.Linear(12, 2)).double()


@pytest.mark.parametrize(("modules", "shape"), [(None, None), (CONVOLUTION, (2, 6, 6))], ids=["dense", "convolution"])
def test_an_allocating_runner_takes_any_number_of_rows(modules, shape):
    case = Case(modules=modules)
    runner = case.make("allocating")
    for n_rows in (1, 5, 2):
        case.check(runner, *case.draw(n_rows, shape))
