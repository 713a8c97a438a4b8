"""The settings: their rules and defaults, each stated once, and the errors that say which one is broken."""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral
from typing import Any, NamedTuple, ParamSpec

import numpy as np
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


P = ParamSpec("P")

INSTEAD = {
    "n_epochs": "the policy takes one step per rollout, and n_critic_updates counts the critic's passes over it",
    "clip_range": "target_kl bounds how far a step moves the policy, and nothing is clipped",
    "clip_range_vf": "nothing clips the critic: n_critic_updates and learning_rate say how far it goes per rollout",
    "vf_coef": "the critic has a regression of its own, which needs no weight",
    "use_rms_prop": "policy_kwargs=dict(optimizer_class=...) chooses the critic's optimizer, Adam by default",
    "rms_prop_eps": "policy_kwargs=dict(optimizer_kwargs=dict(eps=...)) sets it for the critic's optimizer",
}
"""What takes the place of the keywords of SB3's PPO and A2C that TRPO does not have."""
RENAMED = {
    "max_kl": "target_kl",
    "timesteps_per_batch": "n_steps",
    "lam": "gae_lambda",
    "cg_iters": "cg_max_steps",
    "vf_iters": "n_critic_updates",
    "vf_stepsize": "learning_rate",
    "entcoeff": "ent_coef",
}
"""Stable Baselines 2's TRPO, and ours."""


def explains_unknown_keywords(constructor: Callable[P, None]) -> Callable[P, None]:
    """
    Let a constructor refuse keywords that it does not have by saying what takes their place.

    :param constructor: with all its keywords in its signature, which stays as it is
    :return: the same, with a more helpful ``TypeError``
    """
    known = [*inspect.signature(constructor).parameters][1:]

    @functools.wraps(constructor)
    def construct(*args: P.args, **kwargs: P.kwargs) -> None:
        unknown = [name for name in kwargs if name not in known]
        if unknown:
            owner = type(args[0]).__name__
            raise TypeError(" ".join(f"{owner} has no keyword {name}{_explanation(name, known)}" for name in unknown))
        constructor(*args, **kwargs)

    return construct


def _explanation(name: str, known: Iterable[str]) -> str:
    if name in INSTEAD:
        return f": {INSTEAD[name]}."
    public = [each for each in known if not each.startswith("_")]
    close = [RENAMED[name]] if name in RENAMED else difflib.get_close_matches(name, public, n=1)
    return f"; did you mean {close[0]}?" if close else f"; those it has are {', '.join(public)}."
