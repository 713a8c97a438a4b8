"""
Small environments that need memory, shared by the tests, the benchmarks and the examples.

Importing this module registers ``TMaze-v0``, ``MaskedTMaze-v0`` and sb3-contrib's ``InvalidActionEnvDiscrete-v0`` with
Gymnasium. The maze is that of Bakker 2001, "Reinforcement Learning with Long Short-Term Memory", section 3: a sign at the
beginning of a corridor shows which way to turn at its end.
"""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class TMaze(gym.Env[np.ndarray, Any]):
    """
    A corridor that ends in a junction. Only a sign at its beginning shows which arm holds the treasure.

    The observation is (up, down, corridor, junction): the sign, then the kind of place. A policy without memory turns the
    right way half of the time. As in the paper, the right arm gives a reward of 4, and the wrong arm gives -0.1, as does every
    step that does not move towards the junction.

    :param length: number of places before the junction
    :param is_deadly: whether walking into a wall ends the episode instead of doing nothing; ``action_masks()`` forbids it
    :param render_mode: ``"rgb_array"`` to draw the maze, ``None`` not to
    :raises ValueError: if ``length`` is below 1
    """

    UP, DOWN, FORTH, BACK = range(4)
    TREASURE: ClassVar[float] = 4.0
    PENALTY: ClassVar[float] = -0.1
    observation_space = spaces.Box(0.0, 1.0, (4,), np.float32)
    action_space = spaces.Discrete(4)

    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}  # noqa: RUF012  # as Gymnasium declares it

    def __init__(self, length: int = 10, is_deadly: bool = False, render_mode: str | None = None) -> None:
        if length < 1:
            raise ValueError(f"length is {length}, but must be at least 1: the sign stands before the junction.")
        self.render_mode = render_mode
        self._length = length
        self._is_deadly = is_deadly
        self._place = 0
        self._treasure = self.UP

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Choose the arm with the treasure at random; begin at the sign."""
        super().reset(seed=seed)
        self._place = 0
        self._treasure = int(self.np_random.integers(2))
        return self._observation(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Walk one place, or turn into an arm."""
        # At every step, since any may end the episode: SB3's EvalCallback fails if only some episodes report success.
        no_success = {"is_success": False}
        if not self.action_masks()[action]:
            return self._observation(), self.PENALTY, self._is_deadly, False, no_success
        if action in (self.UP, self.DOWN):
            found = bool(action == self._treasure)
            return self._observation(), self.TREASURE if found else self.PENALTY, True, False, {"is_success": found}
        self._place += 1 if action == self.FORTH else -1
        return self._observation(), 0.0 if action == self.FORTH else self.PENALTY, False, False, no_success

    def action_masks(self) -> np.ndarray:
        """Return which of the four directions are open, shape ``(4,)``."""
        at_junction = self._place == self._length
        return np.array([at_junction, at_junction, not at_junction, self._place > 0])

    def render(self) -> np.ndarray:
        """Draw the corridor in grey, the treasure in green and the agent in red, each place 16 pixels wide."""
        places = np.zeros((3, self._length + 1, 3), np.uint8)
        places[1], places[:, -1] = 128, 128
        places[0 if self._treasure == self.UP else 2, -1] = (0, 160, 0)
        places[1, self._place] = (200, 0, 0)
        return places.repeat(16, axis=0).repeat(16, axis=1)

    def _observation(self) -> np.ndarray:
        sign = self._place == 0
        seen = (sign and self._treasure == self.UP, sign and self._treasure == self.DOWN, True, False)
        return np.array((False, False, False, True) if self._place == self._length else seen, np.float32)


gym.register("TMaze-v0", f"{__name__}:TMaze", max_episode_steps=100)
gym.register(
    "InvalidActionEnvDiscrete-v0",
    "sb3_contrib.common.envs:InvalidActionEnvDiscrete",
    kwargs={"dim": 20, "n_invalid_actions": 10},
)
gym.register("MaskedTMaze-v0", f"{__name__}:TMaze", max_episode_steps=100, kwargs={"is_deadly": True})
