"""
Adam on one flat vector, which continues from the state of a ``th.optim.Adam`` and stands in for it during a fit.

An ordinary step loops over lists of tensors, in Python and in kernels. For a small critic that takes most of a fit's time.
With all parameters in one vector, a step is one call of torch's fused kernel, and the norm of the gradient, its clipping and
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
"""Options of ``th.optim.Adam`` that the flat step lacks, with the values that switch them off."""
FUSED_DEVICES = ("cpu", "cuda")
"""Devices for which torch has a fused kernel."""


@dataclass
class FlatAdam:
    """
    Adam on a flat copy of some parameters. Only :meth:`commit` changes the parameters themselves.

    The caller writes the gradient into ``g`` and calls :meth:`step`; ``theta`` then holds the new parameters.

    :param optimizer: the optimizer to continue from and to write back to
    :param parameters: the parameters to fit, all in ``group``
    :param group: the optimizer's parameter group that holds them, with its options
    """

    optimizer: th.optim.Adam
    parameters: Sequence[th.Tensor]
    group: dict[str, Any]

    def __post_init__(self) -> None:
        states = [self.optimizer.state.get(parameter, {}) for parameter in self.parameters]
        # One parameter stands for all: flat_adam() has checked that they have taken the same number of steps. Adam gives a
        # parameter its state, of zeros, at its first step.
        is_fresh = not states[0]
        first = self.parameters[0]
        self.theta = flatten(self.parameters).detach()
        self.g = th.zeros_like(self.theta)
        self.m = th.zeros_like(self.theta) if is_fresh else flatten([state["exp_avg"] for state in states])
        self.v = th.zeros_like(self.theta) if is_fresh else flatten([state["exp_avg_sq"] for state in states])
        # The kernel takes t as a tensor, in float32 as torch keeps it: exact up to 2^24 steps.
        self.t = th.zeros((), dtype=th.float32, device=first.device)
        if not is_fresh:
            self.t.copy_(states[0]["step"])
        # torch's own fused step calls the same kernel, after checks in Python at every step. Here the arguments are bound once
        # for the whole fit, which also fixes the learning rate: it follows its schedule between fits, not during one.
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
        self.t.add_(1.0)  # before the update: the bias correction counts the step being taken
        self._update()

    def is_finite(self) -> bool:
        """Check that parameters and state are finite: v may overflow first, and would then freeze theta for good."""
        return bool(th.stack([tensor.isfinite().all() for tensor in (self.theta, self.m, self.v)]).all())

    def commit(self) -> None:
        """
        Write parameters and state back.

        Python handles signals between bytecodes, so a single call writes all values: an interrupt comes before it or after it,
        never between a parameter and its state.
        """
        new = [parameter for parameter in self.parameters if not self.optimizer.state.get(parameter)]
        try:
            states = [self._state_of(parameter) for parameter in self.parameters]
            targets = [state[name] for name in ("exp_avg", "exp_avg_sq", "step") for state in states]
            values = [piece for flat in (self.theta, self.m, self.v) for piece in unflatten(flat, self.parameters)]
            # torch keeps a step count for each parameter: on the CPU, unless the optimizer is fused.
            assign([*self.parameters, *targets], [*values, *(self.t.to(state["step"].device) for state in states)])
        except BaseException:  # interrupts too
            for parameter in new:
                # Only fits with at least one step are committed, so a count of 0 means that no value has been written.
                if not self.optimizer.state[parameter].get("step", 0.0):
                    self.optimizer.state.pop(parameter)
            raise

    def _state_of(self, parameter: th.Tensor) -> dict[str, th.Tensor]:
        """
        Return a parameter's state in the optimizer; if there is none, create it as Adam does at its first step.

        Adam starts from zero means and zero steps, so an interrupt that leaves them behind changes no later step.
        """
        state: dict[str, th.Tensor] = self.optimizer.state[parameter]
        if not state:  # in Adam's order of keys, which state_dict() keeps
            step_device = parameter.device if self.group["fused"] else th.device("cpu")
            state["step"] = th.zeros((), dtype=th.float32, device=step_device)
            state["exp_avg"] = th.zeros_like(parameter, memory_format=th.preserve_format)
            state["exp_avg_sq"] = th.zeros_like(parameter, memory_format=th.preserve_format)
        return state


def flat_adam(optimizer: th.optim.Optimizer, parameters: Sequence[th.Tensor]) -> FlatAdam | None:
    """
    Make a flat Adam that stands in for an optimizer on some parameters.

    It must do exactly what the optimizer would do. That rules out other optimizers and subclasses, hooks, a replaced ``step``,
    parameters in several groups or with different numbers of steps, a tensor as learning rate, and the options in
    ``REQUIRED_OPTIONS``.

    :param optimizer: the policy's optimizer
    :param parameters: the parameters to fit
    :return: the flat Adam, or ``None`` if it cannot stand in for this optimizer
    """
    is_patched = "step" in vars(optimizer)  # torch's learning rate schedulers wrap it there, to count its calls
    if type(optimizer) is not th.optim.Adam or is_patched or has_step_hooks(optimizer):
        return None
    wanted = {id(parameter) for parameter in parameters}
    groups = [group for group in optimizer.param_groups if wanted & {id(parameter) for parameter in group["params"]}]
    if len(groups) != 1 or any(groups[0].get(name, value) != value for name, value in REQUIRED_OPTIONS.items()):
        return None
    group = groups[0]
    is_known = wanted <= {id(parameter) for parameter in group["params"]} and isinstance(group["lr"], float)
    # One vector has one t for its bias correction. None stands for "no state yet", which differs from every count.
    steps = {float(optimizer.state[parameter]["step"]) if optimizer.state.get(parameter) else None for parameter in parameters}
    if not is_known or len(steps) != 1 or parameters[0].device.type not in FUSED_DEVICES:
        return None
    return FlatAdam(optimizer, parameters, group)
