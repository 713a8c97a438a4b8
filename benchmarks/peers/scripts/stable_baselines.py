"""TRPO as it is here and in sb3-contrib, or SBX's PPO: ``python -m benchmarks.peers.scripts.stable_baselines N PACKAGE``."""

from __future__ import annotations

import sys
from functools import partial
from importlib import import_module
from typing import Any

from benchmarks.peers.protocol import (
    CG_DAMPING,
    CG_STEPS,
    GAE_LAMBDA,
    GAMMA,
    LEARNING_RATE,
    MINIBATCH,
    N_STEPS,
    PASSES,
    TARGET_KL,
    TASK,
    report,
)

N_ACTIONS = 6
TRPO = {"cg_max_steps": CG_STEPS, "cg_damping": CG_DAMPING, "n_critic_updates": PASSES, "learning_rate": LEARNING_RATE}
SETTINGS: dict[str, dict[str, Any]] = {
    "sb3_trpo": TRPO | {"target_kl": TARGET_KL},
    "sb3_contrib": TRPO | {"target_kl": TARGET_KL / N_ACTIONS},  # of the mean over the dimensions of the action
    "sbx": {"n_epochs": PASSES},
}
"""All else are defaults, among them two layers of 64 tanh units each for policy and critic."""
CLASSES = {"sb3_trpo": "TRPO", "sb3_contrib": "TRPO", "sbx": "PPO"}
PACKAGES = {"sb3_trpo": ("sb3-trpo", "torch"), "sb3_contrib": ("sb3-contrib", "torch"), "sbx": ("sbx-rl", "jax")}


def main() -> None:
    """Time the package on the command line."""
    module = sys.argv[2]
    shared = {"n_steps": N_STEPS, "batch_size": MINIBATCH, "gamma": GAMMA, "gae_lambda": GAE_LAMBDA, "seed": 0}
    cls = getattr(import_module(module), CLASSES[module])
    model = cls("MlpPolicy", TASK, device="cpu", **shared, **SETTINGS[module])
    report(partial(model.learn, reset_num_timesteps=False), *PACKAGES[module])


if __name__ == "__main__":
    main()
