"""Tracing: what modules compute is read as it is, or not at all."""

import threading

import pytest
import torch as th
from helpers.stacks import read_stack
from torch import nn
from torch.nn import functional as F  # noqa: N812

from sb3_trpo.networks.reading.tracing import computes_alike, in_mode, outcome, same_stacks, trace


@pytest.mark.parametrize(
    "modules",
    [
        [nn.Linear(2, 2), nn.Tanh(), nn.Tanh()],
        [nn.Tanh(), nn.Linear(2, 2)],
        [nn.Linear(2, 2), nn.Softplus()],
        [nn.Conv2d(1, 1, 1, padding="same")],
        [nn.Conv2d(1, 1, 1, padding_mode="reflect")],
        [nn.Linear(2, 2), nn.Dropout(0.0)],
    ],
    ids=repr,
)
def test_what_is_not_a_plain_stack_is_not_read(modules):
    assert read_stack(modules) is None


@pytest.mark.parametrize(
    "modules",
    [
        nn.Sequential(nn.Flatten(), nn.Linear(4, 2)),
        nn.Sequential(nn.Conv2d(1, 1, 1), nn.Flatten(2), nn.Linear(4, 1)),
    ],
    ids=["first", "of other dimensions"],
)
def test_a_stack_with_an_unusual_flatten_is_not_mistaken_for_another_one(modules):
    x, stack = th.randn(3, 1, 2, 2), read_stack(modules)
    with th.no_grad():
        assert stack is None or th.equal(stack(x), modules(x))


@th.no_grad()
def without_gradient(x):
    return F.linear(x, WEIGHT)


class Straight(th.autograd.Function):
    """Doubles the input, in a way that no stand-in sees."""

    @staticmethod
    def forward(ctx, x):
        return x.mul(2.0)

    @staticmethod
    def backward(ctx, cotangent):
        return cotangent


class Unchanged(th.autograd.Function):
    """Returns its input."""

    @staticmethod
    def forward(ctx, x):
        return x

    @staticmethod
    def backward(ctx, cotangent):
        return cotangent


WEIGHT, BIAS = nn.Parameter(th.ones(2, 2)), nn.Parameter(th.zeros(2))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x,
        lambda x: 2.0 * F.linear(x, WEIGHT),
        lambda x: F.linear(x, WEIGHT) + x,
        lambda x: F.linear(x, WEIGHT)[:, 0],
        lambda x: F.linear(x, WEIGHT) if x else F.linear(x, WEIGHT, BIAS),
        lambda x: F.linear(WEIGHT, x),
        lambda x: F.linear(input=x, weight=WEIGHT),
        lambda x: F.linear(F.dropout(x, 0.5), WEIGHT),
        lambda x: F.linear(x, WEIGHT).flatten(),
        lambda x: F.linear(x, WEIGHT).view(-1, 2),
        lambda x: F.linear(x, WEIGHT).view(x.size(1), -1),
        lambda x: F.linear(x, WEIGHT).detach(),
        lambda x: F.bilinear(x, x, WEIGHT[None]),
        lambda x: th.cat([F.linear(x, WEIGHT), x], dim=1),
        lambda x: F.conv2d(x, WEIGHT[:, :, None, None]),
        lambda x: (F.linear(x, WEIGHT), F.linear(x, WEIGHT)),
        lambda x: F.linear(x, WEIGHT).numpy(),
        lambda x: 1 / 0,
        lambda x: th.zeros(2, 2),
        lambda x: F.linear(x, WEIGHT) if x.shape[0] == 1 else F.linear(x, WEIGHT, BIAS),
        lambda x: F.linear(x, WEIGHT) if x.size(0) > 1 else F.linear(x, WEIGHT, BIAS),
        lambda x: F.linear(x, WEIGHT) if x == 0 else F.linear(x, WEIGHT, BIAS),
        lambda x: F.linear(x, WEIGHT).reshape(x.shape[-1], -1),
        lambda x: F.linear(x, WEIGHT).reshape(*x.shape),
        lambda x: F.linear(x, WEIGHT) if x in [1, 2] else None,
        lambda x: F.linear(x, WEIGHT) * (3 if isinstance(x, th.Tensor) and (x > 0.97).any() else 1),
        lambda x: F.linear(x, WEIGHT, BIAS if th.is_tensor(x) and x.sum() > 0 else None),
        lambda x: F.linear(x, WEIGHT, None if isinstance(x, th.Tensor) and x[0, 0] else BIAS),
        lambda x: F.linear(x, WEIGHT, None if (th.as_tensor(x) > 0).any() else BIAS),
        lambda x: F.linear(x, WEIGHT, None if (th.tensor(x) > 0).any() else BIAS),
        lambda x: F.linear(x, WEIGHT, None if (Unchanged.apply(x) > 0).any() else BIAS),
        lambda x: F.linear(x, WEIGHT, None if len(x) > 1 else BIAS),
        lambda x: F.linear(x, WEIGHT, None if x.requires_grad else BIAS),
        lambda x: F.linear(th.vmap(lambda row: row)(x), WEIGHT),
        without_gradient,
        Straight.apply,
    ],
)
def test_anything_else_that_a_function_does_is_not_read(function):
    assert trace([function], is_flat=True) is None


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.linear(x, WEIGHT, BIAS),
        lambda x: F.linear(x, WEIGHT, bias=BIAS).tanh(),
        lambda x: F.relu(F.linear(x, WEIGHT), inplace=True),
        lambda x: th.relu(F.linear(th.flatten(x, 1), WEIGHT)),
        lambda x: F.tanh(F.linear(x.reshape(x.shape[0], -1), WEIGHT)).flatten(1),
        lambda x: F.elu(F.linear(F.gelu(F.linear(x, WEIGHT), approximate="tanh"), WEIGHT, BIAS), 0.5),
    ],
)
def test_functions_of_torch_are_read_with_their_arguments(function):
    x = th.randn(5, 2)
    with th.no_grad():
        assert th.equal(trace([function], is_flat=True)(x), function(x))


def test_a_module_may_make_sure_that_it_is_given_a_tensor_and_print_it(capsys):
    def checking(x):
        assert isinstance(x, th.Tensor)
        assert th.is_tensor(x)
        print(x, x.shape, [x.shape[0]])  # as users do to find an error
        return F.linear(x, WEIGHT)

    assert trace([checking], is_flat=True) is not None
    assert capsys.readouterr().out == (
        "<TracedTensor of sb3_trpo, which reads the module> <Shape of sb3_trpo, which reads the module> "
        "[<BatchSize of sb3_trpo, which reads the module>]\n"
    )


def test_a_dense_layer_needs_a_row_of_numbers_and_a_convolution_an_image():
    dense, convolution = nn.Linear(4, 2), nn.Conv2d(1, 2, 2)
    assert trace([dense], is_flat=True) is not None
    assert trace([dense], is_flat=False) is None  # it would act on the last dimension
    assert trace([nn.Flatten(), dense], is_flat=False) is not None
    assert trace([convolution], is_flat=False) is not None
    assert trace([convolution], is_flat=True) is None
    assert trace([convolution, dense], is_flat=False) is None
    assert trace([convolution, nn.Flatten(), dense], is_flat=False) is not None


def test_layers_that_do_not_fit_are_left_to_torchs_error():
    assert trace([nn.Linear(2, 3), nn.Linear(4, 2)], is_flat=True) is None
    assert trace([nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)], is_flat=True) is not None


def test_stacks_are_the_same_if_operations_and_tensors_are():
    def stack(slope=0.1, bias=BIAS):
        return trace([lambda x: F.leaky_relu(F.linear(x, WEIGHT, bias), slope)], is_flat=True)

    assert same_stacks(stack(), stack())
    assert not same_stacks(stack(), stack(slope=0.2))
    assert not same_stacks(stack(), stack(bias=nn.Parameter(th.zeros(2))))
    assert not same_stacks(stack(), stack(bias=None))
    assert same_stacks(None, None)
    assert not same_stacks(stack(), None)


def test_every_module_has_its_own_mode_back():
    module = nn.Sequential(nn.Linear(1, 1), nn.Sequential(nn.Dropout()))
    module[1].training = False
    with in_mode(module, is_training=True):
        assert all(each.training for each in module.modules())
    assert [each.training for each in module.modules()] == [True, True, False, True]


def test_another_thread_runs_the_same_module_meanwhile():
    layer, x, inside, done = nn.Linear(2, 2), th.ones(1, 2), threading.Event(), threading.Event()
    outputs = []

    def run():
        inside.wait(10)
        outputs.append(layer(x))
        done.set()

    def waiting(traced):
        inside.set()
        assert done.wait(10)
        return layer(traced)

    thread = threading.Thread(target=run)
    thread.start()
    assert trace([waiting], is_flat=True) is not None
    thread.join()
    assert th.equal(outputs[0], layer(x))


def in_place(x):
    h = F.linear(x, WEIGHT)
    F.relu(h, inplace=True)
    nn.Flatten()(h)
    return h


def of_a_module(x):
    h = F.linear(x, WEIGHT)
    nn.ELU(0.5, inplace=True)(h)
    return h


def on_a_copy(x):
    h = F.linear(x, WEIGHT)
    F.relu(h)  # a new tensor, which nobody reads
    return h


@pytest.mark.parametrize("function", [in_place, of_a_module, on_a_copy])
def test_operations_in_place_change_what_others_hold(function):
    x = th.randn(5, 2)
    with th.no_grad():
        assert th.equal(trace([function], is_flat=True)(x), function(x))


def test_a_trace_needs_gradients_only_inside():
    with th.no_grad():
        assert trace([nn.Linear(2, 2)], is_flat=True) is not None


def test_nothing_is_read_where_types_are_changed():
    def cast(x):
        with th.autocast("cpu", th.bfloat16):
            return F.linear(x, WEIGHT)

    assert trace([cast], is_flat=True) is None


class StopsGradient(th.autograd.Function):
    """Returns its input, and no gradient."""

    @staticmethod
    def forward(ctx, x):
        return x

    @staticmethod
    def backward(ctx, cotangent):
        return 0.0 * cotangent


def is_read_right(functions, stack, x):
    return computes_alike(outcome(functions, stack, x), stack, x)


def test_what_computes_something_else_than_was_read_is_noticed():
    th.manual_seed(0)
    one, two = nn.Linear(2, 3), nn.Linear(3, 2)
    stack, x = trace([one, nn.Tanh(), two], is_flat=True), th.randn(2, 2)
    assert is_read_right([one, nn.Tanh(), two], stack, x)
    assert not is_read_right([one, two], stack, x)  # outputs
    assert not is_read_right([one, nn.Tanh(), two, lambda h: h.detach()], stack, x)
    assert not is_read_right([one, nn.Tanh(), StopsGradient.apply, two], stack, x)  # the first layer's gradient
    assert not is_read_right([one, lambda _: 1 / 0], stack, x)
    for parameter in one.parameters():
        parameter.requires_grad_(False)
    assert is_read_right([one, nn.Tanh(), StopsGradient.apply, two], stack, x)  # where it has no effect
