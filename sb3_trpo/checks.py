"""What each setting may be: errors name what was given, what is allowed and what to do, before any work is lost."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import Schedule


class Rule(NamedTuple):
    """What a setting must satisfy, in code and in words, and a sane choice."""

    holds: Callable[[Any], bool]
    allowed: str
    advice: str


def count(least: int) -> Callable[[Any], bool]:
    """
    Make a rule for integers.

    :param least: the smallest allowed
    :return: tells whether a value is one
    """
    return lambda value: isinstance(value, Integral) and int(value) >= least


RULES: dict[str, Rule] = {
    "n_steps": Rule(count(1), "an integer >= 1", "The default is 2048."),
    "batch_size": Rule(count(1), "an integer >= 1", "The default is 128."),
    "gamma": Rule(
        lambda v: 0.0 <= v <= 1.0, "a number, in [0, 1]", "The default is 0.99; above 1 returns grow without bound."
    ),
    "gae_lambda": Rule(lambda v: 0.0 <= v <= 1.0, "a number, in [0, 1]", "The default is 0.95."),
    "n_critic_updates": Rule(count(0), "an integer >= 0", "The default is 20."),
    "cg_max_steps": Rule(count(1), "an integer >= 1", "The default is 15."),
    "cg_damping": Rule(lambda v: 0.0 <= v < math.inf, "a number, finite and >= 0", "The default is 0.1."),
    "cg_residual_tol": Rule(
        lambda v: 0.0 <= v < math.inf, "a number, finite and >= 0", "The default is 1e-5; 0 never stops early."
    ),
    "line_search_max_iter": Rule(count(1), "an integer >= 1", "The default is 10."),
    "line_search_shrinking_factor": Rule(lambda v: 0.0 < v < 1.0, "a number, inside (0, 1)", "The default is 0.8."),
    "sub_sampling_factor": Rule(count(1), "an integer >= 1", "1 uses every transition."),
    "fisher_subsampling": Rule(count(1), "an integer >= 1", "1 uses every state."),
    "chunk_size": Rule(lambda v: v is None or count(1)(v), "None or an integer >= 1", "None chooses by observation size."),
    "max_grad_norm": Rule(lambda v: v is None or 0.0 <= v < math.inf, "None or finite and >= 0", "None does not clip."),
}


SCHEDULE_RULES: dict[str, Rule] = {
    "target_kl": Rule(lambda v: 0.0 <= v < math.inf, "a number, finite and >= 0", "At 0 the policy stays as it is."),
    "ent_coef": Rule(math.isfinite, "a number, finite", "The default is 0.0."),
    "learning_rate": Rule(lambda v: 0.0 <= v < math.inf, "a number, finite and >= 0", "The default is 1e-3."),
}
"""For the value of a schedule at any time."""
CONSTANT_RULES: dict[str, Rule] = {
    **SCHEDULE_RULES,
    "target_kl": Rule(
        lambda v: 0.0 < v < math.inf, "a number, finite and > 0", "Values from 0.01 to 0.1 are usual; the default is 0.01."
    ),
}
"""For a setting that may be a schedule and is not."""


def check_settings(settings: Mapping[str, Any]) -> None:
    """
    Check every setting that has a rule.

    :param settings: values by name
    :raises ValueError: for the first that breaks its rule
    """
    for name, rule in RULES.items():
        require(name, settings[name], rule)


def require(name: str, value: Any, rule: Rule) -> None:
    """
    Check one setting.

    :param name: as the user knows it
    :param value: what was given
    :param rule: what is allowed
    :raises ValueError: if the rule is broken
    """
    try:
        holds = rule.holds(value)
    except (TypeError, ValueError):  # not even a number
        holds = False
    if not holds:
        raise ValueError(f"{name} is {value!r}, but must be {rule.allowed}. {rule.advice}")


def scheduled(name: str, schedule: float | Schedule, progress_remaining: float) -> float:
    """
    Evaluate a setting that may be a schedule.

    :param name: as the user knows it, one of ``SCHEDULE_RULES``
    :param schedule: a number, or a function of the progress remaining
    :param progress_remaining: from 1 (begin) to 0 (end)
    :return: the value now
    :raises ValueError: if it is not a number that is allowed
    """
    if callable(schedule):
        value = schedule(progress_remaining)
        require(f"{name} at progress_remaining={progress_remaining:.4g}", value, SCHEDULE_RULES[name])
    else:
        value = schedule
        require(name, value, CONSTANT_RULES[name])
    return float(value)


def timesteps_to_take(total: Any) -> float:
    """
    Read ``total_timesteps``.

    :param total: an integer or another real number, infinity included
    :return: the least integer that is not below it, or infinity
    :raises ValueError: if it is not a number
    """
    try:
        if isinstance(total, Integral):
            return int(total) if math.isfinite(total) else math.nan  # which a float cannot hold
        number = math.nan if np.asarray(total).dtype.kind in "SU" else float(total)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if math.isnan(number):
        raise ValueError(
            f"total_timesteps is {total!r}, but must be a number of environment steps, such as 1_000_000 or 1e6. With "
            "math.inf, a callback has to end the training."
        )
    return number if math.isinf(number) else math.ceil(number)


def check_policy(policy: Any) -> None:
    """
    Check that a policy is given by name or as a class.

    :param policy: what the constructor was given
    :raises TypeError: if it is something else
    """
    if isinstance(policy, str) or (isinstance(policy, type) and issubclass(policy, BasePolicy)):
        return
    if isinstance(policy, BasePolicy):
        name = type(policy).__name__
        raise TypeError(
            f"policy is an instance of {name}, but must be a name or a class, of which the model makes its own. To begin with "
            f"the weights of this one: model = TRPO({name}, env, policy_kwargs=...), then "
            "model.policy.load_state_dict(policy.state_dict())."
        )
    raise TypeError(
        f'policy is {policy!r}, but must be a name, such as "MlpPolicy", or a subclass of SB3\'s ActorCriticPolicy.'
    )


def check_default_type() -> None:
    """
    Check that the layers that are about to be made will fit what they are shown.

    :raises ValueError: if torch makes them of another type than float32
    """
    if th.get_default_dtype() != th.float32:
        raise ValueError(
            f"torch's default type is {th.get_default_dtype()}, but must be torch.float32 while a model is made: SB3 shows "
            "observations to policies in that type. Call th.set_default_dtype(th.float32) before, and yours again afterwards."
        )


def check_policy_class(policy: type[Any], base: type[Any]) -> None:
    """
    Check that a policy has the methods that the algorithm calls.

    :param policy: its class
    :param base: what it must be a kind of
    :raises ValueError: if it is not
    """
    if not issubclass(policy, base):
        raise ValueError(
            f"policy is {policy.__name__}, but must be {base.__name__} or a subclass of it, with an actor and a critic."
        )


def check_policy_fits(policy: type[Any], observation_space: spaces.Space[Any], aliases: Mapping[str, type[Any]]) -> None:
    """
    Check that one of our policies is for the observations that there are.

    :param policy: its class
    :param observation_space: of the environment
    :param aliases: our policies by name
    :raises ValueError: if it is for Dict observations and these are not, or the other way round
    """
    name = next((alias for alias, each in aliases.items() if each is policy), None)
    is_dict = isinstance(observation_space, spaces.Dict)
    if name is not None and name.startswith("MultiInput") is not is_dict:
        fitting = [alias for alias in aliases if alias.startswith("MultiInput") is is_dict]
        raise ValueError(
            f"policy is {name!r}, but for {type(observation_space).__name__} observations it must be {' or '.join(fitting)}."
        )


SUPPORTED_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


def check_spaces_of(env: Any) -> None:
    """
    Check the spaces of an environment; what is no environment, or one of OpenAI Gym's, is SB3's to refuse or to wrap.

    :param env: vectorised or not
    :raises ValueError: if they are not supported
    """
    observation_space, action_space = getattr(env, "observation_space", None), getattr(env, "action_space", None)
    if isinstance(observation_space, spaces.Space) and isinstance(action_space, spaces.Space):
        check_spaces(observation_space, action_space)


def check_spaces(observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
    """
    Refuse spaces that no policy can be made for; SB3 itself compares the action space with those of the algorithm.

    :param observation_space: of the environment
    :param action_space: of the environment
    :raises ValueError: if there is nothing in them, or something that is not supported
    """
    is_dict = isinstance(observation_space, spaces.Dict)
    parts = observation_space.spaces if isinstance(observation_space, spaces.Dict) else {None: observation_space}
    known = "Box, Discrete, MultiDiscrete and MultiBinary"
    if not parts:
        raise ValueError(f"The observation space is an empty Dict, but must hold at least one part, of {known}.")
    for key, part in parts.items():
        name = f"observation space's part {key!r}" if is_dict else "observation space"
        if not isinstance(part, SUPPORTED_SPACES):
            raise ValueError(
                f"The {name} is {part}, but policies see {known}, or a Dict of these that holds no other Dict. Make numbers "
                "of the rest in a wrapper of the environment, such as gymnasium.wrappers.FlattenObservation."
            )
        _check_size(name, part)
    if isinstance(action_space, SUPPORTED_SPACES):
        _check_size("action space", action_space)


def _check_size(name: str, space: spaces.Space[Any]) -> None:
    if 0 in (space.shape or ()):
        raise ValueError(f"The {name} is {space}, which has no entries, but must have at least one.")


def check_batch(n_transitions: int, sub_sampling_factor: int, fisher_subsampling: int, normalize_advantage: bool) -> None:
    """
    Check that enough transitions are left to learn from.

    :param n_transitions: ``n_steps * n_envs``
    :param sub_sampling_factor: the update uses every k-th transition
    :param fisher_subsampling: the Fisher matrix uses every k-th of those
    :param normalize_advantage: whether advantages are divided by their standard deviation
    :raises AssertionError: if there is one transition but normalising needs two, as in sb3-contrib
    :raises ValueError: if sub-sampling leaves too little
    """
    assert n_transitions > 1 or not normalize_advantage, (
        f"n_steps * n_envs is {n_transitions}, but must be greater than 1 to normalize advantages. "
        "Raise n_steps or set normalize_advantage=False."
    )
    kept = -(-n_transitions // sub_sampling_factor)
    if sub_sampling_factor > n_transitions or (kept < 2 and normalize_advantage):
        raise ValueError(
            f"sub_sampling_factor is {sub_sampling_factor}, which leaves {kept} of n_steps * n_envs = {n_transitions} "
            f"transitions; it must be at most {n_transitions} and leave two to normalize advantages. "
            "Lower it or raise n_steps."
        )
    if fisher_subsampling > kept:
        raise ValueError(
            f"fisher_subsampling is {fisher_subsampling}, but must be at most {kept}, the number of transitions in the update."
            " Lower it or raise n_steps."
        )


def warn_about_batch_size(n_transitions: int, batch_size: int) -> None:
    """
    Warn if the critic's minibatches are not all of one size.

    :param n_transitions: ``n_steps * n_envs``
    :param batch_size: transitions per minibatch of the critic
    """
    last = n_transitions % batch_size
    if last:
        warnings.warn(
            f"You have specified a mini-batch size of {batch_size}, which does not divide the {n_transitions} transitions of "
            f"a rollout (n_steps * n_envs): the last minibatch of each critic pass has only {last}. A divisor uses all alike.",
            UserWarning,
            stacklevel=2,
        )
