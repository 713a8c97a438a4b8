"""
Adam on one flat vector, which continues the state of a ``th.optim.Adam`` and takes its place for a while.

An ordinary step goes through lists of tensors, in Python and in kernels. For a small critic that takes most of a fit's time.
With all parameters in one vector a step is one call of torch's fused kernel, and the norm of the gradient, its clipping and
its reduction over ranks are one call each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch as th

from sb3_trpo.numerics.flat import assign, flatten, unflatten
from sb3_trpo.numerics.torch_private import fused_adam_step, has_step_hooks

REQUIRED_OPTIONS = {
    "amsgrad": False,
    "maximize": False,
    "capturable": False,
    "differentiable": False,
    "decoupled_weight_decay": False,
}
"""Options of ``th.optim.Adam`` that the flat step does not have, with the values that leave them off."""
FUSED_DEVICES = ("cpu", "cuda")
"""Devices that torch has a fused kernel for."""


@dataclass
class FlatAdam:
    """
    Adam on a flat copy of some parameters, which are changed only by :meth:`commit`.

    The caller writes the gradient into ``g`` and calls :meth:`step`; ``theta`` then holds the new parameters.

    :param optimizer: the optimizer whose state is continued
    :param parameters: the parameters to fit, all in ``group``
    :param group: their parameter group, which gives the options
    """

    optimizer: th.optim.Adam
    parameters: Sequence[th.Tensor]
    group: dict[str, Any]

    def __post_init__(self) -> None:
        states = [self.optimizer.state.get(parameter, {}) for parameter in self.parameters]
        is_fresh = not states[0]  # then none has a state: Adam makes it at the first step, of zeros
        first = self.parameters[0]
        self.theta = flatten(self.parameters).detach()
        self.g = th.zeros_like(self.theta)
        self.m = th.zeros_like(self.theta) if is_fresh else flatten([state["exp_avg"] for state in states])
        self.v = th.zeros_like(self.theta) if is_fresh else flatten([state["exp_avg_sq"] for state in states])
        self.t = th.zeros((), dtype=th.float32, device=first.device)
        if not is_fresh:
            self.t.copy_(states[0]["step"])
        # The fused kernel updates m, v and theta in one pass. torch's own fused step calls it too, after checks in Python at
        # every step; here the arguments are bound once for the whole fit.
        self._update = partial(
            fused_adam_step,
            [self.theta],
            [self.g],
            [self.m],
            [self.v],
            [self.t],
            lr=self.group["lr"],
            beta1=self.group["betas"][0],
            beta2=self.group["betas"][1],
            weight_decay=self.group["weight_decay"],
            eps=self.group["eps"],
        )

    def step(self) -> None:
        """Take one step with the gradient in ``g``."""
        self.t.add_(1.0)
        self._update()

    def is_finite(self) -> bool:
        """Check that parameters and state are finite."""
        return bool(th.stack([tensor.isfinite().all() for tensor in (self.theta, self.m, self.v)]).all())

    def commit(self) -> None:
        """
        Write parameters and state back.

        Python handles a signal between two bytecodes. All values are therefore written in one call: an interrupt comes before
        it or after it, never between a parameter and its state.
        """
        new = [parameter for parameter in self.parameters if not self.optimizer.state.get(parameter)]
        try:
            states = [self._state_of(parameter) for parameter in self.parameters]
            targets = [state[name] for name in ("exp_avg", "exp_avg_sq", "step") for state in states]
            values = [piece for flat in (self.theta, self.m, self.v) for piece in unflatten(flat, self.parameters)]
            assign([*self.parameters, *targets], [*values, *(self.t.to(state["step"].device) for state in states)])
        except BaseException:  # also an interrupt
            for parameter in new:
                if not self.optimizer.state[parameter].get("step", 0.0):  # nothing has been written into it
                    self.optimizer.state.pop(parameter)
            raise

    def _state_of(self, parameter: th.Tensor) -> dict[str, th.Tensor]:
        """
        Return a parameter's state in the optimizer; if there is none, make it as Adam does at its first step.

        Zero means and zero steps are what Adam starts from, so an interrupt that leaves them behind changes no later step.
        """
        state: dict[str, th.Tensor] = self.optimizer.state[parameter]
        if not state:
            step_device = parameter.device if self.group["fused"] else th.device("cpu")
            state["step"] = th.zeros((), dtype=th.float32, device=step_device)
            state["exp_avg"] = th.zeros_like(parameter, memory_format=th.preserve_format)
            state["exp_avg_sq"] = th.zeros_like(parameter, memory_format=th.preserve_format)
        return state


def flat_adam(optimizer: th.optim.Optimizer, parameters: Sequence[th.Tensor]) -> FlatAdam | None:
    """
    Make a flat Adam that takes an optimizer's place for some parameters.

    It must do exactly what the optimizer would do. So there is none for other optimizers and subclasses, with hooks or a
    replaced ``step``, for parameters of several groups or with different numbers of steps, with a tensor as learning rate, or
    with an option of ``REQUIRED_OPTIONS`` switched on.

    :param optimizer: the policy's optimizer
    :param parameters: the parameters to fit
    :return: the flat Adam, or ``None`` if it cannot continue this optimizer
    """
    is_patched = "step" in vars(optimizer)  # torch's schedulers put one there
    if type(optimizer) is not th.optim.Adam or is_patched or has_step_hooks(optimizer):
        return None
    wanted = {id(parameter) for parameter in parameters}
    groups = [group for group in optimizer.param_groups if wanted & {id(parameter) for parameter in group["params"]}]
    if len(groups) != 1 or any(groups[0].get(name, value) != value for name, value in REQUIRED_OPTIONS.items()):
        return None
    group = groups[0]
    is_known = wanted <= {id(parameter) for parameter in group["params"]} and isinstance(group["lr"], float)
    steps = {float(optimizer.state[parameter]["step"]) if optimizer.state.get(parameter) else None for parameter in parameters}
    if not is_known or len(steps) != 1 or parameters[0].device.type not in FUSED_DEVICES:
        return None
    return FlatAdam(optimizer, parameters, group)
