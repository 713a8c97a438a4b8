"""Which parameters the distribution depends on: found by what they do, whatever they are called and wherever they sit."""

import copy

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from helpers.contract_tools import moved_since, parameters
from helpers.envs import BOX_ACTION, VECTOR, RandomEnv
from helpers.states import same
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from sb3_trpo import TRPO, CnnPolicy, MlpPolicy, MultiInputPolicy
from sb3_trpo.parallel.communicator import ALONE, Communicator
from sb3_trpo.rollouts.reader import TransitionReader
from sb3_trpo.update.parameter_split import ParameterSplit, split_parameters

DISCRETE = spaces.Discrete(3)
IMAGE = spaces.Box(0, 255, (1, 36, 36), np.uint8)
DICT = spaces.Dict({"vector": VECTOR, "image": IMAGE, "choice": spaces.Discrete(3), "bits": spaces.MultiBinary(2)})


def make(policy_class=MlpPolicy, observation_space=VECTOR, action_space=DISCRETE, **kwargs):
    th.manual_seed(0)
    return policy_class(observation_space, action_space, lambda _: 1e-3, **kwargs)


def split(policy) -> ParameterSplit:
    """Split by one observation."""
    return split_parameters(policy, [TransitionReader.any_inputs(policy)])


def names(policy) -> tuple[set[str], set[str], set[str]]:
    groups = split(policy)
    for group in groups:
        assert all(policy.get_parameter(name) is parameter for name, parameter in group.items())
    return tuple(set(group) for group in groups)


def trainable(policy) -> set[str]:
    return {name for name, parameter in policy.named_parameters() if parameter.requires_grad}


class Noisy(th.nn.Sequential):
    def __init__(self):
        super().__init__(th.nn.Dropout(0.5), th.nn.BatchNorm1d(64), th.nn.Tanh())


HEAD, LAYERS, EXTRACTOR = "action_net.", "mlp_extractor.policy_net.", "features_extractor."
EXTRACTORS = (EXTRACTOR, "pi_features_extractor.")
SHARED = {"share_features_extractor": True}
SQUASHED = {"use_sde": True, "squash_output": True, "use_expln": True, "full_std": False}
STANDARD = {
    "discrete": ({}, (LAYERS, HEAD)),
    "box": ({"action_space": BOX_ACTION}, (LAYERS, HEAD, "log_std")),
    "bits": ({"action_space": spaces.MultiBinary(3)}, (LAYERS, HEAD)),
    "choices": ({"action_space": spaces.MultiDiscrete([2, 3])}, (LAYERS, HEAD)),
    "gsde": ({"action_space": BOX_ACTION, "use_sde": True}, (LAYERS, HEAD, "log_std")),
    "squashed": ({"action_space": BOX_ACTION, **SQUASHED}, (LAYERS, HEAD, "log_std")),
    "number": ({"observation_space": spaces.Discrete(4)}, (LAYERS, HEAD)),
    "numbers": ({"observation_space": spaces.MultiDiscrete([4, 2])}, (LAYERS, HEAD)),
    "linear": ({"net_arch": []}, (HEAD,)),
    "uneven": ({"net_arch": {"pi": [], "vf": [8]}}, (HEAD,)),
    "noisy": ({"activation_fn": Noisy}, (LAYERS, HEAD)),
    "cnn": ({"policy_class": CnnPolicy, "observation_space": IMAGE}, (*EXTRACTORS, LAYERS, HEAD)),
    "shared cnn": ({"policy_class": CnnPolicy, "observation_space": IMAGE, **SHARED}, (EXTRACTOR, LAYERS, HEAD)),
    "dict": (
        {"policy_class": MultiInputPolicy, "observation_space": DICT, "action_space": BOX_ACTION},
        (*EXTRACTORS, LAYERS, HEAD, "log_std"),
    ),
    "shared dict": ({"policy_class": MultiInputPolicy, "observation_space": DICT, **SHARED}, (EXTRACTOR, LAYERS, HEAD)),
}


@pytest.mark.parametrize(("arguments", "prefixes"), STANDARD.values(), ids=STANDARD)
def test_sb3s_policies_are_split_into_actor_and_critic(arguments, prefixes):
    policy = make(**arguments)
    actor, critic, detached = names(policy)
    assert actor == {name for name in trainable(policy) if name.startswith(prefixes)}
    assert critic == trainable(policy) - actor
    assert not detached
    assert {"value_net.weight", "value_net.bias"} <= critic


@pytest.mark.parametrize("frozen", ["", "mlp_extractor.policy_net", "mlp_extractor.value_net", "action_net", "log_std"])
def test_frozen_parameters_are_in_no_group(frozen):
    policy = make(action_space=BOX_ACTION)
    before = names(policy)
    for name, parameter in policy.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
    after = names(policy)
    assert after == tuple({name for name in group if not name.startswith(frozen)} for group in before)
    assert after != before


class Tied(MlpPolicy):
    """The critic's first layer is the actor's, under another name."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.mlp_extractor.value_net[0].weight = self.mlp_extractor.policy_net[0].weight
        self.mlp_extractor.value_net[2] = self.mlp_extractor.policy_net[2]


def test_tied_parameters_are_the_policys_once():
    policy = make(Tied)
    actor, critic, detached = names(policy)
    assert {"mlp_extractor.policy_net.0.weight", "mlp_extractor.policy_net.2.weight"} <= actor
    assert critic == {"mlp_extractor.value_net.0.bias", "value_net.weight", "value_net.bias"}
    assert not detached
    values = list(split(policy).policy.values())
    assert len({id(value) for value in values}) == len(values)


class Misnamed(MlpPolicy):
    """Acts by a net called value and judges by one called policy."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.value_like_actor = th.nn.Linear(64, 64)
        self.policy_like_critic = th.nn.Linear(64, 64)
        self.critic_log_value = th.nn.Parameter(th.zeros(()))

    def _get_action_dist_from_latent(self, latent_pi):
        return super()._get_action_dist_from_latent(self.value_like_actor(latent_pi) * self.critic_log_value.exp())

    def predict_values(self, obs):
        latent_vf = self.mlp_extractor.forward_critic(self.extract_features(obs, self.vf_features_extractor))
        return self.value_net(self.policy_like_critic(latent_vf))


def test_names_mean_nothing():
    actor, critic, detached = names(make(Misnamed))
    assert {"value_like_actor.weight", "value_like_actor.bias", "critic_log_value"} <= actor
    assert {"policy_like_critic.weight", "policy_like_critic.bias"} <= critic
    assert not detached


class Detached(MlpPolicy):
    """The actor reads features that only the critic's regression was meant to train."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{**kwargs, "share_features_extractor": True, "features_extractor_class": Linear})

    def get_distribution(self, obs):
        features = self.extract_features(obs, self.pi_features_extractor).detach()
        return self._get_action_dist_from_latent(self.mlp_extractor.forward_actor(features))


class Linear(BaseFeaturesExtractor):
    def __init__(self, observation_space):
        super().__init__(observation_space, 5)
        self.layer, self.norm = th.nn.Linear(3, 5), th.nn.LayerNorm(5)

    def forward(self, observations):
        return self.norm(self.layer(observations))


FEATURES = {f"features_extractor.{layer}.{part}" for layer in ("layer", "norm") for part in ("weight", "bias")}


def test_what_acts_behind_a_detach_is_neithers():
    actor, critic, detached = names(make(Detached))
    assert detached == FEATURES
    assert "action_net.weight" in actor
    assert "value_net.weight" in critic


class Aliased(MlpPolicy):
    """Its critic's net is one module under two names."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.judge = self.mlp_extractor.value_net


class Routed(BaseFeaturesExtractor):
    """Passes an observation to one of two layers by its sign, as a multi-task policy does by the task."""

    def __init__(self, observation_space):
        super().__init__(observation_space, 4)
        self.layers = th.nn.ModuleList([th.nn.Linear(3, 4), th.nn.Linear(3, 4)])

    def forward(self, observations):
        positive = observations[:, 0] > 0
        features = observations.new_zeros(len(observations), 4)
        for chosen, layer in zip((positive, ~positive), self.layers, strict=True):
            if chosen.any():
                features[chosen] = layer(observations[chosen])
        return features


def moved_by_routed(n_critic_updates, chunk_size, **settings):
    """Train a policy with such an extractor for one update, and name what has moved."""
    settings |= {"policy_kwargs": {"features_extractor_class": Routed, **SHARED}, "n_critic_updates": n_critic_updates}
    model = TRPO("MlpPolicy", RandomEnv(), n_steps=32, batch_size=32, chunk_size=chunk_size, seed=0, **settings)
    before = parameters(model.policy)
    model.learn(32)
    return model.policy_outcome.value, moved_since(before, model.policy), before.keys()


@pytest.mark.parametrize("chunk_size", [None, 1])
def test_the_critic_leaves_what_acts_in_some_states_only(chunk_size):
    outcome, moved, names = moved_by_routed(3, chunk_size, target_kl=lambda progress_remaining: 0.01 * progress_remaining)
    assert outcome == "empty trust region"  # no progress remains at the only update, so the policy stays
    assert moved == {name for name in names if "value_net" in name}


@pytest.mark.parametrize("chunk_size", [None, 1])
def test_the_policy_step_moves_what_acts_in_some_states_only(chunk_size):
    outcome, moved, _ = moved_by_routed(0, chunk_size)
    assert outcome == "accepted"
    assert {"features_extractor.layers.0.weight", "features_extractor.layers.1.weight"} <= moved


class Refusing(Detached):
    """Raises where others would pass NaN on."""

    def get_distribution(self, obs):
        if not self.extract_features(obs, self.pi_features_extractor).isfinite().all():
            raise ValueError("not finite")
        return super().get_distribution(obs)


def test_a_policy_that_refuses_nan_has_seen_it():
    assert names(make(Refusing))[2] == FEATURES


def test_a_parameter_that_nothing_uses_is_the_critics_and_never_moves():
    policy = make()
    policy.unused = th.nn.Linear(4, 4)
    policy.empty = th.nn.Parameter(th.zeros(0))
    _, critic, detached = names(policy)
    assert {"unused.weight", "unused.bias", "empty"} <= critic
    assert not detached


class Direction(BaseFeaturesExtractor):
    """Gives 0 / 0 for the blank observation, as no true one does."""

    def __init__(self, observation_space):
        super().__init__(observation_space, 3)

    def forward(self, observations):
        return observations / observations.norm(dim=1, keepdim=True)


def test_features_that_are_nan_for_a_blank_observation_hide_nothing():
    assert names(make(features_extractor_class=Direction)) == names(make())


@pytest.mark.parametrize("bound", [np.inf, float(np.finfo(np.float32).max), 1e30])
@pytest.mark.parametrize("activation_fn", [th.nn.Tanh, th.nn.ReLU])
@pytest.mark.parametrize("action_space", [DISCRETE, BOX_ACTION], ids=["discrete", "box"])
def test_bounds_that_no_observation_comes_near_hide_nothing(bound, activation_fn, action_space):
    wide = spaces.Box(-bound, bound, (100,), np.float32)
    policy = make(observation_space=wide, action_space=action_space, activation_fn=activation_fn)
    assert names(policy) == names(make(action_space=action_space))


class Constant(MlpPolicy):
    """Its distribution ignores the observation: only the bias of the last layer acts."""

    def _get_action_dist_from_latent(self, latent_pi):
        return super()._get_action_dist_from_latent(th.zeros_like(latent_pi))


def test_a_layer_multiplied_by_zeros_still_belongs_to_the_graph():
    actor, _, detached = names(make(Constant))
    assert actor == {"action_net.weight", "action_net.bias"}
    assert not detached


SPLIT = {name: arguments for name, (arguments, _) in STANDARD.items()}
SPLIT |= {"aliased": {"policy_class": Aliased}, "detached": {"policy_class": Detached}}


@pytest.mark.parametrize("arguments", SPLIT.values(), ids=SPLIT)
@pytest.mark.parametrize("training", [False, True])
def test_splitting_leaves_no_trace(arguments, training):
    policy = make(**arguments)
    policy.set_training_mode(training)
    for parameter in policy.parameters():
        parameter.grad = th.full_like(parameter, 0.5)
    own, before = list(policy.parameters()), copy.deepcopy(policy.state_dict())
    random_state = th.get_rng_state()
    np.random.seed(0)
    policy.observation_space.seed(0)
    sample = str(policy.observation_space.sample())
    policy.observation_space.seed(0)
    split(policy)
    assert str(policy.observation_space.sample()) == sample
    assert np.random.random() == np.random.RandomState(0).random()
    assert th.equal(th.get_rng_state(), random_state)
    assert th.distributions.Distribution._validate_args is __debug__  # torch's default
    assert all(old is new for old, new in zip(own, policy.parameters(), strict=True))
    assert all((parameter.grad == 0.5).all() for parameter in own)
    assert same(policy.state_dict(), before)
    assert all(module.training is training for module in policy.modules())


def test_every_split_looks_at_the_same_observation():
    policy, seen = make(observation_space=spaces.Box(-1.0, 1.0, (3,))), []
    get_distribution = policy.get_distribution
    policy.get_distribution = lambda observation: seen.append(observation) or get_distribution(observation)
    for _ in range(2):
        split(policy)
        policy.observation_space.sample()
    assert len(seen) >= 4
    assert all(th.equal(seen[0], observation) for observation in seen)


@pytest.mark.parametrize(("call", "fault"), [(1, KeyboardInterrupt), (2, KeyboardInterrupt), (1, MemoryError)])
def test_an_interrupted_split_leaves_no_trace(call, fault):
    policy = make()
    policy.set_training_mode(True)
    before = copy.deepcopy(policy.state_dict())
    get_distribution, calls = policy.get_distribution, []

    def interrupted(observation):
        calls.append(observation)
        if len(calls) == call:
            raise fault
        return get_distribution(observation)

    policy.get_distribution = interrupted
    with pytest.raises(fault):
        split(policy)
    assert same(policy.state_dict(), before)
    assert all(module.training for module in policy.modules())


def test_an_unknown_distribution_is_named():
    class Odd(MlpPolicy):
        def get_distribution(self, obs):
            return super().get_distribution(obs).distribution

    with pytest.raises(TypeError, match="No Fisher metric is known for Categorical"):
        split(make(Odd))


class WithAnother(Communicator):
    """A rank beside one that has met states in which other parameters matter."""

    def __init__(self, others: dict[str, int], policy) -> None:
        self.others = [others[name] for name, _ in policy.named_parameters()]

    def gather(self, values):
        return th.stack((values, th.tensor(self.others)))


def test_ranks_agree_on_what_any_of_them_has_found():
    policy = TRPO("MlpPolicy", "CartPole-v1", device="cpu").policy
    own = dict(policy.named_parameters())
    names = list(own)
    here = ParameterSplit(
        policy={names[3]: own[names[3]], names[0]: own[names[0]]},
        critic={name: own[name] for name in names[:0:-1] if name not in names[2:4]},
        detached={names[2]: own[names[2]]},
    )
    there = dict.fromkeys(names, 0) | {names[1]: 2, names[2]: 2, names[4]: 1}
    agreed = here.over_ranks(policy, WithAnother(there, policy))
    assert list(agreed.policy) == names[:4]
    assert list(agreed.detached) == [names[4]]
    assert list(agreed.critic) == names[5:]
    assert here.over_ranks(policy, ALONE).policy.keys() == here.policy.keys()
    assert all(group[name] is own[name] for group in agreed for name in group)
