"""
Short animations of trained agents, for the page of learning results.

    MUJOCO_GL=osmesa python -m benchmarks.agents.animate    # without a screen; MUJOCO_GL=egl with a GPU

The agents are those of ``trained_agents``; pictures go to ``docs/results``. One agent starts in each of the seeds below, acts
deterministically, and is shown in real time.
"""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import numpy as np
from PIL import Image
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from benchmarks.agents.run import AGENTS
from benchmarks.common.environment import ROOT
from sb3_trpo import TRPO

SHOWN = ("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Ant-v5")
SEED = 0
SECONDS_BEFORE, SECONDS = 1.0, 4.0
"""The start is left out: an agent that has just been put down looks alike on all tasks."""
RATE = 20.0
"""Frames per second: one for each action of the slowest environments, whose actions last 0.05 s."""
VIEW = {"camera_name": "track", "width": 320, "height": 240}
"""The camera that follows the agent: without a name, Gymnasium uses one that stands still."""
QUALITY = 35
"""Of WebP, up to 100: chosen by eye, so that the four files take about 1 MB."""


def frames_of(env_id: str) -> list[np.ndarray]:
    """
    Let an agent act, and take pictures.

    :param env_id: environment ID
    :return: frames, each of shape ``(height, width, 3)``
    """
    agent = AGENTS / "trpo" / f"{env_id}_1"
    env = DummyVecEnv([lambda: gym.make(env_id, render_mode="rgb_array", **VIEW)])
    env = VecNormalize.load(str(agent / env_id / "vecnormalize.pkl"), env)
    env.training = False
    env.seed(SEED)
    model = TRPO.load(agent / f"{env_id}.zip", device="cpu")
    per_second = 1.0 / env.get_attr("unwrapped")[0].dt
    steps_per_frame = round(per_second / RATE)
    observations, frames = env.reset(), []
    for step in range(round((SECONDS_BEFORE + SECONDS) * per_second)):
        observations, _, dones, _ = env.step(model.predict(observations, deterministic=True)[0])
        if dones[0]:
            raise RuntimeError(f"the agent of {env_id} fell after {step / per_second:.1f} s: choose another seed")
        if step >= SECONDS_BEFORE * per_second and step % steps_per_frame == 0:
            frames.append(env.render())
    env.close()
    return frames


def animate(env_id: str, file: Path) -> None:
    """
    Write an animation that repeats.

    :param env_id: environment ID
    :param file: the WebP file
    """
    first, *rest = map(Image.fromarray, frames_of(env_id))
    first.save(file, save_all=True, append_images=rest, duration=round(1000 / RATE), loop=0, quality=QUALITY, method=6)
    print(f"{file.relative_to(ROOT)}: {file.stat().st_size / 1024:.0f} KiB", flush=True)


def main() -> None:
    """Animate every task that the page shows."""
    for env_id in SHOWN:
        animate(env_id, ROOT / "docs" / "results" / f"{env_id}.webp")


if __name__ == "__main__":
    main()
