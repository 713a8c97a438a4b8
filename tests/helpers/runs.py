"""Runs that crash and are made again, seen from outside."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecEnv

from sb3_trpo import TRPO
from sb3_trpo.callbacks import callback_tree
from sb3_trpo.parallel.vec_env_layers import layers_of

WALL_CLOCK = {f"time/{name}" for name in ("fps", "time_elapsed", "collect_seconds", "policy_step_seconds", "critic_seconds")}
CALLBACK_STATE = ("best_mean_reward", "last_mean_reward", "evaluations_results", "evaluations_timesteps", "evaluations_length")
CALLBACK_STATE += ("n_calls", "num_timesteps", "last_time_trigger", "n_episodes", "no_improvement_evals")


class CrashError(Exception):
    """What ends a run that is to be made again."""


class CrashAt(BaseCallback):
    """Crash at the first step that reaches a number of timesteps, once."""

    def __init__(self, *timesteps: int) -> None:
        super().__init__()
        self.pending = [*timesteps]

    def _on_step(self) -> bool:
        if self.pending and self.num_timesteps >= self.pending[0]:
            self.pending.pop(0)
            raise CrashError
        return True


def parameters_of(model: TRPO) -> dict[str, bytes]:
    """Give parameters and buffers of the policy, for comparison bit for bit."""
    return {name: tensor.cpu().numpy().tobytes() for name, tensor in model.policy.state_dict().items()}


def outcome(model: TRPO, root: Any, log_folder: Path | None = None) -> dict[str, Any]:
    """Give all of a finished run that must not depend on how often it was interrupted."""
    seen: dict[str, Any] = {f"policy {name}": tensor.numpy().tobytes() for name, tensor in model.policy.state_dict().items()}
    for index, state in enumerate(model.policy.optimizer.state.values()):
        seen |= {f"optimizer {index} {name}": value.numpy().tobytes() for name, value in state.items()}
    seen |= {name: getattr(model, name) for name in ("num_timesteps", "_n_updates", "_n_iterations", "_n_rejected_steps")}
    seen["progress"] = model._current_progress_remaining
    seen["episodes"] = [(info["r"], info["l"]) for info in model.ep_info_buffer]
    seen["observation"] = np.concatenate([np.ravel(part) for part in parts(model._last_obs)]).tobytes()
    seen["starts"] = model._last_episode_starts.tobytes()
    seen |= envs_outcome(model.env)
    for index, callback in enumerate(callback_tree(root)):
        seen |= {f"callback {index} {name}": getattr(callback, name) for name in CALLBACK_STATE if hasattr(callback, name)}
    if log_folder is not None:
        seen["rows"] = log_rows(log_folder / "progress.csv")
    return seen


def parts(observation: Any) -> list[np.ndarray]:
    return [*observation.values()] if isinstance(observation, dict) else [observation]


def envs_outcome(env: VecEnv) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for layer in layers_of(env):
        for name in ("obs_rms", "ret_rms"):
            for key, rms in entries(getattr(layer, name, None) if name in vars(layer) else None).items():
                seen[f"{name} {key}"] = (rms.mean.tobytes(), rms.var.tobytes(), rms.count)
        for name in ("returns", "episode_returns", "episode_lengths"):
            if isinstance(vars(layer).get(name), np.ndarray):
                seen[name] = vars(layer)[name].tobytes()
    if env.has_attr("total_steps"):
        seen["monitors"] = [env.get_attr(name) for name in ("episode_returns", "episode_lengths", "total_steps", "rewards")]
    return seen


def entries(value: Any) -> dict[str, Any]:
    return {} if value is None else value if isinstance(value, dict) else {"": value}


def log_rows(path: Path) -> list[dict[str, str]]:
    """Read a log without what the wall clock decides."""
    with path.open() as file:
        rows = csv.DictReader(file)  # the order of columns is that of a set
        return [{key: row[key] for key in sorted(row.keys() - WALL_CLOCK) if row[key]} for row in rows]


def run_until_done(script: Callable[[CrashAt], Any], *crashes: int) -> tuple[Any, int]:
    """Run a script, which makes everything again, again after each crash; returns its result and the number of starts."""
    crash, starts = CrashAt(*crashes), 0
    while True:
        starts += 1
        try:
            return script(crash), starts
        except CrashError:
            crash = CrashAt(*crash.pending)


def with_log(model: TRPO, folder: Path, *formats: str) -> TRPO:
    model.set_logger(configure(str(folder), [*(formats or ("csv",))]))
    return model
