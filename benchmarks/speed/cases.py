"""What is timed: tasks with their environments, settings and targets."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import rl_zoo3.import_envs  # noqa: F401  # registers CartPoleNoVel-v1
import sb3_contrib
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, VecTransposeImage

import sb3_trpo
from benchmarks.common.random_env import Frames
from benchmarks.speed.batched import BatchedPointMass
from benchmarks.speed.extractors import ResidualImageExtractor, SmallImageExtractor
from benchmarks.speed.settings import of_ours, of_rl_zoo
from sb3_trpo.extras import needs
from sb3_trpo.recurrent import RecurrentTRPO

Classes = Mapping[str, type[BaseAlgorithm]]
TRPOS: Classes = MappingProxyType({"ours": sb3_trpo.TRPO, "sb3-contrib": sb3_contrib.TRPO})
"""By package. Others take turns with them: see :class:`Case`."""
N_CRITIC_UPDATES = 10
"""sb3-contrib's default, which is not ours."""


def same_passes(_package: str) -> dict[str, Any]:
    """
    Choose the defaults of sb3-contrib's TRPO.

    :return: keywords of the constructor, the same for both packages
    """
    return {"n_critic_updates": N_CRITIC_UPDATES}


class Case(NamedTuple):
    """
    Something to time ``learn()`` on.

    :param make_env: makes the environments
    :param settings: from the package to keywords of the constructor
    :param policy: name of the policy
    :param classes: the algorithms of both packages
    :param n_rollouts: number of rollouts in each timing
    :param has_ppo: whether PPO with its defaults takes part, and whether ``train()`` is timed alone as well
    :param in_cpu_time: whether to count the process's CPU time instead of wall time
    """

    make_env: Callable[[], VecEnv]
    settings: Callable[[str], dict[str, Any]] = same_passes
    policy: str = "MlpPolicy"
    classes: Classes = TRPOS
    n_rollouts: int = 2
    has_ppo: bool = False
    in_cpu_time: bool = False

    @property
    def clock(self) -> Callable[[], float]:
        """The clock to time with, in seconds."""
        return time.process_time if self.in_cpu_time else time.perf_counter


def make_env(task: Any, n_envs: int = 1, is_normalized: bool = False, gamma: float = 0.99) -> VecEnv:
    """
    Make environments as most scripts do.

    :param task: name or class of the environment
    :param n_envs: number of environments
    :param is_normalized: whether to wrap them in ``VecNormalize``
    :param gamma: discount factor for normalizing rewards
    :return: a new VecEnv
    """
    env = make_vec_env(task, n_envs, seed=0)
    return VecNormalize(env, gamma=gamma) if is_normalized else env


def make_minigrid() -> VecEnv:
    """
    Make MiniGrid's key and door with the image of what the agent sees, which is 7x7 cells, channels first.

    :return: 8 environments
    """
    with needs("This benchmark needs", "bench"):
        from minigrid.wrappers import ImgObsWrapper
    return VecTransposeImage(make_vec_env("MiniGrid-DoorKey-5x5-v0", 8, seed=0, wrapper_class=ImgObsWrapper))


def batched_settings(package: str) -> dict[str, Any]:
    """
    Choose settings for 1,024 environments.

    :param package: its name
    :return: keywords of the constructor
    """
    return same_passes(package) | {"n_steps": 16}


def recurrent_settings(package: str) -> dict[str, Any]:
    """
    Choose our settings of an LSTM policy, with as many passes over the rollout in both; PPO's are its default, 10.

    :param package: its name
    :return: keywords of the constructor; PPO keeps its learning rate
    """
    lstm = {"lstm_hidden_size": 64, "net_arch": {"pi": [64], "vf": [64]}}
    shared = {"n_steps": 128, "gamma": 0.98, "gae_lambda": 0.9, "policy_kwargs": lstm}
    return shared | ({"n_critic_updates": N_CRITIC_UPDATES, "target_kl": 0.03} if package == "ours" else {})


def image_settings(_package: str, n_steps: int, n_critic_updates: int, **policy_kwargs: Any) -> dict[str, Any]:
    """
    Choose settings on images: policy and critic have an extractor each, which sb3-contrib's default is not.

    :param n_steps: steps of a rollout in each environment
    :param n_critic_updates: passes over the rollout
    :param policy_kwargs: further keywords of the policy
    :return: keywords of the constructor, the same for both packages
    """
    policy_kwargs |= {"share_features_extractor": False}
    return {"n_steps": n_steps, "n_critic_updates": n_critic_updates, "batch_size": 256, "policy_kwargs": policy_kwargs}


CHEETAH = "HalfCheetah-v5"
CASES = {
    **{task: Case(partial(make_env, task), has_ppo=True) for task in ("CartPole-v1", "Pendulum-v1", "Hopper-v5", CHEETAH)},
    "HalfCheetah-v5x8": Case(partial(make_env, CHEETAH, 8), n_rollouts=1),
    "HalfCheetah-v5+norm": Case(partial(make_env, CHEETAH, 1, True)),
    "HalfCheetah-v5+zoo": Case(partial(make_env, CHEETAH, 2, True), partial(of_rl_zoo, "HalfCheetah-v4", n_action_dims=6)),
    "Pendulum-v1+gSDE": Case(partial(make_env, "Pendulum-v1", 2), partial(of_ours, "Pendulum-v1", n_action_dims=1)),
    "Swimmer-v5+gSDE": Case(
        partial(make_env, "Swimmer-v5", 4, True, gamma=0.999), partial(of_ours, "Swimmer-v5", n_action_dims=2)
    ),
    "CartPoleNoVel-v1+LSTM": Case(
        partial(make_env, "CartPoleNoVel-v1", 8, True, gamma=0.98),
        recurrent_settings,
        "MlpLstmPolicy",
        {"ours": RecurrentTRPO, "sb3-contrib": sb3_contrib.RecurrentPPO},
    ),
    "frames": Case(
        partial(make_env, Frames, 8), partial(image_settings, n_steps=64, n_critic_updates=4), "CnnPolicy", n_rollouts=1
    ),
    **{
        name: Case(
            make_minigrid,
            partial(image_settings, n_steps=128, n_critic_updates=N_CRITIC_UPDATES, features_extractor_class=extractor),
            "CnnPolicy",
            n_rollouts=1,
            in_cpu_time=True,
        )
        for name, extractor in (("MiniGrid", SmallImageExtractor), ("MiniGrid+residual", ResidualImageExtractor))
    },
    "batched": Case(partial(BatchedPointMass, 1024), batched_settings, n_rollouts=1),
}
"""By the names in ``speed.json``."""


def make_model(case: Case, package: str, **settings: Any) -> BaseAlgorithm:
    """
    Make a model of a case.

    :param case: the case
    :param package: key of the case's classes, or ``"PPO"`` for PPO with its own defaults
    :param settings: replace keywords of the constructor
    :return: the model, on the CPU
    """
    keywords = (case.settings(package) if package != "PPO" else {}) | settings
    cls = PPO if package == "PPO" else case.classes[package]
    return quiet(cls(case.policy, case.make_env(), seed=0, device="cpu", **keywords))


def quiet(model: BaseAlgorithm) -> BaseAlgorithm:
    """
    Give a model a logger that writes nothing.

    :param model: the model
    :return: the same
    """
    model.set_logger(Logger(folder=None, output_formats=[]))
    return model
