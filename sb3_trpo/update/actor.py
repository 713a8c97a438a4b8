"""
The policy as the trust region sees it: action distributions in some states, and their derivatives in the parameters.

Any policy is run as it is and differentiated by autograd; one that is a plain stack of layers is computed on its tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import torch as th
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_trpo.distributions.kinds import family
from sb3_trpo.networks.double_backward import twice_differentiable
from sb3_trpo.networks.layers import Tape
from sb3_trpo.networks.plain_network import Networks
from sb3_trpo.numerics.flat import flatten, unflatten
from sb3_trpo.numerics.gauss_newton import Linearisation, Outputs, linearise
from sb3_trpo.rollouts.inputs import PolicyInputs
from sb3_trpo.rollouts.transitions import CACHE_LIMITS, GRAPH_LIMITS, ChunkLimits


class LocalPolicy(NamedTuple):
    """
    A policy in some states and at its current parameters.

    :param distribution: the action distribution, with a graph
    :param gradient: differentiates a scalar computed from it in the parameters, shape ``(n_parameters,)``; if told to retain
        the graph, it can be linearised after that too
    :param linearise: gives the products with the derivative of its parameters z; metrics that ignore a shift of z, like those
        of categoricals, may be given z up to one
    :param n_bytes: memory that the derivatives hold, infinite if not known
    """

    distribution: Distribution
    gradient: Callable[[th.Tensor, bool], th.Tensor]
    linearise: Callable[[], Linearisation]
    n_bytes: float


class Actor(Protocol):
    """A policy as a function of its inputs, at whatever its parameters are when it is called."""

    @property
    def chunk_limits(self) -> ChunkLimits:
        """How many transitions suit it at a time."""
        ...

    def distribution(self, inputs: PolicyInputs) -> Distribution:
        """Compute the action distribution."""
        ...

    def local(self, inputs: PolicyInputs) -> LocalPolicy:
        """Compute the action distribution with its derivatives."""
        ...


@dataclass(frozen=True)
class AutogradActor:
    """
    Any SB3 policy, by its own methods.

    :param policy: in evaluation mode
    :param parameters: what to differentiate in
    """

    policy: ActorCriticPolicy
    parameters: Sequence[th.Tensor]
    chunk_limits: ClassVar[ChunkLimits] = GRAPH_LIMITS

    def distribution(self, inputs: PolicyInputs) -> Distribution:
        """Compute the action distribution."""
        with twice_differentiable(self.policy):  # the same kernels, so that the same parameters give a KL of 0
            return inputs.distribution(self.policy)

    def local(self, inputs: PolicyInputs) -> LocalPolicy:
        """Compute the action distribution with the graph of its derivatives."""
        distribution = self.distribution(inputs)
        z = family(distribution).parameters(distribution)

        def gradient(scalar: th.Tensor, retain_graph: bool) -> th.Tensor:
            return flatten(th.autograd.grad(scalar, self.parameters, retain_graph=retain_graph, materialize_grads=True))

        return LocalPolicy(distribution, gradient, lambda: linearise(z, self.parameters), math.inf)


class NetworkActor:
    """
    A policy that is a plain stack of layers: no module is called, and one pass serves gradient and Fisher products.

    :param policy: gives the type of distribution
    :param networks: read out of it
    :param parameters: what to differentiate in: the tensors of the actor, all of them, in any order
    """

    def __init__(self, policy: ActorCriticPolicy, networks: Networks, parameters: Sequence[th.Tensor]) -> None:
        self._action_dist = policy.action_dist
        self._networks = networks
        self._parameters = parameters
        places = {id(parameter): place for place, parameter in enumerate(parameters)}
        self._places = [places[id(tensor)] for tensor in networks.actor.tensors]
        self._log_std_place = places.get(id(networks.log_std))
        self._is_complete = len(places) == len(self._places) + (self._log_std_place is not None)
        self._latest: tuple[PyTorchObs, th.Tensor] | None = None
        self.chunk_limits = CACHE_LIMITS if parameters[0].device.type == "cpu" else GRAPH_LIMITS

    def distribution(self, inputs: PolicyInputs) -> Distribution:
        """Compute the action distribution."""
        with th.no_grad():
            output = self._networks.actor(self._networks.features(inputs.observations))
            return inputs.restrict(self._distribution(output))

    def local(self, inputs: PolicyInputs) -> LocalPolicy:
        """Compute the action distribution and keep the activations for its derivatives."""
        observations = inputs.observations
        with th.no_grad():
            tape = self._networks.actor.record(self._features(observations))
        output = tape.output.requires_grad_()
        log_std = self._networks.log_std
        leaves = [output] if log_std is None or self._log_std_place is None else [output, log_std]

        def gradient(scalar: th.Tensor, retain_graph: bool) -> th.Tensor:
            of_leaves = th.autograd.grad(scalar, leaves, retain_graph=retain_graph, materialize_grads=True)
            return self._pull(observations, tape, *of_leaves)

        seen = observations.values() if isinstance(observations, dict) else (observations,)
        held = {id(tensor): tensor.numel() * tensor.element_size() for tensor in (*seen, *tape.hidden, *tape.kept)}
        n_bytes = sum(held.values())
        distribution = inputs.restrict(self._distribution(output))
        return LocalPolicy(distribution, gradient, lambda: self._linearise(observations, tape, distribution), n_bytes)

    def _features(self, observations: PyTorchObs) -> th.Tensor:
        """Make features, or give the last ones again: the passes at the same observations follow each other."""
        if self._latest is None or self._latest[0] is not observations:
            self._latest = observations, self._networks.features(observations)
        return self._latest[1]

    def _distribution(self, output: th.Tensor) -> Distribution:
        log_std = self._networks.log_std
        return self._action_dist.proba_distribution(*((output,) if log_std is None else (output, log_std)))

    @th.no_grad()
    def _pull(
        self, observations: PyTorchObs, tape: Tape, cotangent: th.Tensor, of_log_std: th.Tensor | None = None
    ) -> th.Tensor:
        """Compute the flat ``J^T u`` with J by the stack's output and the logarithm of the standard deviation."""
        flat = cotangent.new_empty(sum(parameter.numel() for parameter in self._parameters))
        if not self._is_complete:
            flat.zero_()
        out = unflatten(flat, self._parameters)
        self._networks.actor.pull(self._features(observations), tape, cotangent, [out[place] for place in self._places])
        if of_log_std is not None and self._log_std_place is not None:
            out[self._log_std_place].copy_(of_log_std)
        return flat

    def _linearise(self, observations: PyTorchObs, tape: Tape, distribution: Distribution) -> Linearisation:
        """Give J v and J^T u of z: one entry per choice, or mean and standard deviation."""
        widths = [part.shape[1] for part in family(distribution).parameters(distribution)]
        std = None if self._networks.log_std is None else self._networks.log_std.detach().exp()

        @th.no_grad()
        def jvp(v: th.Tensor) -> Outputs:
            views = unflatten(v, self._parameters)
            output = self._networks.actor.push(self._features(observations), tape, [views[place] for place in self._places])
            if std is None:
                return th.split(output, widths, dim=1)
            tangent = th.zeros_like(std) if self._log_std_place is None else std * views[self._log_std_place]
            return output, tangent.expand_as(output)

        def vjp(u: Outputs) -> th.Tensor:
            if std is None:
                return self._pull(observations, tape, u[0] if len(u) == 1 else th.cat(u, dim=1))
            return self._pull(observations, tape, u[0], (std * u[1]).sum(0))

        return Linearisation(jvp, vjp)


def make_actor(policy: ActorCriticPolicy, networks: Networks | None, parameters: Sequence[th.Tensor]) -> Actor:
    """
    Choose how to differentiate a policy: layer by layer if that gives every derivative that is wanted, once.

    :param policy: in evaluation mode
    :param networks: read out of it, ``None`` if it has no such form
    :param parameters: what to differentiate in: frozen ones are missing
    :return: the actor
    """
    if networks is None:
        return AutogradActor(policy, parameters)
    wanted, stack = {id(parameter) for parameter in parameters}, {id(tensor) for tensor in networks.actor.tensors}
    covers = len(stack) == len(networks.actor.tensors) and wanted - {id(networks.log_std)} == stack
    return NetworkActor(policy, networks, parameters) if covers else AutogradActor(policy, parameters)
