"""
``J v`` of any module by torch's forward mode: one forward pass of a copy whose parameters are dual numbers.

For NatureCNN this takes about six tenths of the time of differentiating a backward pass, and less memory. It needs a
formula for each operation, which torch lacks for some, and unlike backpropagation it does not stop at ``no_grad`` (it does at
``detach``, ``.data`` and ``inference_mode``). So :func:`are_adjoint` checks it first.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, cast

import torch as th
from torch import nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

from sb3_trpo.numerics.flat import flatten, unflatten
from sb3_trpo.numerics.gauss_newton import Linearization, Outputs

Module = TypeVar("Module", bound=nn.Module)

ONE_AT_A_TIME = threading.Lock()
"""torch has one level of dual numbers for the whole process, which threads would nest."""
TOLERANCE = 1e-3
"""Relative difference of ``u^T (J v)`` and ``(J^T u)^T v`` that rounding in float32 explains."""
SMALLEST_PART = 1e-3
"""A parameter whose gradient is smaller than this times the largest one may be lost in rounding, and counts for less."""


def forward_jvp(
    module: Module,
    parameters: Sequence[th.Tensor],
    tangents: Sequence[th.Tensor],
    outputs: Callable[[Module], Outputs],
) -> Outputs:
    """
    Compute ``J v``. A caller that wants no graph, which none of the products needs, disables gradients.

    :param module: holds the parameters, and is left alone: other threads may run it meanwhile
    :param parameters: theta, the tensors to differentiate with respect to
    :param tangents: v, tensors like the parameters
    :param outputs: computes z by the module or by a copy of it
    :return: tensors like z
    :raises NotImplementedError: if torch cannot differentiate an operation in forward mode
    """
    with ONE_AT_A_TIME, forward_ad.dual_level():
        pairs = zip(parameters, tangents, strict=True)
        duals = [forward_ad.make_dual(parameter.detach(), tangent) for parameter, tangent in pairs]  # type: ignore[no-untyped-call]  # torch's
        copy = with_parameters(module, parameters, duals)
        unpacked = [forward_ad.unpack_dual(z) for z in outputs(copy)]  # type: ignore[no-untyped-call]  # torch's
        return tuple(th.zeros_like(z.primal) if z.tangent is None else z.tangent.detach().clone() for z in unpacked)


def with_parameters(module: Module, originals: Sequence[th.Tensor], substitutes: Sequence[th.Tensor]) -> Module:
    """
    Copy a module and all modules inside it, with other parameters under every name that they have. The rest is shared.

    Code that keeps a module or a parameter elsewhere, such as in a list, still finds the original there.

    :param module: the module
    :param originals: the parameters to replace
    :param substitutes: as many tensors
    :return: the copy
    """
    by_id = {id(original): substitute for original, substitute in zip(originals, substitutes, strict=True)}
    copies: dict[int, nn.Module] = {}

    def copied(each: nn.Module) -> nn.Module:
        if id(each) not in copies:
            copy = copies[id(each)] = object.__new__(type(each))
            parameters = {name: by_id.get(id(parameter), parameter) for name, parameter in each._parameters.items()}
            modules = {name: child and copied(child) for name, child in each._modules.items()}
            own = {"_parameters": parameters, "_modules": modules, "_buffers": dict(each._buffers)}
            vars(copy).update(vars(each) | own)  # not by setattr, which takes no tensor for a parameter
        return copies[id(each)]

    return cast("Module", copied(module))


class HiddenTangents(TorchFunctionMode):
    """
    Watches, inside a block with gradients enabled, whether a function of torch gets a dual number while they are disabled.

    Backpropagation takes the result for a constant there, and forward mode does not. ``is_found`` says whether it happened.
    """

    def __init__(self) -> None:
        super().__init__()
        self.is_found = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Look at the arguments, then call the function."""
        kwargs = kwargs or {}
        if not th.is_grad_enabled() and any(map(_is_dual, _tensors_in((*args, *kwargs.values())))):
            self.is_found = True
        return func(*args, **kwargs)


def _is_dual(tensor: th.Tensor) -> bool:
    return forward_ad.unpack_dual(tensor).tangent is not None  # type: ignore[no-untyped-call]  # torch's


def _tensors_in(values: Sequence[Any]) -> Iterator[th.Tensor]:
    for value in values:
        if isinstance(value, th.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors_in(value)


def are_adjoint(linearization: Linearization, z: Outputs, parameters: Sequence[th.Tensor]) -> bool:
    """
    Check that both products belong to the same J: ``u^T (J v) = (J^T u)^T v`` for one u and two v.

    In the second v, every parameter is scaled such that its part of the sum is 1. Otherwise an error in a small parameter,
    such as a learned factor, would be lost among large ones. Gradients are enabled for it, to find where the module disables
    them.

    :param linearization: the products; J v by forward mode
    :param z: the outputs, for their type and device
    :param parameters: theta, for the shapes of the parts of v
    :return: whether they agree up to rounding
    """
    n_parameters = sum(parameter.numel() for parameter in parameters)
    v = th.arange(1.0, n_parameters + 1.0, device=z[0].device, dtype=z[0].dtype).sin()  # any numbers of both signs
    with th.no_grad():
        z_tangent = linearization.jvp(v)
    u = tuple(tangent + tangent.norm() / tangent.numel() ** 0.5 for tangent in z_tangent)  # close to no right angle with it
    gradient = linearization.vjp(u)
    scaled = scaled_by_parameter(gradient, parameters)
    with th.enable_grad(), HiddenTangents() as hidden:
        scaled_tangent = linearization.jvp(scaled)
    agree = (_agree(u, tangent, gradient, each) for tangent, each in ((z_tangent, v), (scaled_tangent, scaled)))
    return all(agree) and not hidden.is_found


def scaled_by_parameter(gradient: th.Tensor, parameters: Sequence[th.Tensor]) -> th.Tensor:
    """
    Compute v such that each parameter's part of the product with the gradient is 1, or less if it may be lost in rounding.

    :param gradient: shape ``(n_parameters,)``
    :param parameters: for the shapes of the parts
    :return: v, like the gradient
    """
    parts = unflatten(gradient, parameters)
    norms = th.stack([part.norm() for part in parts])
    least = (SMALLEST_PART * norms.max()).clamp_min(th.finfo(norms.dtype).tiny ** 0.5)  # its square is no 0
    return flatten([part / norm**2 for part, norm in zip(parts, norms.maximum(least), strict=True)])


def _agree(u: Outputs, z_tangent: Outputs, gradient: th.Tensor, v: th.Tensor) -> bool:
    """Check that ``u^T (J v) = (J^T u)^T v``."""
    forward = sum(float((one.double() * other.double()).sum()) for one, other in zip(u, z_tangent, strict=True))
    backward = float((gradient.double() * v.double()).sum())
    return abs(forward - backward) <= TOLERANCE * abs(forward)
