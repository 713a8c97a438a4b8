"""
The critic above a features extractor that it does not train, such as one that it shares with the policy.

Whatever the extractor computes, its features stay the same during a fit. So they need to be computed once only, and what is
left of the critic is a plain stack of layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_trpo.networks.plain_network import are_uniform, computes_as_known, is_altered, is_known
from sb3_trpo.networks.reading.features import Features
from sb3_trpo.networks.reading.purity import undisturbed
from sb3_trpo.networks.reading.tracing import trace
from sb3_trpo.networks.stack import Stack


def read_upper_critic(policy: ActorCriticPolicy, parameters: Sequence[nn.Parameter]) -> tuple[Features, Stack] | None:
    """
    Read the critic's layers above its features extractor.

    :param policy: the policy
    :param parameters: parameters that the critic may move
    :return: the function from observations to features, and the layers; ``None`` if the extractor is to be moved too, or
        anything above it is not plain
    """
    if not computes_as_known(policy, [ActorCriticPolicy], ("predict_values", "extract_features")):
        return None
    extractor, above = policy.vf_features_extractor, (policy.mlp_extractor, policy.value_net)
    is_moved = {*map(id, extractor.parameters())} & {*map(id, parameters)}
    is_plain = all(is_known(module) and not [*module.buffers()] for part in above for module in part.modules())
    if is_moved or not is_plain or any(map(is_altered, policy.modules())):
        return None
    stack = trace([policy.mlp_extractor.forward_critic, policy.value_net], is_flat=True)

    def features(observations: PyTorchObs) -> th.Tensor:
        return BasePolicy.extract_features(policy, observations, extractor)

    return (features, stack) if stack is not None and are_uniform(stack.tensors) else None


@th.no_grad()
def are_constant(policy: ActorCriticPolicy, features: Features, observations: PyTorchObs) -> bool:
    """
    Check that features depend on nothing but the observation: dropout draws numbers, and batch norm may mix states.

    :param policy: its modules compute the features; they are as before afterwards, and no random number is drawn
    :param features: the function
    :param observations: some observations, at least two
    :return: whether calls change nothing and agree: with all observations, in another order, and with each one alone
    """
    n = len(next(iter(observations.values())) if isinstance(observations, dict) else observations)
    subsets = [[*range(n)], [*range(n)], [*reversed(range(n))], *([i] for i in range(n))]
    try:
        with undisturbed(*policy.children()) as purity:
            found, again, *others = [features(_selected(observations, subset)) for subset in subsets]
    except Exception:  # whatever the user's code does, and side effects, which are refused
        return False
    of_each = zip(others, subsets[2:], strict=True)
    is_alike = all(th.allclose(other, found[subset], rtol=1e-4, atol=1e-5) for other, subset in of_each)
    return purity.is_kept and th.equal(found, again) and is_alike


def _selected(observations: PyTorchObs, subset: list[int]) -> PyTorchObs:
    if isinstance(observations, dict):
        return {key: part[subset] for key, part in observations.items()}
    return observations[subset]
