"""A bad setting gives an error of the right type that names it, its value and what is allowed, before any work is done."""

import copy
import inspect
import io
import math
import pickle
import re
import warnings

import numpy as np
import pytest
import sb3_contrib
import torch as th
from helpers.envs import RandomEnv
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_trpo import TRPO
from sb3_trpo.checkpoint.identity import settings_of
from sb3_trpo.constrained import ConstrainedTRPO
from sb3_trpo.maskable import MaskableTRPO
from sb3_trpo.recurrent import RecurrentTRPO
from sb3_trpo.settings import RENAMED, REPLACEMENTS, RULES

INF, NAN = math.inf, math.nan
COUNTS = ("n_steps", "batch_size", "cg_max_steps", "line_search_max_iter", "sub_sampling_factor", "fisher_subsampling")
SCHEDULES = ("target_kl", "ent_coef", "learning_rate")
WRONG_TYPES = ("0.01", [0.01], 0.01j, b"1", np.zeros(2))


class Untouchable(RandomEnv):
    """An environment that must not be used."""

    def reset(self, **_):
        raise AssertionError("reset")

    def step(self, _):
        raise AssertionError("step")


def small(**settings) -> TRPO:
    settings = {"n_steps": 16, "batch_size": 16, "device": "cpu"} | settings
    return TRPO("MlpPolicy", settings.pop("env", None) or Untouchable(), **settings)


def bad_settings():
    """Yield name, value and what the message must say is allowed."""
    for name in (*COUNTS, "chunk_size"):
        yield from ((name, value, "integer >= 1") for value in (0, -1, 1.5, 2.0, NAN, INF, "16", [16]))
    yield from ((name, None, "integer >= 1") for name in COUNTS)
    yield from (("n_critic_updates", value, "integer >= 0") for value in (-1, 1.5, NAN, None, "10"))
    for name in ("gamma", "gae_lambda"):
        yield from ((name, value, "in [0, 1]") for value in (-1e-9, 1 + 1e-9, INF, NAN, None, *WRONG_TYPES))
    for name in ("cg_damping", "cg_residual_tol"):
        yield from ((name, value, "finite and >= 0") for value in (-1e-9, -INF, INF, NAN, None, *WRONG_TYPES))
    yield from (("max_grad_norm", value, "finite and >= 0") for value in (-0.5, INF, NAN, *WRONG_TYPES))
    values = (0.0, 1.0, 1, -0.5, 1.5, INF, NAN, None, *WRONG_TYPES)
    yield from (("line_search_shrinking_factor", value, "inside (0, 1)") for value in values)
    yield from (("target_kl", value, "finite and > 0") for value in (0, 0.0, -0.01, INF, -INF, NAN))
    yield from (("max_state_kl", value, "None or a number > 0") for value in (0, -0.01, -INF, NAN, *WRONG_TYPES))
    yield from (("state_kl_quantile", value, "in (0, 1]") for value in (0.0, -0.5, 1.0001, INF, NAN, None, *WRONG_TYPES))
    yield from (("learning_rate", value, "finite and >= 0") for value in (-1e-3, INF, NAN))
    yield from (("ent_coef", value, "finite") for value in (INF, -INF, NAN))
    yield from ((name, value, "a number") for name in SCHEDULES for value in (None, *WRONG_TYPES))


@pytest.mark.parametrize(("name", "value", "allowed"), list(bad_settings()))
def test_a_bad_setting_is_refused_before_the_environment_is_used(name, value, allowed):
    require_refusal(lambda: small(**{name: value}), name, value, allowed)


def require_refusal(make, name, value, allowed=""):
    with pytest.raises(ValueError, match=rf"^{name} ") as refusal:
        make()
    assert type(refusal.value) is ValueError
    text = str(refusal.value)
    assert allowed in text
    assert any(f"is {given!r}" in text for given in (value, float(value) if isinstance(value, int) else value))


@pytest.mark.parametrize(("name", "value"), list({name: value for name, value, _ in bad_settings()}.items()))
def test_a_bad_setting_is_refused_when_loading(name, value):
    file = io.BytesIO()
    small().save(file)
    require_refusal(lambda: TRPO.load(file, env=Untouchable(), **{name: value}), name, value)


@pytest.mark.parametrize(
    "settings",
    [
        {"cg_damping": 0.0, "cg_residual_tol": 0.0},
        {"n_critic_updates": 0},
        {"max_grad_norm": 0.0},
        {"max_grad_norm": None, "chunk_size": None},
        {"sub_sampling_factor": 8, "fisher_subsampling": 2},
        {"sub_sampling_factor": 16, "normalize_advantage": False},
        {"n_steps": 1, "batch_size": 1, "normalize_advantage": False},
        {"n_steps": np.int64(16), "batch_size": np.int32(16), "cg_max_steps": np.int64(1)},
        {"target_kl": np.float32(0.01)},
        {"target_kl": np.float64(0.01), "ent_coef": 1, "learning_rate": 1},
        {"ent_coef": np.float32(0.01), "cg_damping": np.float32(0.1)},
        {"ent_coef": -0.01, "learning_rate": 0.0, "target_kl": lambda progress: 0.01 * progress},
    ],
    ids="-".join,
)
def test_settings_at_the_limits_train(settings):
    n_steps = settings.get("n_steps", 16)
    small(env=RandomEnv(), **settings).learn(2 * int(n_steps))


def test_the_default_that_an_error_mentions_is_the_constructors():
    parameters = inspect.signature(TRPO.__init__).parameters
    advised = {name: re.match(r"The default is ([^;]+?)[;.]?(?: |$)", rule.advice) for name, rule in RULES.items()}
    defaults = {name: float(match[1]) for name, match in advised.items() if match}
    assert len(defaults) >= 10
    assert defaults == {name: parameters[name].default for name in defaults}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sub_sampling_factor": 17}, "sub_sampling_factor is 17.* at most 16"),
        ({"sub_sampling_factor": 17, "normalize_advantage": False}, "sub_sampling_factor is 17.* at most 16"),
        ({"sub_sampling_factor": 16}, "sub_sampling_factor is 16.* leaves 1 .*normalize"),
        ({"fisher_subsampling": 17}, "fisher_subsampling is 17.* at most 16"),
        ({"sub_sampling_factor": 3, "fisher_subsampling": 7}, "fisher_subsampling is 7.* at most 6"),
    ],
)
def test_sub_sampling_must_leave_transitions(settings, message):
    with pytest.raises(ValueError, match=message):
        small(**settings)


def test_sub_sampling_is_checked_again_before_a_loaded_model_learns():
    """Not on loading: a model trained with many environments may be evaluated on one."""
    file = io.BytesIO()
    small(env=DummyVecEnv([RandomEnv] * 2), sub_sampling_factor=16).save(file)
    model = TRPO.load(file, env=Untouchable())
    with pytest.raises(ValueError, match=r"sub_sampling_factor is 16.* leaves 1 "):
        model.learn(16)


@pytest.mark.parametrize(("name", "value"), [("cg_damping", -1.0), ("target_kl", NAN), ("batch_size", 0)])
def test_a_setting_changed_to_a_bad_one_is_refused_before_the_environment_is_used(name, value):
    model = small()
    setattr(model, name, value)
    with pytest.raises(ValueError, match=rf"^{name} is {value}"):
        model.learn(16)


def test_a_single_transition_cannot_be_normalised_and_the_error_has_sb3_contribs_type():
    with pytest.raises(AssertionError, match=r"n_steps \* n_envs.* greater than 1"):
        small(n_steps=1, batch_size=1)
    small(n_steps=1, batch_size=2, env=DummyVecEnv([RandomEnv] * 2))


@pytest.mark.parametrize(("n_envs", "batch_size", "last"), [
    (1, 32, 16), (1, 17, 16), (1, 5, 1), (2, 12, 8), (2, 64, 32), (1, 1, 0), (1, 8, 0), (1, 16, 0), (2, 32, 0),
])  # fmt: skip
def test_a_batch_size_that_does_not_divide_the_rollout_gives_a_warning(n_envs, batch_size, last):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        small(env=DummyVecEnv([RandomEnv] * n_envs), batch_size=batch_size)
    texts = [str(each.message) for each in caught if each.category is UserWarning]
    assert len(texts) == (last > 0)
    for text in texts:
        assert re.search(rf"mini-batch size of {batch_size}, .* {16 * n_envs} .* has only {last}\.", text)


def snapshot(model: TRPO) -> dict[str, th.Tensor]:
    return {name: value.detach().clone() for name, value in model.policy.named_parameters()}


def unchanged(model: TRPO, before: dict[str, th.Tensor]) -> bool:
    return all(th.equal(value, before[name]) for name, value in model.policy.named_parameters())


BAD_NUMBERS = {"target_kl": (NAN, INF, -0.01), "ent_coef": (NAN, INF, -INF), "learning_rate": (NAN, INF, -1e-3)}
BAD_VALUES = [(name, bad) for name, values in BAD_NUMBERS.items() for bad in values]
NOT_NUMBERS = [("target_kl", None), ("ent_coef", "auto"), ("learning_rate", [0.1])]


@pytest.mark.parametrize(("name", "bad"), [*BAD_VALUES, *NOT_NUMBERS])
def test_a_schedule_that_starts_badly_is_refused_at_once(name, bad):
    with pytest.raises(ValueError, match=rf"^{name} at progress_remaining=1 is {re.escape(repr(bad))}"):
        small(**{name: lambda _: bad})


@pytest.mark.parametrize(("name", "bad"), BAD_VALUES)
def test_a_schedule_that_goes_bad_midway_stops_that_update_and_the_model_survives(name, bad):
    sound = {"target_kl": 0.01, "ent_coef": 0.0, "learning_rate": 1e-3}[name]
    before = {}

    def schedule(progress_remaining):
        if progress_remaining > 0.6:
            return sound
        before.update(snapshot(model), rates=[group["lr"] for group in model.policy.optimizer.param_groups])
        return bad

    model = small(env=RandomEnv(), **{name: schedule})
    with pytest.raises(ValueError, match=rf"{name} at progress_remaining=0\.5 is {bad}") as refusal:
        model.learn(64)
    assert type(refusal.value) is ValueError
    assert model._n_updates == 1
    assert not model.rollout_buffer.generator_ready, "the rollout has not been read"
    rates = before.pop("rates")
    assert unchanged(model, before)
    assert [group["lr"] for group in model.policy.optimizer.param_groups] == rates

    file = io.BytesIO()
    model.save(file)
    setattr(model, name, sound)
    model._setup_lr_schedule()
    loaded = TRPO.load(file, env=RandomEnv(), **{name: sound})
    assert unchanged(loaded, before)
    for survivor in (model, loaded):
        survivor.learn(16, reset_num_timesteps=False)
        assert not unchanged(survivor, before)


def test_the_learning_rate_that_is_checked_is_the_one_that_the_optimizer_gets():
    model = small(env=RandomEnv())
    before = snapshot(model)
    model.lr_schedule = lambda _: NAN  # SB3 evaluates it at each update, and users replace it to change the rate
    with pytest.raises(ValueError, match=r"^learning_rate at progress_remaining=0 is nan"):
        model.learn(16)
    assert unchanged(model, before)
    assert model.policy.optimizer.param_groups[0]["lr"] == 1e-3


@pytest.mark.parametrize("twice", [{"policy_kwargs": {"use_sde": True}}, {"rollout_buffer_kwargs": {"gamma": 0.5}}], ids=str)
def test_a_setting_that_is_given_twice_is_refused_as_by_sb3(twice):
    with pytest.raises(TypeError, match="multiple values for keyword argument"):
        small(**twice)


class WithKeyword(TRPO):
    """A subclass with keywords that are not TRPO's."""

    def __init__(self, *args, patience=3, **kwargs):
        self.patience = patience + kwargs.pop("more_patience", 0)
        super().__init__(*args, **kwargs)


def keywords_of(*classes):
    return {name for cls in classes for name in inspect.signature(cls).parameters}


def on_cartpole(cls=TRPO, policy="MlpPolicy", **keywords):
    return cls(policy, "CartPole-v1", n_steps=16, batch_size=16, **keywords)


@pytest.mark.parametrize(
    ("keyword", "instead"),
    [
        ("n_epochs", "n_critic_updates"),
        ("clip_range", "target_kl"),
        ("clip_range_vf", "n_critic_updates and learning_rate"),
        ("vf_coef", "its own regression, which needs no weight"),
        ("use_rms_prop", "optimizer_class"),
        ("rms_prop_eps", "optimizer_kwargs=dict(eps="),
        ("action_distribution", "policy_kwargs=dict(action_distribution="),
        ("action_parameters", "policy_kwargs=dict(action_parameters="),
        ("max_kl", "did you mean target_kl?"),
        ("lam", "did you mean gae_lambda?"),
        ("target_k", "did you mean target_kl?"),
        ("gea_lambda", "did you mean gae_lambda?"),
        ("n_step", "did you mean n_steps?"),
        ("zzz", "the keywords are policy, env, learning_rate,"),
    ],
)
@pytest.mark.parametrize(
    ("cls", "policy"),
    [(TRPO, "MlpPolicy"), (MaskableTRPO, "MlpPolicy"), (RecurrentTRPO, "MlpLstmPolicy"), (WithKeyword, "MlpPolicy")],
)
def test_an_unknown_keyword_is_refused_and_the_right_one_named(cls, policy, keyword, instead):
    with pytest.raises(TypeError) as error:
        on_cartpole(cls, policy, **{keyword: 1})
    assert str(error.value).startswith(f"{cls.__name__} has no keyword {keyword}")
    assert instead in str(error.value)


def test_all_unknown_keywords_are_named_at_once():
    with pytest.raises(TypeError, match=r"no keyword n_epochs: .*\. TRPO has no keyword clip_range: "):
        on_cartpole(n_epochs=10, clip_range=0.2)


def test_every_keyword_of_ppo_and_a2c_is_ours_or_explained():
    assert keywords_of(PPO, A2C, sb3_contrib.RecurrentPPO) <= keywords_of(TRPO) | REPLACEMENTS.keys()
    assert keywords_of(sb3_contrib.TRPO) <= keywords_of(TRPO)
    assert not keywords_of(TRPO) & (REPLACEMENTS.keys() | RENAMED.keys())
    assert {*RENAMED.values()} <= keywords_of(TRPO, ConstrainedTRPO)


def test_the_signature_stays_explicit():
    parameters = inspect.signature(TRPO).parameters
    assert [*parameters][:3] == ["policy", "env", "learning_rate"]
    assert parameters["n_steps"].default == 2048
    assert not {each.kind for each in parameters.values()} & {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}
    assert {"fisher_subsampling", "chunk_size"} <= {*settings_of(RecurrentTRPO)}
    assert "vf_coef" not in settings_of(TRPO)
    assert TRPO("MlpPolicy", "CartPole-v1", 1e-4, 64, 32).batch_size == 32


def test_subclasses_may_add_keywords_in_any_way():
    model = on_cartpole(WithKeyword, patience=5, more_patience=2, target_kl=0.02)
    assert (model.patience, model.target_kl) == (7, 0.02)


def test_a_missing_argument_gives_pythons_error():
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'env'"):
        TRPO("MlpPolicy")


def test_decorated_constructors_can_be_saved_loaded_copied_and_pickled(tmp_path):
    model = on_cartpole(WithKeyword, patience=5)
    model.save(tmp_path / "model")
    assert WithKeyword.load(tmp_path / "model").patience == 5
    assert copy.copy(model).patience == 5
    assert pickle.loads(pickle.dumps(TRPO)) is TRPO
