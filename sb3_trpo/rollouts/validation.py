"""Checks before an update: a rollout must hold finite numbers only, and observations must fit their space."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer

from sb3_trpo.distributions.base import NAN_ADVICE
from sb3_trpo.rollouts.floating_point import as_float32
from sb3_trpo.rollouts.plain_spaces import Observation


def require_finite(buffer: RolloutBuffer, last_observation: Observation | None = None) -> None:
    """
    Raise if a rollout holds numbers that would spoil the update.

    :param buffer: a full rollout buffer, flattened over (step, env) or not
    :param last_observation: observations after the last step; their values enter the returns. ``None`` if not known
    :raises ValueError: if observations, rewards, values, returns or advantages are not finite; names the first place
    """
    # Observations first: one that is not finite spoils values and returns too, and is the cause to report.
    _require_finite(buffer, _named(buffer.observations))
    fault = None if last_observation is None else non_finite_observation(last_observation, buffer.buffer_size)
    if fault is not None:
        raise fault
    _require_finite(buffer, {name: getattr(buffer, name) for name in ("rewards", "values", "returns", "advantages")})


def _require_finite(buffer: RolloutBuffer, quantities: dict[str, np.ndarray]) -> None:
    for name, array in quantities.items():
        place = _first_non_finite(array)
        if place is not None:
            is_flat = buffer.generator_ready and name != "rewards"  # get() flattens (step, env) of all but the rewards
            env, step = divmod(place[0], buffer.buffer_size) if is_flat else (place[1], place[0])
            raise _non_finite_error(name, array[place], env, step, place[1 if is_flat else 2 :])


def truncated_observation(info: dict[str, Any]) -> Any:
    """
    Return the last observation of an episode that a time limit truncated; its value enters the returns.

    :param info: info dict of an environment at the end of an episode
    :return: the observation; ``None`` if the episode ended by itself
    """
    return info.get("terminal_observation") if info.get("TimeLimit.truncated", False) else None


def require_finite_end(info: dict[str, Any], env: int, step: int) -> None:
    """
    Raise if the last observation of an episode would spoil the returns.

    :param info: info dict of an environment at the end of an episode
    :param env: index of the environment
    :param step: index of the step in the rollout
    :raises ValueError: if a time limit cut the episode off at an observation that is not finite
    """
    last = truncated_observation(info)
    for name, part in ({} if last is None else _named(last)).items():
        array = np.asarray(part)
        place = _first_non_finite(array)
        if place is not None:
            raise _non_finite_error(name.replace("observations", "terminal_observation"), array[place], env, step, place)


def unfit_observation(observation: Any, space: spaces.Space[Any], n_envs: int, step: int) -> ValueError | None:
    """
    Check shapes, types and finiteness of observations.

    :param observation: one observation per environment
    :param space: the space that each should be in
    :param n_envs: number of environments
    :param step: index of the step in the rollout
    :return: an error that names the fault, ``None`` if there is none
    """
    parts = space.spaces if isinstance(space, spaces.Dict) else {None: space}
    for key, part in parts.items():
        seen = np.asarray(observation if key is None else observation.get(key))
        if seen.dtype == object or seen.shape != (n_envs, *part.shape):  # type: ignore[misc]  # SB3 knows no space without a shape
            return ValueError(
                f"The environment returned {'an observation' if key is None else f'observations[{key!r}]'} of shape "
                f"{seen.shape[1:]} and type {seen.dtype} at step {step} of the rollout, but its space is {part}. "
                "The policy is unchanged. Fix the environment; gymnasium.utils.env_checker.check_env finds such faults."
            )
    return non_finite_observation(observation, step)


def unfit_weights(policy: th.nn.Module) -> ValueError | None:
    """
    Check that a policy's weights have the type in which SB3 passes observations to it, and are not NaN.

    :param policy: the policy, after it has failed to act
    :return: an error that names the other type or NaN, ``None`` if there is neither
    """
    others = {parameter.dtype for parameter in policy.parameters() if parameter.is_floating_point()} - {th.float32}
    if not others:
        return ValueError(NAN_ADVICE) if any(bool(parameter.isnan().any()) for parameter in policy.parameters()) else None
    return ValueError(
        f"The policy's parameters are of the type {next(iter(others))}, but SB3 passes it observations in torch.float32, "
        "so it could not act. Call model.policy.float(), or let its features extractor convert them."
    )


def non_finite_observation(observation: Observation, step: int) -> ValueError | None:
    """
    Check finiteness of observations.

    :param observation: one observation per environment
    :param step: index of the step in the rollout
    :return: an error that names the environment, ``None`` if all numbers are finite
    """
    for name, array in _named(observation).items():
        place = _first_non_finite(array)
        if place is not None:
            return _non_finite_error(name, array[place], place[0], step, place[1:])
    return None


def _named(observation: Observation) -> dict[str, np.ndarray]:
    if isinstance(observation, dict):
        return {f"observations[{key!r}]": part for key, part in observation.items()}
    return {"observations": observation}


def _first_non_finite(array: np.ndarray) -> tuple[int, ...] | None:
    """Find the first number that is not finite in float32, which the policy sees whatever the type of the space."""
    if not np.issubdtype(array.dtype, np.floating):
        return None
    are_finite = np.isfinite(as_float32(array))
    return None if are_finite.all() else tuple(int(index) for index in np.argwhere(~are_finite)[0])


def _non_finite_error(name: str, value: float, env: int, step: int, entry: tuple[int, ...]) -> ValueError:
    shown = f"{value}" if not math.isfinite(value) else f"{value}, too large for the float32 that policies see,"
    where = f", in entry {[*entry]}" if entry else ""
    return ValueError(
        f"The rollout holds non-finite {name}: {shown} in environment {env} at step {step} of the rollout{where}. The update "
        "was not started: the policy is unchanged and can be saved. Fix the environment, or wrap it in "
        "stable_baselines3.common.vec_env.VecCheckNan to see where such a number first appears. A reward at a time limit "
        "includes the value of the episode's last observation."
    )
