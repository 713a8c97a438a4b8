"""Contract: Tuple and Dict action spaces, with and without parameters, wherever SB3's users have their models."""

from copy import copy
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env as check_by_gymnasium
from helpers.contract_tools import ROUNDING, parameters, same_parameters
from helpers.envs import BOX_ACTION
from helpers.hybrid import CASES, NESTED, NESTED_PARAMETERS, PLATFORM, PLATFORM_PARAMETERS, THROWS, Aim, HybridEnv, measured_kl
from helpers.rollouts import Trace, assert_same_buffers
from helpers.runs import outcome, run_until_done, with_log
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecNormalize

from sb3_trpo import TRPO, MlpPolicy
from sb3_trpo.checkpoint import ResumableCheckpoint
from sb3_trpo.distributions.product_kind import Product
from sb3_trpo.maskable import MaskableTRPO
from sb3_trpo.recurrent import RecurrentTRPO

SMALL = {"n_steps": 64, "batch_size": 32, "n_critic_updates": 2, "seed": 0, "device": "cpu"}


class GeneralMlp(MlpPolicy):
    """A policy that neither loop nor step read as layers."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


def model_on(case: str, policy: Any = "MlpPolicy", env: Any = None, **settings: Any) -> TRPO:
    space, parameters_of_choices = CASES[case]
    kwargs = {"action_parameters": parameters_of_choices, "net_arch": [16]}
    return TRPO(policy, env or HybridEnv(space), policy_kwargs=kwargs, **SMALL | settings)


def update_and_measure(model: TRPO) -> tuple[float, float, str]:
    """Update once; return the KL from outside, the KL in the log, and how the step ended."""
    old = parameters(model.policy)
    model.learn(model.n_steps * model.n_envs)
    return measured_kl(model, old), model.logger.name_to_value["train/kl_divergence_loss"], model.policy_outcome.value


@pytest.mark.parametrize("policy", ["MlpPolicy", GeneralMlp], ids=["fast", "general"])
@pytest.mark.parametrize("case", CASES)
def test_accepted_steps_are_within_the_trust_region_of_the_joint_action(case, policy):
    model = model_on(case, policy, target_kl=0.05, verbose=0)
    for _ in range(2):
        kl, logged, ended = update_and_measure(model)
        assert ended == "accepted"
        assert 0.01 < kl <= 0.05 + ROUNDING
        assert logged == pytest.approx(kl, abs=ROUNDING)


WRONG = {
    "averages the parts": lambda kl, self, old, new: kl(self, old, new) / len(self.kinds),
    "forgets the last part": lambda kl, self, old, new: kl(self, old, new) - self.kinds[-1].kl(old[-1:], new[-1:]),
    "takes the new policy's probabilities": lambda kl, self, old, new: kl(self, new, old),
    "does not weigh by probabilities": lambda kl, self, old, new: kl(unweighted(self), old, new),
}


def unweighted(kind: Product) -> Product:
    always = copy(kind.product)
    always.activities = (None,) * len(always.parts)
    return Product(kind.kinds, always)


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_wrong_joint_kl_would_be_found(wrong, monkeypatch):
    """The tests above can fail: on the throws, where each wrong KL is measured as another number from outside."""
    kl = Product.kl
    monkeypatch.setattr(Product, "kl", lambda self, old, new: wrong(kl, self, old, new))
    model = TRPO("MlpPolicy", Aim(), target_kl=0.05, policy_kwargs={"action_parameters": THROWS}, **SMALL)
    measured, logged, _ = update_and_measure(model)
    assert abs(measured - logged) > 50 * ROUNDING


@pytest.mark.parametrize(("case", "n_envs"), [("platform", 1), *((case, 3) for case in CASES)])
def test_the_fast_loop_collects_what_sb3s_does(case, n_envs):
    def make() -> TRPO:
        model = model_on(case, env=make_vec_env(partial(HybridEnv, CASES[case][0]), n_envs, seed=1))
        with th.no_grad():
            model.policy.action_net.weight.mul_(50)
        return model

    ours, theirs = (Trace(make, by_sb3) for by_sb3 in (False, True))
    assert (ours.n_quick, theirs.n_quick) == (1, 0)
    assert_same_buffers(ours.buffers[0], theirs.buffers[0])
    assert np.array_equal(ours.generators[0], theirs.generators[0])


def test_both_ways_take_the_same_step():
    steps = [parameters(model_on("nested, parameters", policy).learn(64).policy) for policy in ("MlpPolicy", GeneralMlp)]
    th.testing.assert_close(*steps, rtol=1e-3, atol=1e-5)


def test_boxes_may_be_beta_distributed():
    kwargs = {"action_distribution": "beta", "action_parameters": PLATFORM_PARAMETERS}
    steps = []
    for policy in ("MlpPolicy", GeneralMlp):
        model = TRPO(policy, HybridEnv(PLATFORM), policy_kwargs=kwargs, **SMALL)
        kl, logged, ended = update_and_measure(model)
        assert ended == "accepted"
        assert 0.0 < kl <= 0.01 + ROUNDING
        assert logged == pytest.approx(kl, abs=ROUNDING)
        assert "log_std" not in model.policy.state_dict()
        assert 0.0 < model.logger.name_to_value["train/std"] < 1.0
        steps.append(parameters(model.policy))
    th.testing.assert_close(*steps, rtol=1e-3, atol=1e-5)


OPTIONS = ({"ent_coef": 0.01}, {"fisher_subsampling": 3}, {"chunk_size": 10}, {"sub_sampling_factor": 2})


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options_work(options):
    assert one_update_of(model_on("nested, parameters", **options)) == "accepted"


def one_update_of(model: TRPO) -> str:
    model.learn(model.n_steps * model.n_envs)
    return model.policy_outcome.value


def test_predictions_are_actions_of_the_environment():
    model, observation = model_on("nested"), np.zeros(3, np.float32)
    for deterministic in (False, True):
        assert NESTED.contains(model.predict(observation, deterministic=deterministic)[0])
        several = model.predict(np.stack([observation] * 3), deterministic=deterministic)[0]
        assert len(several) == 3
        assert all(map(NESTED.contains, several))


def wrapped(n_envs: int, vec_env_cls: type[VecEnv] = DummyVecEnv, seed: int = 0, **settings: Any) -> VecNormalize:
    kwargs = {"start_method": "fork"} if vec_env_cls is SubprocVecEnv else {}
    env = make_vec_env(partial(HybridEnv, PLATFORM), n_envs, seed=seed, vec_env_cls=vec_env_cls, vec_env_kwargs=kwargs)
    return VecNormalize(env, **settings)


def test_sb3s_evaluation_callbacks_and_wrappers_work(tmp_path):
    env = wrapped(2)
    model = TRPO("MlpPolicy", env, policy_kwargs={"action_parameters": PLATFORM_PARAMETERS}, **SMALL)
    evaluation = EvalCallback(
        wrapped(2, seed=1, training=False), eval_freq=64, n_eval_episodes=2, log_path=str(tmp_path), verbose=0
    )
    model.learn(256, callback=evaluation)
    assert len(evaluation.evaluations_results) == 2
    mean, _ = evaluate_policy(model, wrapped(2, seed=2), n_eval_episodes=4)
    assert np.isfinite(mean)
    observations_, steps = env.reset(), 3
    for _ in range(steps):
        observations_, *_ = env.step(model.predict(observations_)[0])
    assert len(model.ep_info_buffer) > 10


@pytest.mark.filterwarnings("ignore:The action space is not based off a numpy array")
def test_sb3s_checker_fails_on_a_tuple_and_gymnasiums_does_not():
    """As the docs say."""
    with pytest.raises(ValueError, match="setting an array element with a sequence"):
        check_env(HybridEnv(PLATFORM))
    for env in (HybridEnv(PLATFORM), Aim()):
        check_by_gymnasium(env, skip_render_check=True)
    check_env(Aim())


def test_a_saved_model_and_a_saved_policy_act_alike(tmp_path):
    model = model_on("nested, parameters").learn(64)
    model.save(tmp_path / "model")
    model.policy.save(tmp_path / "policy")
    loaded = TRPO.load(tmp_path / "model", env=HybridEnv(NESTED))
    alone = MlpPolicy.load(tmp_path / "policy")
    assert same_parameters(model.policy, loaded.policy)
    assert loaded.policy.action_dist.activities == alone.action_dist.activities == model.policy.action_dist.activities
    seen = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    flat = [policy.predict(seen, deterministic=True)[0] for policy in (model.policy, loaded.policy, alone)]
    assert np.array_equal(flat[0], flat[1])
    assert np.array_equal(flat[0], flat[2])
    assert one_update_of(loaded) == "accepted"


def train(vec_env_cls, folder, crash):
    env = wrapped(2, vec_env_cls)
    model = TRPO("MlpPolicy", env, policy_kwargs={"action_parameters": PLATFORM_PARAMETERS}, **SMALL | {"n_steps": 32})
    with_log(model, folder / "log")
    try:
        model.learn(320, callback=[ResumableCheckpoint(folder / "run", every=64, verbose=0), crash])
        return outcome(model, [], folder / "log")
    finally:
        env.close()


@pytest.mark.parametrize("vec_env_cls", [DummyVecEnv, SubprocVecEnv])
def test_a_run_that_crashes_ends_like_one_that_does_not(vec_env_cls, tmp_path):
    whole, _ = run_until_done(partial(train, vec_env_cls, tmp_path / "whole"))
    pieces, starts = run_until_done(partial(train, vec_env_cls, tmp_path / "pieces"), 100, 250)
    assert starts == 3
    assert pieces == whole


def test_recurrent_policies_take_such_actions():
    kwargs = {"action_parameters": NESTED_PARAMETERS, "lstm_hidden_size": 8, "net_arch": [8]}
    model = RecurrentTRPO("MlpLstmPolicy", HybridEnv(NESTED), policy_kwargs=kwargs, verbose=2, **SMALL)
    assert one_update_of(model) == "accepted"
    assert NESTED.contains(model.predict(np.zeros(3, np.float32))[0])


def test_dict_observations_and_other_classes_of_ours_take_such_actions():
    class Both(HybridEnv):
        def __init__(self):
            super().__init__(PLATFORM)
            self.observation_space = spaces.Dict(one=spaces.Box(-1.0, 1.0, (2,)), two=spaces.Discrete(3))

        def _observation(self):
            return {"one": self.np_random.uniform(-1.0, 1.0, 2).astype(np.float32), "two": self.np_random.integers(3)}

    kwargs = {"action_parameters": PLATFORM_PARAMETERS}
    assert one_update_of(TRPO("MultiInputPolicy", Both(), policy_kwargs=kwargs, **SMALL)) == "accepted"


TEXT = spaces.Tuple((spaces.Discrete(2), spaces.Text(3)))
BETA = {"policy_kwargs": {"action_distribution": "beta"}}
UNKNOWN, NOTHING = ({"policy_kwargs": {"action_parameters": given}} for given in ({0: ["2"] * 3}, {}))
REFUSED = {
    "text": (TRPO, "MlpPolicy", TEXT, {}, ValueError, "at '1' is Text"),
    "empty": (TRPO, "MlpPolicy", spaces.Tuple(()), {}, ValueError, "empty Tuple"),
    "gSDE": (TRPO, "MlpPolicy", PLATFORM, {"use_sde": True}, ValueError, "gSDE"),
    "SB3's policy": (TRPO, ActorCriticPolicy, PLATFORM, {}, ValueError, r"class MyPolicy\(sb3_trpo.MlpPolicy\)"),
    "masks": (MaskableTRPO, "MlpPolicy", PLATFORM, {}, AssertionError, "only supports .*Discrete"),
    "unknown part": (TRPO, "MlpPolicy", PLATFORM, UNKNOWN, ValueError, "names '2'"),
    "no Box": (TRPO, "MlpPolicy", CASES["choices alone"][0], BETA, ValueError, "has no Box"),
    "integers for beta": (TRPO, "MlpPolicy", NESTED, BETA, ValueError, "which rounds actions to int32"),
    "no hybrid space": (TRPO, "MlpPolicy", BOX_ACTION, NOTHING, ValueError, "for a Tuple or Dict"),
}


@pytest.mark.parametrize(("algorithm", "policy", "space", "settings", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_work_is_refused_by_name_at_construction(algorithm, policy, space, settings, error, message):
    with pytest.raises(error, match=message):
        algorithm(policy, HybridEnv(space), **settings)


def test_throws_are_learned():
    kwargs = {"action_parameters": THROWS, "net_arch": [32]}
    settings = SMALL | {"n_steps": 128, "target_kl": 0.05, "n_critic_updates": 5}
    model = TRPO("MlpPolicy", make_vec_env(Aim, 4, seed=0), policy_kwargs=kwargs, **settings)
    before, _ = evaluate_policy(model, make_vec_env(Aim, 4, seed=1), n_eval_episodes=200)
    model.learn(5_000)
    after, _ = evaluate_policy(model, make_vec_env(Aim, 4, seed=1), n_eval_episodes=200)
    assert before < 0.75
    assert after > 0.9
