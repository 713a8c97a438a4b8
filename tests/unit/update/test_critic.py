"""The critic fit: equal to a plain regression loop, bounded where asked, undone when it diverges."""

from functools import partial

import numpy as np
import pytest
import torch as th
from helpers.contract_tools import moved_since, parameters
from helpers.envs import BOX_ACTION, DICT, VECTOR, RandomEnv
from helpers.states import same, training_state
from stable_baselines3.common.utils import set_random_seed
from torch.nn.functional import mse_loss

from sb3_trpo import TRPO
from sb3_trpo.networks.plain_network import read_networks
from sb3_trpo.parallel.communicator import ALONE, Communicator
from sb3_trpo.parallel.sharding import MinibatchShard
from sb3_trpo.rollouts.batch import RolloutBatch
from sb3_trpo.rollouts.reader import TransitionReader
from sb3_trpo.update.advice import ADVICE
from sb3_trpo.update.critic import FitOutcome, descend, fit_critic
from sb3_trpo.update.flat_critic import fit_stack, plain_regression
from sb3_trpo.update.parameter_split import split_parameters

N_STEPS, BATCH_SIZE = 48, 20  # the last minibatch is short
CRITIC = ("mlp_extractor.value_net", "value_net", "vf_features_extractor")
"""Where SB3 keeps the critic of these models; the package must find out by itself."""


def trained(observation_space=VECTOR, policy_kwargs=None, n_critic_updates=3, **settings) -> TRPO:
    """Train for one update, so that the optimizer has a state, and leave the rollout in the buffer."""
    policy = "MlpPolicy" if observation_space is VECTOR else "MultiInputPolicy"
    settings |= {
        "n_steps": N_STEPS,
        "batch_size": BATCH_SIZE,
        "n_critic_updates": n_critic_updates,
        "seed": 0,
        "device": "cpu",
    }
    return TRPO(policy, RandomEnv(observation_space, BOX_ACTION), policy_kwargs=policy_kwargs, **settings).learn(N_STEPS)


def critic_of(policy) -> dict[str, th.nn.Parameter]:
    return {name: value for name, value in policy.named_parameters() if name.startswith(CRITIC)}


def freeze_critic(model: TRPO) -> None:
    for parameter in critic_of(model.policy).values():
        parameter.requires_grad_(False)


def batch_of(model: TRPO) -> RolloutBatch:
    return RolloutBatch([model.rollout_buffer], TransitionReader)


def critic_by_split(policy) -> list[th.nn.Parameter]:
    return list(split_parameters(policy, [TransitionReader.any_inputs(policy)]).critic.values())


def fit(model: TRPO, n_epochs=3, max_grad_norm=None, minibatches=None):
    set_random_seed(7)
    minibatches = minibatches or partial(batch_of(model).minibatches, BATCH_SIZE)
    return fit_critic(model.policy, critic_by_split(model.policy), minibatches, n_epochs, max_grad_norm)


def reference_fit(model: TRPO, n_epochs=3, max_grad_norm=None) -> float:
    """Regress with an optimizer of the critic alone, which goes on from the state of the policy's."""
    set_random_seed(7)
    critic, shared = list(critic_of(model.policy).values()), model.policy.optimizer
    optimizer = th.optim.Adam(critic, lr=shared.param_groups[0]["lr"], eps=shared.param_groups[0]["eps"])
    optimizer.state.update({parameter: shared.state[parameter] for parameter in critic})
    losses = []
    for _ in range(n_epochs):
        for batch in model.rollout_buffer.get(BATCH_SIZE):
            loss = (model.policy.predict_values(batch.observations)[:, 0] - batch.returns).square().mean()
            optimizer.zero_grad()
            loss.backward()
            if max_grad_norm:
                norm = th.stack([parameter.grad.norm() for parameter in critic]).norm()
                for parameter in critic:
                    parameter.grad *= min(1.0, max_grad_norm / float(norm))
            optimizer.step()
            losses.append(loss.item())
    return float(np.mean(losses))


@pytest.mark.parametrize("max_grad_norm", [None, 0.05])
@pytest.mark.parametrize("space", [VECTOR, DICT], ids=["vector", "dict"])
def test_the_fit_equals_a_plain_regression_of_the_critic(space, max_grad_norm):
    model, reference = trained(space), trained(space)
    before = parameters(model.policy)
    record = fit(model, max_grad_norm=max_grad_norm)
    loss = reference_fit(reference, max_grad_norm=max_grad_norm)
    assert record.outcome is FitOutcome.FITTED
    assert record.loss == pytest.approx(loss, rel=1e-5)
    th.testing.assert_close(parameters(model.policy), parameters(reference.policy), rtol=0.0, atol=1e-6)
    assert moved_since(before, model.policy) == set(critic_of(model.policy))


def test_the_gradient_norm_is_bounded_at_every_step():
    norms = {}
    for bound in (None, 0.01):
        model, norms[bound] = trained(), []
        critic, step = list(critic_of(model.policy).values()), model.policy.optimizer.step

        def spy(step=step, critic=critic, seen=norms[bound]):
            seen.append(float(th.cat([parameter.grad.flatten() for parameter in critic]).norm()))
            return step()

        model.policy.optimizer.step = spy
        fit(model, max_grad_norm=bound)
    assert len(norms[0.01]) == 3 * -(-N_STEPS // BATCH_SIZE)
    assert min(norms[None]) > 0.01
    assert max(norms[0.01]) <= 0.01 * (1 + 1e-5)
    assert min(norms[0.01]) > 0.009


@pytest.mark.parametrize("unbounded", [0, 0.0, 1e9])
def test_no_bound_and_a_bound_of_zero_do_not_clip(unbounded):
    model, other = trained(), trained()
    fit(model, max_grad_norm=None)
    fit(other, max_grad_norm=unbounded)
    assert same(parameters(model.policy), parameters(other.policy))


@pytest.mark.parametrize("fresh", [False, True], ids=["again", "first"])
@pytest.mark.parametrize("returns", [float("inf"), float("nan"), 1e19, -1e25, 1e30])
@pytest.mark.parametrize("max_grad_norm", [None, 0.5])
def test_a_fit_to_wild_returns_ends_sound_or_is_undone_bit_for_bit(returns, fresh, max_grad_norm):
    """A squared gradient may overflow in the optimizer while the parameters stay finite: it would never learn again."""
    model = trained(n_critic_updates=0 if fresh else 3)

    def minibatches():
        for index, (part,) in enumerate(batch_of(model).minibatches(BATCH_SIZE)):
            yield [part._replace(returns=part.returns + returns) if index == 1 else part]

    before = training_state(model.policy)
    record = fit(model, minibatches=minibatches, max_grad_norm=max_grad_norm)
    values, optimizer = after = training_state(model.policy)
    if record.outcome is FitOutcome.DIVERGED:
        assert same(after, before)
    else:
        assert np.isfinite(returns)
        moments = [moment for state in optimizer["state"].values() for moment in state.values()]
        assert all(number.isfinite().all() for number in (*moments, *values.values()))
    assert fit(model).outcome is FitOutcome.FITTED
    assert moved_since(values, model.policy)


@pytest.mark.parametrize("n_critic_updates", [3, 0])
@pytest.mark.parametrize("optimizer_class", [th.optim.Adam, th.optim.SGD])
def test_a_huge_learning_rate_is_undone_and_named(n_critic_updates, optimizer_class):
    model = trained(policy_kwargs={"optimizer_class": optimizer_class}, n_critic_updates=n_critic_updates)
    for group in model.policy.optimizer.param_groups:
        group["lr"] = 1e30
    before = training_state(model.policy)
    record = fit(model)
    assert record.outcome is FitOutcome.DIVERGED
    assert "learning_rate" in ADVICE[record.outcome]
    assert same(training_state(model.policy), before)


def test_an_update_whose_critic_diverges_keeps_the_policy_step_and_says_so(capsys):
    model, fresh = trained(verbose=1, learning_rate=1e30), trained(n_critic_updates=0)
    assert model.critic_outcome.value == "diverged"
    assert model.policy_outcome.value == "accepted"
    assert not moved_since(parameters(fresh.policy), model.policy) & set(critic_of(model.policy))
    model.learn(N_STEPS, reset_num_timesteps=False)
    assert capsys.readouterr().out.count(ADVICE[FitOutcome.DIVERGED]) == 1


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("fault", [KeyboardInterrupt, ArithmeticError])
def test_an_interrupted_fit_is_undone_bit_for_bit(fault, frozen):
    model = trained()
    if frozen:
        freeze_critic(model)
    before = training_state(model.policy)

    def minibatches():
        yield from list(batch_of(model).minibatches(BATCH_SIZE))[:2]
        raise fault

    with pytest.raises(fault):
        fit(model, minibatches=minibatches)
    assert same(training_state(model.policy), before)
    assert all(parameter.grad is None for parameter in model.policy.parameters())


@pytest.mark.parametrize(
    ("optimizer_class", "optimizer_kwargs"),
    [
        (th.optim.Adam, {}),
        (th.optim.AdamW, {"weight_decay": 0.5}),
        (th.optim.Adam, {"weight_decay": 0.5, "amsgrad": True}),
        (th.optim.SGD, {"weight_decay": 0.5, "momentum": 0.9}),
        (th.optim.RMSprop, {"weight_decay": 0.5, "momentum": 0.9}),
    ],
)
@pytest.mark.parametrize("share", [False, True])
def test_weight_decay_momentum_and_gradients_left_by_others_reach_the_critic_only(optimizer_class, optimizer_kwargs, share):
    optimizer = {"optimizer_class": optimizer_class, "optimizer_kwargs": optimizer_kwargs}
    model = trained(DICT if share else VECTOR, {"share_features_extractor": share, **optimizer})
    before = parameters(model.policy)
    for parameter in model.policy.parameters():
        parameter.grad = th.ones_like(parameter)
    fit(model)
    assert moved_since(before, model.policy) == set(critic_of(model.policy))
    assert all(parameter.grad is None for parameter in model.policy.parameters())


def test_a_parameter_that_the_values_ignore_stays():
    model = trained()
    stray = th.nn.Parameter(th.ones(3))
    model.policy.register_parameter("stray", stray)
    model.policy.optimizer.add_param_group({"params": [stray], "weight_decay": 0.5})
    before = parameters(model.policy)
    assert fit(model).outcome is FitOutcome.FITTED
    assert moved_since(before, model.policy) == set(critic_of(model.policy))


def test_no_epochs_leave_the_critic_alone_and_report_no_loss():
    model = trained(n_critic_updates=0)
    before = training_state(model.policy)
    record = fit(model, n_epochs=0)
    assert (record.outcome, record.loss) == (FitOutcome.FITTED, None)
    assert same(training_state(model.policy), before)
    assert "train/value_loss" not in model.logger.name_to_value


@pytest.mark.parametrize(("space", "policy_kwargs"), [(VECTOR, {}), (DICT, {"share_features_extractor": True})])
def test_a_frozen_critic_reports_its_loss_and_stays(space, policy_kwargs):
    model = trained(space, policy_kwargs)
    freeze_critic(model)
    before = parameters(model.policy)
    record = fit(model)
    assert record.outcome is FitOutcome.FITTED
    assert record.loss > 0.0
    assert not moved_since(before, model.policy)
    model.learn(N_STEPS, reset_num_timesteps=False)


def test_one_step_reports_the_loss_before_it():
    model = trained()
    (part,) = minibatch = next(batch_of(model).minibatches(BATCH_SIZE))
    with th.no_grad():
        before = mse_loss(part.inputs.values(model.policy).flatten(), part.returns)
    total, n = descend(model.policy, list(critic_of(model.policy).values()), minibatch, 1.0, None, ALONE)
    assert total / n == before
    assert not total.requires_grad
    with th.no_grad():
        assert mse_loss(part.inputs.values(model.policy).flatten(), part.returns) < before


class Recording(Communicator):
    """One of two ranks; records the sums that it is given to average."""

    size = 2

    def __init__(self) -> None:
        self.averaged: list[tuple[th.Tensor, float]] = []

    def mean(self, total, weight):
        self.averaged.append((total.clone(), weight))
        return total / max(weight, 1.0)


@pytest.mark.parametrize("way", ["general", "stack"])
def test_a_minibatch_of_weight_0_adds_nothing(way):
    model, communicator, shard = trained(), Recording(), MinibatchShard(BATCH_SIZE, n_minibatches=3, n_steps=4)
    critic = critic_by_split(model.policy)
    if way == "general":
        fit_critic(model.policy, critic, partial(batch_of(model).minibatches, BATCH_SIZE), 1, None, communicator, shard)
    else:
        networks = read_networks(model.policy)
        regression = plain_regression(model.policy, networks, critic, batch_of(model), BATCH_SIZE)
        fit_stack(regression, 1, None, communicator, shard)
    *counted, (last, weight) = communicator.averaged
    assert [n for _, n in counted] == [20, 20, 8]
    n_entries = sum(parameter.numel() for parameter in critic)  # the general fit adds a flag for each parameter
    assert all(gradient[:n_entries].any() for gradient, _ in counted)
    assert weight == 0
    assert not last[:n_entries].any()
