"""Rendering on machines with and without a display."""

from __future__ import annotations

import os
import subprocess
import sys

BACKENDS: tuple[dict[str, str], ...] = ({}, {"MUJOCO_GL": "egl"}, {"MUJOCO_GL": "osmesa"})
"""Environment variables to try in turn: none, then those of MuJoCo's backends that need no display."""
TRIAL = """
import sys
import gymnasium as gym
import rl_zoo3.import_envs, sb3_trpo.constrained.velocity_tasks, sb3_trpo.zoo.memory_tasks
env = gym.make(sys.argv[1], render_mode="rgb_array")
env.reset()
assert env.render() is not None
"""
HINT = "Without a display MuJoCo's environments can be rendered if MUJOCO_GL is egl or osmesa and that library is installed."
PATIENCE = 60.0
"""Seconds that a trial may take. Importing and starting an environment can be slow."""


def has_display() -> bool:
    """
    Check whether a window can be opened. Without a display GLFW, which MuJoCo's windows need, aborts the whole process.

    :return: False on Linux without an X or a Wayland display
    """
    display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    return bool(display) or not sys.platform.startswith("linux")


def prepare_rendering(env_id: str, render_mode: str | None) -> None:
    """
    Make rendering work without a display, or exit with advice.

    :param env_id: ID of the environment that is about to be created
    :param render_mode: its render mode; ``"human"`` opens a window, ``None`` renders nothing
    """
    if has_display() or render_mode is None:
        return
    if render_mode == "human":
        sys.exit(
            "There is no display to open a window on: neither DISPLAY nor WAYLAND_DISPLAY is set. Give --no-render to run the "
            f"agent without a window, or record a video with the script record_video. {HINT}"
        )
    settings = rendering_settings(env_id)
    if settings is None:
        print(f"A test could not render {env_id}. {HINT}", file=sys.stderr)
    os.environ.update(settings or {})


def rendering_settings(env_id: str) -> dict[str, str] | None:
    """
    Find out how an environment can be rendered by trying it in another process, because some backends abort theirs.

    :param env_id: the environment's ID
    :return: environment variables to set, ``None`` if nothing works
    """
    for settings in BACKENDS:
        try:
            subprocess.run(
                [sys.executable, "-c", TRIAL, env_id],
                env=os.environ | settings,
                check=True,
                capture_output=True,
                timeout=PATIENCE,
            )
        except subprocess.SubprocessError:
            continue
        return settings
    return None
