"""ConstrainedTRPO as its users meet it."""

import copy
from dataclasses import astuple
from functools import partial
from unittest import mock

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from helpers.contract_tools import ROUNDING, joint_kl, parameters, same_parameters
from helpers.costs import CostlyEnv, HybridCostlyEnv, costly_model
from helpers.envs import BOX_ACTION, DICT, IMAGE, VECTOR
from helpers.hybrid import CASES, measured_kl, true_log_prob
from helpers.runs import run_until_done
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize

from sb3_trpo import TRPO
from sb3_trpo.checkpoint import ResumableCheckpoint
from sb3_trpo.constrained import ConstrainedTRPO, MaskableConstrainedTRPO
from sb3_trpo.numerics.trust_region import Outcome
from sb3_trpo.recurrent import MultiInputLstmPolicy, RecurrentTRPO

SPACES = {
    "Box": (VECTOR, BOX_ACTION),
    "Discrete": (VECTOR, spaces.Discrete(3, start=5)),
    "MultiDiscrete": (VECTOR, spaces.MultiDiscrete([2, 3])),
    "MultiBinary": (VECTOR, spaces.MultiBinary(3)),
    "Dict": (spaces.Dict({"vector": VECTOR, "choice": spaces.Discrete(3)}), BOX_ACTION),
}


@pytest.mark.parametrize(("observations", "actions"), SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("limit", [1e9, 0.5, -1e9], ids=["free", "limited", "out of reach"])
def test_steps_keep_the_trust_region_and_the_measured_costs(observations, actions, limit):
    """KL and surrogate costs are computed again, from torch's distributions and a loop over the rollout."""
    check_steps(costly_model(CostlyEnv(observations, actions), limit), limit, n_updates=3)


FAR = {"target_kl": 0.5, "cg_damping": 1e-3}
"""With these full steps break the bound on the KL and the measured limits, so that the line search has to hold them."""
IMAGES = {"Box": (IMAGE, "CnnPolicy", "features_dim"), "Dict": (DICT, "MultiInputPolicy", "cnn_output_dim")}


@pytest.mark.parametrize(("observations", "policy", "size"), IMAGES.values(), ids=IMAGES)
def test_steps_on_images_keep_them_too(observations, policy, size):
    small = {"features_extractor_kwargs": {size: 4}}
    model = costly_model(CostlyEnv(observations), 0.5, policy, n_steps=16, cg_max_steps=4, policy_kwargs=small)
    check_steps(model, 0.5, n_updates=1)


@pytest.mark.parametrize("limit", [3.0, -1e9], ids=["limited", "out of reach"])
@pytest.mark.parametrize("case", ["pair", "nested, parameters"])
def test_steps_of_hybrid_actions_keep_them_too(case, limit):
    space, of_choices = CASES[case]
    kwargs = {"net_arch": [8], "action_parameters": of_choices}
    model = costly_model(HybridCostlyEnv(space), limit, policy_kwargs=kwargs, **FAR)
    check_steps(model, limit, n_updates=4, measure_kl=measured_kl, log_prob=true_log_prob)


@pytest.mark.parametrize("limit", [3.0, -1e9], ids=["limited", "out of reach"])
def test_steps_of_a_beta_distribution_keep_them_too(limit):
    model = costly_model(limit=limit, policy_kwargs={"net_arch": [8], "action_distribution": "beta"}, **FAR)
    check_steps(model, limit, n_updates=4, log_prob=beta_log_prob)


def beta_log_prob(distribution, actions):
    """Give the log-density on [-1, 1] by torch's own distribution."""
    on_unit = distribution.distribution.log_prob((actions + 1.0) / 2.0)
    return (on_unit - np.log(2.0)).sum(1)


def own_log_prob(distribution, actions):
    """Ask the policy's distribution itself, which is SB3's."""
    return distribution.log_prob(actions)


def check_steps(model, limit, n_updates, measure_kl=joint_kl, log_prob=own_log_prob):
    """Update, and check each step."""
    model.learn(model.n_steps)
    steps = [recorded_update(model, measure_kl, log_prob) for _ in range(n_updates)]
    possible = {1e9: {Outcome.ACCEPTED}, -1e9: {Outcome.RECOVERED}}.get(limit, {*Outcome})
    for step, kl, change, measured in steps:
        assert kl <= model.target_kl + ROUNDING
        if step.outcome.is_accepted:
            assert step.outcome in possible
            assert change == pytest.approx(step.limited_changes[0], rel=1e-3, abs=1e-4)
            assert change <= max(-measured.excess, 0.0) + 1e-4
            assert step.outcome is not Outcome.RECOVERED or change < 0.0
    assert any(step.outcome.is_accepted for step, *_ in steps)


def recorded_update(model, measure_kl, log_prob):
    """Collect and update; return the step, its joint KL, the change of the surrogate cost, and the limit."""
    steps, limits = [], []
    record, measure = ConstrainedTRPO._record_costs, ConstrainedTRPO._measure_costs

    def noting_measure(self):
        limits.append(measure(self))
        return limits[-1]

    with (
        mock.patch.object(ConstrainedTRPO, "_record_costs", lambda self, step: steps.append(step) or record(self, step)),
        mock.patch.object(ConstrainedTRPO, "_measure_costs", noting_measure),
    ):
        old = parameters(model.policy)
        model.learn(model.n_steps, reset_num_timesteps=False)
    (limit,) = limits[0]
    advantages = limit.batch.readers[0].advantages
    rollout = model.rollout_buffer._get_samples(np.arange(model.n_steps))
    actions = rollout.actions.long().flatten() if isinstance(model.policy.action_space, spaces.Discrete) else rollout.actions
    with th.no_grad():
        new_log_prob = log_prob(model.policy.get_distribution(rollout.observations), actions)
    ratios = (new_log_prob - rollout.old_log_prob).exp().double().numpy()
    change = limit.scale * float(np.mean(ratios * (advantages - advantages.mean())))
    return steps[0], measure_kl(model, old), change, limit


QUICK = {
    "policy": "MlpPolicy",
    "n_steps": 32,
    "batch_size": 128,
    "learning_rate": 1e-2,
    "target_kl": 0.1,
    "stats_window_size": 50,
}


def test_the_cost_comes_down_to_its_limit_and_stays_there():
    """Without a limit the mean action goes to 1, and an episode costs nearly 7; the limit is 2."""
    limited, free = (costly_model(make_vec_env(CostlyEnv, 4, seed=0), limit, **QUICK).learn(2_000) for limit in (2.0, 1e9))
    assert 1.0 <= np.mean(limited._episode_costs) <= 2.1
    assert np.mean(free._episode_costs) >= 6.0


class Forbidden(CostlyEnv):
    """The best of three actions is never to be taken."""

    def __init__(self):
        super().__init__(VECTOR, spaces.Discrete(3))

    def step(self, action):
        *rest, info = super().step(action)
        return *rest, {**info, "cost": float(action == 2)}


def test_a_limit_of_zero_leaves_room_for_the_reward():
    env = make_vec_env(Forbidden, 4, seed=0)
    model = costly_model(env, 0.0, **QUICK | {"n_steps": 64, "target_kl": 0.05}).learn(4_000)
    assert np.mean(model._episode_costs) <= 0.1
    assert np.mean([each["r"] / each["l"] for each in model.ep_info_buffer]) >= 0.8  # 1 without forbidden actions


@pytest.mark.parametrize(("reward_scale", "active"), [(1.0, "cost"), (-1.0, "drift")])
def test_several_costs_are_kept_at_once(reward_scale, active):
    """The reward pushes the mean action up, against one limit, or down, against the other."""
    env = make_vec_env(partial(CostlyEnv, reward_scale=reward_scale), 4, seed=0)
    limits = {"cost": 2.0, "drift": 0.5}
    model = costly_model(env, cost_limits=limits, **QUICK).learn(2_000)
    cost, drift = np.mean(model._episode_costs, axis=0)
    assert cost <= 2.1
    assert drift <= 0.6
    assert cost >= 1.0 if active == "cost" else drift >= -0.5
    log = model.logger.name_to_value
    assert (log["cost/cost/limit"], log["cost/drift/limit"]) == (2.0, 0.5)
    assert len(model.cost_critics) == 2
    assert not same_parameters(*model.cost_critics)


def test_a_loaded_model_has_the_same_critics_and_trains_on(tmp_path):
    model = costly_model(cost_limits={"cost": 1.0, "drift": 2.0}).learn(128)
    model.save(tmp_path / "model")
    loaded = ConstrainedTRPO.load(tmp_path / "model", env=CostlyEnv())
    assert loaded.cost_limits == {"cost": 1.0, "drift": 2.0}
    assert all(map(same_parameters, loaded.cost_critics, model.cost_critics))
    assert all(
        th.equal(one, other)
        for a, b in zip(loaded.cost_critics, model.cost_critics, strict=True)
        for x, y in zip(a.optimizer.state.values(), b.optimizer.state.values(), strict=True)
        for one, other in zip(x.values(), y.values(), strict=True)
    )
    assert loaded._feedback == model._feedback
    loaded.learn(64, reset_num_timesteps=False)
    assert ConstrainedTRPO.load(tmp_path / "model").predict(np.zeros(3, np.float32))[0].shape == (2,)
    assert "cost_critics.1.optimizer" in model.get_parameters()


def train(folder, crash):
    env = VecNormalize(make_vec_env(CostlyEnv, 2, seed=3))
    model = costly_model(env, policy="MlpPolicy", cost_limits={"cost": 1.0, "drift": 2.0})
    model.learn(512, [ResumableCheckpoint(folder / "run", every=100, verbose=0), crash])
    return {
        **{
            f"critic {i} {name}": value.tolist()
            for i, each in enumerate(model.cost_critics)
            for name, value in each.state_dict().items()
        },
        **{name: value.tolist() for name, value in model.policy.state_dict().items()},
        "feedback": [astuple(each) for each in model._feedback],
        "episodes": [*model._episode_costs],
        "underway": model._last_episodes.costs.tolist(),
    }


def test_a_loaded_model_keeps_each_cost_with_its_critic(tmp_path):
    model = costly_model(cost_limits={"cost": 1.0, "drift": 2.0}).learn(128)
    model.save(tmp_path / "model")
    turned = ConstrainedTRPO.load(tmp_path / "model", env=CostlyEnv(), cost_limits={"drift": 3.0, "cost": 1.5})
    assert [*turned.cost_limits.items()] == [("cost", 1.5), ("drift", 3.0)]
    made = costly_model(cost_limits={"drift": 2.0, "cost": 1.0})
    assert [*made.cost_limits] == [*model.cost_limits]
    assert all(map(same_parameters, turned.cost_critics, model.cost_critics))


@pytest.mark.parametrize("keys", [["cost"], ["cost", "wear"], ["cost", "drift", "wear"]])
def test_other_costs_than_those_of_its_critics_are_refused(keys, tmp_path):
    model = costly_model(cost_limits={"cost": 1.0, "drift": 2.0})
    model.save(tmp_path / "model")
    limits = dict.fromkeys(keys, 1.0)
    text = r"cost_limits has the keys \['cost'.*\], but the model was made for \['cost', 'drift'\] .* or make a new model"
    with pytest.raises(ValueError, match=text):
        ConstrainedTRPO.load(tmp_path / "model", env=CostlyEnv(), cost_limits=limits)
    model.cost_limits = limits
    with pytest.raises(ValueError, match=text):
        model.learn(64)
    model.cost_limits = {"drift": 4.0, "cost": 5.0}
    assert model.learn(64).logger.name_to_value["cost/drift/limit"] == 4.0


def test_a_limit_may_change_while_the_model_trains():
    model = costly_model(limit=1.0)
    model.learn(192, lambda *_: model.cost_limits.update(cost=3.0 - model.num_timesteps / 192) or True)
    assert model.logger.name_to_value["cost/cost/limit"] == 2.0
    with pytest.raises(ValueError, match=r"cost_limits is \{'cost': nan\}"):
        model.learn(192, lambda *_: model.cost_limits.update(cost=np.nan) or True)


def test_a_run_that_crashes_ends_like_one_that_does_not(tmp_path):
    whole, _ = run_until_done(partial(train, tmp_path / "whole"))
    pieces, starts = run_until_done(partial(train, tmp_path / "pieces"), 150, 300)
    assert starts == 3
    assert pieces == whole
    loaded = ConstrainedTRPO.from_checkpoint(
        tmp_path / "pieces" / "run", VecNormalize(make_vec_env(CostlyEnv, 1), training=False)
    )
    assert loaded.cost_critics[1].state_dict()["value_net.bias"].tolist() == whole["critic 1 value_net.bias"]
    with pytest.raises(
        ValueError, match=r"does not fit:\n  critics of costs: \['cost', 'drift'\] in the checkpoint, \['cost'\] here"
    ):
        ConstrainedTRPO.from_checkpoint(tmp_path / "pieces" / "run", CostlyEnv(), cost_limits={"cost": 1.0})


class Silent(CostlyEnv):
    """Reports no cost, or another thing than a number, at one step."""

    at, found = 1, None

    def step(self, action):
        *rest, info = super().step(action)
        if self.n_steps == self.at:
            info = {**info, "cost": self.found} if self.found is not None else {"speed": 1.0}
        return *rest, info


ABSENT = r"environment 0 at step 0 .*no such key.*'speed'"
FAULTS = [(1, None, ABSENT), (7, None, "at step 6"), (2, "much", "must be a number"), (2, [1.0], "must be a number")]


@pytest.mark.parametrize("vec_env_cls", [None, SubprocVecEnv])
@pytest.mark.parametrize(("at", "found", "text"), FAULTS)
def test_a_step_without_a_cost_is_named(at, found, text, vec_env_cls, monkeypatch):
    monkeypatch.setattr(Silent, "at", at)
    monkeypatch.setattr(Silent, "found", found)
    kwargs = {} if vec_env_cls is None else {"vec_env_cls": vec_env_cls, "vec_env_kwargs": {"start_method": "fork"}}
    model = costly_model(make_vec_env(Silent, 1, **kwargs), policy="MlpPolicy")
    old = copy.deepcopy(model.policy.state_dict())
    with pytest.raises(ValueError, match=text):
        model.learn(64)
    assert all(th.equal(old[name], value) for name, value in model.policy.state_dict().items())
    model.env.close()


def test_a_cost_that_is_not_finite_is_named_before_the_update(monkeypatch):
    monkeypatch.setattr(Silent, "at", 3)
    monkeypatch.setattr(Silent, "found", float("nan"))
    model = costly_model(Silent())
    with pytest.raises(ValueError, match=r"info\['cost'\] of environment 0 at step 2 of the rollout is nan"):
        model.learn(64)
    assert model._n_updates == 0
    monkeypatch.setattr(Silent, "found", 1.0)
    log = model.learn(64, reset_num_timesteps=False).logger.name_to_value
    assert np.isfinite([log["cost/cost/estimate"], log["cost/cost/episode_mean"]]).all()


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"cost_limits": None}, r"cost_limits is None, but must be a dict"),
        ({"cost_limits": {}}, "cost_limits is {}"),
        ({"cost_limits": 25.0}, "cost_limits is 25.0"),
        ({"cost_limits": {"cost": float("nan")}}, "finite"),
        ({"cost_limits": {"cost": "25"}}, "finite"),
        ({"cost_limits": {"cost": 10**400}}, "finite"),
        ({"cost_limits": lambda progress_remaining: {"cost": 25.0}}, "must be a dict"),
        ({"cost_limits": {"cost": lambda progress_remaining: 25.0}}, "finite"),
        ({"cost_limits": {3: 25.0}}, "by key of info"),
        ({"cost_limits": {str(i): 1.0 for i in range(11)}}, "1 to 10"),
        ({"cost_gamma": 1.1}, "cost_gamma is 1.1"),
        ({"cost_gae_lambda": -0.1}, "cost_gae_lambda is -0.1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, text):
    with pytest.raises(ValueError, match=text):
        costly_model(**settings)


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        ({"cost_limit": 25.0}, "no keyword cost_limit; did you mean cost_limits"),
        ({"cost_gama": 0.9}, "no keyword cost_gama; did you mean cost_gamma"),
        ({"lam_c": 0.9}, "no keyword lam_c; did you mean cost_gae_lambda"),
        ({"clip_range": 0.2}, "no keyword clip_range: target_kl bounds"),
        ({"n_stepz": 64}, "no keyword n_stepz; did you mean n_steps"),
    ],
)
def test_a_misspelt_keyword_is_named_with_the_right_one(given, advice):
    with pytest.raises(TypeError, match=f"^ConstrainedTRPO has {advice}"):
        ConstrainedTRPO("MlpPolicy", CostlyEnv(), **given)


def test_without_limits_trpo_names_the_class_that_has_them():
    with pytest.raises(TypeError, match=r"no keyword cost_limits: sb3_trpo\.constrained\.ConstrainedTRPO"):
        TRPO("MlpPolicy", CostlyEnv(), cost_limits={"cost": 25.0})


class Both(ConstrainedTRPO, RecurrentTRPO):
    """What the classes do not offer."""


@pytest.mark.parametrize(
    ("algorithm", "policy", "name"),
    [
        (ConstrainedTRPO, "MlpLstmPolicy", "'MlpLstmPolicy'"),
        (ConstrainedTRPO, MultiInputLstmPolicy, "MultiInputLstmPolicy"),
        (MaskableConstrainedTRPO, "MlpLstmPolicy", "'MlpLstmPolicy'"),
        (Both, "MlpPolicy", "'MlpPolicy'"),
    ],
)
def test_policies_with_a_memory_are_refused_by_name(algorithm, policy, name):
    with pytest.raises(
        ValueError, match=rf"^policy is {name}, but {algorithm.__name__} takes no .*\(LSTM\)\. Use MlpPolicy.*Stack"
    ):
        algorithm(policy=policy, env=CostlyEnv(), cost_limits={"cost": 25.0})


class Phases(CostlyEnv):
    """Episodes of 40 steps, of which the last ten cost 1 each."""

    def step(self, action):
        observation, reward, *_, info = super().step(action)
        return observation, reward, False, self.n_steps >= 40, {**info, "cost": float(self.n_steps > 30)}


def test_the_estimate_is_that_of_whole_episodes_though_rollouts_are_shorter():
    """All environments are in the same phase."""
    model, found = costly_model(make_vec_env(Phases, 3, seed=0), policy="MlpPolicy", n_steps=10, batch_size=30), []
    model.learn(10 * 30, Estimates(found))
    assert found[3:] == pytest.approx([10.0] * 7)


class Estimates(BaseCallback):
    """Keeps the cost that each update has estimated."""

    def __init__(self, found):
        super().__init__()
        self.found = found

    def _on_rollout_start(self):
        self.found += self.model.cost_estimates.values()

    def _on_step(self):
        return True

    def _on_training_end(self):
        self._on_rollout_start()


def test_an_episode_that_learn_breaks_off_does_not_count():
    model = costly_model().learn(64)
    assert model._last_episodes.lengths == [1]
    assert {*model.learn(64)._recent_lengths} == {7}


def test_a_limit_out_of_reach_does_not_wind_the_feedback_up():
    model = costly_model(limit=-1e3).learn(64)
    integral = model._feedback[0].integral
    assert integral > 0.0
    model.learn(128, reset_num_timesteps=False)
    assert model._outcome_counts["recovered"] == 3
    assert model._feedback[0].integral == integral


def test_critics_of_costs_follow_the_learning_rate():
    model = costly_model(learning_rate=lambda remaining: 1e-3 * (1.0 + remaining)).learn(128)
    assert model.cost_critics[0].optimizer.param_groups[0]["lr"] == pytest.approx(1e-3)


def test_a_critic_of_a_cost_that_diverges_is_counted(monkeypatch):
    monkeypatch.setattr(Silent, "found", 1e30)
    monkeypatch.setattr(Silent, "at", 3)
    model = costly_model(Silent()).learn(64)
    assert model._outcome_counts["critic_of_cost_diverged"] == 1
    assert model._outcome_counts["critic_fitted"] == 1
    assert all(bool(each.isfinite().all()) for each in model.cost_critics[0].parameters())


class Dropping(FlattenExtractor):
    """Features with dropout."""

    def forward(self, observations):
        return th.nn.functional.dropout(super().forward(observations), 0.5, self.training)


def test_values_of_costs_are_predicted_without_dropout():
    model = costly_model(policy_kwargs={"net_arch": [8], "features_extractor_class": Dropping})
    with mock.patch.object(ConstrainedTRPO, "_fit_critic"):
        model.learn(64)
    one, other = (model._measure_costs()[0].batch.readers[0].returns for _ in range(2))
    assert np.array_equal(one, other)


def test_an_interrupt_leaves_policy_and_critics_as_they_were():
    model = costly_model(n_critic_updates=1).learn(64)
    old = [copy.deepcopy(each.state_dict()) for each in (model.policy, *model.cost_critics)]
    with (
        mock.patch("sb3_trpo.update.surrogate.PolicyObjective.evaluate", side_effect=KeyboardInterrupt),
        pytest.raises(KeyboardInterrupt),
    ):
        model.learn(64, reset_num_timesteps=False)
    for before, now in zip(old, (model.policy, *model.cost_critics), strict=True):
        assert all(th.equal(before[name], value) for name, value in now.state_dict().items())


def test_evaluation_needs_no_costs():
    model = costly_model(CostlyEnv()).learn(64)
    mean, _ = evaluate_policy(model, model.get_env(), n_eval_episodes=2)
    assert np.isfinite(mean)


class General(CostlyEnv):
    """The same for a policy that the fast loop does not know."""


@pytest.mark.parametrize("n_envs", [1, 3])
def test_both_loops_see_the_same_costs(n_envs):
    from helpers.rollouts import GeneralMlp

    found = []
    for policy in ("MlpPolicy", GeneralMlp):
        model = costly_model(make_vec_env(CostlyEnv, n_envs, seed=1), policy=policy)
        model.learn(64 * n_envs, RecorderKept(found))
    one, other = found
    np.testing.assert_allclose(one.costs, other.costs, atol=1e-5)
    assert [each[:2] for each in one.truncated] == [each[:2] for each in other.truncated]
    assert one.costs.any()


class RecorderKept(BaseCallback):
    def __init__(self, found):
        super().__init__()
        self.found = found

    def _on_rollout_start(self):
        self.found.append(self.model._step_observer)

    def _on_step(self):
        return True
