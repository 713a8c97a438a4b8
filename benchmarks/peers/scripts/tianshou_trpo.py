"""Tianshou's TRPO: ``python -m benchmarks.peers.scripts.tianshou_trpo N``."""

from __future__ import annotations

import warnings

import gymnasium as gym
import torch as th
from tianshou.algorithm import TRPO
from tianshou.algorithm.modelfree.reinforce import ProbabilisticActorPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Collector, VectorReplayBuffer
from tianshou.env import DummyVectorEnv
from tianshou.trainer import OnPolicyTrainerParams
from tianshou.utils.net.common import Net
from tianshou.utils.net.continuous import ContinuousActorProbabilistic, ContinuousCritic
from torch import nn
from torch.distributions import Distribution, Independent, Normal

from benchmarks.peers.protocol import GAE_LAMBDA, GAMMA, LEARNING_RATE, N_STEPS, PASSES, TARGET_KL, TASK, WIDTHS, report


def gaussian(parameters: tuple[th.Tensor, th.Tensor]) -> Distribution:
    """
    Make the distribution of the actions.

    :param parameters: means and standard deviations
    :return: a Gaussian with independent dimensions
    """
    return Independent(Normal(*parameters), 1)


def main() -> None:
    """Time it."""
    th.manual_seed(0)
    warnings.simplefilter("ignore")  # it warns at each step that its line search shortens
    env = gym.make(TASK)
    observations, actions = env.observation_space.shape, env.action_space.shape
    bodies = [Net(state_shape=observations, hidden_sizes=WIDTHS, activation=nn.Tanh) for _ in range(2)]
    actor = ContinuousActorProbabilistic(preprocess_net=bodies[0], action_shape=actions, unbounded=True)
    policy = ProbabilisticActorPolicy(actor=actor, dist_fn=gaussian, action_space=env.action_space)
    algorithm = TRPO(
        policy=policy,
        critic=ContinuousCritic(preprocess_net=bodies[1]),
        optim=AdamOptimizerFactory(lr=LEARNING_RATE),
        max_kl=TARGET_KL,
        optim_critic_iters=PASSES,
        gamma=GAMMA,
        gae_lambda=GAE_LAMBDA,
    )
    collector = Collector(algorithm, DummyVectorEnv([lambda: gym.make(TASK)]), VectorReplayBuffer(N_STEPS, 1))

    def learn(n_steps: int) -> None:
        algorithm.run_training(
            OnPolicyTrainerParams(
                training_collector=collector,
                max_epochs=1,
                epoch_num_steps=n_steps,
                collection_step_num_env_steps=N_STEPS,
                batch_size=None,
                verbose=False,
                show_progress=False,
            )
        )

    report(learn, "tianshou", "torch")


if __name__ == "__main__":
    main()
