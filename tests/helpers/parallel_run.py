"""A training script as users write it, started by torchrun in ``parallel/test_faults.py``; one rank may die on request."""

import hashlib
import json
import os
import signal
import sys
from pathlib import Path

import torch as th
from helpers.runs import outcome
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_trpo import TRPO
from sb3_trpo.checkpoint import ResumableCheckpoint


def make_env(**settings: bool) -> VecEnv:
    return VecNormalize(make_vec_env("Pendulum-v1", 2), **settings)


def die_in_the_critic_of_update(model: TRPO, update: int) -> None:
    fit = model._fit_critic

    def fit_or_die(*args: object) -> None:
        if model._n_updates == update:
            os.kill(os.getpid(), signal.SIGKILL)
        fit(*args)

    model._fit_critic = fit_or_die


def main(folder: Path, update_of_death: int | None = None) -> None:
    rank = int(os.environ["RANK"])
    model = TRPO("MlpPolicy", make_env(), n_steps=64, n_critic_updates=2, seed=0)
    model.set_logger(configure(str(folder / f"log-{rank}"), ["csv"]))
    evaluation = EvalCallback(make_env(training=False, norm_reward=False), eval_freq=50, n_eval_episodes=1, verbose=0)
    if update_of_death is not None and rank == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        die_in_the_critic_of_update(model, update_of_death)
    model.learn(4 * 128, callback=[evaluation, ResumableCheckpoint(folder / "run", every=1)])
    seen = outcome(model, [evaluation], folder / f"log-{rank}")
    digest = {name: hashlib.sha256(repr(value).encode()).hexdigest() for name, value in seen.items()}
    (folder / f"outcome-{rank}.json").write_text(json.dumps(digest))


if __name__ == "__main__":
    th.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]))
