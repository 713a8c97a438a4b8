"""Small runs with checkpoints."""

from __future__ import annotations

import json
from functools import partial

import pytest
import safetensors.numpy
from helpers.runs import run_until_done
from stable_baselines3.common.callbacks import BaseCallback

from sb3_trpo import TRPO
from sb3_trpo.checkpoint import ResumableCheckpoint
from sb3_trpo.checkpoint.storage import read, write

SMALL = {"n_steps": 32, "batch_size": 32, "n_critic_updates": 2, "seed": 0}
TOTAL = 256
INTERRUPTED = pytest.mark.filterwarnings(
    "ignore:The checkpoint .* was made on the way to:UserWarning",
    r"ignore:The checkpoint holds the state of a \S*\.(CrashAt|At), a callback that:UserWarning",
)
"""For tests that interrupt a run by a smaller total or a callback; tests of these two warnings expect them."""


def small_model(env="CartPole-v1", policy="MlpPolicy", **settings):
    return TRPO(policy, env, **SMALL | settings)


def trained(folder, total=TOTAL, env="CartPole-v1", callbacks=(), resumable=None, **settings):
    """Train a small model, from a checkpoint if there is one."""
    resumable = resumable or ResumableCheckpoint(folder, every=32, verbose=0)
    return small_model(env() if callable(env) else env, **settings).learn(total, callback=[*callbacks, resumable])


def assert_resumes_exactly(script, folder, *crashes):
    """Run a script whole and with crashes, and compare the results; returns that of the whole run."""
    whole, _ = run_until_done(partial(script, folder / "whole"))
    pieces, starts = run_until_done(partial(script, folder / "pieces"), *crashes)
    assert starts == len(crashes) + 1
    assert pieces == whole
    return whole


class At(BaseCallback):
    """Do something once a number of timesteps is reached."""

    def __init__(self, timesteps, action):
        super().__init__()
        self.timesteps, self.action = timesteps, action

    def _on_step(self) -> bool:
        if self.num_timesteps == self.timesteps:
            self.action()
        return True


def resealed(path, change):
    """Change the state of a checkpoint, as a stranger would, with digests that fit."""
    state, arrays = json.loads((path / "state.json").read_text()), safetensors.numpy.load_file(path / "arrays.safetensors")
    change(state, arrays)
    newest = read(path)
    write(path.parent, newest.n_timesteps, newest.versions, state, arrays)
