"""
Files saved by version 0.1.0 still load.

``tests/data/0.1.0`` holds a ``MaskableRecurrentTRPO`` on MaskedTMaze-v0 after 128 timesteps (without the file that SB3 adds
about the machine), and the checkpoint of a ``TRPO`` on two normalized CartPole-v1 after 192. The expected numbers are those of
0.1.0.
"""

import shutil
from pathlib import Path

import pytest
import torch as th
from gymnasium.envs.classic_control import CartPoleEnv
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

import sb3_trpo.zoo.memory_tasks  # noqa: F401  # registers the maze
from sb3_trpo import TRPO
from sb3_trpo.checkpoint import ResumableCheckpoint
from sb3_trpo.recurrent import MaskableMlpLstmPolicy, MaskableRecurrentTRPO

SAVED = Path(__file__).parents[1] / "data" / "0.1.0"
N_TIMESTEPS = 192
VALUE_AT_ZERO = 0.38152745366096497


def cartpole() -> VecNormalize:
    """Make environments without the registry: other tests may have changed whether it wraps them in a checker."""
    return VecNormalize(make_vec_env(CartPoleEnv, n_envs=2, seed=0))


def value_at_zero(model: TRPO) -> float:
    return model.policy.predict_values(th.zeros(1, 4)).item()


def test_a_zip_loads_and_continues():
    model = MaskableRecurrentTRPO.load(SAVED / "maskable_recurrent.zip", device="cpu")
    assert type(model.policy) is MaskableMlpLstmPolicy
    assert (model.num_timesteps, model._n_updates) == (128, 2)
    sizes = [parameter.abs().sum().item() for parameter in model.policy.parameters()]
    assert sizes[:4] == pytest.approx([9.1359, 0.0094, 9.7315, 0.225], abs=1e-4)
    model.set_env(make_vec_env("MaskedTMaze-v0", n_envs=2))
    model.learn(64, reset_num_timesteps=False)
    assert (model.num_timesteps, model._n_updates) == (192, 3)


def test_a_checkpoint_loads_as_a_model():
    env = cartpole()
    model = TRPO.from_checkpoint(SAVED / "run", env)
    assert model.num_timesteps == N_TIMESTEPS
    assert value_at_zero(model) == pytest.approx(VALUE_AT_ZERO, rel=1e-6)
    assert env.obs_rms.count == pytest.approx(N_TIMESTEPS + 2, abs=1e-3)


@pytest.mark.filterwarnings("ignore:The run continues from:UserWarning")  # with other versions of libraries
def test_a_run_continues_from_a_checkpoint(tmp_path, capsys):
    shutil.copytree(SAVED / "run", tmp_path / "run")
    settings = {"n_steps": 32, "batch_size": 16, "seed": 0, "policy_kwargs": {"net_arch": [4]}, "device": "cpu"}
    model = TRPO("MlpPolicy", cartpole(), **settings)
    with pytest.warns(UserWarning, match="made on the way to 192"):
        model.learn(N_TIMESTEPS + 64, callback=ResumableCheckpoint(tmp_path / "run", every=64))
    assert "Continuing from" in capsys.readouterr().out
    assert model._n_updates == 4
    assert model.num_timesteps == N_TIMESTEPS + 64
