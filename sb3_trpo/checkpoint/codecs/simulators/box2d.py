"""
Gymnasium's tasks on Box2D. Their episodes are replayed.

Box2D begins a step with the impulses of the last one, and its Python bindings have no way to write those of a joint. Only
tasks in which a new episode does not depend on earlier ones are listed. BipedalWalker is not: it keeps its world from episode
to episode, and the same seed and actions led elsewhere in most of the episodes tried, probably because contacts were processed
in another order.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sb3_trpo.checkpoint.codecs.simulators.episode_recorder import ReplayedSimulator

CLASSES = ("gymnasium.envs.box2d.lunar_lander.LunarLander", "gymnasium.envs.box2d.car_racing.CarRacing")


class Box2D(ReplayedSimulator):
    """A simulation that a reset creates again."""

    def before_reset(self, env: Any) -> tuple[()]:
        """Read nothing: a new episode depends on the generator and the attributes alone."""
        return ()

    def to_arrays(self, before: tuple[()]) -> dict[str, np.ndarray]:
        """Return no arrays."""
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
        """Return none: the settings are attributes of these environments, and are restored with them."""
        return {}

    def steps_draw(self, env: Any) -> bool:
        """Return True, which is right for any environment and only stores more; LunarLander's steps do draw."""
        return True
