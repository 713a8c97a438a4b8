"""imitation's trainers with TRPO in them; their loggers average whatever is recorded."""

import csv

import numpy as np
import pytest
from stable_baselines3.common.env_util import make_vec_env

pytest.importorskip("imitation")

from helpers.runs import parameters_of
from imitation.algorithms import bc, preference_comparisons
from imitation.algorithms.adversarial.airl import AIRL
from imitation.algorithms.adversarial.gail import GAIL
from imitation.data import rollout
from imitation.data.wrappers import RolloutInfoWrapper
from imitation.rewards.reward_nets import BasicRewardNet, BasicShapedRewardNet
from imitation.util import logger as imitation_logger

from sb3_trpo import TRPO

FORMATS = ("csv", "tensorboard")


@pytest.fixture
def venv():
    return make_vec_env("CartPole-v1", n_envs=2, seed=0, wrapper_class=RolloutInfoWrapper)


def learner(venv) -> TRPO:
    return TRPO("MlpPolicy", venv, n_steps=64, batch_size=64, n_critic_updates=2, seed=0, device="cpu")


def demonstrations(venv):
    return rollout.rollout(
        learner(venv), venv, rollout.make_sample_until(min_timesteps=200), rng=np.random.default_rng(0), verbose=False
    )


@pytest.mark.parametrize(("trainer_class", "net_class"), [(GAIL, BasicRewardNet), (AIRL, BasicShapedRewardNet)])
def test_adversarial_trainers_train_and_count_outcomes(trainer_class, net_class, venv, tmp_path):
    model = learner(venv)
    before = parameters_of(model)
    trainer = trainer_class(
        demonstrations=demonstrations(venv),
        demo_batch_size=32,
        gen_replay_buffer_capacity=64,
        n_disc_updates_per_round=1,
        venv=venv,
        gen_algo=model,
        reward_net=net_class(venv.observation_space, venv.action_space),
        allow_variable_horizon=True,
        custom_logger=imitation_logger.configure(tmp_path, FORMATS),
    )
    trainer.train(4 * 128)
    assert model.num_timesteps == 4 * 128
    assert parameters_of(model) != before
    with (tmp_path / "raw" / "gen" / "progress.csv").open() as file:
        *_, last = csv.DictReader(file)
    counts = {key.removeprefix("raw/gen/outcomes/"): float(value) for key, value in last.items() if "/outcomes/" in key}
    assert counts.pop("critic_fitted") == 3  # SB3 dumps before an update, so that the last one is not in the file
    assert sum(counts.values()) == 3


def test_preference_comparisons_train(venv, tmp_path):
    rng, net = np.random.default_rng(0), BasicRewardNet(venv.observation_space, venv.action_space)
    logger = imitation_logger.configure(tmp_path, FORMATS)
    agent = preference_comparisons.AgentTrainer(learner(venv), net, venv, rng, custom_logger=logger)
    preferences = preference_comparisons.PreferenceComparisons(
        agent,
        net,
        num_iterations=2,
        fragmenter=preference_comparisons.RandomFragmenter(rng, warning_threshold=0),
        preference_gatherer=preference_comparisons.SyntheticGatherer(rng=rng),
        reward_trainer=preference_comparisons.BasicRewardTrainer(
            preference_comparisons.PreferenceModel(net), preference_comparisons.CrossEntropyRewardLoss(), epochs=1, rng=rng
        ),
        fragment_length=5,
        transition_oversampling=1,
        initial_comparison_frac=0.1,
        allow_variable_horizon=True,
        custom_logger=logger,
    )
    before = parameters_of(agent.algorithm)
    preferences.train(total_timesteps=512, total_comparisons=20)
    assert parameters_of(agent.algorithm) != before


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True to a scalar")  # imitation's own log
def test_a_policy_cloned_from_demonstrations_goes_on_learning(venv, tmp_path):
    model = learner(venv)
    before = parameters_of(model)
    cloning = bc.BC(
        observation_space=venv.observation_space,
        action_space=venv.action_space,
        demonstrations=rollout.flatten_trajectories(demonstrations(venv)),
        policy=model.policy,
        rng=np.random.default_rng(0),
        custom_logger=imitation_logger.configure(tmp_path, FORMATS),
    )
    cloning.train(n_epochs=1, progress_bar=False)
    cloned = parameters_of(model)
    assert cloned != before
    model.learn(128)
    assert parameters_of(model) != cloned
    assert model.policy_outcome.value == "accepted"
