"""
Mean and largest KL(old || new) over the states of each update, with and without ``max_state_kl``.

The KL is recomputed from the Gaussians before and after each policy step, at all states of the rollout: no number of the
package's own is used.

    python -m benchmarks.state_kl.run
"""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecNormalize
from torch.distributions import kl_divergence

from benchmarks.common.environment import RESULTS, environment
from sb3_trpo import TRPO

TARGET_KL = 0.02
N_UPDATES, N_TRANSITIONS = 100, 2048
ENVS = ("HalfCheetah-v5", "Hopper-v5")
BOUNDS: dict[str, dict[str, Any]] = {
    "none": {},
    "largest, 10 x target_kl": {"max_state_kl": 10 * TARGET_KL},
    "largest, 5 x target_kl": {"max_state_kl": 5 * TARGET_KL},
    "0.95-quantile, 3 x target_kl": {"max_state_kl": 3 * TARGET_KL, "state_kl_quantile": 0.95},
}
"""Settings by label."""
SEEDS = (0, 1, 2)
COLUMNS = ("mean", "max", "fraction", "return")


class Measured(TRPO):
    """Keeps what each update did to the policy."""

    def train(self) -> None:
        """Update, and compare the policies before and after at the states of the rollout."""
        old, observations = copy.deepcopy(self.policy), self.rollout_buffer.observations.copy()
        super().train()
        kl = state_kls(old, self.policy, th.from_numpy(observations.reshape(-1, observations.shape[-1])))
        returns = [episode["r"] for episode in self.ep_info_buffer]
        fraction = self.logger.name_to_value.get("train/step_fraction", 0.0)
        self.records.append([kl.mean(), kl.max(), fraction, np.mean(returns) if returns else 0.0])

    records: list[list[float]]


@th.no_grad()
def state_kls(old: ActorCriticPolicy, new: ActorCriticPolicy, observations: th.Tensor) -> np.ndarray:
    """
    Compute KL(old || new) of the joint action at each state.

    :param old: policy before the step
    :param new: policy after it
    :param observations: shape ``(n, n_entries)``
    :return: shape ``(n,)``, in nats
    """
    before, after = (policy.get_distribution(observations).distribution for policy in (old, new))
    kls: np.ndarray = kl_divergence(before, after).double().sum(1).numpy()
    return kls


def measure(env: str, settings: dict[str, Any], seed: int) -> dict[str, list[float]]:
    """
    Train and measure each update.

    :param env: environment ID
    :param settings: of the bound on single states
    :param seed: of the run
    :return: mean and largest KL, step size and mean return of the last 100 episodes (0 if there are none), for each update
    """
    vec_env = VecNormalize(make_vec_env(env, n_envs=4))
    kwargs = {"policy_kwargs": {"log_std_init": -0.5}, "seed": seed, "device": "cpu"}
    model = Measured("MlpPolicy", vec_env, n_steps=N_TRANSITIONS // 4, target_kl=TARGET_KL, **kwargs, **settings)
    model.set_logger(Logger(folder=None, output_formats=[]))
    model.records = []
    model.learn(N_UPDATES * N_TRANSITIONS, log_interval=1)
    columns = zip(*model.records, strict=True)
    return {name: [float(f"{x:.4g}") for x in column] for name, column in zip(COLUMNS, columns, strict=True)}


def main() -> None:
    """Measure and write the results."""
    th.set_num_threads(1)
    results = []
    for env in ENVS:
        for label, settings in BOUNDS.items():
            for seed in SEEDS:
                found = measure(env, settings, seed)
                results.append({"env": env, "bound": label, "seed": seed, "target_kl": TARGET_KL, **settings, **found})
                print(f"{env}, {label}, seed {seed}: return {found['return'][-1]:.0f}", flush=True)
    rows = ",\n".join(json.dumps(result) for result in results)  # a line for each run
    head = json.dumps({"environment": environment()}, indent=1)
    (RESULTS / "state_kl.json").write_text(f'{head[:-2]},\n "results": [\n{rows}\n]}}\n')


if __name__ == "__main__":
    main()
