"""Tracing: what modules compute is read as it is, or not at all."""

import threading

import pytest
import torch as th
from helpers.stacks import read_stack
from torch import nn
from torch.nn import functional as F  # noqa: N812

from sb3_trpo.networks.tracing import in_mode, same_stacks, trace


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
