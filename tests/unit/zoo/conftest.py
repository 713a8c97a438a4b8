from functools import partial

import pytest
from helpers import zoo_tools


@pytest.fixture
def run_zoo(tmp_path):
    """Run scripts in the test's folder."""
    return partial(zoo_tools.run_zoo, tmp_path)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Train briefly on CartPole-v1, with evaluations and checkpoints; return the run's folder."""
    logs = tmp_path_factory.mktemp("logs")
    zoo_tools.run_zoo(logs, "train", "--algo", "trpo", "--env", "CartPole-v1", "-n", 2048, "-f", logs, "--seed", 0,
                      "--eval-freq", 1000, "--save-freq", 1000, "-params", "n_critic_updates:2")  # fmt: skip
    return logs / "trpo" / "CartPole-v1_1"
