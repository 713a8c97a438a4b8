"""Torch's undocumented names: each test fails when torch changes one, and says what the package then loses."""

import ast
from pathlib import Path

import pytest
import torch as th
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import sb3_trpo
from sb3_trpo.numerics import torch_private

PACKAGE = Path(sb3_trpo.__file__).parent
FROM_INPUT, FROM_OUTPUT = True, False
SLOPES = {
    "tanh": (nn.Tanh(), torch_private.tanh_backward(), FROM_OUTPUT),
    "relu": (nn.ReLU(), torch_private.relu_backward(), FROM_OUTPUT),
    "silu": (nn.SiLU(), torch_private.silu_backward(), FROM_INPUT),
    "elu": (nn.ELU(0.7), torch_private.elu_backward(0.7), FROM_INPUT),
    "leaky relu": (nn.LeakyReLU(0.2), torch_private.leaky_relu_backward(0.2), FROM_INPUT),
    "gelu": (nn.GELU(), torch_private.gelu_backward("none"), FROM_INPUT),
    "gelu by tanh": (nn.GELU("tanh"), torch_private.gelu_backward("tanh"), FROM_INPUT),
}


def noop(*_):
    """Do nothing, as a hook."""


@pytest.mark.parametrize(("module", "times_slope", "takes_input"), SLOPES.values(), ids=SLOPES)
def test_without_autograds_kernels_gradients_of_plain_networks_round_differently(module, times_slope, takes_input):
    a = th.linspace(-3.0, 3.0, 101).requires_grad_()
    d = th.linspace(1.0, 2.0, 101)
    h = module(a)
    (expected,) = th.autograd.grad(h, a, d)
    kept, before = (a if takes_input else h).detach(), d.clone()
    assert th.equal(times_slope(d, kept), expected)
    assert th.equal(d, before)
    times_slope(d, kept, d)  # in place
    assert th.equal(d, expected)


@pytest.mark.parametrize("options", [(2, 1, 1, 1), (1, 0, 2, 1), (1, 1, 1, 2)], ids=str)
def test_without_autograds_kernel_convolutions_are_differentiated_by_slower_ones(options):
    stride, padding, dilation, groups = options
    module = nn.Conv2d(4, 6, 3, stride, padding, dilation, groups, dtype=th.float64)
    x = th.linspace(-1.0, 1.0, 2 * 4 * 8 * 7, dtype=th.float64).sin().view(2, 4, 8, 7).requires_grad_()
    a = module(x)
    delta = th.linspace(1.0, 2.0, a.numel(), dtype=th.float64).view_as(a)
    of_x, of_weight = th.autograd.grad(a, (x, module.weight), delta)
    given = delta, x.detach(), module.weight.detach(), module.stride, module.padding, module.dilation, groups
    th.testing.assert_close(torch_private.convolution_vjp(*given, in_weight=False), of_x)
    th.testing.assert_close(torch_private.convolution_vjp(*given, in_weight=True), of_weight)


def test_without_one_call_for_all_copies_an_interrupt_leaves_a_policy_half_written():
    targets = [nn.Parameter(th.zeros(2)), nn.Parameter(th.zeros(()))]
    with th.no_grad():
        torch_private.copy_all(targets, [th.ones(2), th.tensor(3.0)])
    assert [each.tolist() for each in targets] == [[1.0, 1.0], 3.0]


def test_without_the_fused_adam_kernel_the_critic_takes_other_steps():
    options = {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-5, "weight_decay": 0.01}
    parameter, g = nn.Parameter(th.linspace(-1.0, 1.0, 7)), th.linspace(2.0, -3.0, 7)
    theta, m, v, t = parameter.detach().clone(), th.zeros(7), th.zeros(7), th.zeros(())
    optimizer = th.optim.Adam([parameter], fused=True, **options)
    for _ in range(3):
        parameter.grad = g.clone()
        optimizer.step()
        t.add_(1.0)
        torch_private.fused_adam_step(
            [theta], [g.clone()], [m], [v], [t], lr=0.1, beta1=0.8, beta2=0.9, weight_decay=0.01, eps=1e-5
        )
    assert th.equal(theta, parameter.detach())


@pytest.mark.parametrize("bias", [False, True])
def test_without_the_fused_lstm_kernel_recurrent_policies_cannot_be_updated(bias):
    layer = nn.LSTM(3, 4, bias=bias)
    x, h, c = th.randn(5, 2, 3), th.randn(1, 2, 4), th.randn(1, 2, 4)
    outputs, (last_h, last_c) = layer(x, (h, c))
    assert all(map(th.equal, torch_private.fused_lstm_layer(x, h, c, layer.all_weights[0]), (outputs, last_h, last_c)))


def test_without_write_counts_the_collector_acts_on_stale_weights():
    tensors = [nn.Parameter(th.zeros(2)), nn.Parameter(th.zeros(2))]
    before = torch_private.write_counts(tensors)
    with th.no_grad():
        tensors[1].add_(1.0)
    assert [after - old for after, old in zip(torch_private.write_counts(tensors), before, strict=True)] == [0, 1]


PARAMETER, MODULE = nn.Parameter(th.zeros(1)), nn.Linear(1, 1)
OPTIMIZER = th.optim.Adam([PARAMETER])
HOOKS = {
    "gradient": (torch_private.has_gradient_hooks, [PARAMETER], PARAMETER.register_hook),
    "accumulated gradient": (torch_private.has_gradient_hooks, [PARAMETER], PARAMETER.register_post_accumulate_grad_hook),
    "all modules": (torch_private.has_global_module_hooks, [], register_module_forward_hook),
    "forward": (torch_private.is_hooked_or_compiled, [MODULE], MODULE.register_forward_hook),
    "before forward": (torch_private.is_hooked_or_compiled, [MODULE], MODULE.register_forward_pre_hook),
    "backward": (torch_private.is_hooked_or_compiled, [MODULE], MODULE.register_full_backward_hook),
    "before backward": (torch_private.is_hooked_or_compiled, [MODULE], MODULE.register_full_backward_pre_hook),
    "before a step": (torch_private.has_step_hooks, [OPTIMIZER], OPTIMIZER.register_step_pre_hook),
    "after a step": (torch_private.has_step_hooks, [OPTIMIZER], OPTIMIZER.register_step_post_hook),
    "before every step": (torch_private.has_step_hooks, [OPTIMIZER], register_optimizer_step_pre_hook),
    "after every step": (torch_private.has_step_hooks, [OPTIMIZER], register_optimizer_step_post_hook),
}


@pytest.mark.parametrize(("has_hooks", "arguments", "register"), HOOKS.values(), ids=HOOKS)
def test_without_the_checks_for_hooks_they_are_skipped(has_hooks, arguments, register):
    assert not has_hooks(*arguments)
    handle = register(noop)
    try:
        assert has_hooks(*arguments)
    finally:
        handle.remove()
    assert not has_hooks(*arguments)


def test_without_the_check_for_a_compiled_call_a_compiled_module_counts_as_plain():
    module = nn.Linear(1, 1)
    module.compile()  # which compiles nothing before the first call
    assert torch_private.is_hooked_or_compiled(module)


class Switch:
    """Counts how often its truth is asked for, and is false."""

    def __init__(self):
        self.n_asked = 0

    def __bool__(self):
        self.n_asked += 1
        return False


def test_without_gamma_numbers_by_themselves_beta_policies_act_slower():
    shapes, drawn = 1.0 + th.rand(5, 4), []
    for draw in (torch_private.standard_gamma, lambda shapes: th.distributions.Gamma(shapes, 1.0).sample()):
        th.manual_seed(0)
        drawn.append(draw(shapes))
    assert th.equal(*drawn)


def test_without_the_switch_for_argument_checks_a_candidate_with_nan_raises():
    before, switch = torch_private.default_validate_args(), Switch()
    torch_private.set_default_validate_args(switch)
    try:
        assert torch_private.default_validate_args() is switch
        th.distributions.Normal(th.tensor(th.nan), 1.0)
    finally:
        torch_private.set_default_validate_args(before)
    assert switch.n_asked > 0
    th.distributions.Distribution.set_default_validate_args(False)
    assert torch_private.default_validate_args() is False
    th.distributions.Distribution.set_default_validate_args(True)
    with pytest.raises(ValueError, match="loc"):
        th.distributions.Normal(th.tensor(th.nan), 1.0)
    torch_private.set_default_validate_args(before)


def private_names(path):
    """Name what a file uses that starts with one underscore, by attribute or import, and torch's operator namespace."""
    tree = ast.walk(ast.parse(path.read_text()))
    found = set()
    for node in tree:
        if isinstance(node, ast.Attribute):
            found.add(ast.unparse(node) if node.attr == "ops" else node.attr)
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
    return {name for name in found if name == "th.ops" or (name.startswith("_") and not name.endswith("__"))}


HERE = Path(torch_private.__file__)
WRAPPED = private_names(HERE)


def test_the_names_are_found():
    assert {"th.ops", "_foreach_copy_", "_version", "_validate_args", "_has_any_global_hook"} <= WRAPPED
    assert len(WRAPPED) >= 15


@pytest.mark.parametrize("path", sorted(set(PACKAGE.rglob("*.py")) - {HERE}), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_one_file_uses_them_or_any_private_name_of_the_torch_module(path):
    assert not private_names(path) & WRAPPED
    attributes = [ast.unparse(node) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)]
    assert not [name for name in attributes if name.startswith(("th._", "torch._"))]


def test_without_schemas_a_trace_writes_to_weights():
    seen = {}

    class Mode(torch_private.DispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen[str(func)] = torch_private.effects_of(func)
            return func(*args, **(kwargs or {}))

    with Mode():
        x = th.ones(2)
        x.view(1, 2).clamp_(0.0, 1.0)
        th.add(x, x, out=th.empty(2))
    assert seen["aten.ones.default"] == ((), True)
    assert seen["aten.view.default"] == ((), False)
    assert seen["aten.clamp_.default"] == (((0, "self"),), False)
    assert seen["aten.add.out"] == (((3, "out"),), False)
