"""
The policy as the trust region sees it: action distributions at some states, and their derivatives in the parameters.

:class:`AutogradActor` runs any policy and differentiates it with autograd. :class:`NetworkActor` is for policies that are a
plain stack of layers and a head: it works on their tensors directly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import copy
from functools import cache
from typing import ClassVar, NamedTuple, Protocol

import torch as th
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_trpo.distributions.base import DistributionKind
from sb3_trpo.distributions.registry import CORE_KINDS, kind_of
from sb3_trpo.networks.double_backward import twice_differentiable
from sb3_trpo.networks.forward_mode import are_adjoint, forward_jvp
from sb3_trpo.networks.plain_network import Networks
from sb3_trpo.networks.prepared.products import PreparedProducts, Workspace
from sb3_trpo.networks.stack import Intermediates
from sb3_trpo.numerics.flat import flatten, unflatten
from sb3_trpo.numerics.gauss_newton import Linearization, Outputs, linearize, vjp_of
from sb3_trpo.rollouts.inputs import PolicyInputs
from sb3_trpo.rollouts.transitions import CACHE_LIMITS, GRAPH_LIMITS, ChunkLimits

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


JVP = Callable[[], th.Tensor]
"""Computes ``J v`` of a stack, with v where it has been prepared to look for it."""
VJP = Callable[[th.Tensor], object]
"""Computes ``J^T u`` of a stack, and writes it where it has been prepared to."""


class LocalPolicy(NamedTuple):
    """
    A policy at some states and at its current parameters.

    :param kind: the kind of its distribution
    :param distribution: the action distribution, with its graph
    :param gradient: ``(scalar, retain_graph) -> gradient``, shape ``(n_parameters,)``, of a scalar computed from the
        distribution; to linearize the policy afterwards, retain the graph
    :param linearize: returns the products with the derivative of the distribution's parameters z. They may ignore a shift of z
        that the Fisher metric maps to 0
    :param n_bytes: memory that the derivatives hold, in bytes; infinite if unknown
    """

    kind: DistributionKind
    distribution: Distribution
    gradient: Callable[[th.Tensor, bool], th.Tensor]
    linearize: Callable[[], Linearization]
    n_bytes: float


class Actor(Protocol):
    """A policy as a function of its inputs; each call uses the current parameters."""

    @property
    def chunk_limits(self) -> ChunkLimits:
        """How many transitions to process at a time."""
        ...

    def kind_of(self, distribution: Distribution) -> DistributionKind:
        """Find the kind of one of the actor's distributions."""
        ...

    def distribution(self, inputs: PolicyInputs) -> Distribution:
        """Compute the action distribution."""
        ...

    def local(self, inputs: PolicyInputs) -> LocalPolicy:
        """Compute the action distribution with its derivatives."""
        ...


class AutogradActor:
    """
    Any SB3 policy, run by its own methods.

    ``J v`` comes from forward mode if there are convolutions, for which it is quicker, and otherwise from a backward pass
    through the backward pass.

    :param policy: the policy, in evaluation mode
    :param parameters: the tensors to differentiate with respect to
    :param kinds: known kinds of distributions
    """

    chunk_limits: ClassVar[ChunkLimits] = GRAPH_LIMITS

    def __init__(
        self, policy: ActorCriticPolicy, parameters: Sequence[th.Tensor], kinds: Sequence[DistributionKind] = CORE_KINDS
    ) -> None:
        self._policy = copy(policy)  # the same modules, with its own distribution object: another thread may predict meanwhile
        self._policy.action_dist = copy(policy.action_dist)
        self._parameters = parameters
        self._kinds = kinds
        self._tries_forward_mode = any(isinstance(module, CONVOLUTIONS) for module in policy.modules())
        self._is_checked = False

    def kind_of(self, distribution: Distribution) -> DistributionKind:
        """Look up the kind: a custom policy may return any distribution."""
        return kind_of(distribution, self._kinds)

    def distribution(self, inputs: PolicyInputs) -> Distribution:
        """Compute the action distribution."""
        with twice_differentiable(self._policy):  # the kernels of local(): unchanged parameters give a KL of exactly 0
            return inputs.distribution(self._policy)

    def local(self, inputs: PolicyInputs) -> LocalPolicy:
        """Compute the action distribution with the graph of its derivatives."""
        distribution = self.distribution(inputs)
        kind = self.kind_of(distribution)
        z = kind.parameters(distribution)

        def gradient(scalar: th.Tensor, retain_graph: bool) -> th.Tensor:
            return flatten(th.autograd.grad(scalar, self._parameters, retain_graph=retain_graph, materialize_grads=True))

        return LocalPolicy(kind, distribution, gradient, lambda: self._linearize(z, inputs), math.inf)

    def _linearize(self, z: Outputs, inputs: PolicyInputs) -> Linearization:
        """Make the products with J."""
        if not self._tries_forward_mode:
            return linearize(z, self._parameters)

        def outputs(policy: ActorCriticPolicy) -> Outputs:
            policy.action_dist = copy(policy.action_dist)  # the surrogate still reads the policy's own
            distribution = inputs.distribution(policy)
            return self.kind_of(distribution).parameters(distribution)

        def jvp(v: th.Tensor) -> Outputs:  # the check enables gradients
            return forward_jvp(self._policy, self._parameters, unflatten(v, self._parameters), outputs)

        forward = Linearization(jvp, vjp_of(z, self._parameters))

        @cache  # not before a product is needed
        def chosen() -> Linearization:
            if self._may_use(forward, z):
                return Linearization(th.no_grad()(jvp), forward.vjp)
            return linearize(z, self._parameters)

        return Linearization(lambda v: chosen().jvp(v), forward.vjp)

    def _may_use(self, forward: Linearization, z: Outputs) -> bool:
        """Try forward mode once: torch has no formula for some operations, and parts under ``no_grad`` mislead it."""
        if not self._is_checked:
            self._is_checked = True
            try:
                self._tries_forward_mode = are_adjoint(forward, z, self._parameters)
            except RuntimeError:  # NotImplementedError is one
                self._tries_forward_mode = False
        return self._tries_forward_mode


class NetworkActor:
    """
    A policy that is a plain stack of layers and a head.

    No module is called, and one forward pass serves both the gradient and the Fisher products.

    :param networks: the policy's networks
    :param parameters: the tensors to differentiate with respect to, in any order: all of the actor's stack, and any of the
        head's. The derivative with respect to others is 0
    :param kinds: known kinds of distributions
    """

    def __init__(
        self, networks: Networks, parameters: Sequence[th.Tensor], kinds: Sequence[DistributionKind] = CORE_KINDS
    ) -> None:
        self._networks = networks
        self._parameters = parameters
        self._kinds = kinds
        index = {id(parameter): position for position, parameter in enumerate(parameters)}
        self._stack_positions = [index[id(tensor)] for tensor in networks.actor.tensors]
        head_positions = [index.get(id(tensor)) for tensor in networks.head.parameters]
        self._trained = {i: position for i, position in enumerate(head_positions) if position is not None}
        """Position in ``parameters`` of each head parameter, by its index in the head; frozen ones are missing."""
        # Products read v from here and write J^T u to here, so that their views of both can be made once.
        self._v, self._flat = (th.zeros_like(flatten(parameters).detach()) for _ in range(2))
        self._d_parameters, self._cotangents = unflatten(self._v, parameters), unflatten(self._flat, parameters)
        self._workspaces: dict[int, Workspace] = {}
        self._latest: tuple[PyTorchObs, th.Tensor] | None = None
        self.chunk_limits = CACHE_LIMITS if parameters[0].device.type == "cpu" else GRAPH_LIMITS

    def kind_of(self, distribution: Distribution) -> DistributionKind:
        """Look up the kind."""
        return kind_of(distribution, self._kinds)

    def distribution(self, inputs: PolicyInputs) -> Distribution:
        """Compute the action distribution."""
        with th.no_grad():
            output = self._networks.actor(self._networks.features(inputs.observations))
            return inputs.restrict(self._networks.head.distribution(output))

    def local(self, inputs: PolicyInputs) -> LocalPolicy:
        """Compute the action distribution and keep the activations for its derivatives."""
        observations = inputs.observations
        with th.no_grad():
            intermediates = self._networks.actor.forward(self._features(observations))
        # Autograd differentiates everything after this tensor: the head, and whatever is computed from the distribution. The
        # stack differentiates everything before it.
        output = intermediates.output.requires_grad_()
        jvp, vjp = self._stack_products(observations, intermediates)

        def gradient(scalar: th.Tensor, retain_graph: bool) -> th.Tensor:
            leaves = [output, *(self._networks.head.parameters[i] for i in self._trained)]
            of_output, *of_trained = th.autograd.grad(scalar, leaves, retain_graph=retain_graph, materialize_grads=True)
            return self._flat_vjp(vjp, of_output, of_trained)

        seen = observations.values() if isinstance(observations, dict) else (observations,)
        prepared = [self._features(observations)] if self._networks.actor.is_dense else []  # products of dense layers keep it
        tensors = (*seen, *prepared, *intermediates.hidden, *intermediates.slope_inputs)
        # By identity: an activation's output is both the next layer's x and what its own slope is computed from.
        n_bytes = sum({id(tensor): tensor.numel() * tensor.element_size() for tensor in tensors}.values())
        distribution = inputs.restrict(self._networks.head.distribution(output))
        kind = self.kind_of(distribution)
        return LocalPolicy(kind, distribution, gradient, lambda: self._linearize(output.detach(), jvp, vjp), n_bytes)

    def _features(self, observations: PyTorchObs) -> th.Tensor:
        """Compute the features, or reuse the last ones: with a single chunk, every product has the same observations."""
        if self._latest is None or self._latest[0] is not observations:
            self._latest = observations, self._networks.features(observations)
        return self._latest[1]

    @th.no_grad()
    def _flat_vjp(self, stack_vjp: VJP, of_output: th.Tensor, of_trained: Sequence[th.Tensor]) -> th.Tensor:
        """Compute the flat ``J^T u`` from the cotangents of the stack's output and of the head's trained parameters."""
        stack_vjp(of_output)
        for position, cotangent in zip(self._trained.values(), of_trained, strict=True):
            self._cotangents[position].copy_(cotangent)
        return self._flat.clone()

    def _linearize(self, output: th.Tensor, stack_jvp: JVP, stack_vjp: VJP) -> Linearization:
        """Chain the derivatives of the stack and of the head."""
        head = self._networks.head
        derivative = head.linearize(output)

        @th.no_grad()
        def jvp(v: th.Tensor) -> Outputs:
            self._v.copy_(v)
            d_head = [
                self._d_parameters[self._trained[i]] if i in self._trained else th.zeros_like(tensor)
                for i, tensor in enumerate(head.parameters)
            ]
            return derivative.jvp(stack_jvp(), d_head)

        def vjp(u: Outputs) -> th.Tensor:
            of_output, of_head = derivative.vjp(u)
            return self._flat_vjp(stack_vjp, of_output, [of_head[i] for i in self._trained])

        return Linearization(jvp, vjp)

    def _stack_products(self, observations: PyTorchObs, intermediates: Intermediates) -> tuple[JVP, VJP]:
        """Make the products with the stack's derivative, which find v in ``_v`` and write to ``_flat``."""
        actor = self._networks.actor
        v, out = ([views[i] for i in self._stack_positions] for views in (self._d_parameters, self._cotangents))
        if not actor.is_dense:
            return (
                lambda: actor.jvp(self._features(observations), intermediates, v),
                lambda u: actor.vjp(self._features(observations), intermediates, u, out),
            )
        n_rows = len(intermediates.output)
        if n_rows not in self._workspaces:
            self._workspaces[n_rows] = Workspace(actor, n_rows)
        x = self._features(observations)
        prepared = PreparedProducts(actor, x, intermediates, v, out, self._workspaces[n_rows])
        return prepared.jvp, prepared.vjp


def make_actor(
    policy: ActorCriticPolicy,
    networks: Networks | None,
    parameters: Sequence[th.Tensor],
    kinds: Sequence[DistributionKind] = CORE_KINDS,
) -> Actor:
    """
    Choose how to differentiate a policy: layer by layer if the stack's tensors and the wanted parameters match one to one.

    :param policy: the policy, in evaluation mode
    :param networks: its networks, ``None`` if it is not a plain stack
    :param parameters: the tensors to differentiate with respect to, without frozen ones
    :param kinds: known kinds of distributions
    :return: the actor
    """
    if networks is None:
        return AutogradActor(policy, parameters, kinds)
    stack = networks.actor.tensors
    wanted = {id(parameter) for parameter in parameters} - {id(tensor) for tensor in networks.head.parameters}
    # The lengths differ if layers share a tensor: its derivative would be a sum, of which the stack keeps the last term only.
    covers = wanted == {id(tensor) for tensor in stack} and len(wanted) == len(stack)
    return NetworkActor(networks, parameters, kinds) if covers else AutogradActor(policy, parameters, kinds)
