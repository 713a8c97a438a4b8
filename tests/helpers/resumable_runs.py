"""Small runs with checkpoints."""

from __future__ import annotations

import json

import safetensors.numpy
from stable_baselines3.common.callbacks import BaseCallback

from sb3_trpo import TRPO
from sb3_trpo.checkpoint import ResumableCheckpoint
from sb3_trpo.checkpoint.storage import read, write

SMALL = {"n_steps": 32, "batch_size": 32, "n_critic_updates": 2, "seed": 0}
TOTAL = 256


def trained(folder, total=TOTAL, env="CartPole-v1", callbacks=(), resumable=None, **settings):
    """Train a small model, from a checkpoint if there is one."""
    model = TRPO("MlpPolicy", env() if callable(env) else env, **SMALL | settings)
    resumable = resumable or ResumableCheckpoint(folder, every=32, verbose=0)
    return model.learn(total, callback=[*callbacks, resumable])


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
