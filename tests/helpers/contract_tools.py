"""What the contract tests share: one update seen from outside, and which parameters matter to what."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_trpo import TRPO

ROUNDING = 2e-6
"""What two ways to compute a KL of about 0.01 in float32 may differ by."""


class Update(NamedTuple):
    """
    One update: its log, how step and fit ended, the joint KL(old || new) over its rollout measured again, and the names of the
    parameters it moved.
    """

    log: dict[str, Any]
    outcome: str
    critic_outcome: str
    kl: float
    moved: set[str]


def one_update(model: TRPO) -> Update:
    """Collect one rollout and update once. Any schedule is at its end then, for no progress remains."""
    old = parameters(model.policy)
    model.learn(model.n_steps * model.n_envs)
    return Update(
        dict(model.logger.name_to_value),
        model.policy_outcome.value,
        model.critic_outcome.value,
        joint_kl(model, old),
        moved_since(old, model.policy),
    )


def policy_step(model: TRPO) -> Update:
    """Take one trust-region step alone."""
    model.n_critic_updates, passes = 0, model.n_critic_updates
    update = one_update(model)
    model.n_critic_updates = passes
    assert update.outcome == "accepted"
    return update


def critic_fit(model: TRPO) -> Update:
    """Fit the critic alone: the trust region has shrunk to nothing."""
    model.target_kl, target_kl = (lambda progress_remaining: 0.01 * progress_remaining), model.target_kl
    update = one_update(model)
    model.target_kl = target_kl
    assert update.outcome == "empty trust region"
    return update


def parameters(policy: ActorCriticPolicy) -> dict[str, th.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in policy.named_parameters()}


def moved_since(old: dict[str, th.Tensor], policy: ActorCriticPolicy) -> set[str]:
    """Name the parameters that are not what they were, bit for bit."""
    return {name for name, parameter in policy.named_parameters() if not th.equal(parameter, old[name])}


def same_parameters(one: ActorCriticPolicy, other: ActorCriticPolicy) -> bool:
    """Compare parameters and buffers bit for bit."""
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(name == other_name and th.equal(a, b) for (name, a), (other_name, b) in pairs)


def observations(model: TRPO) -> Any:
    return next(model.rollout_buffer.get()).observations


@th.no_grad()
def joint_kl(model: TRPO, old: dict[str, th.Tensor]) -> float:
    """Measure the mean joint KL(old || current) over the rollout with torch's own divergences."""
    seen, new = observations(model), parameters(model.policy)
    assign(model.policy, old)
    old_factors = factors(model.policy, seen)
    assign(model.policy, new)
    divergences = [
        th.distributions.kl_divergence(p, q).reshape(len(model.rollout_buffer.advantages), -1).sum(1)
        for p, q in zip(old_factors, factors(model.policy, seen), strict=True)
    ]
    return float(th.stack(divergences).sum(0).mean())


def factors(policy: ActorCriticPolicy, seen: Any) -> list[th.distributions.Distribution]:
    """Give the torch distributions whose product is the policy's."""
    policy.set_training_mode(False)
    distribution = policy.get_distribution(seen).distribution
    return distribution if isinstance(distribution, list) else [distribution]


@th.no_grad()
def assign(policy: ActorCriticPolicy, values: dict[str, th.Tensor]) -> None:
    for name, parameter in policy.named_parameters():
        parameter.copy_(values[name])


def shape_actions(model: TRPO) -> set[str]:
    """Find by disturbing them which parameters the action distribution depends on."""
    seen = observations(model)

    def outputs() -> list[th.Tensor]:
        normal = th.distributions.Normal
        return [
            tensor
            for factor in factors(model.policy, seen)
            for tensor in ((factor.mean, factor.stddev) if isinstance(factor, normal) else (factor.logits,))
        ]

    return _disturbing(model.policy, outputs)


def shape_values(model: TRPO) -> set[str]:
    """Find by disturbing them which parameters the values depend on."""
    seen = observations(model)
    return _disturbing(model.policy, lambda: [model.policy.predict_values(seen)])


@th.no_grad()
def _disturbing(policy: ActorCriticPolicy, outputs: Callable[[], list[th.Tensor]]) -> set[str]:
    policy.set_training_mode(False)
    generator, before, names = th.Generator().manual_seed(0), outputs(), set()
    for name, parameter in policy.named_parameters():
        old = parameter.clone()
        parameter.add_(th.randn(parameter.shape, generator=generator))
        if not all(map(th.equal, before, outputs())):
            names.add(name)
        parameter.copy_(old)
    return names
