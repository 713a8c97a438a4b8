"""Names of the cases in tables, and the ratios that we aim for."""

from __future__ import annotations

from typing import NamedTuple


class Target(NamedTuple):
    """
    What a case is called, and how fast it should be.

    :param label: its name in tables
    :param learn: the least ratio of sb3-contrib's time of ``learn()`` to ours
    :param over_bare: the largest ratio of our time to that of stepping the bare environments, where we set one
    """

    label: str
    learn: float
    over_bare: float | None = None


TARGETS = {
    "CartPole-v1": Target("CartPole-v1", 9.0, 2.5),
    "Pendulum-v1": Target("Pendulum-v1", 7.0),
    "Hopper-v5": Target("Hopper-v5", 3.5, 1.15),
    "HalfCheetah-v5": Target("HalfCheetah-v5", 5.5, 1.4),
    "HalfCheetah-v5x8": Target("HalfCheetah-v5, 8 environments", 3.2),
    "HalfCheetah-v5+norm": Target("HalfCheetah-v5, VecNormalize", 3.3),
    "HalfCheetah-v5+zoo": Target("HalfCheetah-v5, RL Zoo's settings", 3.3),
    "Pendulum-v1+gSDE": Target("Pendulum-v1, gSDE, our settings", 4.0),
    "Swimmer-v5+gSDE": Target("Swimmer-v5, gSDE, our settings", 4.0),
    "CartPoleNoVel-v1+LSTM": Target("CartPoleNoVel-v1, LSTM (beside RecurrentPPO)", 6.0),
    "frames": Target("84x84x4 frames, CnnPolicy, 8 environments", 2.0),
    "MiniGrid": Target("MiniGrid, plain CNN of one's own (CPU time)", 2.0),
    "MiniGrid+residual": Target("MiniGrid, residual CNN of one's own (CPU time)", 2.0),
    "batched": Target("1,024 batched environments", 6.0),
}
"""By the names in ``speed.json``, in the order of the tables."""
