"""RL Zoo with several ranks: one run in one folder."""

import os
import sys
from pathlib import Path

import numpy as np
from helpers.ranks import in_ranks


def train_through_zoo(rank: int, folder: Path) -> str:
    from sb3_trpo.zoo import command as zoo

    arguments = ["--algo", "trpo", "--env", "Pendulum-v1", "--n-timesteps", "4096", "-f", str(folder), "--eval-freq", "512"]
    arguments += ["-params", "n_envs:2", "n_steps:1024", "--eval-episodes", "1", "--save-freq", "600", "--progress"]
    os.chdir(folder)
    sys.argv = ["zoo", "train", *arguments]
    zoo.main()
    return sys.stdout.name


def test_ranks_train_one_run_in_one_folder(tmp_path):
    outputs = in_ranks(2, train_through_zoo, tmp_path)
    assert outputs[1] == os.devnull != outputs[0]
    (run,) = (tmp_path / "trpo").iterdir()
    assert {path.name for path in run.glob("*.monitor.csv")} == {f"{index}.monitor.csv" for index in range(4)}
    assert (run / "Pendulum-v1.zip").is_file()
    assert (run / "Pendulum-v1" / "config.yml").is_file()
    checkpoints = [path.name for path in run.glob("rl_model_*.zip")]
    assert len(checkpoints) == len({*checkpoints}) > 1
    with np.load(run / "evaluations.npz") as evaluations:
        assert [*evaluations["timesteps"]] == sorted({*evaluations["timesteps"]})
        assert evaluations["timesteps"][-1] <= 4096
    lengths = [len(path.read_text().splitlines()) for path in run.glob("*.monitor.csv")]
    assert min(lengths) == max(lengths) > 4
