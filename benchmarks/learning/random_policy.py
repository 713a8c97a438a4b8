"""
Returns of a policy that acts at random, the zero of normalized returns.

    python -m benchmarks.learning.random_policy       # some seconds for each task of the plan `ppo`
"""

from __future__ import annotations

import json

import gymnasium as gym

from benchmarks.common.environment import environment
from benchmarks.learning.plans import read_plan, runs_of
from benchmarks.learning.store import FOLDER, replace

EPISODES = 100
FILE = "random_policy.json"


def random_return(env: str) -> float:
    """
    Average the returns of episodes with uniformly distributed actions.

    :param env: environment ID
    :return: the mean
    """
    made, total = gym.make(env), 0.0
    made.action_space.seed(0)
    for episode in range(EPISODES):
        made.reset(seed=episode)
        over = False
        while not over:
            _, reward, terminated, truncated, _ = made.step(made.action_space.sample())
            total, over = total + float(reward), terminated or truncated
    return total / EPISODES


def main() -> None:
    """Measure all tasks."""
    envs = dict.fromkeys(run.env for run in runs_of(read_plan("ppo")))
    returns = {env: round(random_return(env), 3) for env in envs}
    contents = {"environment": environment(), "episodes": EPISODES, "returns": returns}
    replace(FOLDER / FILE, json.dumps(contents, indent=1) + "\n")


if __name__ == "__main__":
    main()
