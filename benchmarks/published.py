"""What others have published, and what we mean to beat: ``report.py`` sets our results against it."""

from __future__ import annotations

from typing import NamedTuple


class Mark(NamedTuple):
    """
    What others have published of a task, at 1M steps.

    :param best: mean return over several seeds
    :param source: who
    :param target: what we mean to reach, at least
    """

    best: float | None
    source: str
    target: float


MARKS = {
    "HalfCheetah-v5": Mark(4471, "Tianshou, -v3, 10 seeds", 5000),
    "Hopper-v5": Mark(3372, "sb3-contrib, -v3, 3 seeds", 3400),
    "Walker2d-v5": Mark(4502, "sb3-contrib, -v3, 3 seeds", 4600),
    "Ant-v5": Mark(None, "", 2000),
    "Ant-v4": Mark(3554, "sb3-contrib, -v3, 3 seeds", 3600),
    "Swimmer-v5": Mark(359, "sb3-contrib, -v3, 3 seeds", 355),
    "Humanoid-v5": Mark(1030, "Engstrom et al. 2020, TRPO+, -v2", 1100),
    "Reacher-v5": Mark(-4.5, "not traced; -4.8 by baselines", -4.5),
    "InvertedDoublePendulum-v5": Mark(9243, "not traced; 8,435 by Tianshou, -v2, 10 seeds", 9250),
}
SHARE = 0.2
"""The part of sb3-contrib's time in which we mean to reach its final return."""
RL_ZOO = {
    env: Mark(value, "RL Zoo, one run", value)
    for env, value in {
        "CartPole-v1": 500.0,
        "Pendulum-v1": -174.6,
        "Acrobot-v1": -83.1,
        "MountainCar-v0": -107.3,
        "MountainCarContinuous-v0": 92.5,
        "LunarLander-v3": 133.2,
        "LunarLanderContinuous-v3": 262.4,
        "BipedalWalker-v3": 182.3,
        "HalfCheetahBulletEnv-v0": 2758.8,
        "AntBulletEnv-v0": 2560.6,
        "HopperBulletEnv-v0": 2565.4,
        "Walker2DBulletEnv-v0": 1483.5,
        "ReacherBulletEnv-v0": 14.7,
    }.items()
}
"""RL Zoo's benchmark.md, algorithm trpo: one run each, LunarLander as -v2."""
DDPG = {"HalfCheetah": 11718.7, "Hopper": 2197.0, "Walker2d": 1400.6, "Ant": 990.4, "Swimmer": 144.1}
"""Tianshou's examples/mujoco, -v3, 10 seeds: the best evaluation within 1M steps."""
