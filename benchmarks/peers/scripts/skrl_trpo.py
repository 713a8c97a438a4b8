"""skrl's TRPO: ``python -m benchmarks.peers.scripts.skrl_trpo N``."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import torch as th
from skrl.agents.torch.trpo import TRPO
from skrl.envs.wrappers.torch import wrap_env
from skrl.memories.torch import RandomMemory
from skrl.models.torch import DeterministicMixin, GaussianMixin, Model
from skrl.trainers.torch import SequentialTrainer
from torch import nn

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
    WIDTHS,
    report,
)


def network(n_in: int, n_out: int) -> nn.Sequential:
    """
    Make a network with two hidden layers.

    :param n_in: number of inputs
    :param n_out: number of outputs
    :return: the network
    """
    first, second = WIDTHS
    return nn.Sequential(nn.Linear(n_in, first), nn.Tanh(), nn.Linear(first, second), nn.Tanh(), nn.Linear(second, n_out))


class Policy(GaussianMixin, Model):
    """A Gaussian whose mean is a network's output and whose standard deviation depends on nothing."""

    def __init__(self, **spaces: Any) -> None:
        Model.__init__(self, device="cpu", **spaces)
        GaussianMixin.__init__(self)
        self.network = network(self.num_observations, self.num_actions)
        self.log_std = nn.Parameter(th.zeros(self.num_actions))

    def compute(self, inputs: dict[str, Any], _role: str) -> tuple[th.Tensor, dict[str, th.Tensor]]:
        return self.network(inputs["observations"]), {"log_std": self.log_std}


class Critic(DeterministicMixin, Model):
    """The value of a state."""

    def __init__(self, **spaces: Any) -> None:
        Model.__init__(self, device="cpu", **spaces)
        DeterministicMixin.__init__(self)
        self.network = network(self.num_observations, 1)

    def compute(self, inputs: dict[str, Any], _role: str) -> tuple[th.Tensor, dict[str, th.Tensor]]:
        return self.network(inputs["observations"]), {}


def main() -> None:
    """Time it."""
    th.manual_seed(0)
    env = wrap_env(gym.make(TASK), wrapper="gymnasium", verbose=False)
    spaces = {"observation_space": env.observation_space, "state_space": None, "action_space": env.action_space}
    agent = TRPO(
        models={"policy": Policy(**spaces), "value": Critic(**spaces)},
        memory=RandomMemory(memory_size=N_STEPS, num_envs=1, device="cpu"),
        device="cpu",
        cfg={
            "rollouts": N_STEPS,
            "learning_epochs": PASSES,
            "mini_batches": N_STEPS // MINIBATCH,
            "discount_factor": GAMMA,
            "gae_lambda": GAE_LAMBDA,
            "learning_rate": LEARNING_RATE,
            "damping": CG_DAMPING,
            "max_kl_divergence": TARGET_KL,
            "conjugate_gradient_steps": CG_STEPS,
            "time_limit_bootstrap": True,
            "experiment": {"write_interval": 0, "checkpoint_interval": 0},
        },
        **spaces,
    )
    trainer = SequentialTrainer(
        cfg={"headless": True, "disable_progressbar": True, "close_environment_at_exit": False}, env=env, agents=agent
    )

    def learn(n_steps: int) -> None:
        trainer.cfg.timesteps = n_steps
        trainer.train()

    report(learn, "skrl", "torch")


if __name__ == "__main__":
    main()
