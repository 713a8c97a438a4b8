"""The critic's fit without a graph: equal to the general one in all it leaves behind, and left to it where it cannot be."""

import copy
import io
from functools import partial

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from helpers.buffers import filled
from helpers.oracle import interrupt_at
from helpers.stacks import FUNCTIONS
from helpers.states import same, training_state
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.utils import set_random_seed
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from sb3_trpo import CnnPolicy, MlpPolicy, MultiInputPolicy
from sb3_trpo.networks.plain_network import read_networks
from sb3_trpo.networks.prepared.array_runner import ArrayRunner
from sb3_trpo.networks.prepared.preallocated import AllocatingRunner, PreallocatedRunner
from sb3_trpo.parallel.communicator import Communicator
from sb3_trpo.parallel.faults import RanksPartedError
from sb3_trpo.rollouts.batch import RolloutBatch
from sb3_trpo.rollouts.reader import TransitionReader
from sb3_trpo.update.critic import FitOutcome, fit_critic
from sb3_trpo.update.flat_critic import fit_stack, plain_regression
from sb3_trpo.update.parameter_split import split_by_structure

N_STEPS, N_ENVS, BATCH_SIZE = 16, 3, 20  # the last minibatch is short
LEARNING_RATE = 1e-3  # a larger one shows the rounding errors of small gradients, which Adam scales up
ACTIONS = spaces.Box(-1.0, 1.0, (2,))
VECTOR = spaces.Box(-1.0, 1.0, (3,))
IMAGE = spaces.Box(0, 255, (1, 36, 36), np.uint8)
VECTORS = spaces.Dict({"one": VECTOR, "two": spaces.Box(-1.0, 1.0, (2, 2))})
SMALL = {"net_arch": [6, 5]}
FEW = {"features_extractor_kwargs": {"features_dim": 8}}


def share_hidden_layers(policy):
    policy.mlp_extractor.value_net = policy.mlp_extractor.policy_net


def freeze_lower_layer(policy):
    policy.mlp_extractor.value_net[0].requires_grad_(False)


def drop_dense(policy):
    """Let the shared extractor end in its convolutions."""
    extractor = policy.features_extractor
    n_features = extractor.linear[0].in_features
    extractor.linear = nn.Sequential()
    for net in (policy.mlp_extractor.policy_net, policy.mlp_extractor.value_net):
        net[0] = nn.Linear(n_features, 4)
    policy.optimizer = th.optim.Adam(policy.parameters(), lr=LEARNING_RATE, eps=1e-5)


def freeze_convolutions(policy):
    policy.vf_features_extractor.cnn.requires_grad_(False)


def turn_channels_last(policy):
    policy.to(memory_format=th.channels_last)


KINDS = {
    "mlp": (MlpPolicy, VECTOR, SMALL, None),
    "no-hidden-layer": (MlpPolicy, VECTOR, {"net_arch": []}, None),
    "matrix": (MlpPolicy, VECTORS["two"], SMALL, None),
    "choice": (MlpPolicy, spaces.Discrete(4), SMALL, None),
    "dict": (MultiInputPolicy, VECTORS, SMALL, None),
    "cnn": (CnnPolicy, IMAGE, FEW, None),
    "cnn-deeper": (CnnPolicy, IMAGE, FEW | {"net_arch": [4]}, None),
    "cnn-channels-last": (CnnPolicy, IMAGE, FEW, turn_channels_last),
    "cnn-shared-without-dense": (CnnPolicy, IMAGE, {"share_features_extractor": True, "net_arch": [4]}, drop_dense),
    "cnn-frozen-convolutions": (CnnPolicy, IMAGE, FEW, freeze_convolutions),
    "cnn-shared": (CnnPolicy, IMAGE, FEW | {"share_features_extractor": True}, None),
    "shared": (MlpPolicy, VECTOR, SMALL, share_hidden_layers),
    "frozen-below": (MlpPolicy, VECTOR, SMALL, freeze_lower_layer),
}


class Setup:
    """A policy and a full buffer of random transitions, the same ones each time."""

    def __init__(self, kind="mlp", before=0, buffer_class=None, activation=None, **options):
        set_random_seed(0)
        policy_class, space, kwargs, alter = KINDS[kind]
        if activation is not None:
            kwargs = kwargs | {"activation_fn": activation}
        self.policy = policy_class(space, ACTIONS, lambda _: LEARNING_RATE, optimizer_kwargs=options, **kwargs)
        if alter is not None:
            alter(self.policy)
        self.policy.set_training_mode(False)
        self.buffer = filled(space, ACTIONS, N_STEPS, N_ENVS, buffer_class=buffer_class)
        self.batch = RolloutBatch([self.buffer], TransitionReader)
        if before:
            self.slow(before)

    @property
    def optimizer(self):
        return self.policy.optimizer

    @property
    def parameters(self):
        return list(split_by_structure(self.policy, read_networks(self.policy)).critic.values())

    def regression(self, batch_size=BATCH_SIZE):
        return plain_regression(self.policy, read_networks(self.policy), self.parameters, self.batch, batch_size)

    def fast(self, n_epochs=2, max_grad_norm=None, batch_size=BATCH_SIZE):
        np.random.seed(7)
        regression = self.regression(batch_size)
        assert regression is not None
        return fit_stack(regression, n_epochs, max_grad_norm)

    def slow(self, n_epochs=2, max_grad_norm=None, batch_size=BATCH_SIZE):
        np.random.seed(7)
        return fit_critic(self.policy, self.parameters, partial(self.batch.minibatches, batch_size), n_epochs, max_grad_norm)

    def snapshot(self):
        return training_state(self.policy)

    def restore(self, snapshot):
        with th.no_grad():
            for name, parameter in self.policy.named_parameters():
                parameter.copy_(snapshot[0][name])
        self.optimizer.load_state_dict(copy.deepcopy(snapshot[1]))


def agree(fast: Setup, slow: Setup) -> None:
    """Compare parameters and the optimizer's state up to rounding, and the layout of the state exactly."""
    (parameters, optimizer), (expected, expected_optimizer) = fast.snapshot(), slow.snapshot()
    th.testing.assert_close(parameters, expected, rtol=1e-5, atol=1e-5)
    assert optimizer["param_groups"] == expected_optimizer["param_groups"]
    th.testing.assert_close(optimizer["state"], expected_optimizer["state"], rtol=1e-5, atol=1e-5)
    assert all(list(state) == ["step", "exp_avg", "exp_avg_sq"] for state in optimizer["state"].values())


def compare(make, n_epochs=2, max_grad_norm=None, batch_size=BATCH_SIZE):
    """Fit both ways and compare all that is left."""
    fast, slow = make(), make()
    of_critic = {id(tensor) for tensor in read_networks(fast.policy).critic.tensors}
    trained = of_critic & {id(parameter) for parameter in fast.parameters}
    before, _ = fast.snapshot()
    record, generator = fast.fast(n_epochs, max_grad_norm, batch_size), np.random.get_state()
    expected, expected_generator = slow.slow(n_epochs, max_grad_norm, batch_size), np.random.get_state()
    agree(fast, slow)
    assert record.outcome is expected.outcome is FitOutcome.FITTED
    assert record.loss == pytest.approx(expected.loss, rel=1e-5)
    assert all(np.array_equal(*pair) for pair in zip(generator, expected_generator, strict=True))
    for name, parameter in fast.policy.named_parameters():
        assert same(parameter.detach(), before[name]) != (id(parameter) in trained), name
        assert parameter.grad is None


@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("max_grad_norm", [None, 0.0, 0.05, 1e9])
@pytest.mark.parametrize("kind", KINDS)
def test_the_fit_is_the_general_one(kind, max_grad_norm, before):
    compare(partial(Setup, kind, before=before), max_grad_norm=max_grad_norm)


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != "none"])
@pytest.mark.parametrize("kind", ["mlp", "shared", "cnn-deeper"])
def test_the_fit_is_the_general_one_for_every_activation(kind, name):
    compare(partial(Setup, kind, activation=FUNCTIONS[name]), n_epochs=1)


@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize(
    "options",
    [
        {"weight_decay": 0.5},
        {"betas": (0.5, 0.7)},
        {"betas": (0.0, 0.0)},
        {"eps": 1e-3},
        {"foreach": True},
        {"foreach": False},
        {"fused": True},
        {"weight_decay": 0.1, "betas": (0.8, 0.9), "eps": 1e-2},
    ],
    ids=str,
)
def test_the_fit_is_the_general_one_for_other_options_of_adam(options, before):
    compare(partial(Setup, before=before, **options), max_grad_norm=0.5)


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
@pytest.mark.parametrize(("n_epochs", "batch_size"), [(1, 48), (1, 1000), (3, 47), (4, 16), (1, 1), (1, np.int64(20))])
def test_the_fit_is_the_general_one_for_any_division_into_minibatches(kind, n_epochs, batch_size):
    compare(partial(Setup, kind), n_epochs, batch_size=batch_size)


def set_group(**changes):
    return lambda setup: setup.optimizer.param_groups[0].update(changes)


def add_stray_parameter(setup):
    setup.policy.register_parameter("stray", nn.Parameter(th.ones(3)))


def give_the_critic_a_group(setup):
    others = [*setup.policy.mlp_extractor.policy_net.parameters(), *setup.policy.action_net.parameters(), setup.policy.log_std]
    critic = {"params": setup.parameters, "lr": 2e-3, "betas": (0.5, 0.6), "weight_decay": 0.1}
    setup.policy.optimizer = th.optim.Adam([{"params": others, "lr": 9.0}, critic])


@pytest.mark.parametrize(
    "alter",
    [set_group(lr=3e-4), set_group(lr=np.float64(0.003)), add_stray_parameter, give_the_critic_a_group],
    ids=["learning rate", "learning rate of NumPy", "parameter outside the critic", "group"],
)
def test_the_fit_is_the_general_one_whatever_has_changed_since_the_last(alter):
    def make():
        setup = Setup(before=1)
        alter(setup)
        return setup

    compare(make)


class Doubled(RolloutBuffer):
    """Doubles every return, and yields the last minibatch a second time, before all others."""

    def get(self, batch_size=None):
        batches = list(super().get(batch_size))
        for batch in [batches[-1], *batches]:
            yield batch._replace(returns=2.0 * batch.returns)


@pytest.mark.parametrize("kind", ["mlp", "cnn", "shared"])
def test_a_buffer_of_another_class_is_asked_for_its_own_minibatches(kind):
    compare(partial(Setup, kind, buffer_class=Doubled))
    plain, doubled = Setup(kind), Setup(kind, buffer_class=Doubled)
    plain.fast()
    doubled.fast()
    assert not same(plain.snapshot()[0], doubled.snapshot()[0])


RUNNERS = (ArrayRunner, PreallocatedRunner, AllocatingRunner)


def runners_made(monkeypatch, kind, n_epochs):
    made = []
    for runner in RUNNERS:
        monkeypatch.setattr(
            f"sb3_trpo.update.flat_critic.{runner.__name__}", lambda *args, runner=runner: made.append(runner) or runner(*args)
        )
    Setup(kind).fast(n_epochs)
    return made


def test_a_small_critic_runs_on_arrays_a_large_one_preallocated_and_one_of_images_allocates(monkeypatch):
    assert runners_made(monkeypatch, "mlp", 3) == [ArrayRunner] * 2  # one for the whole minibatches, one for the short one
    assert set(runners_made(monkeypatch, "cnn", 1)) == {AllocatingRunner}
    monkeypatch.setattr("sb3_trpo.update.flat_critic.pays_by_arrays", lambda *_: False)
    assert runners_made(monkeypatch, "mlp", 3) == [PreallocatedRunner] * 2


@pytest.mark.parametrize("kind", ["mlp", "no-hidden-layer", "matrix", "choice", "dict"])
def test_a_large_critic_is_fitted_as_by_the_general_fit(kind, monkeypatch):
    monkeypatch.setattr("sb3_trpo.update.flat_critic.pays_by_arrays", lambda *_: False)
    compare(partial(Setup, kind))


def test_a_fit_whose_numbers_overflow_diverges_even_where_numpy_is_to_raise():
    setup = Setup("mlp")
    setup.buffer.returns *= 1e30
    with np.errstate(all="raise"):
        assert setup.fast(3).outcome is FitOutcome.DIVERGED


def set_optimizer(kind, parameters=lambda setup: setup.policy.parameters(), **options):
    return lambda setup: setattr(setup.policy, "optimizer", kind(parameters(setup), lr=1e-3, **options))


def in_two_groups(setup):
    first, *rest = setup.parameters
    return [{"params": [first]}, {"params": rest}]


def different_steps(setup):
    setup.slow(1)
    setup.optimizer.state[setup.parameters[0]]["step"] += 1


def one_without_state(setup):
    setup.slow(1)
    setup.optimizer.state.pop(setup.parameters[0])


def tie(setup):
    layer = nn.Linear(5, 5)
    setup.policy.mlp_extractor.value_net.extend([layer, layer])
    set_optimizer(th.optim.Adam)(setup)


REFUSED = {
    "sgd": set_optimizer(th.optim.SGD),
    "adamw": set_optimizer(th.optim.AdamW),
    "rmsprop": set_optimizer(th.optim.RMSprop),
    **{name: set_optimizer(th.optim.Adam, **{name: True}) for name in ("amsgrad", "maximize", "decoupled_weight_decay")},
    "subclass": set_optimizer(type("Own", (th.optim.Adam,), {})),
    "tensor-lr": set_group(lr=th.tensor(1e-3)),
    "two-groups": set_optimizer(th.optim.Adam, in_two_groups),
    "one-not-in-the-optimizer": set_optimizer(th.optim.Adam, lambda setup: setup.parameters[1:]),
    "none-in-the-optimizer": set_optimizer(th.optim.Adam, lambda setup: [setup.policy.log_std]),
    "pre-hook": lambda setup: setup.optimizer.register_step_pre_hook(lambda *_: None),
    "post-hook": lambda setup: setup.optimizer.register_step_post_hook(lambda *_: None),
    "patched-step": lambda setup: setattr(setup.optimizer, "step", partial(setup.optimizer.step)),
    "scheduler": lambda setup: th.optim.lr_scheduler.StepLR(setup.optimizer, 1),
    "frozen-bias": lambda setup: setup.policy.mlp_extractor.value_net[0].bias.requires_grad_(False),
    "frozen-head-bias": lambda setup: setup.policy.value_net.bias.requires_grad_(False),
    "frozen-middle": lambda setup: setup.policy.mlp_extractor.value_net[2].requires_grad_(False),
    "frozen-head": lambda setup: setup.policy.value_net.requires_grad_(False),
    "frozen": lambda setup: [parameter.requires_grad_(False) for parameter in setup.parameters],
    "different-steps": different_steps,
    "one-without-state": one_without_state,
    "tied": tie,
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_fit_cannot_do_as_the_optimizer_would_is_left_to_the_general_one(name):
    setup = Setup()
    assert setup.regression() is not None
    REFUSED[name](setup)
    before = setup.snapshot()
    assert setup.regression() is None
    assert same(setup.snapshot(), before)


def test_a_hook_of_all_optimizers_leaves_the_fit_to_the_general_one():
    handle = register_optimizer_step_post_hook(lambda *_: None)
    try:
        assert Setup().regression() is None
    finally:
        handle.remove()


def spoil_returns(number):
    return lambda setup: setup.buffer.returns.__setitem__(5, number)


@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("kind", ["mlp", "cnn", "shared"])
@pytest.mark.parametrize("max_grad_norm", [None, 0.5])
@pytest.mark.parametrize(
    "spoil",
    [set_group(lr=1e30), *map(spoil_returns, (np.inf, np.nan, 1e25))],
    ids=["lr", "inf", "nan", "1e25"],
)
def test_a_fit_that_diverges_leaves_all_as_it_was(spoil, max_grad_norm, kind, before):
    setup, other = Setup(kind, before=before), Setup(kind, before=before)
    spoil(setup)
    spoil(other)
    old = setup.snapshot()
    record = setup.fast(max_grad_norm=max_grad_norm)
    assert record.outcome is other.slow(max_grad_norm=max_grad_norm).outcome
    if record.outcome is FitOutcome.DIVERGED:
        assert same(setup.snapshot(), old)
    assert (record.outcome is FitOutcome.DIVERGED) or max_grad_norm
    assert all(parameter.grad is None for parameter in setup.policy.parameters())


@pytest.mark.parametrize("before", [0, 1])
def test_no_epochs_leave_all_as_it_was(before):
    setup = Setup(before=before)
    old = setup.snapshot()
    record = setup.fast(n_epochs=0)
    assert (record.outcome, record.loss) == (FitOutcome.FITTED, None)
    assert same(setup.snapshot(), old)


@pytest.mark.parametrize("kind", ["mlp", "shared"])
@pytest.mark.parametrize("before", [0, 1])
def test_interrupt_at_any_moment_leaves_the_old_or_the_new(kind, before):
    setup = Setup(kind, before=before)
    old = setup.snapshot()
    setup.fast(1, 0.5, N_STEPS * N_ENVS)
    new = setup.snapshot()
    assert not same(new, old)
    setup.restore(old)
    ended_old = []
    for moment in range(100_000):
        regression = setup.regression(N_STEPS * N_ENVS)
        np.random.seed(7)
        try:
            with th.enable_grad(), interrupt_at(moment):
                fit_stack(regression, 1, 0.5)
        except KeyboardInterrupt:
            now = setup.snapshot()
            ended_old.append(same(now, old))
            assert ended_old[-1] or same(now, new), f"interrupted at moment {moment}"
            if not ended_old[-1]:
                setup.restore(old)
        else:
            break
    assert set(ended_old) == {True, False}
    assert same(setup.snapshot(), new)


@pytest.mark.parametrize("fused", [None, True])
@pytest.mark.parametrize("kind", ["mlp", "cnn-shared"])
def test_the_optimizer_is_saved_and_goes_on_as_after_a_general_fit(kind, fused):
    fast, slow, loaded = (Setup(kind, fused=fused) for _ in range(3))
    fast.fast()
    slow.slow()
    file = io.BytesIO()
    th.save(fast.snapshot(), file)
    file.seek(0)
    loaded.restore(th.load(file))
    for again in (Setup.slow, Setup.fast):
        for setup in (fast, loaded):
            again(setup)
        slow.slow()
        agree(fast, slow)
        agree(loaded, slow)


def test_each_parameter_stays_where_it_lies_and_gets_a_state_that_shares_no_memory():
    setup = Setup()
    places = [parameter.data_ptr() for parameter in setup.policy.parameters()]
    setup.fast()
    assert [parameter.data_ptr() for parameter in setup.policy.parameters()] == places
    tensors = [tensor for state in setup.optimizer.state.values() for tensor in state.values()]
    assert len({tensor.data_ptr() for tensor in tensors}) == len(tensors)
    assert all(tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size() for tensor in tensors)


class PartingAt(Communicator):
    """One of two ranks, which loses the other in one of its exchanges."""

    size = 2

    def __init__(self, exchange: int) -> None:
        self.left = exchange

    def mean(self, total, weight):
        return self.sum(total) / weight

    def sum(self, values):
        self.left -= 1
        if self.left < 0:
            raise RanksPartedError
        return values


def test_a_rank_that_loses_the_others_in_any_exchange_has_its_old_critic():
    setup = Setup()
    old, n_exchanges = setup.snapshot(), 0
    for n_exchanges in range(100):
        try:
            fit_stack(setup.regression(), 1, None, PartingAt(n_exchanges))
        except RanksPartedError:
            assert same(setup.snapshot(), old)
        else:
            break
    assert n_exchanges == -(-N_STEPS * N_ENVS // BATCH_SIZE) + 1, "one for each minibatch, and the loss"
    assert not same(setup.snapshot(), old)
