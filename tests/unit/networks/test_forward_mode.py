"""Forward mode: its products are those of backpropagation, and the module has its own parameters afterwards."""

import threading

import pytest
import torch as th
from torch import nn
from torch.nn import functional as F  # noqa: N812

from sb3_trpo.networks.forward_mode import are_adjoint, forward_jvp, substituted
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


def case(kind=Residual):
    th.manual_seed(0)
    module = kind().double()
    x, theta = th.randn(5, 1, 4, 4, dtype=th.float64), list(module.parameters())

    def outputs():
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
    assert are_adjoint(forward_mode(*good), good[2](), len(flatten(good[1])))
    bad = case(PartlyWithoutGradient)
    assert not are_adjoint(forward_mode(*bad), bad[2](), len(flatten(bad[1])))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_module_has_its_own_parameters_whatever_happens(error):
    module, theta, _ = case()
    before = dict(module.named_parameters())

    def fail():
        assert module.second.weight is not before["second.weight"]
        assert module.alias.weight is module.second.weight
        raise error

    with pytest.raises(error):
        forward_jvp(module, theta, [th.ones_like(tensor) for tensor in theta], fail)
    after = dict(module.named_parameters())
    assert list(after) == list(before)
    assert all(after[name] is parameter for name, parameter in before.items())


def test_other_parameters_stay_where_they_are():
    module, _, _ = case()
    bias, kept = module.last.bias, module.first.weight
    with substituted(module, [bias], [th.zeros(3)]):
        assert module.last.bias is not bias
        assert module.first.weight is kept
    assert module.last.bias is bias


def test_an_operation_without_a_formula_raises():
    module = nn.Linear(2, 2)

    def outputs():
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
