import optuna
from rl_zoo3 import hyperparams_opt

from sb3_trpo import TRPO
from sb3_trpo.recurrent import RecurrentTRPO
from sb3_trpo.zoo.patches import install
from sb3_trpo.zoo.search_spaces import sample_lstm_params


def trials(n):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return [study.ask() for _ in range(n)]


def test_sampled_hyperparameters_are_keywords_of_our_class():
    with install():
        for trial in trials(20):
            sampled = hyperparams_opt.HYPERPARAMS_SAMPLER["trpo"](trial, 6, 1, {})
            assert hyperparams_opt.HYPERPARAMS_CONVERTER["trpo"](trial.params) == sampled, "stored trials give the same model"
            model = TRPO("MlpPolicy", "Pendulum-v1", **sampled | {"batch_size": 2 ** trial.params["n_steps_pow"]})
            assert model.target_kl == sampled["target_kl"]


def test_sampled_hyperparameters_of_recurrent_policies_are_keywords_of_our_class():
    (trial,) = trials(1)
    sampled = sample_lstm_params(trial, 6, 1, {}) | {"n_steps": 64, "batch_size": 64}
    model = RecurrentTRPO("MlpLstmPolicy", "Pendulum-v1", **sampled)
    assert model.policy.lstm_actor.hidden_size == trial.params["lstm_hidden_size"]
    assert model.ent_coef == trial.params["ent_coef"]
