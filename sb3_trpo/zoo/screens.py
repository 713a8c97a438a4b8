"""Whether this machine can open a window, and how it can draw pictures without one."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

BACKENDS: tuple[dict[str, str], ...] = ({}, {"MUJOCO_GL": "egl"}, {"MUJOCO_GL": "osmesa"})
"""Settings under which a picture may succeed: as they are, or with one of MuJoCo's backends that need no display."""
TRIAL = """
import sys
import gymnasium as gym
import rl_zoo3.import_envs, sb3_trpo.zoo.memory_tasks
env = gym.make(sys.argv[1], render_mode="rgb_array")
env.reset()
assert env.render() is not None
"""
HINT = "Without a display MuJoCo's environments are drawn if MUJOCO_GL is egl or osmesa and that library is installed."
PATIENCE = 60.0
"""Seconds that a picture may take: importing and starting an environment takes some."""


def shows_windows() -> bool:
    """
    Tell whether a window can be opened. Without a display GLFW, which MuJoCo's windows need, aborts the whole process.

    :return: False on Linux without an X or a Wayland display
    """
    has_display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    return bool(has_display) or not sys.platform.startswith("linux")


def prepare(env_id: str, render_mode: str | None) -> None:
    """
    Make rendering work where there is no display, or exit with what to do instead.

    :param env_id: name of the environment that is to be made
    :param render_mode: of the environment; ``"human"`` opens a window
    """
    if shows_windows() or render_mode is None:
        return
    if render_mode == "human":
        sys.exit(
            "There is no display to open a window on: neither DISPLAY nor WAYLAND_DISPLAY is set. Give --no-render to let the "
            f"agent play unseen, or record a video with the script record_video. {HINT}"
        )
    settings = pictures(env_id)
    if settings is None:
        print(f"A trial to draw {env_id} failed. {HINT}", file=sys.stderr)
    os.environ.update(settings or {})


def pictures(env_id: str) -> dict[str, str] | None:
    """
    Find out how an environment can be drawn, by drawing it once in a process of its own: some backends abort theirs.

    :param env_id: the environment's name
    :return: environment variables to set, ``None`` if nothing works
    """
    command: list[Any] = [sys.executable, "-c", TRIAL, env_id]
    for settings in BACKENDS:
        try:
            subprocess.run(command, env=os.environ | settings, check=True, capture_output=True, timeout=PATIENCE)
        except subprocess.SubprocessError:
            continue
        return settings
    return None
