"""Both packages have the same environments, networks and settings in each case of the speed table."""

import numpy as np
import pytest
import yaml
from stable_baselines3.common.vec_env import VecNormalize

from benchmarks.speed.cases import CASES, make_model
from benchmarks.speed.targets import TARGETS
from sb3_trpo.zoo.algorithms import config_file

N_ACTIONS = {"HalfCheetah-v5+zoo": 6, "Swimmer-v5+gSDE": 2, "Pendulum-v1+gSDE": 1}


@pytest.fixture(params=CASES)
def name(request):
    if request.param.startswith("MiniGrid"):
        pytest.importorskip("minigrid", reason="needs Python 3.11")
    return request.param


def shapes(model):
    """Shapes of all parameters and of all that a features extractor computes."""
    return sorted(tuple(parameter.shape) for parameter in model.policy.parameters())


def test_each_case_has_a_target():
    assert CASES.keys() == TARGETS.keys()


def test_both_packages_have_the_same_networks_environments_and_rollouts(name):
    ours, theirs = (make_model(CASES[name], package) for package in ("ours", "sb3-contrib"))
    assert shapes(ours) == shapes(theirs)
    assert (ours.n_steps, ours.n_envs, ours.batch_size) == (theirs.n_steps, theirs.n_envs, theirs.batch_size)
    assert (ours.gamma, ours.gae_lambda, ours.use_sde) == (theirs.gamma, theirs.gae_lambda, theirs.use_sde)
    assert ours.sde_sample_freq == theirs.sde_sample_freq
    assert ours.n_critic_updates == (theirs.n_epochs if hasattr(theirs, "n_epochs") else theirs.n_critic_updates)
    assert isinstance(ours.get_env(), VecNormalize) == isinstance(theirs.get_env(), VecNormalize)
    if hasattr(theirs, "target_kl") and theirs.target_kl is not None:
        assert ours.target_kl == pytest.approx(theirs.target_kl * N_ACTIONS.get(name, 1))
        assert (ours.cg_max_steps, ours.cg_damping) == (theirs.cg_max_steps, theirs.cg_damping)


@pytest.mark.parametrize("task", ["Pendulum-v1", "Swimmer-v5"])
def test_gsde_has_our_tuned_settings(task):
    tuned = yaml.safe_load(config_file("trpo").read_text())[task]
    model = make_model(CASES[f"{task}+gSDE"], "ours")
    assert (model.n_envs, model.n_steps, model.n_critic_updates) == tuple(
        tuned[k] for k in ("n_envs", "n_steps", "n_critic_updates")
    )
    assert (model.gamma, model.sde_sample_freq) == (tuned["gamma"], tuned["sde_sample_freq"])
    assert isinstance(model.get_env(), VecNormalize) == tuned.get("normalize", False)
    assert model.use_sde


def test_rewards_are_normalized_with_the_discount_of_the_algorithm(name):
    model = make_model(CASES[name], "ours")
    env = model.get_env()
    assert not isinstance(env, VecNormalize) or env.gamma == model.gamma or name == "HalfCheetah-v5+zoo"


@pytest.mark.parametrize("package", ["ours", "sb3-contrib"])
def test_a_tiny_run_of_each_new_policy_learns(package):
    for case in ("Pendulum-v1+gSDE", "CartPoleNoVel-v1+LSTM"):
        model = make_model(CASES[case], package, n_steps=8, batch_size=8)
        before = [parameter.detach().numpy().copy() for parameter in model.policy.parameters()]
        model.learn(8 * model.n_envs)
        after = [parameter.detach().numpy() for parameter in model.policy.parameters()]
        assert not all(map(np.array_equal, before, after))


@pytest.mark.parametrize(("name", "is_fast"), [("MiniGrid", 1), ("MiniGrid+residual", 0)])
def test_a_plain_cnn_takes_the_fast_path_and_a_residual_one_the_general_way(name, is_fast):
    pytest.importorskip("minigrid", reason="needs Python 3.11")
    model = make_model(CASES[name], "ours", n_steps=8, batch_size=8, n_critic_updates=1, verbose=2)
    logged = {}
    model.logger.record = lambda key, value, *_, **__: logged.update({key: value})
    model.learn(8 * model.n_envs)
    assert [logged[f"train/fast_{part}"] for part in ("rollout", "policy_step", "critic")] == [is_fast] * 3
