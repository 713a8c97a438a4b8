"""
Gymnasium's tasks on Box2D whose episodes are replayed.

Box2D begins a step with the impulses of the last one, and its Python bindings have no way to write those of a joint. Only
tasks whose new episodes owe nothing to earlier ones are listed. BipedalWalker is not: it keeps its world from episode to
episode, and the same seed and actions led elsewhere in most of the episodes tried, probably because contacts were processed
in another order.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sb3_trpo.checkpoint.codecs.simulators.episode_recorder import ReplayedSimulator

CLASSES = ("gymnasium.envs.box2d.lunar_lander.LunarLander", "gymnasium.envs.box2d.car_racing.CarRacing")


class Box2D(ReplayedSimulator):
    """A simulation of which a reset leaves nothing."""

    def before_reset(self, env: Any) -> tuple[()]:
        """Read nothing."""
        return ()

    def to_arrays(self, before: tuple[()]) -> dict[str, np.ndarray]:
        """Give nothing."""
        return {}

    def prepare(self, env: Any, arrays: dict[str, np.ndarray]) -> None:
        """Do nothing."""

    def evidence(self, env: Any) -> bytes:
        """Read where all bodies are, and how they move."""
        numbers = [
            (*body.position, body.angle, *body.linearVelocity, body.angularVelocity, body.awake) for body in env.world.bodies
        ]
        return np.array(numbers, np.float64).tobytes()

    def settings(self, env: Any) -> dict[str, Any]:
        """Give none: settings are attributes of these environments, and restored with them."""
        return {}

    def steps_draw(self, env: Any) -> bool:
        """Tell that steps draw the dispersion of the engines, or the order in which tiles are visited."""
        return True
