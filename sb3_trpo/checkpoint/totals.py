"""How far a run is to go, as JSON and as text; perhaps without end."""

from __future__ import annotations

import math


def plain_total(total: float) -> float | None:
    """
    Give a total as JSON has it, which knows no infinity.

    :param total: timesteps of a run
    :return: the same, ``None`` for a run without end
    """
    return total if math.isfinite(total) else None


def describe_total(total: float | None) -> str:
    """
    Name a total.

    :param total: from :func:`plain_total`
    :return: a text
    """
    return "infinity" if total is None else f"{total:,} timesteps"


def describe_progress(n_timesteps: int, total: float) -> str:
    """
    Say how far a run is.

    :param n_timesteps: of the run
    :param total: where it ends
    :return: a text
    """
    return (
        f"{n_timesteps:,} of {total:,} timesteps"
        if math.isfinite(total)
        else f"{n_timesteps:,} timesteps of a run without end"
    )
