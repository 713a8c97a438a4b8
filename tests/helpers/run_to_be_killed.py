"""A training script as a user writes it, which prints how far it is; ``faults/test_checkpoints.py`` kills and restarts it."""

import hashlib
import json
import sys
from pathlib import Path

import torch as th
from helpers.runs import outcome
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, VecNormalize

from sb3_trpo import TRPO
from sb3_trpo.checkpoint import ResumableCheckpoint, callback


def say(*words: object) -> None:
    print(*words, flush=True)


class Stages(BaseCallback):
    """Say which part of an iteration begins."""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        say("collect")

    def _on_rollout_end(self) -> None:
        say("update")


def write_aloud(*args: object) -> Path:
    say("save")
    return write(*args)


write, callback.write = callback.write, write_aloud


def make_env(task: str, **settings: bool) -> VecEnv:
    forked = {"vec_env_cls": SubprocVecEnv, "vec_env_kwargs": {"start_method": "fork"}}
    workers = forked if task.endswith(" in workers") else {}
    return VecNormalize(make_vec_env(task.removesuffix(" in workers"), 2, seed=3, **workers), **settings)


def main(task: str, folder: Path, total: int) -> None:
    th.set_num_threads(1)
    model = TRPO("MlpPolicy", make_env(task), n_steps=64, n_critic_updates=4, seed=0)
    model.set_logger(configure(str(folder / "log"), ["csv", "tensorboard"]))
    evaluation = EvalCallback(
        make_env(task, training=False, norm_reward=False),
        eval_freq=75,
        n_eval_episodes=2,
        log_path=str(folder / "evaluations"),
        best_model_save_path=str(folder / "best"),
        verbose=0,
    )
    resumable = ResumableCheckpoint(folder / "run", every=1)
    model.learn(total, callback=[evaluation, Stages(), resumable])
    seen = outcome(model, [evaluation], folder / "log")
    digest = {name: hashlib.sha256(repr(value).encode()).hexdigest() for name, value in seen.items()}
    (folder / "outcome.json").write_text(json.dumps(digest))
    model.env.close()
    evaluation.eval_env.close()
    say("stopped by", resumable.stopped_by)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
