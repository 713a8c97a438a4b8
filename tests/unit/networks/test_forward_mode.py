"""Forward mode: its products are those of backpropagation, and the module has its own parameters afterwards."""

import threading

import pytest
import torch as th
from torch import nn
from torch.nn import functional as F  # noqa: N812

from sb3_trpo.networks.forward_mode import HiddenTangents, are_adjoint, forward_jvp, scaled_by_parameter, with_parameters
from sb3_trpo.numerics.flat import flatten, unflatten
from sb3_trpo.numerics.gauss_newton import Linearization, linearize


class Residual(nn.Module):
    """Convolutions with a shortcut, and one layer under two names."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)
        self.alias = self.second
        self.last = nn.Linear(2 * 16, 3)

    def forward(self, x):
        hidden = self.first(x).tanh()
        hidden = hidden + self.alias(hidden.relu()) + self.second(hidden)
        return self.last(hidden.flatten(1))


class PartlyWithoutGradient(Residual):
    """Scales its output by a number that backpropagation takes for a constant."""

    def forward(self, x):
        outputs = super().forward(x)
        with th.no_grad():
            scale = outputs.square().mean()
        return outputs * scale


class Gain(nn.Module):
    """Wide layers, and a learned number with a small effect that is read twice."""

    def __init__(self, second):
        super().__init__()
        self.first, self.last = nn.Linear(16, 512), nn.Linear(512, 128)
        self.gain = nn.Parameter(th.full((), 0.7))
        self.kept, self.second = [self.gain], second

    def forward(self, x):
        return self.last(self.first(x.flatten(1)).tanh()) * (1.0 + 0.05 * self.gain * self.second(self))


class PartOfAWeight(Gain):
    """Reads one entry of a large weight without gradient."""

    def __init__(self):
        super().__init__(lambda module: without_gradient(lambda: module.first.weight[0, 0] + 1.0))


def without_gradient(function):
    with th.no_grad():
        return function()


def in_inference_mode(function):
    with th.inference_mode():
        return function()


AS_CONSTANTS = {
    "detach": lambda module: module.gain.detach() * 1.0,
    "detach in place": lambda module: (module.gain * 1.0).detach_(),
    "data": lambda module: module.gain.data * 1.0,
    "numbers": lambda module: module.gain.item(),
    "inference_mode": lambda module: in_inference_mode(lambda: module.gain * 1.0).clone(),
}
"""What backpropagation takes for a constant, and so does forward mode."""
MISLEADING = {
    "no_grad": lambda module: without_gradient(lambda: module.gain * 1.0),
    "in place": lambda module: without_gradient(lambda: th.zeros(1, dtype=th.float64).copy_(module.gain)),
    "in a list": lambda module: without_gradient(lambda: th.stack([module.gain, module.gain])[0]),
    "out of reach": lambda module: module.kept[0],
}
"""What only one of both takes for a constant."""


def case(kind=Residual):
    th.manual_seed(0)
    module = kind().double()
    x, theta = th.randn(5, 1, 4, 4, dtype=th.float64), list(module.parameters())

    def outputs(module=module):
        y = module(x)
        return y, y[:, :1].exp(), th.ones(5)

    return module, theta, outputs


def forward_mode(module, theta, outputs):
    backward = linearize(outputs(), theta)
    return Linearization(lambda v: forward_jvp(module, theta, unflatten(v, theta), outputs), backward.vjp)


def test_the_product_is_that_of_two_backward_passes():
    module, theta, outputs = case()
    backward, v = linearize(outputs(), theta), th.randn(len(flatten(theta)), dtype=th.float64)
    ours = forward_mode(module, theta, outputs).jvp(v)
    assert not any(tensor.requires_grad for tensor in ours)
    for one, other in zip(ours, backward.jvp(v), strict=True):
        th.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_some_of_the_parameters_may_be_constants():
    module, _, outputs = case()
    theta = [module.second.weight, module.last.bias]
    backward, v = linearize(outputs(), theta), th.randn(len(flatten(theta)), dtype=th.float64)
    for one, other in zip(forward_mode(module, theta, outputs).jvp(v), backward.jvp(v), strict=True):
        th.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_products_that_belong_together_are_told_from_others():
    good = case()
    assert are_adjoint(forward_mode(*good), good[2](), good[1])
    bad = case(PartlyWithoutGradient)
    assert not are_adjoint(forward_mode(*bad), bad[2](), bad[1])


@pytest.mark.parametrize("second", AS_CONSTANTS.values(), ids=AS_CONSTANTS)
def test_constants_of_backpropagation_are_constants_in_forward_mode(second):
    module, theta, outputs = case(lambda: Gain(second))
    products, backward, v = forward_mode(module, theta, outputs), linearize(outputs(), theta), flatten(theta).detach()
    assert are_adjoint(products, outputs(), theta)
    for one, other in zip(products.jvp(v), backward.jvp(v), strict=True):
        th.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("second", MISLEADING.values(), ids=MISLEADING)
def test_an_error_in_a_single_small_parameter_is_found(second):
    module, theta, outputs = case(lambda: Gain(second))
    products, backward = forward_mode(module, theta, outputs), linearize(outputs(), theta)
    e = flatten([th.full_like(parameter, float(parameter is module.gain)) for parameter in theta])
    assert products.jvp(e)[0].norm() / backward.jvp(e)[0].norm() not in (pytest.approx(1.0, abs=0.1), 0.0)
    assert not are_adjoint(products, outputs(), theta)


def test_an_error_in_a_single_entry_is_found():
    module, theta, outputs = case(PartOfAWeight)
    assert not are_adjoint(forward_mode(module, theta, outputs), outputs(), theta)


class Rounding(th.autograd.Function):
    """A straight-through estimator with a derivative in both modes; torch disables gradients inside."""

    @staticmethod
    def forward(ctx, x):
        return (4.0 * x).round() / 4.0

    @staticmethod
    def backward(ctx, cotangent):
        return 1.0 * cotangent

    @staticmethod
    def jvp(ctx, tangent):
        return 1.0 * tangent


def test_functions_with_derivatives_of_their_own_are_no_hidden_tangents():
    module, theta, _ = case()
    x = th.randn(5, 1, 4, 4, dtype=th.float64)

    def outputs(module=module):
        return (Rounding.apply(module(x)),)

    assert are_adjoint(forward_mode(module, theta, outputs), outputs(), theta)


def test_only_dual_numbers_are_hidden_tangents():
    x = th.ones(2)
    with th.enable_grad(), HiddenTangents() as hidden:
        (x * th.ones(2, requires_grad=True)).sum()
        without_gradient(lambda: th.stack([x, x]) * 2.0)
    assert not hidden.is_found


def test_parameters_weigh_the_same_unless_they_are_lost_in_rounding():
    gradient, like = th.tensor([30.0, 40.0, 0.5, 0.0, 1e-9]), [th.zeros(2), th.zeros(1), th.zeros(1), th.zeros(1)]
    products = gradient * scaled_by_parameter(gradient, like)
    assert [float(part.sum()) for part in unflatten(products, like)] == pytest.approx([1.0, 1.0, 0.0, 0.0])
    assert not scaled_by_parameter(th.zeros(5), like).any()


@pytest.mark.parametrize("is_enabled", [False, True])
def test_products_have_no_graph(is_enabled):
    module, theta, outputs = case()
    with th.set_grad_enabled(is_enabled):
        product = forward_jvp(module, theta[2:], [th.ones_like(tensor) for tensor in theta[2:]], outputs)
    assert not any(tensor.requires_grad for tensor in product)


def test_the_module_keeps_its_own_parameters():
    module, theta, _ = case()
    before = dict(module.named_parameters())

    def outputs(copy):
        assert copy.second.weight is not before["second.weight"]
        assert copy.alias is copy.second
        copy.first = copy.second.bias = copy.latest = None
        assert module.second is module.alias
        assert all(parameter is before[name] for name, parameter in module.named_parameters())
        return (copy.last.weight,)

    forward_jvp(module, theta, [th.ones_like(tensor) for tensor in theta], outputs)
    assert list(dict(module.named_parameters())) == list(before)
    assert not hasattr(module, "latest")


def test_a_copy_shares_what_is_not_replaced():
    module, _, _ = case()
    module.norm, module.nothing = nn.BatchNorm1d(3), None
    module.register_module("missing", None)
    x, bias = th.randn(5, 1, 4, 4, dtype=th.float64), th.zeros(3, dtype=th.float64)
    copy = with_parameters(module, [module.last.bias], [bias])
    assert type(copy) is Residual
    assert copy.last.bias is bias
    assert copy.first.weight is module.first.weight
    assert copy.norm.running_mean is module.norm.running_mean
    assert copy.missing is None
    th.testing.assert_close(copy(x), module(x) - module.last.bias)


def test_an_operation_without_a_formula_raises():
    module = nn.Linear(2, 2)

    def outputs(module):
        q = module(th.ones(1, 1, 2, 2))
        return (F.scaled_dot_product_attention(q, q, q),)

    with pytest.raises(RuntimeError):
        forward_jvp(module, [module.weight], [th.ones(2, 2)], outputs)


def test_threads_take_turns():
    cases, found, errors = [case() for _ in range(2)], [[], []], []

    def run(index):
        module, theta, outputs = cases[index]
        v = [th.ones_like(tensor) for tensor in theta]
        try:
            found[index] += [forward_jvp(module, theta, v, outputs)[0] for _ in range(30)]
        except RuntimeError as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for results, (_, theta, outputs) in zip(found, cases, strict=True):
        right, *_ = linearize(outputs(), theta).jvp(th.ones_like(flatten(theta)))
        th.testing.assert_close(th.stack(results), right.expand(30, *right.shape), rtol=1e-10, atol=1e-10)


def test_other_threads_may_run_the_module_meanwhile():
    module, theta, outputs = case()
    v, right = [th.ones_like(tensor) for tensor in theta], outputs()[0].detach()
    found = []

    def slowly(copy):
        thread = threading.Thread(target=lambda: found.append(outputs()[0].detach()))
        thread.start()
        thread.join()
        return outputs(copy)

    forward_jvp(module, theta, v, slowly)
    th.testing.assert_close(found, [right], rtol=0, atol=0)
