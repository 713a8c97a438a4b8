"""What RL Zoo's hyperparameter search (``train -optimize``) samples for our algorithms."""

from __future__ import annotations

from typing import Any

from sb3_trpo.extras import ZOO, needs

with needs(*ZOO):
    import optuna
    from rl_zoo3.hyperparams_opt import convert_onpolicy_params


def sample_trpo_params(trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
    """
    Sample hyperparameters of TRPO.

    The tuned configurations come from these ranges. ``target_kl`` bounds the KL of the joint action; RL Zoo's HalfCheetah
    settings amount to 0.24.

    :param trial: Optuna's trial
    :param n_actions: dimensions of a Box action space, else 0; unused, as are the next two
    :param n_envs: number of environments
    :param additional_args: RL Zoo's settings of the replay buffer
    :return: keywords of the algorithm
    """
    sampled = {
        "n_steps_pow": trial.suggest_int("n_steps_pow", 7, 12),
        "batch_size_pow": trial.suggest_int("batch_size_pow", 5, 9),
        "one_minus_gamma": trial.suggest_float("one_minus_gamma", 1e-4, 0.1, log=True),
        "one_minus_gae_lambda": trial.suggest_float("one_minus_gae_lambda", 1e-3, 0.2, log=True),
        "learning_rate": trial.suggest_float("learning_rate", 1e-4, 3e-3, log=True),
        "n_critic_updates": trial.suggest_int("n_critic_updates", 5, 30),
        "cg_max_steps": trial.suggest_int("cg_max_steps", 5, 30),
        "cg_damping": trial.suggest_float("cg_damping", 1e-3, 0.3, log=True),
        "target_kl": trial.suggest_float("target_kl", 3e-3, 0.3, log=True),
        "net_arch": trial.suggest_categorical("net_arch", ["small", "medium"]),
        "activation_fn": trial.suggest_categorical("activation_fn", ["tanh", "relu"]),
    }
    hyperparams: dict[str, Any] = convert_onpolicy_params(sampled)
    return hyperparams


def sample_lstm_params(trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
    """
    Sample hyperparameters of TRPO with a recurrent policy.

    :param trial: Optuna's trial
    :param n_actions: dimensions of a Box action space, else 0; unused, as are the next two
    :param n_envs: number of environments
    :param additional_args: RL Zoo's settings of the replay buffer
    :return: keywords of the algorithm
    """
    hyperparams = sample_trpo_params(trial, n_actions, n_envs, additional_args)
    hyperparams["ent_coef"] = trial.suggest_float("ent_coef", 1e-4, 0.1, log=True)
    critic = trial.suggest_categorical("enable_critic_lstm", [True, False])
    size = trial.suggest_categorical("lstm_hidden_size", [16, 32, 64, 128, 256])
    return {
        **hyperparams,
        "policy_kwargs": {**hyperparams["policy_kwargs"], "enable_critic_lstm": critic, "lstm_hidden_size": size},
    }
