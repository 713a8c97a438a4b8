"""Prepared passes: they are those of the stack, on whatever its tensors hold and whatever they are given."""

import copy
from itertools import product

import pytest
import torch as th
from test_layers import FUNCTIONS, close, mlp
from torch import nn

from sb3_trpo.networks.plain_network import _read_stack
from sb3_trpo.networks.preallocated import BoundPass, TapePass

WIDTHS, N_ROWS = [3, 7, 4, 2], 6


class Case:
    """A stack, what its own passes give, and somewhere to write a gradient."""

    def __init__(self, name="tanh", bias=True, dtype=th.float64, widths=WIDTHS):
        th.manual_seed(0)
        self.modules = mlp(widths, [name] * (len(widths) - 1), bias, dtype)
        self.stack = _read_stack(self.modules)
        self.gradient = [th.full_like(tensor, th.nan) for tensor in self.stack.tensors]
        self.dtype, self.widths = dtype, widths

    def draw(self, n_rows=N_ROWS):
        return th.randn(n_rows, self.widths[0], dtype=self.dtype), th.randn(n_rows, self.widths[-1], dtype=self.dtype)

    def make(self, kind):
        """Make the passes anew."""
        return BoundPass(self.stack, N_ROWS, self.gradient) if kind == "bound" else TapePass(self.stack, self.gradient)

    @th.no_grad()
    def check(self, network, x, u):
        """Compare both passes with autograd's."""
        with th.enable_grad():
            h = self.modules(x)
            expected = th.autograd.grad(h, self.stack.tensors, u)
        given = x.clone(), u.clone()
        close(network(x), h.detach())
        network.pull(u)
        for actual, value in zip(self.gradient, expected, strict=True):
            close(actual, value)
        assert th.equal(x, given[0])
        assert th.equal(u, given[1])


@pytest.fixture(params=["bound", "tape"])
def kind(request):
    return request.param


@pytest.mark.parametrize("dtype", [th.float64, th.float32], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_passes_are_those_of_the_stack(kind, name, bias, dtype):
    case = Case(name, bias, dtype)
    case.check(case.make(kind), *case.draw())


@pytest.mark.parametrize("name", FUNCTIONS)
def test_calls_do_not_mix(kind, name):
    case = Case(name)
    network, one, other = case.make(kind), case.draw(), case.draw()
    for x, u in (one, other, one):
        case.check(network, x, u)


def test_two_bound_passes_on_one_stack_do_not_mix(kind):
    case = Case()
    networks, inputs = [case.make(kind) for _ in range(2)], [case.draw()[0] for _ in range(2)]
    with th.no_grad():
        outputs = [network(x) for network, x in zip(networks, inputs, strict=True)]
        for output, x in zip(outputs, inputs, strict=True):
            close(output, case.modules(x))


@pytest.mark.parametrize("name", ["tanh", "elu-0.5"])
def test_weights_written_in_place_are_seen(kind, name):
    case = Case(name)
    network = case.make(kind)
    case.check(network, *case.draw())
    with th.no_grad():
        for tensor in case.stack.tensors:
            tensor.copy_(th.randn_like(tensor))
    case.check(network, *case.draw())


def test_the_gradient_is_overwritten_and_goes_nowhere_else(kind):
    case = Case()
    before = copy.deepcopy(case.modules.state_dict())
    network, (x, u) = case.make(kind), case.draw()
    with th.no_grad():
        network(x)
        network.pull(u)
        once = [tensor.clone() for tensor in case.gradient]
        network.pull(u)
    assert all(map(th.equal, case.gradient, once))
    assert all(th.equal(value, before[name]) for name, value in case.modules.state_dict().items())
    assert all(tensor.grad is None for tensor in case.stack.tensors)


def test_the_tape_takes_any_number_of_rows():
    case = Case()
    network = case.make("tape")
    for n_rows in (1, 5, 2):
        case.check(network, *case.draw(n_rows))


@pytest.mark.parametrize("n_rows", [1, 2, 8, 1000])
@pytest.mark.parametrize("widths", [[3, 64, 64, 2], [17, 5, 1]], ids=str)
@pytest.mark.parametrize(("name", "bias"), [*product(FUNCTIONS, [True, False])])
def test_an_exact_pass_has_the_bits_of_the_modules(name, bias, widths, n_rows):
    case = Case(name, bias, th.float32, widths)
    network, inputs = BoundPass(case.stack, n_rows, exact=True), [case.draw(n_rows)[0] for _ in range(2)]
    with th.no_grad():
        for x in inputs:
            assert th.equal(network(x), case.modules(x))


def test_an_exact_pass_runs_from_its_own_input():
    case = Case(dtype=th.float32)
    network, (x, _) = BoundPass(case.stack, N_ROWS, exact=True), case.draw()
    with th.no_grad():
        network.input.copy_(x)
        network.run()
        assert th.equal(network.output, case.modules(x))


@pytest.mark.parametrize("n_rows", [1, 2, 5])
def test_the_tape_runs_convolutions(n_rows):
    th.manual_seed(0)
    modules = nn.Sequential(nn.Conv2d(2, 3, 3, 2), nn.ELU(0.5), nn.Flatten(), nn.Linear(12, 2)).double()
    stack = _read_stack(modules)
    gradient = [th.empty_like(tensor) for tensor in stack.tensors]
    network, x, u = TapePass(stack, gradient), th.randn(n_rows, 2, 6, 6).double(), th.randn(n_rows, 2).double()
    h = modules(x)
    expected = th.autograd.grad(h, stack.tensors, u)
    with th.no_grad():
        close(network(x), h.detach())
        network.pull(u)
    for actual, value in zip(gradient, expected, strict=True):
        close(actual, value)
