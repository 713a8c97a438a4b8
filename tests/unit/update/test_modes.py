"""Dropout and batch norm: the policy step sees neither, the critic drops out, statistics follow once per update."""

from contextlib import nullcontext

import pytest
import torch as th
from gymnasium import spaces
from helpers.envs import BOX_ACTION, RandomEnv
from helpers.states import same
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from sb3_trpo import TRPO
from sb3_trpo.rollouts.inputs import ObservationInputs
from sb3_trpo.update.modes import critic_mode, evaluation_mode, follow_statistics, statistical_layers

N_STEPS = 16


class Extractor(BaseFeaturesExtractor):
    """Batch norm right on the observations, so that its statistics are theirs; then dropout."""

    def __init__(self, observation_space):
        super().__init__(observation_space, 3)
        self.norm, self.drop = th.nn.BatchNorm1d(3), th.nn.Dropout(0.5)

    def forward(self, observations):
        return self.drop(self.norm(observations))


def make(share=False, **settings) -> TRPO:
    settings = {"n_steps": N_STEPS, "batch_size": N_STEPS, "seed": 0, "device": "cpu"} | settings
    policy_kwargs = {"features_extractor_class": Extractor, "share_features_extractor": share}
    return TRPO("MlpPolicy", RandomEnv(spaces.Box(2.0, 3.0, (3,)), BOX_ACTION), policy_kwargs=policy_kwargs, **settings)


def training(policy, kind) -> set[bool]:
    return {module.training for module in policy.modules() if isinstance(module, kind)}


def statistics(policy) -> list[th.Tensor]:
    return [buffer.clone() for norm in statistical_layers(policy) for buffer in norm.buffers()]


def test_statistical_layers_are_those_that_track():
    policy = make().policy
    assert statistical_layers(policy) == [policy.pi_features_extractor.norm, policy.vf_features_extractor.norm]
    tracking = th.nn.InstanceNorm1d(2, track_running_stats=True)
    others = th.nn.BatchNorm1d(2, track_running_stats=False), th.nn.InstanceNorm1d(2), th.nn.LayerNorm(2)
    policy.extra = th.nn.ModuleList([*others, tracking])
    assert statistical_layers(policy)[2:] == [tracking]


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("fault", [None, KeyboardInterrupt, ValueError])
@pytest.mark.parametrize(("mode", "drops_out"), [(evaluation_mode, False), (critic_mode, True)])
def test_only_the_critics_mode_drops_out_and_neither_moves_statistics(mode, drops_out, fault, before):
    policy = make().policy
    policy.set_training_mode(before)
    with nullcontext() if fault is None else pytest.raises(fault), mode(policy):
        assert training(policy, th.nn.Dropout) == {drops_out}
        assert training(policy, th.nn.BatchNorm1d) == {False}
        assert training(policy, th.nn.Linear) == {drops_out}
        if fault is not None:
            raise fault
    assert training(policy, th.nn.Module) == {before and mode is evaluation_mode}


class Wrapped(th.nn.Module):
    """Keeps a statistic of its own, and dropout and batch norm inside."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", th.zeros(()))
        self.inside = th.nn.Sequential(th.nn.Dropout(0.5), th.nn.BatchNorm1d(3))


def test_dropout_inside_a_layer_with_statistics_stays_on_in_critic_mode():
    policy = make().policy
    policy.wrapped = Wrapped()
    with critic_mode(policy):
        assert policy.wrapped.inside[0].training
        assert not policy.wrapped.training
        assert not policy.wrapped.inside[1].training


@pytest.mark.parametrize("share", [False, True])
def test_statistics_follow_the_data_by_one_step_of_their_momentum(share):
    policy = make(share).policy
    policy.set_training_mode(False)
    observations = th.rand(10, 3) + 2.0
    parameters = [value.detach().clone() for value in policy.parameters()]
    random_state = th.get_rng_state()
    follow_statistics(policy, ObservationInputs(observations))
    assert len(statistical_layers(policy)) == (1 if share else 2)
    for norm in statistical_layers(policy):
        assert int(norm.num_batches_tracked) == 1
        assert th.allclose(norm.running_mean, 0.1 * observations.mean(0))
        assert th.allclose(norm.running_var, 0.9 + 0.1 * observations.var(0))
    assert all(map(th.equal, parameters, policy.parameters()))
    assert th.equal(th.get_rng_state(), random_state)  # no dropout
    assert training(policy, th.nn.Module) == {False}


def test_a_layer_that_actor_and_critic_share_sees_the_data_once_and_trains_freely_afterwards():
    policy = make().policy
    policy.vf_features_extractor = policy.pi_features_extractor
    policy.set_training_mode(False)
    observations = th.rand(10, 3)
    follow_statistics(policy, ObservationInputs(observations))
    (norm,) = statistical_layers(policy)
    assert int(norm.num_batches_tracked) == 1
    policy.set_training_mode(True)
    norm(observations)
    norm(observations)
    assert int(norm.num_batches_tracked) == 3


def test_following_ends_in_evaluation_mode_whatever_happens():
    policy = make().policy
    policy.set_training_mode(False)
    misshapen = th.zeros(2, 5)
    with pytest.raises(RuntimeError, match="running_mean"):
        follow_statistics(policy, ObservationInputs(misshapen))
    assert training(policy, th.nn.Module) == {False}


def test_one_transition_has_no_variance_to_follow():
    policy = make().policy
    before = statistics(policy)
    follow_statistics(policy, ObservationInputs(th.zeros(1, 3)))
    assert all(map(th.equal, before, statistics(policy)))


def noted(model, name, notes):
    """Note torch's generator and the statistics when a method of the model is called."""
    method = getattr(model, name)
    setattr(model, name, lambda *args: (notes.append((th.get_rng_state(), statistics(model.policy))), method(*args))[1])


@pytest.mark.parametrize("share", [False, True])
def test_the_policy_step_is_in_evaluation_mode_and_the_critic_drops_out_without_moving_the_statistics(share):
    model, notes = make(share), []
    for name in ("train", "_fit_critic", "_finish_update"):
        noted(model, name, notes)
    model.learn(N_STEPS)
    assert model.policy_outcome.value == "accepted"
    before_step, before_fit, after_fit = (state for state, _ in notes)
    assert th.equal(before_step, before_fit)
    assert not th.equal(before_fit, after_fit)
    assert all(same(seen, notes[0][1]) for _, seen in notes)


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("chunk_size", [None, 5, 2])
def test_statistics_follow_once_per_update(share, chunk_size):
    model = make(share, chunk_size=chunk_size, n_critic_updates=2)
    for n_updates in (1, 2):
        model.learn(N_STEPS, reset_num_timesteps=False)
        for norm in statistical_layers(model.policy):
            assert int(norm.num_batches_tracked) == n_updates
            mean = 2.5 * (1.0 - 0.9**n_updates)  # of observations between 2 and 3
            assert norm.running_mean.tolist() == pytest.approx([mean] * 3, rel=0.2)


@pytest.mark.parametrize(
    "settings",
    [
        {"n_steps": 1, "batch_size": 1, "normalize_advantage": False},
        {"n_steps": N_STEPS + 1},
        {"chunk_size": 1},
        {"chunk_size": 1, "share": True},
    ],
    ids=["one transition", "a last minibatch of one transition", "the smallest chunk", "the smallest chunk, shared"],
)
def test_batch_norm_trains_even_with(settings):
    model = make(**settings)
    assert model.learn(2 * model.n_steps)._n_updates == 2


@pytest.mark.parametrize("has_batch_norm", [False, True])
def test_without_batch_norm_nothing_is_shown(has_batch_norm, monkeypatch):
    shown = []
    monkeypatch.setattr("sb3_trpo.update.modes.follow_statistics", lambda *_: shown.append(None))
    settings = {"n_steps": N_STEPS, "batch_size": N_STEPS, "device": "cpu"}
    model = make() if has_batch_norm else TRPO("MlpPolicy", RandomEnv(), **settings)
    assert model.learn(N_STEPS)._n_updates == 1
    assert len(shown) == has_batch_norm
