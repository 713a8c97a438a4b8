"""The layers of a vectorized environment."""

from __future__ import annotations

from collections.abc import Iterator

from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper


def layers_of(vec_env: VecEnv) -> Iterator[VecEnv]:
    """
    Go through a vectorized environment and its wrappers.

    :param vec_env: the outermost wrapper
    :return: each layer, outermost first
    """
    while isinstance(vec_env, VecEnvWrapper):
        yield vec_env
        vec_env = vec_env.venv
    yield vec_env
