"""Reading a policy's networks: plain stacks are read as what they compute, anything else is left alone."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable
from functools import partial
from operator import attrgetter
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from helpers.envs import BOX_ACTION, DICT, IMAGE, VECTOR, RandomEnv
from helpers.oracle import parameters_of, some_observations, torch_distributions
from helpers.stacks import FUNCTIONS
from helpers.states import same
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils import parametrizations, prune

from sb3_trpo import TRPO, MlpPolicy, MultiInputPolicy
from sb3_trpo.networks.activations import IDENTITY
from sb3_trpo.networks.plain_network import KNOWN_METHODS, Networks, read_networks

PAIR = spaces.Dict(near=VECTOR, far=spaces.Box(-1.0, 1.0, (2, 2)), choice=spaces.Discrete(3))
ACTIONS = [BOX_ACTION, spaces.Discrete(4), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(3)]


def model_of(
    policy: str | type[ActorCriticPolicy] = "MlpPolicy",
    observation_space: spaces.Space = VECTOR,
    action_space: spaces.Space = BOX_ACTION,
    use_sde: bool = False,
    **kwargs: Any,
) -> TRPO:
    """Build a model with noisy weights, because a new policy has biases of 0 and last layers of almost 0."""
    kwargs = {"net_arch": [8, 5]} | kwargs
    env = RandomEnv(observation_space, action_space)
    model = TRPO(policy, env, n_steps=8, batch_size=8, seed=0, device="cpu", use_sde=use_sde, policy_kwargs=kwargs)
    generator = th.Generator().manual_seed(0)
    with th.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(0.3 * th.randn(parameter.shape, generator=generator))
    return model


def altered(change: Callable[[ActorCriticPolicy], Any], **settings: Any) -> Callable[[], TRPO]:
    """Build a model and change its policy."""

    def make() -> TRPO:
        model = model_of(**settings)
        change(model.policy)
        return model

    return make


def networks_of(model: TRPO) -> Networks:
    networks = read_networks(model.policy)
    assert networks is not None
    return networks


def is_plain(policy: ActorCriticPolicy) -> bool:
    return read_networks(policy) is not None


@th.no_grad()
def assert_computes_as_the_policy(networks: Networks, policy: ActorCriticPolicy) -> None:
    seen = some_observations(policy.observation_space, 6)
    before, features = copy.deepcopy(seen), networks.features(seen)
    expected = parameters_of(
        torch_distributions(policy.get_distribution(seen))
    )  # before the policy's one distribution changes
    given = parameters_of(torch_distributions(networks.head.distribution(networks.actor(features))))
    tolerance = {"rtol": 1e-6, "atol": 1e-6}
    th.testing.assert_close(given, expected, **tolerance)
    th.testing.assert_close(networks.critic(features), policy.predict_values(seen), **tolerance)
    assert same(seen, before)


def drop_biases(policy: ActorCriticPolicy) -> None:
    for module in policy.modules():
        if isinstance(module, nn.Linear):
            module.bias = None


def prune_for_good(policy: ActorCriticPolicy) -> None:
    prune.l1_unstructured(policy.mlp_extractor.policy_net[0], "weight", 0.5)
    prune.remove(policy.mlp_extractor.policy_net[0], "weight")


class OwnCnn(BaseFeaturesExtractor):
    """Convolutions as users write them, with torch's functions between the layers."""

    def __init__(self, observation_space: spaces.Box, features_dim: int = 6) -> None:
        super().__init__(observation_space, features_dim)
        self.first, self.second = nn.Conv2d(observation_space.shape[0], 3, 8, stride=4), nn.Conv2d(3, 2, 3, padding=1)
        with th.no_grad():
            n_flatten = self.second(self.first(th.zeros(1, *observation_space.shape))).numel()
        self.last = nn.Linear(n_flatten, features_dim)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        x = th.relu(self.first(observations))
        x = F.leaky_relu(self.second(x), 0.1)
        return th.tanh(self.last(x.view(x.size(0), -1)))


class OwnMlp(BaseFeaturesExtractor):
    """Layers on a vector, some of them in a module of their own."""

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, 5)
        self.block = nn.ModuleList([nn.Linear(3, 4), nn.Linear(4, 5)])

    def forward(self, observations: th.Tensor) -> th.Tensor:
        for layer in self.block:
            observations = layer(observations).relu()
        return observations


class OwnNets(nn.Module):
    """Networks of one's own in place of SB3's MlpExtractor."""

    latent_dim_pi, latent_dim_vf = 4, 6

    def __init__(self, n_features: int, factor: float = 1.0) -> None:
        super().__init__()
        self.policy_net = nn.Sequential(nn.Linear(n_features, 4), nn.ReLU())
        self.value_net = nn.Sequential(nn.Linear(n_features, 6), nn.ReLU())
        self.factor = factor

    def forward(self, features: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        latent = self.forward_actor(features)
        return latent if self.factor == 1.0 else latent * self.factor, self.forward_critic(features)

    def forward_actor(self, features: th.Tensor) -> th.Tensor:
        return self.policy_net(features)

    def forward_critic(self, features: th.Tensor) -> th.Tensor:
        return self.value_net(features)


class WithOwnNets(MlpPolicy):
    def _build_mlp_extractor(self) -> None:
        self.mlp_extractor = OwnNets(self.features_dim)


class VectorsWithOwnNets(MultiInputPolicy):
    def _build_mlp_extractor(self) -> None:
        self.mlp_extractor = OwnNets(self.features_dim)


class NoisyInTraining(OwnMlp):
    """Skips its last activation in training mode."""

    def forward(self, observations: th.Tensor) -> th.Tensor:
        hidden = th.relu(self.block[0](observations))
        return self.block[1](hidden) if self.training else th.tanh(self.block[1](hidden))


class Residual(OwnMlp):
    def forward(self, observations: th.Tensor) -> th.Tensor:
        hidden = th.relu(self.block[0](observations))
        return th.relu(self.block[1](hidden + hidden))


class Counting(OwnMlp):
    """Counts its calls."""

    n_calls = 0

    def forward(self, observations: th.Tensor) -> th.Tensor:
        self.n_calls += 1
        return super().forward(observations)


class Remembering(OwnMlp):
    """Keeps what it has computed first, and uses its shape from then on."""

    def forward(self, observations: th.Tensor) -> th.Tensor:
        hidden = super().forward(observations)
        if not hasattr(self, "reference"):
            self.reference = hidden.detach()
        return hidden


class Drawing(OwnMlp):
    """Draws a random number at each call."""

    def forward(self, observations: th.Tensor) -> th.Tensor:
        if th.rand(1) < -1.0:
            return observations
        return super().forward(observations)


class ByBatchSize(OwnMlp):
    def forward(self, observations: th.Tensor) -> th.Tensor:
        hidden = super().forward(observations)
        return hidden if observations.shape[0] == 1 else th.tanh(hidden)


class Guarded(OwnMlp):
    """Does something else for a few observations, which made-up ones need not be among."""

    def forward(self, observations: th.Tensor) -> th.Tensor:
        hidden = super().forward(observations)
        is_rare = isinstance(observations, th.Tensor) and bool((observations > 0.9999).any())
        return 3.0 * hidden if is_rare else hidden


class Shielded(OwnMlp):
    """Does not train its layers."""

    def forward(self, observations: th.Tensor) -> th.Tensor:
        with th.no_grad():
            return super().forward(observations)


class StopsGradient(th.autograd.Function):
    """Returns its input, and no gradient: a stand-in passes through unnoticed."""

    @staticmethod
    def forward(ctx: Any, x: th.Tensor) -> th.Tensor:
        return x

    @staticmethod
    def backward(ctx: Any, cotangent: th.Tensor) -> th.Tensor:
        return 0.0 * cotangent


class Stopping(OwnMlp):
    def forward(self, observations: th.Tensor) -> th.Tensor:
        return StopsGradient.apply(super().forward(observations))


class Clamping(OwnMlp):
    """Keeps its weights within bounds."""

    def forward(self, observations: th.Tensor) -> th.Tensor:
        with th.no_grad():
            self.block[0].weight.clamp_(-0.2, 0.2)
        return super().forward(observations)


class ClampingData(OwnMlp):
    def forward(self, observations: th.Tensor) -> th.Tensor:
        self.block[0].weight.data.clamp_(-0.2, 0.2)
        return super().forward(observations)


class Renormalizing(OwnMlp):
    """Gives the weights new memory."""

    def forward(self, observations: th.Tensor) -> th.Tensor:
        weight = self.block[0].weight
        weight.data = weight.data / weight.data.norm(dim=1, keepdim=True)
        return super().forward(observations)


class InTensor(OwnMlp):
    """Counts its calls in a tensor."""

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space)
        self.counter: Any = self.empty()

    def empty(self) -> Any:
        return th.zeros(1)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        self.counter += 1
        return super().forward(observations)


class InArray(InTensor):
    def empty(self) -> Any:
        return np.zeros(1)


class InDeque(InTensor):
    def empty(self) -> Any:
        return deque([1], maxlen=5)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        self.counter.append(len(self.counter))
        return OwnMlp.forward(self, observations)


class InSet(InTensor):
    def empty(self) -> Any:
        return {0}

    def forward(self, observations: th.Tensor) -> th.Tensor:
        self.counter.add(len(self.counter))
        return OwnMlp.forward(self, observations)


WRITING = (Clamping, ClampingData, Renormalizing, InTensor, InArray, InDeque, InSet)


class InPlace(OwnMlp):
    """Does not use the result of its last activation, which is in place."""

    def forward(self, observations: th.Tensor) -> th.Tensor:
        hidden = th.relu(self.block[0](observations))
        hidden = self.block[1](hidden)
        F.leaky_relu(hidden, 0.5, inplace=True)
        return hidden


def with_head(head: Callable[[], nn.Module], **kwargs: Any) -> Callable[[], TRPO]:
    """Build a model with gSDE and another last part of the actor."""

    def make() -> TRPO:
        model = with_gsde(**kwargs)
        model.policy.action_net = head()
        return model

    return make


def subclassed(path: str) -> Callable[[], TRPO]:
    """Turn a part of the policy into an instance of a subclass, which may compute anything."""

    return altered(lambda policy: subclass(attrgetter(path)(policy)))


def subclass(part: Any) -> None:
    part.__class__ = type("Own", (type(part),), {})


def in_evaluation_mode(model: TRPO) -> TRPO:
    model.policy.set_training_mode(False)
    return model


GSDE: list[dict[str, Any]] = [
    {},
    {"net_arch": []},
    {"net_arch": {"pi": [7], "vf": [5, 64, 3]}, "share_features_extractor": True},
    {"full_std": False, "use_expln": True, "squash_output": True},
    {"policy": "CnnPolicy", "observation_space": IMAGE},
]


def with_gsde(**kwargs: Any) -> TRPO:
    model = model_of(use_sde=True, **kwargs)
    with th.no_grad():
        model.policy.reset_noise()  # matrices without a graph, which can be copied
    return model


PLAIN: dict[str, Callable[[], TRPO]] = {
    **{name: lambda make=make: model_of(activation_fn=make) for name, make in FUNCTIONS.items() if make is not None},
    **{f"{type(space).__name__}": lambda space=space: model_of(action_space=space) for space in ACTIONS},
    "no layers": lambda: model_of(net_arch=[]),
    "layers of the policy alone": lambda: model_of(net_arch={"pi": [4], "vf": []}),
    "layers of the critic alone": lambda: model_of(net_arch={"pi": [], "vf": [4]}),
    "different": lambda: model_of(net_arch={"pi": [7], "vf": [5, 64, 3]}),
    "deep": lambda: model_of(net_arch=[6] * 6),
    "shared features": lambda: model_of(share_features_extractor=True),
    "SB3's own class": lambda: model_of(ActorCriticPolicy),
    "matrix": lambda: model_of(observation_space=spaces.Box(-1.0, 1.0, (2, 3))),
    "doubles": lambda: model_of(observation_space=spaces.Box(-1.0, 1.0, (3,), np.float64)),
    "choices": lambda: model_of(observation_space=spaces.MultiDiscrete([2, 3])),
    "vectors": lambda: model_of("MultiInputPolicy", PAIR),
    "flat image": lambda: model_of(observation_space=IMAGE),
    "flat image, not scaled": lambda: model_of(observation_space=IMAGE, normalize_images=False),
    "CNN": lambda: model_of("CnnPolicy", IMAGE),
    "shared CNN": lambda: model_of("CnnPolicy", IMAGE, share_features_extractor=True),
    "CNN and layers": lambda: model_of("CnnPolicy", IMAGE, net_arch=[5], activation_fn=nn.ELU),
    "CNN without layers": lambda: model_of("CnnPolicy", IMAGE, net_arch=[]),
    "CNN on images, not scaled": lambda: model_of("CnnPolicy", IMAGE, normalize_images=False),
    "frozen": altered(lambda policy: policy.mlp_extractor.policy_net.requires_grad_(False)),
    "no bias": altered(drop_biases),
    "pruned for good": altered(prune_for_good),
    "subclassed activation": subclassed("mlp_extractor.policy_net.1"),
    "subclassed linear": subclassed("mlp_extractor.policy_net.0"),
    "subclassed linear head": subclassed("value_net"),
    "subclassed MLP": subclassed("mlp_extractor"),
    "subclassed extractor": lambda: model_of(features_extractor_class=type("Own", (FlattenExtractor,), {})),
    "head of several": altered(lambda policy: policy.set_submodule("action_net", nn.Sequential(nn.Linear(5, 2)))),
    "own CNN": lambda: model_of("CnnPolicy", IMAGE, features_extractor_class=OwnCnn),
    "own CNN, shared": lambda: model_of(
        "CnnPolicy", IMAGE, features_extractor_class=OwnCnn, share_features_extractor=True, net_arch=[4]
    ),
    "own CNN with a wide head": lambda: model_of("CnnPolicy", IMAGE, features_extractor_class=OwnCnn, net_arch=[64]),
    "own MLP": lambda: model_of(features_extractor_class=OwnMlp),
    "own networks": lambda: model_of(WithOwnNets),
    "own networks on vectors": lambda: model_of(VectorsWithOwnNets, PAIR),
    "own activation on vectors": lambda: model_of("MultiInputPolicy", PAIR, activation_fn=type("Own", (nn.Tanh,), {})),
    "own networks, shared features": lambda: model_of(WithOwnNets, share_features_extractor=True),
    "activation in place": lambda: model_of(features_extractor_class=InPlace),
    **{f"gSDE, {kwargs}": partial(with_gsde, **kwargs) for kwargs in GSDE},
}


@pytest.mark.parametrize("make", PLAIN.values(), ids=PLAIN)
def test_a_plain_stack_is_read_as_what_it_computes_on_the_policys_own_tensors_or_copies(make):
    model = make()
    networks, copied, old = networks_of(model), networks_of(model).copied_to(th.device("cpu")), copy.deepcopy(model.policy)
    assert_computes_as_the_policy(networks, model.policy)
    tensors = {id(tensor) for tensor in (*networks.policy_tensors, *networks.critic.tensors)}
    assert tensors == {id(parameter) for parameter in model.policy.parameters()}
    scale(model.policy)
    assert_computes_as_the_policy(networks, model.policy)
    assert_computes_as_the_policy(copied, old)
    with pytest.raises(AssertionError, match="not close"):
        assert_computes_as_the_policy(copied, model.policy)


def test_observations_with_extreme_bounds_make_no_difference():
    largest = np.finfo(np.float32).max
    model = model_of(observation_space=spaces.Box(-largest, largest, (3,)), features_extractor_class=OwnMlp)
    assert is_plain(model.policy)


def test_features_of_vectors_are_the_observations_unchanged():
    assert networks_of(model_of()).takes_vectors
    for space in (IMAGE, spaces.MultiDiscrete([2, 3]), spaces.Box(-1.0, 1.0, (2, 3))):
        assert not networks_of(model_of(observation_space=space)).takes_vectors
    assert networks_of(model_of("CnnPolicy", IMAGE)).of_images
    assert not networks_of(model_of(observation_space=IMAGE)).of_images


def scale(policy: nn.Module) -> None:
    policy.load_state_dict({name: 1.5 * value for name, value in policy.state_dict().items()})


def overriding(name: str) -> type[ActorCriticPolicy]:
    """Subclass the policy with a method of the same effect."""

    def same(self: MlpPolicy, *args: Any, **kwargs: Any) -> Any:
        return getattr(super(MlpPolicy, self), name)(*args, **kwargs)

    return type("Overriding", (MlpPolicy,), {name: same})


@pytest.mark.parametrize("name", KNOWN_METHODS)
def test_a_policy_with_an_overridden_method_is_left_alone(name):
    assert not is_plain(model_of(overriding(name)).policy)


def test_the_known_methods_are_all_that_a_rollout_calls():
    called = {"forward", "extract_features", "get_distribution", "predict_values", "evaluate_actions"}
    assert called | {"__call__", "_get_action_dist_from_latent"} <= set(KNOWN_METHODS)


class StateDependentStd(MlpPolicy):
    """A Gaussian policy without the attribute ``log_std``, which SB3's has."""

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        del self.log_std
        self.std_net = nn.Linear(self.mlp_extractor.latent_dim_pi, 2)

    def _get_action_dist_from_latent(self, latent_pi: th.Tensor) -> Any:
        return self.action_dist.proba_distribution(self.action_net(latent_pi), self.std_net(latent_pi))


def test_a_policy_of_a_known_distribution_need_not_have_the_attributes_of_sb3s():
    model = model_of(StateDependentStd)
    assert not is_plain(model.policy)
    assert model.learn(8).policy_outcome is not None


PARTS = ("", "mlp_extractor", "mlp_extractor.policy_net", "mlp_extractor.value_net.1", "action_net", "vf_features_extractor")


@pytest.mark.parametrize(
    ("part", "name"),
    [
        *(("", name) for name in KNOWN_METHODS if name != "__call__"),
        *((part, "forward") for part in PARTS[1:]),
        ("mlp_extractor", "forward_actor"),
        ("mlp_extractor", "forward_critic"),
    ],
)
def test_a_patched_method_leaves_the_policy_alone(part, name):
    policy = model_of().policy
    module = policy.get_submodule(part)
    setattr(module, name, getattr(module, name))
    assert not is_plain(policy)


HOOKS = (
    "register_forward_hook",
    "register_forward_pre_hook",
    "register_full_backward_hook",
    "register_full_backward_pre_hook",
)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("register", HOOKS)
def test_a_hook_on_any_module_counts_while_it_is_registered(register, part):
    policy = model_of().policy
    handle = getattr(policy.get_submodule(part), register)(lambda *_: None)
    assert not is_plain(policy)
    handle.remove()
    assert is_plain(policy)


@pytest.mark.parametrize("register", [f"register_module_{kind}" for kind in ("forward_hook", "forward_pre_hook")])
def test_a_hook_on_all_modules_counts(register):
    policy = model_of().policy
    handle = getattr(nn.modules.module, register)(lambda *_: None)
    try:
        assert not is_plain(policy)
    finally:
        handle.remove()


def test_a_hook_on_a_weight_counts():
    policy = model_of().policy
    policy.action_net.weight.register_hook(lambda gradient: 2.0 * gradient)
    assert not is_plain(policy)


class Halved(BaseFeaturesExtractor):
    """Halves the observation."""

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, 3)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return observations / 2


def put(name: str, make: Callable[[], nn.Module]) -> Callable[[], TRPO]:
    return altered(lambda policy: policy.set_submodule(name, make()))


def altered_own_networks() -> TRPO:
    """The networks return something else for both than for each alone."""
    model = model_of(WithOwnNets, share_features_extractor=True)
    model.policy.mlp_extractor.factor = 2.0
    return model


OTHER: dict[str, Callable[[], TRPO]] = {
    "Softplus": lambda: model_of(activation_fn=nn.Softplus),
    "subclassed distribution": subclassed("action_dist"),
    "subclassed noise": altered(lambda policy: subclass(policy.action_dist), use_sde=True),
    "patched noise": altered(lambda policy: setattr(policy.action_dist, "sample", policy.action_dist.sample), use_sde=True),
    "dropout": put("mlp_extractor.policy_net.1", lambda: nn.Dropout(0.5)),
    "dropout after all": altered(lambda policy: policy.mlp_extractor.value_net.append(nn.Dropout(0.5))),
    "layer norm": put("mlp_extractor.value_net.1", lambda: nn.LayerNorm(8)),
    "batch norm": put("mlp_extractor.policy_net.1", lambda: nn.BatchNorm1d(8)),
    "two activations": put("mlp_extractor.policy_net.1", lambda: nn.Sequential(nn.Tanh(), nn.Tanh())),
    "two activations in a row": altered(lambda policy: policy.mlp_extractor.policy_net.append(nn.Tanh())),
    "activation before all": put("mlp_extractor.policy_net.0", nn.Tanh),
    "custom extractor": lambda: model_of(features_extractor_class=Halved),
    "another computation in training mode": lambda: model_of(features_extractor_class=NoisyInTraining),
    "the same, in evaluation mode": lambda: in_evaluation_mode(model_of(features_extractor_class=NoisyInTraining)),
    "counting calls": lambda: model_of(features_extractor_class=Counting),
    "remembering": lambda: model_of(features_extractor_class=Remembering),
    "drawing": lambda: model_of(features_extractor_class=Drawing),
    "by batch size": lambda: model_of(features_extractor_class=ByBatchSize),
    "by a rare observation": lambda: model_of(features_extractor_class=Guarded),
    "other derivatives": lambda: model_of(features_extractor_class=Stopping),
    "other derivatives, tiny observations": lambda: model_of(
        observation_space=spaces.Box(-1e-6, 1e-6, (3,)), features_extractor_class=Stopping
    ),
    "under no_grad": lambda: model_of(features_extractor_class=Shielded),
    "gSDE with a deeper head": with_head(lambda: nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 2))),
    "gSDE with an activation at the end": with_head(lambda: nn.Sequential(nn.Linear(5, 2), nn.Tanh())),
    "buffers": altered(lambda policy: policy.register_buffer("mean", th.zeros(1))),
    "residual": lambda: model_of(features_extractor_class=Residual),
    "networks that differ when run together": altered_own_networks,
    "image among others": lambda: model_of("MultiInputPolicy", DICT),
    "matrix without a flatten": lambda: model_of(
        observation_space=spaces.Box(-1.0, 1.0, (3, 3)), features_extractor_class=OwnMlp
    ),
    "double critic": altered(lambda policy: policy.value_net.double()),
    "double policy head": altered(lambda policy: policy.action_net.double()),
    "half of a layer": altered(lambda policy: policy.mlp_extractor.policy_net[2].half()),
    "weight norm": altered(lambda policy: parametrizations.weight_norm(policy.action_net)),
    "weight norm of a hidden layer": altered(lambda policy: parametrizations.weight_norm(policy.mlp_extractor.value_net[0])),
    "spectral norm": altered(lambda policy: parametrizations.spectral_norm(policy.mlp_extractor.policy_net[0])),
    "old weight norm": altered(lambda policy: nn.utils.weight_norm(policy.action_net)),
    "pruning": altered(lambda policy: prune.l1_unstructured(policy.mlp_extractor.policy_net[0], "weight", 0.5)),
    "pruning of the critic": altered(lambda policy: prune.l1_unstructured(policy.value_net, "weight", 1)),
    "torch.compile of a part": altered(lambda policy: setattr(policy, "mlp_extractor", th.compile(policy.mlp_extractor))),
    "torch.compile of a net": altered(
        lambda policy: setattr(policy.mlp_extractor, "policy_net", th.compile(policy.mlp_extractor.policy_net))
    ),
    "torch.compile of a head": altered(lambda policy: setattr(policy, "action_net", th.compile(policy.action_net))),
    "compile of the policy": altered(lambda policy: policy.compile()),
    "compile of a part": altered(lambda policy: policy.mlp_extractor.value_net.compile()),
    "compile of a head": altered(lambda policy: policy.value_net.compile()),
    "patched distribution": altered(lambda policy: setattr(policy.action_dist, "log_prob", policy.action_dist.log_prob)),
}


@pytest.mark.filterwarnings("ignore:The policy's distribution depends on:UserWarning")  # parameters under no_grad
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("make", OTHER.values(), ids=OTHER)
def test_what_is_not_a_plain_stack_is_left_alone(make):
    assert not is_plain(make().policy)


def test_a_compiled_policy_is_left_alone():
    assert not is_plain(th.compile(model_of().policy))


@pytest.mark.parametrize("of_critic", [["a"], ["b", "a"]], ids=["fewer", "another order"])
def test_actor_and_critic_that_see_different_entries_are_not_read(of_critic):
    box = spaces.Box(-1.0, 1.0, (3,))
    policy = MultiInputPolicy(spaces.Dict(a=box, b=box), spaces.Discrete(2), lambda _: 1e-3)
    assert is_plain(policy)
    policy.vf_features_extractor.extractors = nn.ModuleDict({key: nn.Flatten() for key in of_critic})
    assert not is_plain(policy)


class OwnSequence(nn.Sequential):
    def forward(self, x: Any) -> Any:
        return 2.0 * super().forward(x)


@pytest.mark.parametrize("part", ["cnn", "linear"])
def test_the_sequences_inside_a_cnn_are_checked(part):
    policy = model_of("CnnPolicy", IMAGE).policy
    assert is_plain(policy)
    extractor = policy.pi_features_extractor
    setattr(extractor, part, OwnSequence(*getattr(extractor, part)))
    assert not is_plain(policy)


@pytest.mark.parametrize("flatten", [nn.Sequential(nn.Flatten(), nn.LayerNorm(3)), nn.Flatten(0)], ids=["more", "other"])
def test_the_flatten_inside_an_extractor_is_checked(flatten):
    policy = model_of().policy
    policy.pi_features_extractor.flatten = flatten
    assert not is_plain(policy)


def test_a_shared_extractor_must_be_one():
    policy = model_of(share_features_extractor=True).policy
    assert is_plain(policy)
    policy.features_extractor = FlattenExtractor(policy.observation_space)
    assert not is_plain(policy)


@pytest.mark.parametrize("kind", [Counting, Remembering, Drawing, InPlace])
def test_reading_leaves_no_trace(kind):
    policy = model_of(features_extractor_class=kind).policy
    before, rng = [dict(vars(module)) for module in policy.modules()], th.get_rng_state()
    read_networks(policy)
    after = [dict(vars(module)) for module in policy.modules()]
    assert all(one.keys() == other.keys() for one, other in zip(before, after, strict=True))
    assert all(one[key] is other[key] for one, other in zip(before, after, strict=True) for key in one)
    assert th.equal(th.get_rng_state(), rng)


@pytest.mark.parametrize("kind", WRITING)
def test_reading_leaves_what_a_module_writes_to_as_it_was(kind):
    policy = model_of(features_extractor_class=kind).policy
    extractors = [policy.pi_features_extractor, policy.vf_features_extractor]

    def state() -> Any:
        counters = [getattr(each, "counter", None) for each in extractors]
        return copy.deepcopy((counters, policy.state_dict(), [parameter.data_ptr() for parameter in policy.parameters()]))

    before = state()
    assert read_networks(policy) is None
    assert same(state(), before)


def test_layers_are_shared_up_to_the_first_that_differs_in_anything():
    model = model_of("CnnPolicy", IMAGE, share_features_extractor=True, net_arch=[])
    assert networks_of(model).n_shared_layers == 4
    networks = networks_of(model)
    *below, last = networks.actor.layers
    other = networks._replace(actor=type(networks.actor)((*below[:-1], below[-1]._replace(activation=IDENTITY), last)))
    assert other.n_shared_layers == 0  # three convolutions, whose result is an image
    assert networks_of(model_of("CnnPolicy", IMAGE)).n_shared_layers == 0


def test_reading_leaves_the_distribution_object_to_other_threads():
    """``predict`` sets its distribution, at any time."""
    policy, latest = model_of().policy, object()

    class Watching(nn.Tanh):
        def forward(self, x: th.Tensor) -> th.Tensor:
            policy.action_dist.distribution = latest  # as another thread would
            return super().forward(x)

    policy.mlp_extractor.policy_net[1] = Watching()
    assert read_networks(policy) is not None
    assert policy.action_dist.distribution is latest
