"""RL Zoo with several ranks: one run in one folder."""

from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
from helpers.ranks import in_ranks


def train_through_zoo(rank: int, folder: Path) -> str:
    """Train, and return what the rank has printed."""
    from helpers.zoo_tools import run_zoo

    arguments = ["--algo", "trpo", "--env", "Pendulum-v1", "--n-timesteps", "4096", "-f", folder, "--eval-freq", "512"]
    arguments += ["-params", "n_envs:2", "n_steps:1024", "--eval-episodes", "1", "--save-freq", "600", "--progress"]
    with redirect_stdout(StringIO()) as printed:
        run_zoo(folder, "train", *arguments)
    return printed.getvalue()


def test_ranks_train_one_run_in_one_folder(tmp_path):
    first, second = in_ranks(2, train_through_zoo, tmp_path)
    (run,) = (tmp_path / "trpo").iterdir()
    assert f"Saving to {run}" in first
    assert second == ""
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
    first_episodes = {path.read_text().splitlines()[2].split(",")[0] for path in run.glob("*.monitor.csv")}
    assert len(first_episodes) == 4, "each environment has its own seed"
