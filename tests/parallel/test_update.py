"""Several ranks, each with a part of a rollout, take the same update as one process with all of it."""

import itertools
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from helpers.costs import CostlyEnv
from helpers.envs import BOX_ACTION, IMAGE, VECTOR, RandomEnv
from helpers.hybrid import PLATFORM, PLATFORM_PARAMETERS, HybridEnv
from helpers.ranks import in_ranks
from helpers.recurrent_tools import RestlessEnv
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor

from sb3_trpo import TRPO
from sb3_trpo.constrained import ConstrainedTRPO
from sb3_trpo.constrained.recording import CostRecorder
from sb3_trpo.maskable import MaskableTRPO
from sb3_trpo.numerics.trust_region import Outcome
from sb3_trpo.recurrent import MaskableRecurrentTRPO, RecurrentTRPO

N_STEPS = 24
KEYS = ("policy_objective", "kl_divergence_loss", "entropy", "gradient_norm", "expected_improvement", "improvement")
KEYS += ("state_kl", "explained_variance", "value_loss", "cg_iterations", "line_search_steps")


class Bent(FlattenExtractor):
    """An extractor that is no plain stack of layers, so autograd differentiates it."""

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return super().forward(observations).sin()


class Whitening(FlattenExtractor):
    """An extractor with batch statistics."""

    def __init__(self, space: Any) -> None:
        super().__init__(space)
        self.norm = th.nn.BatchNorm1d(self.features_dim)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.norm(super().forward(observations))


class Gated(ActorCriticPolicy):
    """The observation decides which of two layers the critic uses; the policy uses neither."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.gates = th.nn.ModuleList(th.nn.Linear(3, 1) for _ in range(2))
        self.optimizer = th.optim.Adam(self.parameters(), lr=1e-2)

    def predict_values(self, observations: th.Tensor) -> th.Tensor:
        return super().predict_values(observations) + self.gates[int(observations[0, 0] > 0)](observations)


ODD_DICT = spaces.Dict({"vector": VECTOR, "choice": spaces.Discrete(3)})
Case = tuple[type[TRPO], str | type[ActorCriticPolicy], Any, dict[str, Any]]
CASES: dict[str, Case] = {
    "MLP": (TRPO, "MlpPolicy", partial(RandomEnv, VECTOR, BOX_ACTION), {}),
    "Beta": (
        TRPO,
        "MlpPolicy",
        partial(RandomEnv, VECTOR, BOX_ACTION),
        {"policy_kwargs": {"action_distribution": "beta"}},
    ),
    "CNN": (TRPO, "CnnPolicy", partial(RandomEnv, IMAGE), {}),
    "autograd": (TRPO, "MlpPolicy", partial(RandomEnv, VECTOR), {"policy_kwargs": {"features_extractor_class": Bent}}),
    "Dict": (TRPO, "MultiInputPolicy", partial(RandomEnv, ODD_DICT), {}),
    "masks": (MaskableTRPO, "MlpPolicy", partial(RestlessEnv, VECTOR), {}),
    "LSTM": (
        RecurrentTRPO,
        "MlpLstmPolicy",
        partial(RestlessEnv, VECTOR, BOX_ACTION),
        {"policy_kwargs": {"lstm_hidden_size": 8}},
    ),
    "hybrid": (TRPO, "MlpPolicy", partial(HybridEnv, PLATFORM), {"policy_kwargs": {"action_parameters": PLATFORM_PARAMETERS}}),
    "masks and LSTM": (MaskableRecurrentTRPO, "MlpLstmPolicy", partial(RestlessEnv, VECTOR), {"chunk_size": 20}),
}
LIMITED: dict[str, Case] = {
    name: (ConstrainedTRPO, "MlpPolicy", partial(CostlyEnv, VECTOR, BOX_ACTION), {"cost_limits": limits})
    for name, limits in {
        "free": {"cost": 1e9},
        "limited": {"cost": 1.5, "drift": 9.0},
        "out of reach": {"drift": 9.0, "cost": -50.0},
    }.items()
}
"""Limits on costs that lead to each kind of step."""
SPECIAL: dict[str, Case] = {
    "batch norm": (TRPO, "MlpPolicy", partial(RandomEnv, VECTOR), {"policy_kwargs": {"features_extractor_class": Whitening}}),
    "gates": (TRPO, Gated, partial(RandomEnv, VECTOR), {"batch_size": 8}),
}
"""Policies for which the parts of a batch do not add up to the whole."""


def make(case: str, n_envs: int, n_steps: int, **settings: Any) -> TRPO:
    algorithm, policy, env, own = (CASES | LIMITED | SPECIAL)[case]
    settings = {"batch_size": 10**6, "n_critic_updates": 4, "seed": 3, "device": "cpu", **own, **settings}
    settings |= {"cg_max_steps": 8, "cg_residual_tol": 0.0}  # the number of iterations must not depend on rounding
    model = algorithm(policy, make_vec_env(env, n_envs), n_steps=n_steps, **settings)
    model.set_logger(Logger(None, []))
    return model


def collected(model: TRPO) -> TRPO:
    _, callback = model._setup_learn(1, None)
    assert model.collect_rollouts(model.env, callback, model.rollout_buffer, model.rollout_buffer.buffer_size)
    return model


def take_part(part: TRPO, whole: TRPO, envs: slice) -> None:
    """Give a model the policy of another, and the transitions of some of its environments."""
    part.policy.load_state_dict(whole.policy.state_dict())
    buffer, source = part.rollout_buffer, whole.rollout_buffer
    buffer.reset()
    for name, array in vars(source).items():
        if isinstance(array, dict) and name == "observations":
            setattr(buffer, name, {key: value[:, envs].copy() for key, value in array.items()})
        elif isinstance(array, np.ndarray):
            axis = 2 if name.startswith(("hidden_states", "cell_states")) else 1
            setattr(buffer, name, array[(slice(None),) * axis + (envs,)].copy())
    buffer.pos, buffer.full = source.pos, True
    if isinstance(part, ConstrainedTRPO):
        take_part_of_costs(part, whole, envs)


def take_part_of_costs(part: ConstrainedTRPO, whole: ConstrainedTRPO, envs: slice) -> None:
    """The same for costs, their critics, and where the rollout has ended."""
    part.cost_critics.load_state_dict(whole.cost_critics.state_dict())
    recorder = CostRecorder([*part.cost_limits], part.rollout_buffer, part._plain)
    recorder.costs[:] = whole._recorder.costs[:, :, envs]
    own = range(whole.n_envs)[envs]
    recorder.truncated = [
        each._replace(env_index=own.index(each.env_index)) for each in whole._recorder.truncated if each.env_index in own
    ]
    part._recorder = recorder
    part._last_obs, part._last_episode_starts = whole._last_obs[envs], whole._last_episode_starts[envs]
    part._follow_episodes(recorder, np.ones(len(own), bool), part.rollout_buffer)


def envs_of(rank: int, n_envs: tuple[int, ...]) -> slice:
    first = sum(n_envs[:rank])
    return slice(first, first + n_envs[rank])


def results_of(model: TRPO) -> dict[str, Any]:
    state = {name: tensor.double().numpy() for name, tensor in model.policy.state_dict().items()}
    log = {key: model.logger.name_to_value.get(f"train/{key}") for key in KEYS}
    for index, critic in enumerate(getattr(model, "cost_critics", ())):
        state |= {f"cost critic {index} {name}": tensor.double().numpy() for name, tensor in critic.state_dict().items()}
    log |= {key: value for key, value in model.logger.name_to_value.items() if key.startswith("cost/")}
    return {"state": state, "log": log | {"outcome": model.policy_outcome.value, "critic_outcome": model.critic_outcome.value}}


def update_both(rank: int, case: str, n_envs: tuple[int, ...], **settings: Any) -> tuple[Any, Any]:
    whole = collected(make(case, sum(n_envs), N_STEPS, distributed=False, **settings))
    part = make(case, n_envs[rank], len(n_envs) * N_STEPS, **settings)
    take_part(part, whole, envs_of(rank, n_envs))
    results = []
    for model in (whole, part):
        np.random.seed(5)
        model.train()
        results.append(results_of(model))
    return results[0], results[1]


def same_state(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(np.array_equal(value, other["state"][name]) for name, value in one["state"].items())


def require_same_results(results: list[tuple[Any, Any]], tolerance: float = 1e-5, outcome: Outcome = Outcome.ACCEPTED) -> None:
    whole, first = results[0]
    for _, part in results[1:]:
        assert same_state(first, part)
        assert part["log"] == first["log"]
    assert whole["log"]["outcome"] == outcome.value
    for name, value in whole["state"].items():
        np.testing.assert_allclose(first["state"][name], value, rtol=0, atol=tolerance, err_msg=name)
    for key, value in whole["log"].items():
        assert first["log"][key] == (pytest.approx(value, rel=1e-3, abs=1e-6) if isinstance(value, float) else value), key


BOUNDED = {"max_state_kl": 0.01, "line_search_shrinking_factor": 0.5}


@pytest.mark.parametrize(("case", "level"), [("MLP", 1.0), ("LSTM", 0.9)])
def test_ranks_bound_the_kl_of_the_states_of_all_of_them(case, level):
    results = in_ranks(2, partial(update_both, **BOUNDED, state_kl_quantile=level), case, (1, 3))
    require_same_results(results)
    (_, first), *_ = results
    assert 0.0 < first["log"]["state_kl"] <= 0.01
    assert first["log"]["line_search_steps"] > 1  # the mean alone would have allowed the full step


OUTCOMES = {"free": Outcome.ACCEPTED, "limited": Outcome.LIMITED, "out of reach": Outcome.RECOVERED}


@pytest.mark.parametrize("case", LIMITED)
def test_ranks_keep_limits_on_the_costs_of_all_of_them(case):
    results = in_ranks(2, update_both, case, (1, 3))
    require_same_results(results, outcome=OUTCOMES[case])
    (_, first), *_ = results
    assert first["log"]["cost/cost/estimate"] > 0.0


def new_critics(rank: int) -> list[Any]:
    """Return the parameters of a new model's critics of costs."""
    return [value.tolist() for value in make("limited", 1, 16).cost_critics.state_dict().values()]


def test_ranks_begin_with_the_same_critics_of_costs():
    first, second = in_ranks(2, new_critics)
    assert first == second


def with_other_settings(rank: int) -> list[str]:
    """Return the errors of ranks whose limits, or another setting of costs, differ from the start or later."""
    texts = []
    for other in ({"cost_limits": {"cost": 2.0}}, {"cost_gae_lambda": 0.7}):
        with pytest.raises(RuntimeError) as raised:
            make("limited", 1, 16, **(other if rank else {}))
        texts.append(str(raised.value))
    model = make("limited", 1, 16)
    if rank:
        model.cost_gamma = 0.9
    with pytest.raises(RuntimeError) as raised:
        model.learn(16)
    return [*texts, str(raised.value)]


def test_ranks_with_other_limits_are_stopped():
    for limits, factor, discount in in_ranks(2, with_other_settings):
        assert "differ from rank 0 in settings" in limits
        assert "cost_limits ({'cost': 2.0}, not {'cost': 1.5, 'drift': 9.0})" in limits
        assert "cost_gae_lambda (0.7, not 0.5)" in factor
        assert "cost_gamma (0.9, not 0.99)" in discount


COMBINATIONS = [("MLP", (2, 1, 2)), ("LSTM", (2, 1, 2)), *((case, (1, 3)) for case in CASES)]


@pytest.mark.parametrize(("case", "n_envs"), COMBINATIONS, ids=str)
def test_ranks_with_parts_take_the_step_of_one_process_with_all(case, n_envs):
    require_same_results(in_ranks(len(n_envs), update_both, case, n_envs))


def with_minibatches(rank: int, max_grad_norm: float | None) -> tuple[Any, Any]:
    """Make each minibatch of the one process of those of the two ranks."""
    n, n_envs, size = 2 * N_STEPS, (2, 2), 16
    settings = {"batch_size": 2 * size, "max_grad_norm": max_grad_norm}
    whole = collected(make("MLP", 4, N_STEPS, distributed=False, **settings))
    part = make("MLP", 2, 2 * N_STEPS, **settings)
    take_part(part, whole, envs_of(rank, n_envs))
    generators = [np.random.RandomState(seed) for seed in (7, 8)]

    def composed(_: int) -> np.ndarray:
        orders = [generator.permutation(n) + index * n for index, generator in enumerate(generators)]
        pieces = zip(*(np.split(order, range(size, n, size)) for order in orders), strict=True)
        return np.concatenate([*itertools.chain(*pieces)])

    with mock.patch.object(np.random, "permutation", composed):
        whole.train()
    np.random.seed((7, 8)[rank])
    part.train()
    return results_of(whole), results_of(part)


@pytest.mark.parametrize("max_grad_norm", [None, 0.05])
def test_ranks_with_parts_of_minibatches_fit_the_critic_of_one_process_with_whole_ones(max_grad_norm):
    require_same_results(in_ranks(2, with_minibatches, max_grad_norm))


def with_odd_parts(rank: int) -> list[Any]:
    """Take updates of uneven parts: different numbers of steps, minibatches and sequences."""
    results = []
    for case, n_envs, settings in [
        ("MLP", (1, 3), {"n_steps": 31, "batch_size": 7, "sub_sampling_factor": 3}),
        ("autograd", (1, 2), {"n_steps": 9, "batch_size": 4, "fisher_subsampling": 2}),
        ("LSTM", (3, 1), {"n_steps": 41, "batch_size": 5, "sub_sampling_factor": 2}),
        ("MLP", (1, 1), {"n_steps": 2, "batch_size": 1, "normalize_advantage": False}),
        ("Dict", (1, 1), {"n_steps": 5, "batch_size": 3, "sub_sampling_factor": 2, "fisher_subsampling": 2}),
        ("limited", (1, 2), {"n_steps": 9, "batch_size": 4, "sub_sampling_factor": 2}),
    ]:
        model = make(case, n_envs[rank], **settings)
        model.learn(1)
        assert model.num_timesteps == sum(
            steps * envs for steps, envs in zip((-(-settings["n_steps"] // 2), settings["n_steps"] // 2), n_envs, strict=True)
        )
        results.append(results_of(model))
    return results


def test_ranks_agree_even_if_their_parts_are_tiny_and_uneven():
    first, second = in_ranks(2, with_odd_parts)
    for one, other in zip(first, second, strict=True):
        assert same_state(one, other)
        assert one["log"] == other["log"]
        assert one["log"]["outcome"] is not None


def learn_separately(rank: int, case: str) -> dict[str, Any]:
    model = make(case, 2, 64)
    before = {name: tensor.double().numpy() for name, tensor in model.policy.state_dict().items()}
    return {"before": before, **results_of(model.learn(256))}


@pytest.mark.parametrize("case", SPECIAL)
def test_ranks_agree_on_what_depends_on_their_own_part(case):
    first, second = in_ranks(2, learn_separately, case)
    assert same_state(first, second)
    special = [name for name in first["state"] if "running_mean" in name or "gates" in name]
    assert special
    assert not any(np.array_equal(first["state"][name], first["before"][name]) for name in special)


def spoiled_on_one_rank(rank: int, case: str, name: str, value: float) -> dict[str, Any]:
    """Spoil a number after the rollout has been checked; return the names of the tensors that an update changes."""
    model = collected(make(case, 2, 2 * N_STEPS, normalize_advantage=False))
    before = {each: tensor.clone() for each, tensor in model.policy.state_dict().items()}
    if rank == 1:
        getattr(model.rollout_buffer, name)[3, 1] = value
    model.train()
    moved = {each for each, tensor in model.policy.state_dict().items() if not th.equal(tensor, before[each])}
    return {"moved": moved, **results_of(model)}


@pytest.mark.parametrize("case", ["MLP", "LSTM"])
def test_nan_on_one_rank_restores_the_policy_of_all(case):
    first, second = in_ranks(2, spoiled_on_one_rank, case, "log_probs", np.nan)
    assert first["log"]["outcome"] == second["log"]["outcome"] == Outcome.NON_FINITE_GRADIENT.value
    assert first["moved"] == second["moved"] != set()
    assert all("value" in name or "critic" in name or "vf" in name for name in first["moved"])
    assert same_state(first, second)


@pytest.mark.parametrize("case", ["MLP", "autograd"])
def test_a_critic_that_diverges_on_one_rank_is_restored_on_all(case):
    first, second = in_ranks(2, spoiled_on_one_rank, case, "returns", 1e30)  # its square is beyond float32
    assert first["log"]["critic_outcome"] == second["log"]["critic_outcome"] == "diverged"
    assert first["moved"] == second["moved"] != set()
    assert not any("value" in name for name in first["moved"])


def with_a_bad_rollout(rank: int) -> bool:
    model = collected(make("MLP", 2, 2 * N_STEPS))
    before = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
    if rank == 1:
        model.rollout_buffer.rewards[3, 1] = np.inf
    with pytest.raises(ValueError, match="rank 1: The rollout holds non-finite rewards: inf in environment 1 at step 3"):
        model.train()
    return all(th.equal(tensor, before[name]) for name, tensor in model.policy.state_dict().items())


def test_a_rollout_that_one_rank_refuses_is_refused_by_all():
    assert in_ranks(2, with_a_bad_rollout) == [True, True]


class Dropping(RolloutBuffer):
    """Leaves out the last minibatch."""

    def get(self, batch_size: int | None = None) -> Any:
        yield from [*super().get(batch_size)][:-1]


def with_too_few_minibatches(rank: int) -> str:
    env = make_vec_env(partial(RandomEnv, VECTOR), 2)
    kind = {"rollout_buffer_class": Dropping} if rank == 1 else {}
    model = TRPO("MlpPolicy", env, n_steps=32, batch_size=16, seed=0, device="cpu", **kind)
    with pytest.raises((ValueError, RuntimeError)) as raised:
        model.learn(64)
    return str(raised.value)


def test_a_buffer_with_too_few_minibatches_is_named():
    first, second = in_ranks(2, with_too_few_minibatches)
    assert second.startswith("The rollout buffer's get(8) gives 3 minibatches or more, but its size makes 4")
    assert f"rank 1 ended with ValueError: {second}" in first


def learn_alone_and_as_the_only_rank(rank: int, device: str) -> list[Any]:
    models = [make("MLP", 2, 32, device=device, distributed=distributed).learn(128) for distributed in (False, True)]
    assert models[1]._communicator.size == 1
    assert models[1]._communicator is not models[0]._communicator
    return [{name: tensor.cpu().numpy() for name, tensor in model.policy.state_dict().items()} for model in models]


CUDA = pytest.param("cuda", 1e-5, marks=[pytest.mark.gpu, pytest.mark.skipif(not th.cuda.is_available(), reason="needs CUDA")])


@pytest.mark.parametrize(("device", "tolerance"), [("cpu", 0.0), CUDA])
def test_the_only_rank_of_a_group_learns_what_it_learns_alone(device, tolerance):
    ((alone, ranked),) = in_ranks(1, learn_alone_and_as_the_only_rank, device)
    for name, value in alone.items():
        np.testing.assert_allclose(ranked[name], value, rtol=0, atol=tolerance, err_msg=name)
