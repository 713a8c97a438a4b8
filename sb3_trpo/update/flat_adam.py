"""TODO."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch as th

from sb3_trpo.numerics.flat import assign, flatten, unflatten
from sb3_trpo.numerics.torch_private import fused_adam_step, has_step_hooks

LAYOUT = {"amsgrad": False, "maximize": False, "capturable": False, "differentiable": False, "decoupled_weight_decay": False}
"""Options of ``th.optim.Adam`` that the flat step does not offer, with the values they must have."""
FUSED_DEVICES = ("cpu", "cuda")


@dataclass
class FlatAdam:
    """
    Adam on one flat vector, continuing the state of an ordinary ``th.optim.Adam``.

    :param optimizer: whose state it is
    :param parameters: those to fit, all in ``group``
    :param group: their parameter group
    """

    optimizer: th.optim.Adam
    parameters: Sequence[th.Tensor]
    group: dict[str, Any]

    def __post_init__(self) -> None:
        states = [self.optimizer.state.get(parameter, {}) for parameter in self.parameters]
        fresh = not states[0]
        first = self.parameters[0]
        self.theta = flatten(self.parameters).detach()
        self.g = th.zeros_like(self.theta)
        self.m = th.zeros_like(self.theta) if fresh else flatten([state["exp_avg"] for state in states])
        self.v = th.zeros_like(self.theta) if fresh else flatten([state["exp_avg_sq"] for state in states])
        self.t = th.zeros((), dtype=th.float32, device=first.device)
        if not fresh:
            self.t.copy_(states[0]["step"])
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
        """Take one step along ``g``."""
        self.t.add_(1.0)
        self._update()

    def is_finite(self) -> bool:
        """Check parameters and state."""
        return bool(th.stack([tensor.isfinite().all() for tensor in (self.theta, self.m, self.v)]).all())

    def commit(self) -> None:
        """Write parameters and state back in one call, which no interrupt can split."""
        new = [parameter for parameter in self.parameters if not self.optimizer.state.get(parameter)]
        try:
            states = [self._state_of(parameter) for parameter in self.parameters]
            targets = [state[name] for name in ("exp_avg", "exp_avg_sq", "step") for state in states]
            values = [piece for flat in (self.theta, self.m, self.v) for piece in unflatten(flat, self.parameters)]
            assign([*self.parameters, *targets], [*values, *(self.t.to(state["step"].device) for state in states)])
        except BaseException:  # an interrupt, too
            for parameter in new:
                if not self.optimizer.state[parameter].get("step", 0.0):  # still as it was made
                    self.optimizer.state.pop(parameter)
            raise

    def _state_of(self, parameter: th.Tensor) -> dict[str, th.Tensor]:
        """Give a parameter's state, made as Adam makes it if there is none: a mean of nothing is as good as none."""
        state: dict[str, th.Tensor] = self.optimizer.state[parameter]
        if not state:
            step_device = parameter.device if self.group["fused"] else th.device("cpu")
            state["step"] = th.zeros((), dtype=th.float32, device=step_device)
            state["exp_avg"] = th.zeros_like(parameter, memory_format=th.preserve_format)
            state["exp_avg_sq"] = th.zeros_like(parameter, memory_format=th.preserve_format)
        return state


def flat_adam(optimizer: th.optim.Optimizer, parameters: Sequence[th.Tensor]) -> FlatAdam | None:
    """
    Take an optimizer's place for some parameters.

    :param optimizer: of the policy
    :param parameters: those to fit
    :return: Adam on a flat vector, or ``None`` if the optimizer is not one that it can continue
    """
    is_patched = "step" in vars(optimizer)  # torch's schedulers do that
    if type(optimizer) is not th.optim.Adam or is_patched or has_step_hooks(optimizer):
        return None
    wanted = {id(parameter) for parameter in parameters}
    groups = [group for group in optimizer.param_groups if wanted & {id(parameter) for parameter in group["params"]}]
    if len(groups) != 1 or any(groups[0].get(name, value) != value for name, value in LAYOUT.items()):
        return None
    group = groups[0]
    is_known = wanted <= {id(parameter) for parameter in group["params"]} and isinstance(group["lr"], float)
    steps = {float(optimizer.state[parameter]["step"]) if optimizer.state.get(parameter) else None for parameter in parameters}
    if not is_known or len(steps) != 1 or parameters[0].device.type not in FUSED_DEVICES:
        return None
    return FlatAdam(optimizer, parameters, group)
