import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.env_util import make_vec_env

import sb3_trpo.zoo.memory_tasks  # noqa: F401  # registers the environments
from sb3_trpo import TRPO
from sb3_trpo.maskable import MaskableTRPO
from sb3_trpo.recurrent import MaskableRecurrentTRPO
from sb3_trpo.zoo.masking import PLAYERS, TEST_ENV, evaluate

TASK = "InvalidActionEnvDiscrete-v0"
MODELS = {"trpo_mask": (MaskableTRPO, "MlpPolicy"), "trpo_mask_lstm": (MaskableRecurrentTRPO, "MlpLstmPolicy")}


@pytest.fixture(params=MODELS)
def saved(request, tmp_path):
    """A model, and the class that loads it to play."""
    algorithm, policy = MODELS[request.param]
    model = algorithm(policy, gym.make(TASK), n_steps=32, batch_size=32, seed=0)
    model.save(tmp_path / "model.zip")
    return model, PLAYERS[request.param], tmp_path / "model.zip"


@pytest.fixture
def env():
    env = make_vec_env(lambda: gym.make(TASK), 2, seed=0)
    yield env
    env.close()


def test_a_player_asks_the_test_environments_for_masks_that_it_is_not_given(saved, env):
    model, player, file = saved
    playing = player.load(file)
    assert type(playing).__name__ == type(model).__name__, "model cards show the name"
    with pytest.warns(UserWarning, match="was given no action_masks"):
        playing.predict(env.reset())
    token = TEST_ENV.set(env)
    try:
        obs, state, starts = env.reset(), None, np.ones(2, bool)
        for _ in range(20):
            masks = np.stack(env.env_method("action_masks"))
            expected, _ = model.predict(obs, state, starts, deterministic=True, action_masks=masks)
            actions, state = playing.predict(obs, state=state, episode_start=starts, deterministic=True)
            assert masks[range(2), actions].all()
            np.testing.assert_array_equal(actions, expected)
            obs, _, starts, _ = env.step(actions)
        only = np.tile(np.arange(20) == 7, (2, 1))
        assert playing.predict(obs, state, starts, action_masks=only)[0].tolist() == [7, 7], "masks that are given come first"
    finally:
        TEST_ENV.reset(token)


def test_what_a_player_saves_loads_as_the_model(saved, tmp_path):
    model, player, file = saved
    player.load(file).save(tmp_path / "again.zip")
    again = type(model).load(tmp_path / "again.zip")
    assert all((again.policy.state_dict()[name] == value).all() for name, value in model.policy.state_dict().items())


def test_only_masked_models_are_evaluated_under_masks(saved, env):
    model, _, _ = saved
    masked, predict = [], model.predict
    model.predict = lambda *args, **kwargs: masked.append(kwargs["action_masks"]) or predict(*args, **kwargs)
    returns, _ = evaluate(model, env, n_eval_episodes=2, return_episode_rewards=True)
    assert len(returns) == 2
    assert masked
    plain = TRPO("MlpPolicy", "CartPole-v1", n_steps=32, batch_size=32)
    assert evaluate(plain, plain.get_env(), n_eval_episodes=1)[0] > 0.0
