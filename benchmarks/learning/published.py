"""Published results, and our targets."""

from __future__ import annotations

from typing import NamedTuple


class Mark(NamedTuple):
    """
    Published returns on a task.

    :param target: the least mean return that we aim for
    :param single: return of RL Zoo's single run of sb3-contrib's TRPO
    :param best: best published mean over several seeds that we know, of any on-policy algorithm, at 1M steps unless the source
        says otherwise
    :param source: who published it
    """

    target: float
    single: float | None = None
    best: float | None = None
    source: str = ""


MARKS = {
    "HalfCheetah-v5": Mark(6500, 1785, 7185, "sb3-contrib's TRPO in OmniSafe's Table 1, -v4, steps not stated"),
    "Hopper-v5": Mark(3400, 3618, 3372, "sb3-contrib, -v3, 3 seeds"),
    "Walker2d-v5": Mark(4800, 4933, 4502, "sb3-contrib, -v3, 3 seeds"),
    "Ant-v5": Mark(3000, None, 2138, "SLM-Lab's PPO, 10M steps"),
    "Ant-v4": Mark(4400, 4982, 4362, "OmniSafe's TRPO"),
    "Swimmer-v5": Mark(357, 366, 359, "sb3-contrib, -v3, 3 seeds"),
    "Humanoid-v5": Mark(1750, None, 3839, "OmniSafe's NaturalPG, -v4"),
    "Reacher-v5": Mark(-4.1, None, -4.1, "Tianshou's PPO"),
    "InvertedDoublePendulum-v5": Mark(9258, None, 9258, "Tianshou's A2C"),
}
SHARE = 0.2
"""Our target for the time to sb3-contrib's final return, as a share of its time."""
RL_ZOO = {
    env: Mark(value, value)
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
"""RL Zoo's benchmark.md, algorithm trpo, one run each: our targets. LunarLander is -v2 there, MuJoCo -v3."""
DDPG = {"HalfCheetah": 11718.7, "Hopper": 2197.0, "Walker2d": 1400.6, "Ant": 990.4, "Swimmer": 144.1}
"""Tianshou's examples/mujoco, -v3, 10 seeds: the best evaluation within 1M steps."""
