"""The actor at each step: its output is the policy's, whichever way it is run."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from helpers.envs import BOX_ACTION, IMAGE, VECTOR
from helpers.rollouts import PAIR, model_of, several
from stable_baselines3.common.utils import obs_as_tensor

from sb3_trpo.networks.plain_network import Networks, read_networks
from sb3_trpo.networks.prepared.array_runner import ArrayRunner
from sb3_trpo.networks.prepared.preallocated import PreallocatedRunner
from sb3_trpo.rollouts.collection.step_actor import FeatureActor, ImageActor, VectorActor, row_runner, step_actor


def case(space, n_envs=2, **settings):
    """Make a model with its networks and observations."""
    model = model_of(several(n_envs, space, BOX_ACTION), **settings)
    networks = read_networks(model.policy)
    assert networks is not None
    return networks, model._plain.encode(model.env.reset())


def prepared(networks: Networks, n_envs: int):
    return step_actor(networks, n_envs, lambda stack: row_runner(stack, n_envs))


def expected(networks: Networks, observations):
    with th.no_grad():
        return networks.actor(networks.features(obs_as_tensor(observations, th.device("cpu")))).numpy()


CASES = {
    "vector": (VECTOR, VectorActor, {}),
    "vector with noise": (VECTOR, VectorActor, {"use_sde": True}),
    "doubles": (spaces.Box(-1.0, 1.0, (3,), np.float64), VectorActor, {}),
    "choice": (spaces.Discrete(4), FeatureActor, {}),
    "matrix": (spaces.Box(-1.0, 1.0, (2, 3)), FeatureActor, {}),
    "dict": (PAIR, FeatureActor, {}),
    "image": (IMAGE, ImageActor, {"policy": "CnnPolicy"}),
    "image with noise": (IMAGE, ImageActor, {"policy": "CnnPolicy", "use_sde": True}),
    "image, shared": (IMAGE, ImageActor, {"policy": "CnnPolicy", "policy_kwargs": {"share_features_extractor": True}}),
}


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize(("space", "kind", "settings"), CASES.values(), ids=CASES)
def test_the_output_is_the_actors_also_after_the_weights_have_changed(space, kind, settings, n_envs):
    networks, observations = case(space, n_envs, **settings)
    actor = prepared(networks, n_envs)
    assert type(actor) is kind
    for _ in range(2):
        actor(observations)
        assert actor.output.shape == (n_envs, networks.actor.n_outputs)
        np.testing.assert_allclose(actor.output, expected(networks, observations), rtol=1e-4, atol=1e-5)
        for tensor in networks.actor.tensors:
            tensor.data.mul_(1.1)


@pytest.mark.parametrize(("n_envs", "runner"), [(2, ArrayRunner), (600, PreallocatedRunner)])
def test_many_environments_are_run_by_torch(n_envs, runner):
    networks, observations = case(VECTOR, n_envs)
    actor = prepared(networks, n_envs)
    assert type(actor._runner) is runner
    actor(observations)
    np.testing.assert_allclose(actor.output, expected(networks, observations), rtol=1e-4, atol=1e-5)


def test_observations_of_another_shape_are_refused():
    networks, observations = case(VECTOR)
    with pytest.raises(ValueError, match=r"observations have shape \(1, 3\), not \(2, 3\)"):
        prepared(networks, 2)(observations[:1])


@pytest.mark.parametrize("is_shared", [True, False])
def test_what_actor_and_critic_share_is_there_for_the_critic(is_shared):
    kwargs = {"share_features_extractor": is_shared, "net_arch": [4]}
    networks, observations = case(IMAGE, policy="CnnPolicy", policy_kwargs=kwargs)
    assert networks.n_shared_layers == (4 if is_shared else 0)
    actor = prepared(networks, 2)
    actor(observations)
    if not is_shared:
        assert actor.shared is None
        return
    _, rest = networks.critic.split(networks.n_shared_layers)
    with th.no_grad():
        values = networks.critic(networks.features(th.as_tensor(observations)))
        th.testing.assert_close(rest(th.as_tensor(actor.shared)), values)
