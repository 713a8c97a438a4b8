"""
Everything in torch that the package uses and torch does not document.

A new release may change any of these names without notice. They are wrapped here and nowhere else, so there is one place to
adapt. ``tests/unit/numerics/test_torch_private.py`` has a test for each, named after what breaks without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from operator import attrgetter
from typing import Any, Protocol

import torch as th
from torch import nn
from torch.nn.modules import module as module_hooks
from torch.optim import optimizer as optimizer_hooks
from torch.utils._python_dispatch import TorchDispatchMode

DispatchMode = TorchDispatchMode
"""A block in which every operation of a thread arrives at ``__torch_dispatch__``, with real tensors."""
_version: Callable[[th.Tensor], int] = attrgetter("_version")


class TimesSlope(Protocol):
    """
    Multiplies a cotangent, or a tangent, by an activation's slope.

    The kernels are those that autograd itself uses: results are the same to the last bit. They compute the slope from the
    output h for tanh and ReLU, and from the input a for the others.
    """

    def __call__(self, d: th.Tensor, kept: th.Tensor, out: th.Tensor | None = None) -> th.Tensor:
        """
        Multiply.

        :param d: the cotangent of h, or the tangent of a
        :param kept: h or a
        :param out: where to write the product, possibly d itself; ``None`` makes a new tensor
        :return: the product
        """
        ...


def _with_out(multiply: Callable[..., th.Tensor]) -> TimesSlope:
    """Make the kernels' ``grad_input`` an optional ``out``."""

    def times_slope(d: th.Tensor, kept: th.Tensor, out: th.Tensor | None = None) -> th.Tensor:
        return multiply(d, kept) if out is None else multiply(d, kept, grad_input=out)

    return times_slope


def tanh_backward() -> TimesSlope:
    """Make ``(d, h) -> d (1 - h^2)``."""
    return _with_out(th.ops.aten.tanh_backward)


def relu_backward() -> TimesSlope:
    """Make ``(d, h) -> d`` where ``h > 0``, else 0."""
    return _with_out(lambda d, h, **out: th.ops.aten.threshold_backward(d, h, 0, **out))


def silu_backward() -> TimesSlope:
    """Make ``(d, a) -> d`` times the slope of SiLU."""
    return _with_out(th.ops.aten.silu_backward)


def elu_backward(alpha: float) -> TimesSlope:
    """
    Make ``(d, a) -> d`` times the slope of ELU.

    :param alpha: ELU's parameter
    :return: the product
    """
    return _with_out(lambda d, a, **out: th.ops.aten.elu_backward(d, alpha, 1, 1, False, a, **out))


def leaky_relu_backward(negative_slope: float) -> TimesSlope:
    """
    Make ``(d, a) -> d`` times the slope of leaky ReLU.

    :param negative_slope: slope for negative inputs
    :return: the product
    """
    return _with_out(lambda d, a, **out: th.ops.aten.leaky_relu_backward(d, a, negative_slope, False, **out))


def gelu_backward(approximate: str) -> TimesSlope:
    """
    Make ``(d, a) -> d`` times the slope of GELU.

    :param approximate: ``"none"`` or ``"tanh"``, as in ``nn.GELU``
    :return: the product
    """
    return _with_out(lambda d, a, **out: th.ops.aten.gelu_backward(d, a, approximate=approximate, **out))


def convolution_vjp(
    delta: th.Tensor,
    x: th.Tensor,
    weight: th.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    in_weight: bool,
) -> th.Tensor:
    """
    Differentiate ``delta^T (W x)`` of a convolution.

    ``torch.nn.grad`` does it too, but with stand-ins for what it does not read, of which torch learns a wrong order in memory.

    :param delta: cotangent of the output, shape ``(n, n_outputs, height, width)``
    :param x: the input
    :param weight: W
    :param stride: as of ``nn.Conv2d``, like the next three
    :param padding: zeros at each border
    :param dilation: distance of the kernel's points
    :param groups: number of groups of channels
    :param in_weight: whether to differentiate in W rather than in x
    :return: the derivative, summed over the batch if it is that in W
    """
    wanted = [not in_weight, in_weight, False]
    backward = th.ops.aten.convolution_backward(
        delta, x, weight, None, stride, padding, dilation, False, [0] * len(stride), groups, wanted
    )
    of_either: th.Tensor = backward[in_weight]
    return of_either


def copy_all(targets: Sequence[th.Tensor], sources: Sequence[th.Tensor]) -> None:
    """
    Overwrite tensors in place by a single call into torch, which no Python signal handler can interrupt.

    :param targets: tensors to overwrite, at least one
    :param sources: as many tensors of the same shapes
    """
    th._foreach_copy_(list(targets), list(sources))


def fused_adam_step(
    parameters: list[th.Tensor],
    gradients: list[th.Tensor],
    means: list[th.Tensor],
    squared_means: list[th.Tensor],
    steps: list[th.Tensor],
    *,
    lr: float,
    beta1: float,
    beta2: float,
    weight_decay: float,
    eps: float,
) -> None:
    """
    Take one step of Adam in place, by the kernel of ``th.optim.Adam(fused=True)``.

    :param parameters: tensors to move
    :param gradients: their gradients
    :param means: running means of the gradients
    :param squared_means: running means of the squared gradients
    :param steps: number of steps so far, this one included, as a scalar tensor for each parameter
    :param lr: learning rate
    :param beta1: decay of ``means``
    :param beta2: decay of ``squared_means``
    :param weight_decay: L2 penalty
    :param eps: added to the denominator
    """
    th._fused_adam_(
        parameters,
        gradients,
        means,
        squared_means,
        [],  # maxima, for AMSGrad only
        steps,
        lr=lr,
        beta1=beta1,
        beta2=beta2,
        weight_decay=weight_decay,
        eps=eps,
        amsgrad=False,
        maximize=False,
    )


def fused_lstm_layer(
    x: th.Tensor, h: th.Tensor, c: th.Tensor, weights: list[th.Tensor]
) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    """
    Compute one LSTM layer by torch's fused kernel, in training mode, without which cuDNN cannot run backward.

    :param x: shape ``(n_steps, n_sequences, n_inputs)``
    :param h: shape ``(1, n_sequences, n_hidden)``
    :param c: shape ``(1, n_sequences, n_hidden)``
    :param weights: W, R and, unless the layer has no bias, both biases
    :return: h of every step, the last h, the last c
    """
    has_biases, n_layers, dropout, is_training, is_bidirectional, batch_first = len(weights) == 4, 1, 0.0, True, False, False
    return th._VF.lstm(x, (h, c), weights, has_biases, n_layers, dropout, is_training, is_bidirectional, batch_first)


@cache
def effects_of(operation: Any) -> tuple[tuple[tuple[int, str], ...], bool]:
    """
    Look up what an operation that arrives at a ``DispatchMode`` does to memory.

    :param operation: the operation
    :return: position and name of each argument that it writes to, and whether its results are in memory of their own
    """
    schema = operation._schema
    pairs = enumerate(schema.arguments)
    written = tuple((i, each.name) for i, each in pairs if each.alias_info is not None and each.alias_info.is_write)
    return written, all(each.alias_info is None for each in schema.returns)


def write_counts(tensors: Iterable[th.Tensor]) -> list[int]:
    """
    Count the in-place writes to each tensor, as autograd does to notice stale graphs.

    :param tensors: the tensors
    :return: a count for each; a fused optimizer's writes are not in it
    """
    return [*map(_version, tensors)]


def has_gradient_hooks(tensor: th.Tensor) -> bool:
    """
    Check for hooks that autograd runs on a tensor's gradient.

    :param tensor: a leaf
    :return: whether there are any
    """
    return bool(tensor._backward_hooks or tensor._post_accumulate_grad_hooks)


def has_global_module_hooks() -> bool:
    """
    Check for hooks that run in every module of the process.

    :return: whether there are any
    """
    return bool(module_hooks._has_any_global_hook())  # type: ignore[no-untyped-call]  # torch's, without types


def is_hooked_or_compiled(module: nn.Module) -> bool:
    """
    Check whether calling a module does anything else than call its ``forward``.

    :param module: the module
    :return: whether it has hooks or has been compiled in place
    """
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or module._compiled_call_impl is not None


def has_step_hooks(optimizer: th.optim.Optimizer) -> bool:
    """
    Check for hooks around an optimizer's step: its own, and global ones that run for every optimizer.

    :param optimizer: the optimizer
    :return: whether there are any
    """
    own = (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks)
    return any((*own, optimizer_hooks._global_optimizer_pre_hooks, optimizer_hooks._global_optimizer_post_hooks))


def standard_gamma(shape: th.Tensor) -> th.Tensor:
    """
    Draw gamma-distributed numbers of scale 1, without making a distribution, which takes longer than the drawing.

    :param shape: shape parameters, an array of any shape
    :return: the numbers, one for each, from the global generator of their device
    """
    return th._standard_gamma(shape)


def default_validate_args() -> object:
    """
    Read what ``Distribution.set_default_validate_args`` has set, for which torch has no getter.

    :return: the default for ``validate_args`` of distributions, which take its truth value
    """
    return th.distributions.Distribution._validate_args


def set_default_validate_args(switch: object) -> None:
    """
    Set what ``Distribution.set_default_validate_args`` sets, without its check for a bool.

    :param switch: any object; each new distribution takes its truth value
    """
    setattr(th.distributions.Distribution, "_validate_args", switch)  # noqa: B010  # torch declares a bool
