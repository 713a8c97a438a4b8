"""
What the package computes without matrices, here with them: dense, in float64, from SB3's networks and torch's distributions.

Also the policies and transitions to compare on, and interrupts at chosen moments.

SB3's ``preprocess_obs`` casts every observation to float32, so :func:`make_policy` has the features extractors cast back.
"""

import gc
import math
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from torch.autograd.functional import hessian, jacobian
from torch.distributions import Bernoulli, Beta, Categorical, Distribution, Normal, kl_divergence

from sb3_trpo import CnnPolicy, MlpPolicy, MultiInputPolicy
from sb3_trpo.distributions.base import DistributionKind
from sb3_trpo.distributions.registry import CORE_KINDS
from sb3_trpo.networks.plain_network import Networks, read_networks
from sb3_trpo.rollouts.inputs import ObservationInputs
from sb3_trpo.rollouts.transitions import Transitions

VECTOR = spaces.Box(-1.0, 1.0, (3,), np.float32)
IMAGE = spaces.Box(0, 255, (1, 36, 36), np.uint8)
MIXED = spaces.Dict({"vector": VECTOR, "number": spaces.Discrete(3), "image": IMAGE})
CONTINUOUS = spaces.Box(-1.0, 1.0, (2,), np.float32)
BOUNDED = spaces.Box(np.array([-1.0, 0.0], np.float32), np.array([3.0, 10.0], np.float32))
SMALL = {"net_arch": [4]}
FEW_FEATURES = {"features_extractor_kwargs": {"features_dim": 8}}
GSDE = SMALL | {"use_sde": True}


class Case(NamedTuple):
    policy_class: type[ActorCriticPolicy]
    observations: spaces.Space
    actions: spaces.Space
    kwargs: dict


SMALL_CASES = {
    "gaussian": Case(MlpPolicy, VECTOR, CONTINUOUS, SMALL),
    "categorical": Case(MlpPolicy, VECTOR, spaces.Discrete(3), SMALL),
    "multi-categorical": Case(MlpPolicy, VECTOR, spaces.MultiDiscrete([2, 3]), SMALL),
    "bernoulli": Case(MlpPolicy, VECTOR, spaces.MultiBinary(3), SMALL),
    "beta": Case(MlpPolicy, VECTOR, BOUNDED, SMALL | {"action_distribution": "beta"}),
    "gsde": Case(MlpPolicy, VECTOR, CONTINUOUS, GSDE),
    "gsde-squashed": Case(MlpPolicy, VECTOR, CONTINUOUS, GSDE | {"squash_output": True}),
    "gsde-expln": Case(MlpPolicy, VECTOR, CONTINUOUS, GSDE | {"full_std": False, "use_expln": True}),
}
LARGE_CASES = {
    "cnn": Case(CnnPolicy, IMAGE, CONTINUOUS, FEW_FEATURES),
    "cnn-shared": Case(CnnPolicy, IMAGE, spaces.Discrete(3), FEW_FEATURES | {"share_features_extractor": True}),
    "dict": Case(MultiInputPolicy, MIXED, CONTINUOUS, SMALL | {"features_extractor_kwargs": {"cnn_output_dim": 4}}),
}
CASES = SMALL_CASES | LARGE_CASES


def make_policy(case: Case) -> ActorCriticPolicy:
    """Build a float64 policy in evaluation mode with no parameter at a special value such as zero."""
    policy = case.policy_class(case.observations, case.actions, lambda _: 1e-3, **case.kwargs).double()
    policy.set_training_mode(False)
    generator = th.Generator().manual_seed(0)
    with th.no_grad():
        for parameter in policy.parameters():
            noise = th.randn(parameter.shape, generator=generator, dtype=th.float64)
            parameter.add_(noise, alpha=0.3 / math.sqrt(parameter[0].numel()))
    for extractor in {policy.features_extractor, policy.pi_features_extractor, policy.vf_features_extractor}:
        extractor.register_forward_pre_hook(lambda _, arguments: (_to_float64(arguments[0]),))
    return policy


def networks_of(policy: ActorCriticPolicy, kinds: Sequence[DistributionKind] = CORE_KINDS) -> Networks | None:
    """Read the networks of a policy made by :func:`make_policy` as if it had no hooks, for features of float64."""
    extractors = {policy.pi_features_extractor, policy.vf_features_extractor}
    hooks = {extractor: extractor._forward_pre_hooks for extractor in extractors}
    for extractor in extractors:
        extractor._forward_pre_hooks = OrderedDict()
    networks = read_networks(policy, kinds)
    for extractor, kept in hooks.items():
        extractor._forward_pre_hooks = kept
    return networks and networks._replace(features=lambda observations: networks.features(observations).double())


def make_transitions(case: Case, policy: ActorCriticPolicy, n: int) -> Transitions:
    """Draw random transitions, from a policy near the given one but not the same: ratios differ from 1."""
    case.actions.seed(0)
    observations = some_observations(case.observations, n)
    actions = th.as_tensor(np.stack([case.actions.sample() for _ in range(n)]))
    actions = actions if isinstance(case.actions, spaces.Discrete) else actions.double()
    generator = th.Generator().manual_seed(1)
    noise, advantages, returns = th.randn((3, n), generator=generator, dtype=th.float64)
    with th.no_grad():
        log_prob = policy.get_distribution(observations).log_prob(actions)
    return Transitions(ObservationInputs(observations), actions, log_prob + 0.1 * noise, advantages, returns)


def some_observations(space: spaces.Space, n: int) -> th.Tensor | dict[str, th.Tensor]:
    space.seed(0)
    return _stack([space.sample() for _ in range(n)])


def chunked(transitions: Transitions, size: int) -> list[Transitions]:
    n = len(transitions.advantages)
    return [take(transitions, slice(start, start + size)) for start in range(0, n, size)]


def take(transitions: Transitions, rows: slice) -> Transitions:
    observations = transitions.inputs.observations
    chosen = {key: part[rows] for key, part in observations.items()} if isinstance(observations, dict) else observations[rows]
    return Transitions(ObservationInputs(chosen), *(part[rows] for part in transitions[1:5]))


class CountedReads(Sequence):
    """Chunks that count how often one is read."""

    def __init__(self, chunks: Sequence[Transitions]) -> None:
        self.chunks, self.n_reads = chunks, 0

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, index: int) -> Transitions:
        chunk = self.chunks[index]
        self.n_reads += 1
        return chunk


def torch_distributions(distribution: object) -> list[Distribution]:
    """Unwrap SB3's distribution to independent distributions of torch."""
    inner = distribution.distribution
    return inner if isinstance(inner, list) else [inner]


def parameters_of(parts: list[Distribution]) -> th.Tensor:
    """Join the parameters z of a state into a row, shape ``(n, k)``."""
    return th.cat([z for part in parts for z in _parameters_of(part)], -1)


def _parameters_of(part: Distribution) -> list[th.Tensor]:
    if isinstance(part, Beta):
        return [part.concentration1, part.concentration0]
    return [part.loc, part.scale] if isinstance(part, Normal) else [part.logits]


def rebuild(like: list[Distribution], z: th.Tensor) -> list[Distribution]:
    """Make distributions of the same kinds from other parameters: the inverse of :func:`parameters_of`."""
    parts = []
    for part in like:
        if isinstance(part, (Beta, Normal)):
            size = part.mean.shape[-1]
            parts.append(type(part)(z[:, :size], z[:, size : 2 * size]))
            z = z[:, 2 * size :]
        else:
            size = part.logits.shape[-1]
            parts.append((Categorical if isinstance(part, Categorical) else Bernoulli)(logits=z[:, :size]))
            z = z[:, size:]
    return parts


def joint_kl(old: list[Distribution], new: list[Distribution]) -> th.Tensor:
    """Sum torch's divergences over action dimensions, shape ``(n,)``."""
    return sum(kl.flatten(1).sum(1) if kl.dim() > 1 else kl for kl in map(kl_divergence, old, new))


def dense_metric(parts: list[Distribution]) -> th.Tensor:
    """Differentiate KL(old || .) twice in z, shape ``(n, k, k)``."""
    z = parameters_of(parts).detach()
    old = rebuild(parts, z)
    full = hessian(lambda new: joint_kl(old, rebuild(old, new)).sum(), z)
    return th.stack([full[state, :, state] for state in range(len(z))])


class DensePolicy:
    """A policy as a function of one flat vector of all its parameters, the critic's included."""

    def __init__(self, policy: ActorCriticPolicy, observations: th.Tensor | dict[str, th.Tensor]) -> None:
        self.parameters = dict(policy.named_parameters())
        self.observations = observations
        self.module = _GetDistribution(policy)
        self.theta = th.cat([parameter.detach().reshape(-1) for parameter in self.parameters.values()])

    def distributions(self, theta: th.Tensor) -> list[Distribution]:
        pieces = theta.split([old.numel() for old in self.parameters.values()])
        named = {
            f"policy.{name}": piece.view_as(old) for (name, old), piece in zip(self.parameters.items(), pieces, strict=True)
        }
        # Not tie_weights=True: a module that is known by two names, as features extractors are, would keep what it was lent.
        return th.func.functional_call(self.module, named, (self.observations,), tie_weights=False)

    def jacobian(self) -> th.Tensor:
        """J, shape ``(n, k, n_parameters)``."""
        return jacobian(lambda theta: parameters_of(self.distributions(theta)), self.theta)

    def fisher_product(self) -> Callable[[th.Tensor], th.Tensor]:
        """``v -> mean(J^T M J) v`` from dense J and M."""
        jac, metric = self.jacobian(), dense_metric(self.distributions(self.theta))
        return lambda v: th.einsum("nkp,nkl,nl->p", jac, metric, jac @ v) / len(jac)

    def fisher(self) -> th.Tensor:
        """``mean(J^T M J)``, shape ``(n_parameters, n_parameters)``."""
        jac, metric = self.jacobian(), dense_metric(self.distributions(self.theta))
        return th.einsum("nkp,nkl,nlq->pq", jac, metric, jac) / len(jac)

    def kl_hessian(self) -> th.Tensor:
        """Hessian of the mean KL(old || theta) at the old parameters."""
        old = [*self.distributions(self.theta)]
        return hessian(lambda theta: joint_kl(old, self.distributions(theta)).mean(), self.theta)


@contextmanager
def interrupt_at(moment: int) -> Iterator[None]:
    """Raise ``KeyboardInterrupt`` where Python would deliver a signal: at a function's start or after a call into C."""
    left, collects = moment, gc.isenabled()

    def profile(frame, event, argument):
        nonlocal left
        left -= event in ("call", "c_return")
        if left < 0:
            sys.setprofile(None)
            raise KeyboardInterrupt

    gc.disable()  # hypothesis times collections by a callback, in which the interrupt would be lost
    sys.setprofile(profile)
    try:
        yield
    finally:
        sys.setprofile(None)
        if collects:
            gc.enable()


class _GetDistribution(th.nn.Module):
    def __init__(self, policy: ActorCriticPolicy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, observations: th.Tensor | dict[str, th.Tensor]) -> list[Distribution]:
        return torch_distributions(self.policy.get_distribution(observations))


def _to_float64(observations: th.Tensor | dict[str, th.Tensor]) -> th.Tensor | dict[str, th.Tensor]:
    if isinstance(observations, dict):
        return {key: part.double() for key, part in observations.items()}
    return observations.double()


def _stack(samples: list) -> th.Tensor | dict[str, th.Tensor]:
    if isinstance(samples[0], dict):
        return {key: _stack([sample[key] for sample in samples]) for key in samples[0]}
    return th.as_tensor(np.stack(samples))
