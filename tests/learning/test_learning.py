import numpy as np
import pytest
import rl_zoo3.import_envs  # noqa: F401  # for the velocity-free tasks
import yaml
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize, sync_envs_normalization

import sb3_trpo.zoo.memory_tasks  # noqa: F401  # for the mazes
from sb3_trpo import TRPO
from sb3_trpo.zoo.algorithms import ALGORITHMS, config_file
from sb3_trpo.zoo.masking import evaluate


def train(env_id, n_envs, steps, seed, **settings):
    """Returns the mean return over 20 deterministic episodes before and after training."""
    evaluation_env = make_vec_env(env_id, seed=100)
    model = TRPO("MlpPolicy", make_vec_env(env_id, n_envs, seed=seed), seed=seed, device="cpu", **settings)
    before, _ = evaluate_policy(model, evaluation_env, n_eval_episodes=20)
    model.learn(steps)
    after, _ = evaluate_policy(model, evaluation_env, n_eval_episodes=20)
    return before, after


@pytest.mark.learning
def test_cartpole_is_solved_with_the_default_settings():
    before, after = train("CartPole-v1", n_envs=1, steps=25_000, seed=1)
    assert before < 100
    assert after >= 475


@pytest.mark.learning
def test_pendulum_improves_clearly():
    before, after = train("Pendulum-v1", n_envs=4, steps=50_000, seed=0, n_steps=512, gamma=0.9, n_critic_updates=15)
    assert before < -1000
    assert after > -500


def stop_at(threshold):
    """Ends training when the mean return of the last 100 episodes has reached the threshold."""

    class Stop(BaseCallback):
        def _on_step(self):
            recent = [episode["r"] for episode in self.model.ep_info_buffer]
            return len(recent) < 100 or np.mean(recent) < threshold

    return Stop()


def learn_by_zoo_settings(algo, env_id, seed, threshold, steps):
    """Trains with our settings for RL Zoo until it goes well, and returns the model with fresh environments for it."""
    settings = yaml.safe_load(config_file(algo).read_text())[env_id]
    n_envs, policy, normalize = settings.pop("n_envs"), settings.pop("policy"), settings.pop("normalize", False)
    settings["policy_kwargs"] = eval(settings["policy_kwargs"])
    settings["target_kl"] = float(str(settings["target_kl"]).removeprefix("lin_"))  # for it ends early
    del settings["n_timesteps"]

    def make(n, seed):
        env = make_vec_env(env_id, n, seed=seed)
        return VecNormalize(env, gamma=settings["gamma"]) if normalize else env

    model = ALGORITHMS[algo](policy, make(n_envs, seed), seed=seed, device="cpu", **settings)
    model.learn(steps, callback=stop_at(threshold))
    unseen = make(1, 100)
    if normalize:
        sync_envs_normalization(model.env, unseen)
        unseen.training = unseen.norm_reward = False
    return model, unseen


def returns_without_memory(env_id, steps):
    """Trains TRPO's plain policy on the same task."""
    env = VecNormalize(make_vec_env(env_id, 8, seed=0)) if "NoVel" in env_id else make_vec_env(env_id, 8, seed=0)
    model = TRPO("MlpPolicy", env, n_steps=128, gamma=0.98 if "Pendulum" not in env_id else 0.9, seed=0, device="cpu")
    model.learn(steps)
    return np.mean([episode["r"] for episode in model.ep_info_buffer])


@pytest.mark.learning
@pytest.mark.parametrize(("algo", "env_id"), [("trpo_lstm", "TMaze-v0"), ("trpo_mask_lstm", "MaskedTMaze-v0")])
def test_the_way_out_of_a_t_maze_is_remembered(algo, env_id):
    model, unseen = learn_by_zoo_settings(algo, env_id, seed=0, threshold=3.8, steps=100_000)
    mean, _ = evaluate(model, unseen, n_eval_episodes=50)
    assert mean > 3.9, "4 is the treasure"


@pytest.mark.learning
def test_velocities_that_are_not_seen_are_inferred():
    model, unseen = learn_by_zoo_settings("trpo_lstm", "CartPoleNoVel-v1", seed=0, threshold=120.0, steps=60_000)
    mean, _ = evaluate(model, unseen, n_eval_episodes=20)
    assert mean > 120.0, "without memory it is below 100"


@pytest.mark.learning
@pytest.mark.parametrize(("env_id", "bound"), [("TMaze-v0", 2.5), ("CartPoleNoVel-v1", 100.0)])
def test_a_policy_without_memory_does_not_learn_these_tasks(env_id, bound):
    assert returns_without_memory(env_id, steps=40_000) < bound
