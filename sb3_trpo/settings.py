"""
The rules that settings obey, the errors that explain a broken one, and hints for keywords that belong to other algorithms.

The defaults are those of :class:`~sb3_trpo.trpo.TRPO`'s constructor; its docstring gives the source of each.
"""

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

P = ParamSpec("P")
SCHEDULES = ("target_kl", "ent_coef", "max_state_kl", "learning_rate")
"""Settings that may be functions of the progress remaining."""


class Scheduled(NamedTuple):
    """
    Values that the scheduled settings of the policy step have in one update.

    :param target_kl: the radius of the trust region, in nats
    :param ent_coef: weight of the entropy in the surrogate
    :param max_state_kl: bound on the KL of single states, in nats; ``None`` for no bound
    """

    target_kl: float
    ent_coef: float
    max_state_kl: float | None = None


class Rule(NamedTuple):
    """
    What a setting must satisfy.

    :param holds: whether a value is allowed; may raise for values that cannot be compared
    :param allowed: the same in words, to follow "must be"
    :param advice: a sentence that names a sensible value
    """

    holds: Callable[[Any], bool]
    allowed: str
    advice: str


def is_integer_from(least: int) -> Callable[[Any], bool]:
    """
    Make the test for integers that are not too small.

    :param least: smallest integer allowed
    :return: the test, for :attr:`Rule.holds`
    """
    return lambda value: isinstance(value, Integral) and int(value) >= least


def is_finite_from_zero(value: Any) -> bool:
    """
    Test for a finite number that is not negative.

    :param value: what was given
    :return: whether ``0 <= value < inf``
    """
    return bool(0.0 <= value < math.inf)


def is_probability(value: Any) -> bool:
    """
    Test for a number between 0 and 1.

    :param value: what was given
    :return: whether ``0 <= value <= 1``
    """
    return bool(0.0 <= value <= 1.0)


RULES: dict[str, Rule] = {
    "n_steps": Rule(is_integer_from(1), "an integer >= 1", "The default is 2048."),
    "batch_size": Rule(is_integer_from(1), "an integer >= 1", "The default is 128."),
    "gamma": Rule(is_probability, "a number, in [0, 1]", "The default is 0.99; above 1 returns grow without bound."),
    "gae_lambda": Rule(is_probability, "a number, in [0, 1]", "The default is 0.95."),
    "n_critic_updates": Rule(is_integer_from(0), "an integer >= 0", "The default is 20."),
    "cg_max_steps": Rule(is_integer_from(1), "an integer >= 1", "The default is 15."),
    "cg_damping": Rule(is_finite_from_zero, "a number, finite and >= 0", "The default is 0.1."),
    "cg_residual_tol": Rule(is_finite_from_zero, "a number, finite and >= 0", "The default is 1e-5; 0 never stops early."),
    "line_search_max_iter": Rule(is_integer_from(1), "an integer >= 1", "The default is 10."),
    "line_search_shrinking_factor": Rule(lambda v: 0.0 < v < 1.0, "a number, inside (0, 1)", "The default is 0.8."),
    "sub_sampling_factor": Rule(is_integer_from(1), "an integer >= 1", "1 uses every transition."),
    "fisher_subsampling": Rule(is_integer_from(1), "an integer >= 1", "1 uses every state."),
    "chunk_size": Rule(
        lambda v: v is None or is_integer_from(1)(v), "None or an integer >= 1", "None chooses by observation size."
    ),
    "state_kl_quantile": Rule(lambda v: 0.0 < v <= 1.0, "a number, in (0, 1]", "1 bounds the KL of every state."),
    "distributed_timeout": Rule(lambda v: 1.0 <= v < math.inf, "a number of seconds >= 1", "The default is 60."),
    "max_grad_norm": Rule(lambda v: v is None or is_finite_from_zero(v), "None or finite and >= 0", "None does not clip."),
}
"""Rules of the settings that stay constant, by keyword."""
SCHEDULE_RULES: dict[str, Rule] = {
    "target_kl": Rule(is_finite_from_zero, "a number, finite and >= 0", "At 0 the policy no longer changes."),
    "ent_coef": Rule(math.isfinite, "a number, finite", "The default is 0.0."),
    "max_state_kl": Rule(lambda v: v >= 0.0, "a number >= 0", "At 0 the policy no longer changes."),
    "learning_rate": Rule(is_finite_from_zero, "a number, finite and >= 0", "The default is 1e-3."),
}
"""Rules of the values that a schedule returns, by keyword."""
CONSTANT_RULES: dict[str, Rule] = {
    **SCHEDULE_RULES,
    "target_kl": Rule(
        lambda v: 0.0 < v < math.inf, "a number, finite and > 0", "Values from 0.01 to 0.1 are usual; the default is 0.01."
    ),
    "max_state_kl": Rule(
        lambda v: v is None or v > 0.0, "None or a number > 0", "None sets no bound; start with 10 times target_kl."
    ),
}
"""Rules of the same settings when a number is given. A constant radius of 0 would never learn anything."""


def check_settings(settings: Mapping[str, Any]) -> None:
    """
    Check every setting that has a rule in :data:`RULES`.

    :param settings: values by keyword
    :raises ValueError: if a value breaks its rule
    """
    for name, rule in RULES.items():
        check_setting(name, settings[name], rule)


def check_setting(name: str, value: Any, rule: Rule) -> None:
    """
    Check one setting.

    :param name: keyword that the user wrote
    :param value: what was given
    :param rule: what is allowed
    :raises ValueError: if the value breaks the rule
    """
    try:
        holds = bool(rule.holds(value))  # of an array, the truth value may be ambiguous
    except (TypeError, ValueError, OverflowError):  # not even a number, or an integer beyond float's range
        holds = False
    if not holds:
        raise ValueError(f"{name} is {value!r}, but must be {rule.allowed}. {rule.advice}")


def evaluate_schedule(name: str, schedule: float | Schedule | None, progress_remaining: float) -> float | None:
    """
    Evaluate a setting that may be a schedule.

    :param name: keyword that the user wrote, one of ``SCHEDULE_RULES``
    :param schedule: a number, or a function of the progress remaining; ``None`` where its rule allows it
    :param progress_remaining: 1 at the beginning of training, 0 at the end
    :return: the value at this progress, ``None`` if that was given
    :raises ValueError: if it is not a number, or not allowed
    """
    value: float | None
    if callable(schedule):
        value = schedule(progress_remaining)
        check_setting(f"{name} at progress_remaining={progress_remaining:.4g}", value, SCHEDULE_RULES[name])
    else:
        value = schedule
        check_setting(name, value, CONSTANT_RULES[name])
    return None if value is None else float(value)


def parse_total_timesteps(total: Any) -> float:
    """
    Round ``total_timesteps`` up to an integer.

    :param total: any real number of environment steps, infinity included
    :return: the smallest integer that is not below it, or infinity
    :raises ValueError: if it is not a number
    """
    try:
        if isinstance(total, Integral):
            return int(total) if math.isfinite(total) else math.nan  # raises OverflowError if no float can hold the integer
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
    Check that a rollout leaves enough transitions to learn from.

    :param n_transitions: transitions in a rollout, ``n_steps * n_envs`` of all ranks together
    :param sub_sampling_factor: the update uses every k-th transition
    :param fisher_subsampling: the Fisher matrix uses every k-th of those
    :param normalize_advantage: whether advantages are divided by their standard deviation
    :raises AssertionError: if a single transition is to be normalized, as in sb3-contrib
    :raises ValueError: if sub-sampling leaves too few
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
    Warn if the critic's last minibatch is smaller than the others.

    :param n_transitions: transitions in a rollout, ``n_steps * n_envs`` of all ranks together
    :param batch_size: transitions in a minibatch of the critic
    """
    last = n_transitions % batch_size
    if last:
        warnings.warn(
            f"You have specified a mini-batch size of {batch_size}, which does not divide the {n_transitions} transitions of "
            f"a rollout (n_steps * n_envs): the last minibatch of each critic epoch has only {last}. Choose a divisor to "
            "weight all transitions equally.",
            UserWarning,
            stacklevel=2,
        )


REPLACEMENTS = {
    "n_epochs": "the policy takes one step per rollout, and n_critic_updates counts the critic's epochs",
    "clip_range": "target_kl bounds how far a step moves the policy, and nothing is clipped",
    "clip_range_vf": "nothing clips the critic: n_critic_updates and learning_rate control how far it moves per rollout",
    "vf_coef": "the critic has its own regression, which needs no weight",
    "use_rms_prop": "policy_kwargs=dict(optimizer_class=...) chooses the critic's optimizer, Adam by default",
    "rms_prop_eps": "policy_kwargs=dict(optimizer_kwargs=dict(eps=...)) sets it for the critic's optimizer",
    "action_distribution": "it is a keyword of the policy, policy_kwargs=dict(action_distribution=...)",
    "action_parameters": "it is a keyword of the policy, policy_kwargs=dict(action_parameters=...)",
    "cost_limits": "sb3_trpo.constrained.ConstrainedTRPO keeps limits on costs",
}
"""What to use instead of keywords of SB3's PPO and A2C, of policies or of a variant, that an algorithm does not have."""
RENAMED = {
    "max_kl": "target_kl",
    "timesteps_per_batch": "n_steps",
    "lam": "gae_lambda",
    "cg_iters": "cg_max_steps",
    "vf_iters": "n_critic_updates",
    "vf_stepsize": "learning_rate",
    "entcoeff": "ent_coef",
    "lam_c": "cost_gae_lambda",
}
"""Keywords of Stable Baselines 2's TRPO, and of OmniSafe's CPO, and their present names."""


def explains_unknown_keywords(constructor: Callable[P, None]) -> Callable[P, None]:
    """
    Decorate a constructor so that the error for an unknown keyword names the right one.

    :param constructor: ``__init__`` with every keyword in its signature; a subclass may take more and pass the others on
    :return: the constructor, with the same signature and a more helpful ``TypeError``
    """
    known = [*inspect.signature(constructor).parameters][1:]

    @functools.wraps(constructor)
    def construct(*args: P.args, **kwargs: P.kwargs) -> None:
        unknown = [name for name in kwargs if name not in known]
        if unknown:
            owner = type(args[0])
            names = [*dict.fromkeys([*known, *_own_keywords(owner)])]
            raise TypeError(" ".join(f"{owner.__name__} has no keyword {name}{_hint(name, names)}" for name in unknown))
        constructor(*args, **kwargs)

    return construct


def _own_keywords(owner: type[Any]) -> list[str]:
    """List the keyword-only arguments of the constructors of a class and its bases."""
    signatures = [inspect.signature(vars(each)["__init__"]) for each in owner.__mro__ if "__init__" in vars(each)]
    return [name for each in signatures for name, kind in each.parameters.items() if kind.kind is kind.KEYWORD_ONLY]


def _hint(name: str, known: Iterable[str]) -> str:
    """Suggest what to write instead of an unknown keyword."""
    if name in REPLACEMENTS:
        return f": {REPLACEMENTS[name]}."
    public = [each for each in known if not each.startswith("_")]
    renamed = RENAMED.get(name)
    close = [renamed] if renamed in public else difflib.get_close_matches(name, public, n=1)
    return f"; did you mean {close[0]}?" if close else f"; the keywords are {', '.join(public)}."
