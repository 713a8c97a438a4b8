"""Fisher products beside the matrix products that they cannot do without, timed in turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy

from benchmarks.common.timing import alternate, ratio, rounded, show
from sb3_trpo import CnnPolicy, MlpPolicy
from sb3_trpo.distributions.argument_checks import unvalidated
from sb3_trpo.distributions.registry import CORE_KINDS, kind_of
from sb3_trpo.networks.plain_network import read_networks
from sb3_trpo.numerics.flat import flatten, unflatten
from sb3_trpo.numerics.gauss_newton import GaussNewtonOperator
from sb3_trpo.parallel.communicator import ALONE
from sb3_trpo.rollouts.inputs import ObservationInputs
from sb3_trpo.rollouts.transitions import Transitions
from sb3_trpo.update.actor import Actor, AutogradActor, NetworkActor
from sb3_trpo.update.surrogate import CurvatureStore

CASES = [(11, 64, 3, 2048), (17, 256, 6, 2048), (17, 64, 6, 16384), (17, 256, 6, 16384)]
CNN_FRAMES = 512
Product = Callable[[th.Tensor], th.Tensor]
"""``v -> F v``."""


def product_of(actor: Actor, parameters: list[th.Tensor], observations: th.Tensor) -> Product:
    """
    Make the Fisher product that an update uses.

    :param actor: the policy
    :param parameters: parameters of the actor
    :param observations: the states; many are split into chunks
    :return: ``v -> F v``
    """
    size = min(actor.chunk_limits.transitions, max(1, actor.chunk_limits.entries // observations[0].numel()))
    nothing = th.zeros(0)
    parts = observations.split(size)
    chunks = [Transitions(ObservationInputs(part), nothing, nothing, advantages=part[:, 0], returns=nothing) for part in parts]
    curvatures = CurvatureStore(actor, chunks, are_few=2 * len(observations) <= size)
    return GaussNewtonOperator(flatten(parameters).detach(), curvatures, ALONE.mean).__matmul__


def forward_mode_product(policy: ActorCriticPolicy, parameters: dict[str, th.Tensor], observations: th.Tensor) -> Product:
    """
    Make the same product from torch's forward mode, linearized once, and one backward pass.

    :param policy: the policy
    :param parameters: the actor's parameters by name
    :param observations: the states
    :return: ``v -> F v``
    """
    like = list(parameters.values())

    def outputs(theta: th.Tensor) -> tuple[th.Tensor, ...]:
        named = dict(zip(parameters, unflatten(theta, like), strict=True))
        distribution = th.func.functional_call(
            Distribution(policy),
            {f"policy.{name}": tensor for name, tensor in named.items()},
            observations,
            tie_weights=False,  # shared features extractors have two names, and would keep the substitutes
        )
        return kind_of(distribution, CORE_KINDS).parameters(distribution)

    theta = flatten(like).detach().requires_grad_()
    z = outputs(theta)
    metric = kind_of(policy.action_dist, CORE_KINDS).fisher_metric(tuple(part.detach() for part in z))
    _, jvp = th.func.linearize(outputs, theta.detach())
    return lambda v: th.autograd.grad(z, theta, metric(jvp(v)), retain_graph=True)[0] / len(observations)


class Distribution(th.nn.Module):
    """A policy that returns its action distribution when called."""

    def __init__(self, policy: ActorCriticPolicy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, observations: th.Tensor) -> Any:
        return self.policy.get_distribution(observations)


def matmuls(d: int, width: int, m: int, n: int) -> Callable[[], None]:
    """
    Make a job of the ten matrix products in one Fisher product of an MLP with two hidden layers, into preallocated buffers.

    :param d: entries of an observation
    :param width: units of each hidden layer
    :param m: entries of an action
    :param n: number of states
    :return: the job
    """
    x, h, u = th.randn(n, d), th.randn(n, width), th.randn(n, m)
    w1, w2, w3 = th.randn(width, d), th.randn(width, width), th.randn(m, width)
    hidden, out, d1, d2, d3 = th.empty(n, width), th.empty(n, m), th.empty(d, width), th.empty_like(w2), th.empty_like(w3)

    def run() -> None:
        th.mm(x, w1.t(), out=hidden)  # J v
        th.mm(h, w2.t(), out=hidden)
        th.mm(h, w2.t(), out=hidden)
        th.mm(h, w3.t(), out=out)
        th.mm(h, w3.t(), out=out)
        th.mm(u.t(), h, out=d3)  # J^T u
        th.mm(u, w3, out=hidden)
        th.mm(h.t(), h, out=d2)
        th.mm(h, w2, out=hidden)
        th.mm(x.t(), h, out=d1)

    return run


def floors(d: int, width: int, m: int, n: int) -> dict[str, Callable[[], None]]:
    """
    Make the matrix products over all states at once, and in chunks of 2,048 states that fit a cache; the faster one counts.

    :param d: entries of an observation
    :param width: units of each hidden layer
    :param m: entries of an action
    :param n: number of states
    :return: both jobs by name
    """
    chunk = matmuls(d, width, m, 2048)
    return {"matmuls": matmuls(d, width, m, n), "matmuls, chunked": lambda: [chunk() for _ in range(n // 2048)] and None}


def measure_case(
    policy: ActorCriticPolicy, observations: th.Tensor, floor: dict[str, Callable[[], None]], repeats: int
) -> dict[str, Any]:
    """
    Time one Fisher product in every implementation.

    :param policy: the policy
    :param observations: the states
    :param floor: matrix products that it cannot do without, by name
    :param repeats: products per timing
    :return: ratios of the others to ours, and the raw times
    """
    networks = read_networks(policy)
    assert networks is not None
    of_actor = {id(tensor) for tensor in networks.policy_tensors}
    named = {name: parameter for name, parameter in policy.named_parameters() if id(parameter) in of_actor}
    parameters = list(named.values())
    products = {
        "ours": product_of(NetworkActor(networks, parameters), parameters, observations),
        "double backward": product_of(AutogradActor(policy, parameters), parameters, observations),
        "forward mode": forward_mode_product(policy, named, observations),
    }
    v = th.randn(sum(parameter.numel() for parameter in parameters))
    jobs = {name: lambda product=product: [product(v) for _ in range(repeats)] for name, product in products.items()}
    jobs |= {name: lambda run=run: [run() for _ in range(repeats)] for name, run in floor.items()}
    times = alternate(jobs, 7)
    others = {name: ratio(times[name], times["ours"]) for name in ("double backward", "forward mode")}
    result = {"others_over_ours": others, "seconds": rounded(times), "products": repeats}
    if floor:
        fastest = min(floor, key=lambda name: np.median(times[name]))
        result |= {"floor": fastest, "ours_over_matmuls": ratio(times["ours"], times[fastest])}
    return result


def measure_products() -> dict[str, Any]:
    """
    Time Fisher products of MLPs and of NatureCNN.

    :return: results by case
    """
    results = {}
    with unvalidated():
        for d, width, m, n in CASES:
            space, actions = spaces.Box(-np.inf, np.inf, (d,)), spaces.Box(-1.0, 1.0, (m,))
            policy = MlpPolicy(space, actions, lambda _: 1e-3, net_arch=[width, width])
            repeats = max(2, round(30 * 2048 / n * (64 / width) ** 2))
            name = f"{n:,} states, {d}-{width}-{width}-{m}"
            results[name] = measure_case(policy, th.randn(n, d), floors(d, width, m, n), repeats)
            print(f"| {name} | {show(results[name]['ours_over_matmuls'])} |", flush=True)
        policy = CnnPolicy(spaces.Box(0, 255, (4, 84, 84), np.uint8), spaces.Discrete(6), lambda _: 1e-3)
        frames = th.randint(0, 256, (CNN_FRAMES, 4, 84, 84), dtype=th.uint8)
        results["NatureCNN, 512 frames"] = measure_case(policy, frames, {}, 1)
    for name, result in results.items():
        print(f"| {name} | " + " | ".join(f"{k}: {show(r)}" for k, r in result["others_over_ours"].items()) + " |", flush=True)
    return results
