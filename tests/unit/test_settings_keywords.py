import copy
import inspect
import pickle

import pytest
import sb3_contrib
from stable_baselines3 import A2C, PPO

from sb3_trpo import TRPO
from sb3_trpo.checkpoint.identity import settings_of
from sb3_trpo.maskable import MaskableTRPO
from sb3_trpo.recurrent import RecurrentTRPO
from sb3_trpo.settings import INSTEAD, RENAMED


class WithKeyword(TRPO):
    """A subclass that passes the rest on."""

    def __init__(self, *args, patience=3, **kwargs):
        self.patience = patience + kwargs.pop("more_patience", 0)
        super().__init__(*args, **kwargs)


def keywords_of(*classes):
    return {name for cls in classes for name in inspect.signature(cls).parameters}


def small(cls=TRPO, policy="MlpPolicy", **keywords):
    return cls(policy, "CartPole-v1", n_steps=16, batch_size=16, **keywords)


@pytest.mark.parametrize(
    ("keyword", "instead"),
    [
        ("n_epochs", "n_critic_updates"),
        ("clip_range", "target_kl"),
        ("clip_range_vf", "n_critic_updates and learning_rate"),
        ("vf_coef", "regression of its own, which needs no weight"),
        ("use_rms_prop", "optimizer_class"),
        ("rms_prop_eps", "optimizer_kwargs=dict(eps="),
        ("max_kl", "did you mean target_kl?"),
        ("lam", "did you mean gae_lambda?"),
        ("target_k", "did you mean target_kl?"),
        ("gea_lambda", "did you mean gae_lambda?"),
        ("n_step", "did you mean n_steps?"),
        ("zzz", "those it has are policy, env, learning_rate,"),
    ],
)
@pytest.mark.parametrize(
    ("cls", "policy"),
    [(TRPO, "MlpPolicy"), (MaskableTRPO, "MlpPolicy"), (RecurrentTRPO, "MlpLstmPolicy"), (WithKeyword, "MlpPolicy")],
)
def test_an_unknown_keyword_is_refused_with_what_takes_its_place(cls, policy, keyword, instead):
    with pytest.raises(TypeError) as error:
        small(cls, policy, **{keyword: 1})
    assert str(error.value).startswith(f"{cls.__name__} has no keyword {keyword}")
    assert instead in str(error.value)


def test_all_unknown_keywords_are_named_at_once():
    with pytest.raises(TypeError, match=r"no keyword n_epochs: .*\. TRPO has no keyword clip_range: "):
        small(n_epochs=10, clip_range=0.2)


def test_every_keyword_of_ppo_and_a2c_is_ours_or_explained():
    assert keywords_of(PPO, A2C, sb3_contrib.RecurrentPPO) <= keywords_of(TRPO) | INSTEAD.keys()
    assert keywords_of(sb3_contrib.TRPO) <= keywords_of(TRPO)
    assert not keywords_of(TRPO) & (INSTEAD.keys() | RENAMED.keys())
    assert {*RENAMED.values()} <= keywords_of(TRPO)


def test_the_signature_stays_explicit():
    parameters = inspect.signature(TRPO).parameters
    assert [*parameters][:3] == ["policy", "env", "learning_rate"]
    assert parameters["n_steps"].default == 2048
    assert not {each.kind for each in parameters.values()} & {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}
    assert {"fisher_subsampling", "chunk_size"} <= {*settings_of(RecurrentTRPO)}
    assert "vf_coef" not in settings_of(TRPO)


def test_subclasses_may_add_keywords_in_any_way():
    model = small(WithKeyword, patience=5, more_patience=2, target_kl=0.02)
    assert (model.patience, model.target_kl) == (7, 0.02)


def test_positional_arguments_stay():
    assert TRPO("MlpPolicy", "CartPole-v1", 1e-4, 64, 32).batch_size == 32


def test_a_missing_argument_is_pythons_own_error():
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'env'"):
        TRPO("MlpPolicy")


def test_models_are_saved_loaded_copied_and_pickled_as_before(tmp_path):
    model = small(WithKeyword, patience=5)
    model.save(tmp_path / "model")
    assert WithKeyword.load(tmp_path / "model").patience == 5
    assert copy.copy(model).patience == 5
    assert pickle.loads(pickle.dumps(TRPO)) is TRPO
