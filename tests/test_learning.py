import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_trpo import TRPO


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
    before, after = train(
        "Pendulum-v1",
        n_envs=2,
        steps=50_000,
        seed=0,
        n_steps=1024,
        gamma=0.9,
        n_critic_updates=15,
        use_sde=True,
        sde_sample_freq=4,
    )
    assert before < -1000
    assert after > -500
