"""Actors: which one is chosen, that both agree, and what is kept between Fisher products."""

import weakref
from functools import partial

import pytest
import torch as th
from helpers.oracle import (
    CASES,
    CountedReads,
    chunked,
    make_policy,
    make_transitions,
    networks_of,
    take,
)
from helpers.stacks import FUNCTIONS
from torch import nn

from sb3_trpo.networks.forward_mode import forward_jvp
from sb3_trpo.networks.plain_network import read_networks
from sb3_trpo.networks.stack import Stack
from sb3_trpo.numerics.flat import assign, flatten, unflatten
from sb3_trpo.rollouts.transitions import Transitions
from sb3_trpo.update.actor import AutogradActor, NetworkActor, make_actor
from sb3_trpo.update.constraints import mean_kl
from sb3_trpo.update.parameter_split import split_by_structure
from sb3_trpo.update.surrogate import PolicyObjective

CONSTRAINTS = [mean_kl(0.01)]
N_STATES, CHUNK = 9, 2
N_CHUNKS = -(-N_STATES // CHUNK)
PLAIN = [name for name in CASES if name != "dict"]
GSDE = [name for name in PLAIN if name.startswith("gsde")]
ACTIVATIONS = [name for name in FUNCTIONS if name != "none"]


class Setup:
    """A plain policy, in float64 unless another activation is tried, and its parameters that may be moved."""

    def __init__(self, case=CASES["gaussian"], alter=None, activation=None):
        if activation is None:
            self.policy = make_policy(case)
            self.transitions = make_transitions(case, self.policy, N_STATES)
        else:
            th.manual_seed(0)
            kwargs = {"net_arch": [16, 16]} | case.kwargs | {"activation_fn": FUNCTIONS[activation]}
            self.policy = case.policy_class(case.observations, case.actions, lambda _: 1e-3, **kwargs)
            self.policy.set_training_mode(False)
            self.transitions = single(make_transitions(case, self.policy, N_STATES))
        if alter is not None:
            alter(self.policy)
        self.networks = read_networks(self.policy) if activation else networks_of(self.policy)
        self.parameters = list(split_by_structure(self.policy, self.networks).policy.values())

    def actor(self, kind):
        if kind == "network":
            return NetworkActor(self.networks, self.parameters)
        return AutogradActor(self.policy, self.parameters)

    def choose(self):
        return make_actor(self.policy, self.networks, self.parameters)

    def model(self, kind, size=N_STATES, fisher_chunks=None):
        return model_of(self.actor(kind), self.parameters, chunked(self.transitions, size), fisher_chunks)

    def vector(self, seed=0):
        like = flatten(self.parameters)
        return th.randn(len(like), generator=th.Generator().manual_seed(seed), dtype=th.float64).to(like.dtype)


def model_of(actor, parameters, chunks, fisher_chunks=None):
    return PolicyObjective(actor, parameters, chunks, CONSTRAINTS, fisher_chunks, ent_coef=0.3).local_model().model


def single(transitions):
    inputs, actions, *others = transitions[:5]
    return Transitions(inputs, actions.float() if actions.is_floating_point() else actions, *(x.float() for x in others))


def freeze(*names):
    def alter(policy):
        for name in names:
            policy.get_parameter(name).requires_grad_(False)

    return alter


def tie(policy):
    policy.mlp_extractor.policy_net = nn.Sequential(*[policy.mlp_extractor.policy_net[0]] * 2)


def share_with_critic(policy):
    policy.mlp_extractor.value_net = policy.mlp_extractor.policy_net


NARROW = CASES["gaussian"]._replace(kwargs={"net_arch": [3]})
CRITIC = ("value_net.weight", "mlp_extractor.value_net.0.weight")
FROZEN_LAYER = ("mlp_extractor.policy_net.0.weight", "mlp_extractor.policy_net.0.bias")


@pytest.mark.parametrize(
    ("alter", "expected"),
    [
        (None, NetworkActor),
        (freeze("log_std"), NetworkActor),
        (freeze(*CRITIC), NetworkActor),
        (share_with_critic, NetworkActor),
        (freeze(*FROZEN_LAYER), AutogradActor),
        (freeze("mlp_extractor.policy_net.0.bias"), AutogradActor),
        (freeze("action_net.weight", "action_net.bias"), AutogradActor),
        (freeze("action_net.bias", "log_std"), AutogradActor),
        (freeze(*FROZEN_LAYER, "action_net.weight", "action_net.bias"), AutogradActor),
        (tie, AutogradActor),
    ],
)
def test_layers_are_used_only_if_every_derivative_is_needed_once(alter, expected):
    assert type(Setup(NARROW, alter).choose()) is expected


def test_a_policy_without_networks_or_with_other_parameters_than_theirs_is_left_to_autograd():
    setup = Setup()
    for networks, *more in ([None], [setup.networks, setup.policy.value_net.bias], [setup.networks, nn.Parameter(th.ones(2))]):
        parameters = [*setup.parameters, *more]
        actor = make_actor(setup.policy, networks, parameters)
        assert type(actor) is AutogradActor
        assert actor._parameters is parameters


def test_the_order_of_the_parameters_is_free():
    setup, products = Setup(), []
    v = [th.randn_like(parameter) for parameter in setup.parameters]
    for order in (1, -1):
        parameters = setup.parameters[::order]
        actor = make_actor(setup.policy, setup.networks, parameters)
        assert type(actor) is NetworkActor
        product = model_of(actor, parameters, chunked(setup.transitions, N_STATES)).fisher @ flatten(v[::order])
        products.append(unflatten(product, parameters)[::order])
    th.testing.assert_close(*products, rtol=1e-12, atol=1e-12)


def agree(setup, tolerance, size=N_STATES, step=0.01):
    """Compare gradient, Fisher products and values of both actors, relative to the largest entry."""
    fast, slow = setup.model("network", size), setup.model("autograd", size)
    products = [(fast.fisher @ setup.vector(seed), slow.fisher @ setup.vector(seed)) for seed in (0, 1)]
    for actual, expected in [(fast.gradient, slow.gradient), *products]:
        assert expected.any()
        th.testing.assert_close(actual, expected, rtol=0.0, atol=tolerance * float(expected.abs().max()))
    assert fast.surrogate == pytest.approx(slow.surrogate, rel=tolerance)
    moved = unflatten(step * setup.vector(2), setup.parameters)
    assign(setup.parameters, [old.detach() + change for old, change in zip(setup.parameters, moved, strict=True)])
    (fast_surrogate, fast_values), (slow_surrogate, slow_values) = fast.evaluate(), slow.evaluate()
    assert (fast_surrogate, *fast_values) == pytest.approx((slow_surrogate, *slow_values), rel=20 * tolerance)


@pytest.mark.parametrize("size", [N_STATES, CHUNK])
@pytest.mark.parametrize(
    ("case", "alter"),
    [
        *((CASES[name], None) for name in PLAIN),
        (CASES["gaussian"], freeze("log_std")),
        (CASES["cnn"], freeze("log_std")),
        (CASES["gaussian"]._replace(kwargs={"net_arch": []}), None),
    ],
    ids=[*PLAIN, "frozen-std", "cnn-frozen-std", "no-hidden-layers"],
)
def test_both_actors_agree(case, alter, size):
    setup = Setup(case, alter)
    assert alter is None or all(parameter is not setup.policy.log_std for parameter in setup.parameters)
    agree(setup, 1e-12, size)


def learn_features(policy):
    policy.action_dist.learn_features = True


def learn_features_alone(policy):
    learn_features(policy)
    freeze("log_std")(policy)


WITH_CNN = CASES["cnn"]._replace(kwargs=CASES["cnn"].kwargs | {"use_sde": True})
WITHOUT_LAYERS = CASES["gsde"]._replace(kwargs=CASES["gsde"].kwargs | {"net_arch": []})


@pytest.mark.parametrize("size", [N_STATES, CHUNK])
@pytest.mark.parametrize("alter", [None, freeze("log_std"), learn_features, learn_features_alone], ids=range(4))
@pytest.mark.parametrize("case", [*(CASES[name] for name in GSDE), WITH_CNN, WITHOUT_LAYERS], ids=[*GSDE, "cnn", "no layers"])
def test_both_actors_agree_on_state_dependent_noise(case, alter, size):
    th.manual_seed(0)
    setup = Setup(case, alter)
    assert type(setup.choose()) is NetworkActor
    agree(setup, 1e-12, size, step=1e-3)  # so many weights move the standard deviations far


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", PLAIN)
def test_both_actors_agree_in_single_precision(name, activation):
    setup = Setup(CASES[name], activation=activation)
    assert type(setup.choose()) is NetworkActor
    agree(setup, 1e-5)


def bytes_of_a_chunk(setup):
    chunk = chunked(setup.transitions, CHUNK)[0]
    return setup.actor("network").local(chunk.inputs).n_bytes


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize(("room", "n_kept"), [(0.0, 0), (0.9, 0), (1.0, 1), (2.5, 2), (4.4, 4), (4.5, 5), (1e9, 5)])
def test_curvatures_are_kept_while_there_is_room_and_products_stay_the_same(monkeypatch, room, n_kept, apart):
    """The last chunk has one state instead of two: it takes half the room."""
    setup = Setup()
    records, forward = [], Stack.forward
    monkeypatch.setattr(Stack, "forward", lambda stack, x: records.append(len(x)) or forward(stack, x))
    vectors = [setup.vector(seed) for seed in range(3)]
    expected = [setup.model("network").fisher @ v for v in vectors]
    monkeypatch.setattr("sb3_trpo.update.surrogate.KEPT_BYTES", room * bytes_of_a_chunk(setup))

    records.clear()
    model = setup.model("network", CHUNK, chunked(setup.transitions, CHUNK) if apart else None)
    assert records == [2, 2, 2, 2, 1]
    records.clear()
    products = [model.fisher @ v for v in vectors]
    rebuilt = [2, 2, 2, 2, 1][n_kept:]
    assert records == ([2, 2, 2, 2, 1] + 2 * rebuilt if apart else 3 * rebuilt)
    for actual, value in zip(products, expected, strict=True):
        th.testing.assert_close(actual, value, rtol=1e-12, atol=1e-12)
    assert th.equal(model.fisher @ vectors[0], products[0])


@pytest.mark.parametrize("kind", ["network", "autograd"])
def test_a_single_chunk_is_kept_however_large(monkeypatch, kind):
    setup = Setup()
    monkeypatch.setattr("sb3_trpo.update.surrogate.KEPT_BYTES", 0)
    counted = CountedReads(chunked(setup.transitions, N_STATES))
    first, second = setup.model(kind, fisher_chunks=counted), setup.model(kind)
    for _ in range(3):
        th.testing.assert_close(first.fisher @ setup.vector(), second.fisher @ setup.vector(), rtol=1e-12, atol=1e-12)
    assert counted.n_reads == 1


def test_autograds_graphs_of_several_chunks_are_never_kept(monkeypatch):
    monkeypatch.setattr("sb3_trpo.update.surrogate.KEPT_BYTES", 2**60)
    setup = Setup()
    chunks = CountedReads(chunked(setup.transitions, CHUNK))
    model = setup.model("autograd", fisher_chunks=chunks)
    for _ in range(3):
        _ = model.fisher @ setup.vector()
    assert chunks.n_reads == 3 * N_CHUNKS


@pytest.mark.parametrize("kind", ["network", "autograd"])
@pytest.mark.parametrize("room", [0, 600, 2**27])
def test_fisher_chunks_apart_are_the_only_ones_in_the_matrix(monkeypatch, kind, room):
    setup = Setup()
    few = take(setup.transitions, slice(0, N_STATES, 2))
    whole = setup.model(kind)
    expected = model_of(setup.actor(kind), setup.parameters, chunked(few, N_STATES))
    monkeypatch.setattr("sb3_trpo.update.surrogate.KEPT_BYTES", room)
    model = setup.model(kind, size=4, fisher_chunks=chunked(few, CHUNK))
    for _ in range(2):
        th.testing.assert_close(model.fisher @ setup.vector(), expected.fisher @ setup.vector(), rtol=1e-12, atol=1e-12)
    th.testing.assert_close(model.gradient, whole.gradient, rtol=1e-12, atol=1e-12)


def test_a_pass_in_between_does_not_change_what_is_kept():
    setup = Setup()
    model, v = setup.model("network", CHUNK), setup.vector()
    before = model.fisher @ v
    model.evaluate()  # by the same actor and its one distribution object
    assert th.equal(model.fisher @ v, before)


class Watch:
    """Counts the forward passes that are kept in memory: before each new one, and now."""

    def __init__(self, monkeypatch):
        self.hidden, self.before, forward = [], [], Stack.forward

        def spy(stack, x):
            self.before.append(self.alive())
            intermediates = forward(stack, x)
            self.hidden.append(weakref.ref(intermediates.hidden[0]))  # not the output, which the distribution holds
            return intermediates

        monkeypatch.setattr(Stack, "forward", spy)

    def alive(self):
        return sum(hidden() is not None for hidden in self.hidden)


@pytest.mark.parametrize(("room", "n_kept"), [(0.0, 0), (2.5, 2)])
def test_a_rebuilt_chunk_is_freed_before_the_next_one_is_built(monkeypatch, room, n_kept):
    setup = Setup()
    monkeypatch.setattr("sb3_trpo.update.surrogate.KEPT_BYTES", room * bytes_of_a_chunk(setup))
    watch = Watch(monkeypatch)
    model = setup.model("network", CHUNK)
    for seed in range(3):
        _ = model.fisher @ setup.vector(seed)
    assert max(watch.before) == watch.alive() == n_kept
    del model
    assert watch.alive() == 0


class Constant(nn.Module):
    """Passes its input on, times a number that backpropagation takes for a constant."""

    def forward(self, x):
        with th.no_grad():
            scale = 1.0 + x.square().mean()
        return x * scale


class WithoutFormula(th.autograd.Function):
    """An operation that torch cannot differentiate in forward mode."""

    @staticmethod
    def forward(ctx, x):
        return 2.0 * x

    @staticmethod
    def backward(ctx, cotangent):
        return 2.0 * cotangent


class Doubling(nn.Module):
    def forward(self, x):
        return WithoutFormula.apply(x)


class Gain(nn.Module):
    """A learned number between wide layers, which is read a second time without gradient."""

    def __init__(self, width):
        super().__init__()
        n_features = make_policy(CASES["cnn"]).features_dim
        self.first, self.last = (nn.Linear(*sizes, dtype=th.float64) for sizes in ((n_features, width), (width, n_features)))
        self.gain = nn.Parameter(th.ones((), dtype=th.float64))

    def forward(self, x):
        with th.no_grad():
            factor = self.gain * 1.0
        return self.last(self.first(x).tanh()) * (1.0 + 0.05 * factor * self.gain)


def forward_modes(monkeypatch, module):
    """Count the products by forward mode in two Fisher products, which have to be those of two backward passes."""
    setup, calls = Setup(CASES["cnn"]), []
    setup.policy.pi_features_extractor.linear.append(module)
    setup.parameters += module.parameters()
    counted = forward_jvp
    monkeypatch.setattr("sb3_trpo.update.actor.forward_jvp", lambda *arguments: calls.append(None) or counted(*arguments))
    products = [setup.model("autograd").fisher @ setup.vector()]
    n_calls = len(calls)
    monkeypatch.setattr("sb3_trpo.update.actor.CONVOLUTIONS", ())
    products.append(setup.model("autograd").fisher @ setup.vector())
    th.testing.assert_close(*products, rtol=1e-12, atol=1e-12)
    assert len(calls) == n_calls  # without convolutions there is nothing to gain
    return n_calls


def test_convolutions_are_differentiated_in_forward_mode(monkeypatch):
    assert forward_modes(monkeypatch, nn.Softplus()) == 3  # two to check it


MODULES = {
    "no_grad": (Constant, 2),
    "no formula": (Doubling, 1),
    "64 units": (partial(Gain, 64), 2),
    "256 units": (partial(Gain, 256), 2),
}


@pytest.mark.parametrize(("make", "n_tried"), MODULES.values(), ids=MODULES)
def test_where_forward_mode_is_wrong_or_missing_it_is_checked_once(make, n_tried, monkeypatch):
    assert forward_modes(monkeypatch, make()) == n_tried


@pytest.mark.parametrize("case", ["gaussian", "cnn"])
def test_another_thread_may_predict_between_a_distribution_and_its_products(case):
    setup = Setup(CASES[case])
    inputs = setup.transitions.inputs

    def product(between):
        local = AutogradActor(setup.policy, setup.parameters).local(inputs)
        between()
        return [*local.kind.parameters(local.distribution), *local.linearize().jvp(setup.vector())]

    others = type(inputs)(inputs.observations[:1])
    alone, beside = product(lambda: None), product(lambda: others.distribution(setup.policy))
    th.testing.assert_close(beside, alone, rtol=0, atol=0)
