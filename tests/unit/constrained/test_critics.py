"""Values and advantages of costs against a loop over the steps."""

import numpy as np
import pytest
import torch as th
from helpers.costs import CostlyEnv, costly_model
from helpers.envs import BOX_ACTION, DICT, VECTOR
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env


class Cut(CostlyEnv):
    """Episodes end by themselves now and then, or are cut off after five steps."""

    def step(self, action):
        observation, reward, *_, info = super().step(action)
        return observation, reward, self.observation_space.np_random.random() < 0.1, self.n_steps >= 5, info


class AtEnd(BaseCallback):
    """Keeps the observations after the last step, and the terminal ones."""

    def __init__(self):
        super().__init__()
        self.terminal = {}

    def _on_step(self):
        for env, info in enumerate(self.locals["infos"]):
            if info.get("TimeLimit.truncated"):
                self.terminal[self.locals["n_steps"], env] = info["terminal_observation"]
        return True


@pytest.mark.parametrize("space", [VECTOR, DICT], ids=["vector", "Dict"])
def test_advantages_are_those_of_a_loop_over_the_steps(space):
    env = make_vec_env(lambda: Cut(space, BOX_ACTION), 3, seed=0)
    policy = "MultiInputPolicy" if space is DICT else "MlpPolicy"
    model = costly_model(env, policy=policy, cost_gamma=0.9, cost_gae_lambda=0.7, n_steps=20, batch_size=30)
    seen = AtEnd()
    _, root = model._setup_learn(10**6, seen)
    root.on_training_start({}, {})
    model.collect_rollouts(model.env, root, model.rollout_buffer, 20)
    costs, starts = model._recorder.costs[0], model.rollout_buffer.episode_starts.copy()
    assert costs.any()
    assert seen.terminal
    next(model.rollout_buffer.get())  # flattens
    (limit,) = model._measure_costs()
    critic = model.cost_critics[0]

    def value(observation):
        with th.no_grad():
            return float(critic.predict_values(critic.obs_to_tensor(observation)[0]))

    samples = model.rollout_buffer._get_samples(np.arange(60)).observations
    at = {key: part.numpy() for key, part in samples.items()} if space is DICT else samples.numpy()
    pick = lambda index: {key: part[index] for key, part in at.items()} if space is DICT else at[index]  # noqa: E731
    last = model._last_obs
    for env_index in range(3):
        advantage = 0.0
        for step in reversed(range(20)):
            ends = starts[step + 1, env_index] if step < 19 else model._last_episode_starts[env_index]
            if (step, env_index) in seen.terminal:
                after = value(seen.terminal[step, env_index])
            elif ends:
                after = 0.0
            elif step < 19:
                after = value(pick(env_index * 20 + step + 1))
            else:
                after = value({key: part[env_index] for key, part in last.items()} if space is DICT else last[env_index])
            here = value(pick(env_index * 20 + step))
            delta = costs[step, env_index] + 0.9 * after - here
            advantage = delta + 0.9 * 0.7 * (1.0 - ends) * advantage
            found = limit.batch.readers[0]
            assert found.advantages[env_index * 20 + step] == pytest.approx(advantage, abs=1e-5)
            assert found.returns[env_index * 20 + step] == pytest.approx(advantage + here, abs=1e-5)
