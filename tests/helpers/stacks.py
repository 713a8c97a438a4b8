"""Plain stacks of modules, and their comparison with torch's autograd."""

from functools import partial
from itertools import pairwise

import pytest
import torch as th
from torch import nn

from sb3_trpo.networks.reading.tracing import trace
from sb3_trpo.networks.stack import Stack

FUNCTIONS = {
    "none": None,
    "identity": nn.Identity,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "relu-inplace": partial(nn.ReLU, inplace=True),
    "elu": nn.ELU,
    "elu-0.5": partial(nn.ELU, alpha=0.5),
    "elu-inplace": partial(nn.ELU, alpha=2.0, inplace=True),
    "leaky-relu": nn.LeakyReLU,
    "leaky-relu-0.2": partial(nn.LeakyReLU, 0.2),
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "gelu-tanh": partial(nn.GELU, "tanh"),
}
TOLERANCES = {th.float64: 1e-12, th.float32: 1e-5}


def with_functions(affine, names) -> nn.Sequential:
    """Put an activation after each affine module."""
    pairs = [(module, FUNCTIONS[name] and FUNCTIONS[name]()) for module, name in zip(affine, names, strict=True)]
    return nn.Sequential(*(module for pair in pairs for module in pair if module is not None))


def mlp(widths, names, bias=True, dtype=th.float64) -> nn.Sequential:
    return with_functions([nn.Linear(*sizes, bias=bias, dtype=dtype) for sizes in pairwise(widths)], names)


def read_stack(modules):
    """Read modules as a stack; whether they take images shows in the first one."""
    modules = list(modules)
    return trace(modules, is_flat=not isinstance(modules[0], nn.Conv2d))


def close(actual, expected):
    tolerance = TOLERANCES[expected.dtype]
    th.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance * max(1.0, float(expected.abs().max())))


def inner(left, right) -> th.Tensor:
    return sum((a.double() * b.double()).sum() for a, b in zip(left, right, strict=True))


class PassesLastInput(nn.Module):
    """Modules in a row whose output is followed by the input of the last one, a dense layer."""

    def __init__(self, modules: nn.Sequential) -> None:
        super().__init__()
        self.below, self.last = modules[:-1], modules[-1]

    def forward(self, x: th.Tensor) -> th.Tensor:
        hidden = self.below(x).flatten(1)
        return th.cat([self.last(hidden), hidden], dim=1)


def check(modules: nn.Module, x: th.Tensor, stack: Stack | None = None) -> None:
    """Compare the output and both products of a stack with torch's; without one, of the stack read from the modules."""
    names, tensors = zip(*modules.named_parameters(), strict=True)
    stack, features = stack or read_stack(modules), x.clone()
    assert all(left is right for left, right in zip(stack.tensors, tensors, strict=True))

    def function(*values):
        return th.func.functional_call(modules, dict(zip(names, values, strict=True)), (x,))

    v = [th.randn_like(tensor) for tensor in tensors]
    h, jv = th.func.jvp(function, tuple(tensor.detach() for tensor in tensors), tuple(v))
    u = th.randn_like(h)
    jtu, out = th.autograd.grad(modules(x), tensors, u), [th.full_like(tensor, th.nan) for tensor in tensors]
    cotangent = u.clone()
    with th.no_grad():
        close(stack(x), h)
        assert h.shape[:2] == (len(x), stack.n_outputs)
        intermediates = stack.forward(x)
        close(intermediates.output, h)
        jvp = stack.jvp(x, intermediates, v)
        stack.vjp(x, intermediates, u, out)
        close(stack.jvp(x, intermediates, v), jv)  # neither product changes what is kept
    close(jvp, jv)
    for actual, expected in zip(out, jtu, strict=True):
        close(actual, expected)
    scale = float(jvp.norm() * u.norm()) + 1.0
    assert float(inner([u], [jvp]) - inner(out, v)) == pytest.approx(0.0, abs=10 * TOLERANCES[x.dtype] * scale)
    assert th.equal(x, features)
    assert th.equal(u, cotangent)
