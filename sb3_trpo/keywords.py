"""Keywords that a constructor does not know, and what takes their place: many come from PPO, A2C or another TRPO."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import ParamSpec

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
