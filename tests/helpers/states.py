"""What an update may change, copied and compared bit for bit."""

import copy
from typing import Any

import torch as th
from helpers.contract_tools import parameters
from stable_baselines3.common.policies import ActorCriticPolicy


def training_state(policy: ActorCriticPolicy) -> tuple[dict[str, th.Tensor], dict[str, Any]]:
    """Copy the policy's parameters and the state of its optimizer."""
    return parameters(policy), copy.deepcopy(policy.optimizer.state_dict())


def same(left: Any, right: Any) -> bool:
    """Compare nested containers of tensors and numbers."""
    if isinstance(left, th.Tensor):
        return left.dtype == right.dtype and left.shape == right.shape and left.numpy().tobytes() == right.numpy().tobytes()
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right
