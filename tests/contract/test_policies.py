"""Contract: the step moves what shapes the actions, the critic the rest, whatever the policy is made of."""

import copy
import warnings
from functools import partial

import pytest
import torch as th
from gymnasium import spaces
from helpers.contract_tools import (
    ROUNDING,
    assign,
    critic_fit,
    moved_since,
    one_update,
    parameters,
    policy_step,
    shape_actions,
    shape_values,
)
from helpers.envs import BOX_ACTION, RandomEnv, dict_env, image_env
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from sb3_trpo import TRPO, CnnPolicy, MlpPolicy, MultiInputPolicy

SMALL = {"n_steps": 64, "batch_size": 32, "n_critic_updates": 2, "seed": 0}


class Extractor(BaseFeaturesExtractor):
    """A custom features extractor with one further layer."""

    def __init__(self, observation_space: spaces.Box, layer: type[nn.Module] = nn.Identity):
        super().__init__(observation_space, features_dim=16)
        n_inputs = observation_space.shape[0]
        further = layer(n_inputs) if layer is nn.BatchNorm1d else layer()
        self.layers = nn.Sequential(further, nn.Linear(n_inputs, 16), nn.Tanh())

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.layers(observations)


class Direction(nn.Module):
    """Scales to length 1, which fails at zero."""

    def forward(self, x: th.Tensor) -> th.Tensor:
        return x / x.norm(dim=-1, keepdim=True)


class Towers(nn.Module):
    """Custom networks as SB3's documentation builds them; the actor's have "value" in their name."""

    def __init__(self, features_dim: int):
        super().__init__()
        self.latent_dim_pi = self.latent_dim_vf = 16
        self.value_of_actions = nn.Sequential(nn.Linear(features_dim, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh())
        self.critic = nn.Sequential(nn.Linear(features_dim, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh())

    def forward(self, features: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        return self.forward_actor(features), self.forward_critic(features)

    def forward_actor(self, features: th.Tensor) -> th.Tensor:
        return self.value_of_actions(features)

    def forward_critic(self, features: th.Tensor) -> th.Tensor:
        return self.critic(features)


class TiedActor(Towers):
    """The actor's layers share a bias."""

    def __init__(self, features_dim: int):
        super().__init__(features_dim)
        self.value_of_actions[2].bias = self.value_of_actions[0].bias


class TiedTowers(Towers):
    """Actor and critic share their second layer."""

    def __init__(self, features_dim: int):
        super().__init__(features_dim)
        self.critic[2] = self.value_of_actions[2]


class TwoNamedCritic(Towers):
    """The critic's layers are registered under two names, as SB3 itself does with a shared features extractor."""

    def __init__(self, features_dim: int):
        super().__init__(features_dim)
        self.value_function = self.critic


class SpareLayer(Towers):
    """A layer that nothing uses."""

    def __init__(self, features_dim: int):
        super().__init__(features_dim)
        self.spare = nn.Linear(features_dim, 16)


class TrunkAndTowers(Towers):
    """Actor and critic share a trunk."""

    def __init__(self, features_dim: int, layer: type[nn.Module] = nn.Identity):
        super().__init__(16)
        self.trunk = nn.Sequential(nn.Linear(features_dim, 16), layer(16))

    def forward_actor(self, features: th.Tensor) -> th.Tensor:
        return super().forward_actor(self.trunk(features))

    def forward_critic(self, features: th.Tensor) -> th.Tensor:
        return super().forward_critic(self.trunk(features))


class DetachedActor(Towers):
    """Only the critic backpropagates into the features."""

    def forward_actor(self, features: th.Tensor) -> th.Tensor:
        return super().forward_actor(features.detach())


class CustomPolicy(ActorCriticPolicy):
    """SB3's policy on custom networks."""

    def __init__(self, *args, towers=Towers, **kwargs):
        self.towers = towers
        super().__init__(*args, **kwargs)

    def _build_mlp_extractor(self) -> None:
        self.mlp_extractor = self.towers(self.features_dim)


class FixedActor(CustomPolicy):
    """The actor is frozen."""

    def _build(self, lr_schedule) -> None:
        super()._build(lr_schedule)
        for module in (self.mlp_extractor.value_of_actions, self.action_net):
            module.requires_grad_(False)


def custom(towers: type[Towers], **options):
    return partial(TRPO, CustomPolicy, RandomEnv(), policy_kwargs={"towers": towers}, **SMALL, **options)


def mlp(env: RandomEnv | None = None, **policy_kwargs):
    return partial(TRPO, "MlpPolicy", env or RandomEnv(), policy_kwargs=policy_kwargs, **SMALL)


def with_layer(layer: type[nn.Module], **policy_kwargs):
    """Put a further layer into a custom extractor."""
    return mlp(features_extractor_class=Extractor, features_extractor_kwargs={"layer": layer}, **policy_kwargs)


def shared_or_not(alias: str, env: RandomEnv, share: bool):
    return partial(TRPO, alias, env, policy_kwargs={"share_features_extractor": share}, **SMALL)


CASES = {
    "default": mlp(),
    "Gaussian": mlp(RandomEnv(action_space=BOX_ACTION)),
    "gSDE": partial(TRPO, "MlpPolicy", RandomEnv(action_space=BOX_ACTION), use_sde=True, **SMALL),
    "no hidden layer": mlp(net_arch=[]),
    "net_arch list": mlp(net_arch=[16, 8]),
    "net_arch dict": mlp(net_arch={"pi": [16], "vf": [8, 8, 8]}),
    "net_arch without actor layers": mlp(net_arch={"pi": [], "vf": [8]}),
    "Tanh": mlp(activation_fn=nn.Tanh),
    "ReLU": mlp(activation_fn=nn.ReLU),
    "ELU": mlp(activation_fn=nn.ELU),
    "SiLU": mlp(activation_fn=nn.SiLU),
    "custom extractor": with_layer(nn.Identity),
    "custom extractor, shared": with_layer(nn.Identity, share_features_extractor=True),
    "dropout": with_layer(nn.Dropout),
    "not finite at zero": with_layer(Direction),
    "weight decay": mlp(optimizer_class=th.optim.AdamW, optimizer_kwargs={"weight_decay": 0.1}),
    "momentum": mlp(optimizer_class=th.optim.SGD, optimizer_kwargs={"momentum": 0.9, "weight_decay": 0.1}),
    "CNN, separate": shared_or_not("CnnPolicy", image_env(), False),
    "CNN, shared": shared_or_not("CnnPolicy", image_env(), True),
    "Dict, separate": shared_or_not("MultiInputPolicy", dict_env(), False),
    "Dict, shared": shared_or_not("MultiInputPolicy", dict_env(), True),
    "actor named value": custom(Towers),
    "tied within the actor": custom(TiedActor),
    "tied across actor and critic": custom(TiedTowers),
    "critic under two names": custom(TwoNamedCritic),
    "unused layer": custom(SpareLayer),
    "common trunk": custom(TrunkAndTowers),
}


@pytest.mark.parametrize("make", CASES.values(), ids=CASES)
def test_the_step_moves_what_shapes_the_actions_and_the_critic_the_rest(make):
    model = make()
    step = policy_step(model)
    acting, valuing = shape_actions(model), shape_values(model)
    assert step.moved == acting
    assert 0.0 < step.kl <= 0.01 + ROUNDING
    assert critic_fit(model).moved == valuing - acting


@pytest.mark.parametrize(("cls", "make_env"), [(MlpPolicy, RandomEnv), (CnnPolicy, image_env), (MultiInputPolicy, dict_env)])
def test_our_policies_separate_the_extractors_by_default(cls, make_env):
    for kwargs, is_shared in (({}, False), ({"policy_kwargs": {"share_features_extractor": True}}, True)):
        policy = TRPO(cls.__name__, make_env(), **kwargs, **SMALL).policy
        assert type(policy) is cls
        assert (policy.pi_features_extractor is policy.vf_features_extractor) == is_shared


def test_sb3s_policies_share_the_extractor_as_in_sb3():
    policy = TRPO(ActorCriticCnnPolicy, image_env(), **SMALL).policy
    assert policy.pi_features_extractor is policy.vf_features_extractor


FREEZABLE = ("mlp_extractor.policy_net.0", "mlp_extractor.value_net", "action_net", "value_net", "log_std",
             "mlp_extractor.policy_net")  # fmt: skip


@pytest.mark.parametrize("frozen", FREEZABLE)
def test_frozen_parameters_stay_and_all_others_train(frozen):
    model = mlp(RandomEnv(action_space=BOX_ACTION))()
    names = set(parameters(model.policy))
    for name, parameter in model.policy.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
    stay = {name for name in names if name.startswith(frozen)}
    assert stay
    for _ in range(2):
        update = one_update(model)
        assert update.outcome == "accepted"
        assert update.moved == names - stay


def test_what_is_frozen_may_change_between_updates():
    model = mlp()()
    one_update(model)
    model.policy.action_net.requires_grad_(False)
    assert not {"action_net.weight", "action_net.bias"} & one_update(model).moved
    model.policy.action_net.requires_grad_(True)
    assert {"action_net.weight", "action_net.bias"} <= one_update(model).moved


@pytest.mark.parametrize("towers", [TiedActor, TiedTowers])
def test_tied_parameters_stay_tied(towers):
    model = custom(towers)()
    one_update(model)
    network = model.policy.mlp_extractor
    if towers is TiedActor:
        assert network.value_of_actions[2].bias is network.value_of_actions[0].bias
    else:
        assert network.critic[2].weight is network.value_of_actions[2].weight


def test_the_policy_step_is_deterministic_under_dropout():
    model = CASES["dropout"]()
    old = parameters(model.policy)
    update = policy_step(model)
    assert 0.0 < update.kl <= 0.01 + ROUNDING
    first, model.n_critic_updates = parameters(model.policy), 0
    for seed in (1, 2):
        assign(model.policy, old)
        th.manual_seed(seed)
        model.train()
        assert not moved_since(first, model.policy)


@pytest.mark.parametrize("with_buffer", [False, True])
def test_the_critic_drops_out_in_every_minibatch(with_buffer):
    model = CASES["dropout"]()
    extractor, training = model.policy.vf_features_extractor, []
    if with_buffer:
        extractor.register_buffer("constant", th.ones(1))
    extractor.layers[0].register_forward_hook(lambda layer, *_: training.append(layer.training))
    one_update(model)
    assert training.count(True) >= 4  # two epochs of two minibatches


WITH_BATCH_NORM = {
    "separate extractors": with_layer(nn.BatchNorm1d),
    "shared extractor": with_layer(nn.BatchNorm1d, share_features_extractor=True),
    "common trunk": custom(partial(TrunkAndTowers, layer=nn.BatchNorm1d)),
    "chunks of one": partial(with_layer(nn.BatchNorm1d), chunk_size=1),
}


@pytest.mark.parametrize("make", WITH_BATCH_NORM.values(), ids=WITH_BATCH_NORM)
def test_batch_norm_statistics_follow_the_data_once_per_update(make):
    model = make()
    norms = [module for module in model.policy.modules() if isinstance(module, nn.BatchNorm1d)]
    assert norms
    for n_updates in (1, 2, 3):
        means = [norm.running_mean.clone() for norm in norms]
        assert one_update(model).outcome == "accepted"
        assert [int(norm.num_batches_tracked) for norm in norms] == [n_updates] * len(norms)
        assert not any(th.equal(norm.running_mean, mean) for norm, mean in zip(norms, means, strict=True))


def test_other_statistics_of_shared_layers_follow_once_per_update_too():
    model = custom(partial(TrunkAndTowers, layer=lambda width: spectral_norm(nn.Linear(width, width))))()
    one_update(model)
    layer = model.policy.mlp_extractor.trunk[1]
    once = copy.deepcopy(layer).train()
    once(th.zeros(2, 16))  # one power iteration
    critic_fit(model)
    assert list(layer.buffers())
    for (name, buffer), expected in zip(layer.named_buffers(), once.buffers(), strict=True):
        assert th.equal(buffer, expected), name


@pytest.mark.parametrize("share", [True, False])
def test_parameters_behind_a_detach_stay_and_the_user_is_warned(share):
    policy_kwargs = {"towers": DetachedActor, "features_extractor_class": Extractor, "share_features_extractor": share}
    with pytest.warns(UserWarning, match=r"detach") as caught:
        model = TRPO(CustomPolicy, RandomEnv(), policy_kwargs=policy_kwargs, **SMALL)
    behind = {"features_extractor.layers.1.weight", "features_extractor.layers.1.bias"}
    (message,) = [str(warning.message) for warning in caught if "detach" in str(warning.message)]
    assert all(name in message for name in behind)
    assert "value_net" not in message
    assert one_update(model).moved == set(parameters(model.policy)) - behind


@pytest.mark.parametrize("name", ["default", "gSDE", "CNN, shared", "not finite at zero", "unused layer", "common trunk"])
def test_there_is_no_warning_without_a_detach(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CASES[name]()


def test_a_policy_without_trainable_distribution_parameters_is_refused_at_construction():
    with pytest.raises(ValueError, match=r"No trainable parameter .* distribution of FixedActor.*requires_grad"):
        TRPO(FixedActor, RandomEnv(), **SMALL)


@pytest.mark.parametrize("parts", [("",), ("mlp_extractor.policy_net", "action_net")], ids=["all of it", "its actor"])
def test_a_policy_frozen_later_is_refused_at_the_update_and_left_alone(parts):
    model = mlp()()
    for name, parameter in model.policy.named_parameters():
        parameter.requires_grad_(not name.startswith(parts))
    old = parameters(model.policy)
    with pytest.raises(ValueError, match=r"No trainable parameter .*MlpPolicy"):
        model.learn(64)
    assert not moved_since(old, model.policy)
