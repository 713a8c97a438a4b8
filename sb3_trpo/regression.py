"""
Value regression for a critic that is a plain stack of layers: no graph, and one Adam step on one flat vector.

The fit works on copies of the critic's tensors and of the optimizer's state. They are written back at once when it has ended
well; until then nothing is changed. Symbols of Adam are those of Kingma & Ba 2015, arXiv:1412.6980, Algorithm 1.

======  ============================================
theta   parameters of the critic, flat
g       gradient of the minibatch's loss
m, v    running means of g and of its square
t       steps taken
======  ============================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn
from torch.optim import optimizer as optimizer_module

from sb3_trpo.critic import CriticFit, FitOutcome, mean_loss
from sb3_trpo.distributed import ALONE, WHOLE, Ranks, Share
from sb3_trpo.layers import Stack
from sb3_trpo.networks import Features, Networks, is_patched
from sb3_trpo.numerics.flat import assign, flatten, unflatten
from sb3_trpo.passes import BoundPass, Pass, TapePass
from sb3_trpo.rollout import DIRECT_BUFFERS, PASS_LIMITS, default_chunk_size, minibatches, observation_blocks

LAYOUT = {"amsgrad": False, "maximize": False, "capturable": False, "differentiable": False, "decoupled_weight_decay": False}
"""Options of ``th.optim.Adam`` that the flat step does not offer, with the values they must have."""
GLOBAL_HOOKS = (optimizer_module._global_optimizer_pre_hooks, optimizer_module._global_optimizer_post_hooks)
FUSED_DEVICES = ("cpu", "cuda")

Batches = Callable[[], Iterable[tuple[th.Tensor, th.Tensor]]]
"""Gives one pass over the rollout: features of shape ``(n, ...)`` and returns of shape ``(n, 1)`` at a time."""


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
            th._fused_adam_,
            [self.theta],
            [self.g],
            [self.m],
            [self.v],
            [],
            [self.t],
            lr=self.group["lr"],
            beta1=self.group["betas"][0],
            beta2=self.group["betas"][1],
            weight_decay=self.group["weight_decay"],
            eps=self.group["eps"],
            amsgrad=False,
            maximize=False,
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
    hooks = (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks, *GLOBAL_HOOKS)
    if type(optimizer) is not th.optim.Adam or any(hooks) or "step" in vars(optimizer):  # torch's schedulers put one there
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


def trainable_part(critic: Stack, parameters: Iterable[nn.Parameter]) -> tuple[Stack, Stack] | None:
    """
    Cut a critic where its fit begins: a trunk that it shares with the policy stays below.

    :param critic: the whole
    :param parameters: those that may be moved; ones outside the critic do not matter
    :return: the layers below, which may be none, and those to fit, at least one; ``None`` if layers are trained in part
    """
    movable = {id(parameter) for parameter in parameters}
    trained = [{id(layer.weight), id(layer.bias)} - {id(None)} <= movable for layer in critic.layers]
    touched = [bool({id(layer.weight), id(layer.bias)} & movable) for layer in critic.layers]
    if True not in trained or trained != touched:
        return None
    start = trained.index(True)
    upper = Stack(critic.layers[start:])
    if not all(trained[start:]) or len({id(tensor) for tensor in upper.tensors}) != len(upper.tensors):
        return None
    return Stack(critic.layers[:start]), upper


class StackRegression(NamedTuple):
    """
    A critic's fit, ready to run.

    :param critic: the layers to fit
    :param adam: made for their tensors
    :param batches: gives one pass over the rollout
    """

    critic: Stack
    adam: FlatAdam
    batches: Batches


@th.no_grad()
def plain_regression(
    policy: ActorCriticPolicy,
    networks: Networks,
    parameters: Sequence[nn.Parameter],
    buffer: RolloutBuffer,
    batch_size: int,
) -> StackRegression | None:
    """
    Prepare a fit without a graph.

    :param policy: its ``optimizer`` is continued
    :param networks: read out of it
    :param parameters: those that the critic may move
    :param buffer: a full rollout buffer, with (step, env) joined
    :param batch_size: transitions per minibatch
    :return: the fit, or ``None`` if optimizer or critic need the general one
    """
    parts = trainable_part(networks.critic, parameters)
    if parts is None:
        return None
    below, critic = parts
    adam = flat_adam(policy.optimizer, critic.tensors)
    if adam is None:
        return None

    def features(observations: PyTorchObs) -> th.Tensor:
        return below(networks.features(observations))

    return StackRegression(critic, adam, _passes_over(buffer, features, bool(below.layers), batch_size))


def _passes_over(buffer: RolloutBuffer, features: Features, always_make: bool, batch_size: int) -> Batches:
    """Read SB3's own buffers directly, and make features once where they take no more room than what is there."""
    if type(buffer) not in DIRECT_BUFFERS or is_patched(buffer):
        return lambda: ((features(batch.observations), batch.returns[:, None]) for batch in buffer.get(batch_size))
    size, rows = default_chunk_size(buffer.observation_space, PASS_LIMITS), buffer.observations
    if always_make or isinstance(rows, dict) or rows.dtype == np.float64:
        return partial(minibatches, buffer, _features_of_all(buffer, features, size), lambda part: part, batch_size, size)
    kept = th.from_numpy(rows)
    return partial(minibatches, buffer, kept, lambda part: features(part.to(buffer.device)), batch_size, size)


def _features_of_all(buffer: RolloutBuffer, features: Features, size: int) -> th.Tensor:
    """Make the features of the whole rollout, some at a time, into one tensor."""
    blocks = map(features, observation_blocks(buffer, size))
    first = next(blocks)
    made = first.new_empty(buffer.buffer_size * buffer.n_envs, *first.shape[1:])
    made[: len(first)] = first
    for index, block in enumerate(blocks, start=1):
        made[index * size : index * size + len(block)] = block
    return made


@th.no_grad()
def fit_stack(
    regression: StackRegression, n_epochs: int, max_grad_norm: float | None, ranks: Ranks = ALONE, share: Share = WHOLE
) -> CriticFit:
    """
    Regress a critic's values on the returns.

    On an exception or a non-finite result nothing has been changed.

    :param regression: the fit
    :param n_epochs: number of passes
    :param max_grad_norm: bound on the gradient's norm, ``None`` or 0 for no bound
    :param ranks: which have minibatches of their own; all take the same steps
    :param share: how many minibatches a pass has
    :return: the record of the fit
    """
    critic, adam, batches = regression
    copy, gradient = critic.with_tensors(unflatten(adam.theta, critic.tensors)), unflatten(adam.g, critic.tensors)

    @cache
    def passes(n_rows: int) -> Pass:
        return BoundPass(copy, n_rows, gradient) if copy.is_dense else TapePass(copy, gradient)

    errors, sizes = list[th.Tensor](), list[float]()
    for _ in range(n_epochs):
        for (x, returns), weight in ranks.in_step(batches(), share):
            network = passes(len(x))
            errors.append(weight * (network(x) - returns))
            sizes.append(weight * len(x))
            network.pull(2.0 * errors[-1])
            adam.g.copy_(ranks.mean(adam.g, sizes[-1]))
            if max_grad_norm:
                adam.g.mul_((max_grad_norm / (adam.g.norm() + 1e-6)).clamp(max=1.0))  # 1e-6 as in torch's clipping
            adam.step()
    sound = adam.is_finite()
    if sound and errors:
        adam.commit()
    loss = mean_loss(_totals(errors), sizes, ranks) if errors else None
    return CriticFit(FitOutcome.FITTED if sound else FitOutcome.DIVERGED, loss)


def _totals(errors: list[th.Tensor]) -> th.Tensor:
    """Sum the squares of each minibatch, all in one go."""
    indices = th.arange(len(errors)).repeat_interleave(th.tensor([len(error) for error in errors]))
    squares = th.cat(errors).flatten().square()
    return squares.new_zeros(len(errors)).index_add_(0, indices.to(squares.device), squares)
