"""How many messages ranks exchange: each costs about as much as the arithmetic of a minibatch, so none may creep in."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch as th
import torch.distributed as dist
from helpers.envs import BOX_ACTION, VECTOR, RandomEnv
from helpers.ranks import in_ranks
from helpers.recurrent_tools import RestlessEnv
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.torch_layers import FlattenExtractor

from sb3_trpo import TRPO
from sb3_trpo.parallel.transport.mesh import Mesh
from sb3_trpo.recurrent import RecurrentTRPO

N_STEPS, N_ENVS = 32, 2
"""Steps of a rank in a rollout, and its environments."""
SETTINGS = {"n_critic_updates": 2, "cg_max_steps": 4, "cg_residual_tol": 0.0, "seed": 3, "device": "cpu"}
"""With tolerance 0, conjugate gradient takes all its steps."""
SENT = ("broadcast", "broadcast_object_list", "all_gather", "all_gather_object", "all_reduce")
"""What sends something through gloo."""
ALWAYS = 9
"""
Vectors of every iteration: lengths and contents of the reports on a rollout, whether a rank refuses it, the schedules, the
gradient with surrogate and entropy, how many transitions each rank has, the loss of the critic's fit, the explained variance,
and checksums of the parameters.
"""


class Whitening(FlattenExtractor):
    """An extractor with batch statistics, in several tensors. It is no plain stack of layers."""

    def __init__(self, space: Any) -> None:
        super().__init__(space)
        self.norm = th.nn.BatchNorm1d(self.features_dim)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.norm(super().forward(observations))


class EachIteration(BaseCallback):
    """Note the messages so far, and the log, whenever a rollout begins."""

    def __init__(self, counter: Counter[str]) -> None:
        super().__init__()
        self.counter = counter
        self.notes: list[tuple[Counter[str], dict[str, Any]]] = []

    def _on_rollout_start(self) -> None:
        self.notes.append((self.counter.copy(), dict(self.logger.name_to_value)))

    def _on_step(self) -> bool:
        return True


@contextmanager
def counting() -> Iterator[Counter[str]]:
    """Count what this rank sends; with two ranks, a message through the mesh is one exchange."""
    counter: Counter[str] = Counter()

    def counted(name: str, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            counter[name] += 1
            return function(*args, **kwargs)

        return call

    patches = mock.patch.multiple(dist, **{name: counted(name, getattr(dist, name)) for name in SENT})
    with patches, mock.patch.object(Mesh, "_exchange", counted("vector", Mesh._exchange)):
        yield counter


def make(algorithm: type[TRPO], policy: str, env: Any, **settings: Any) -> TRPO:
    model = algorithm(policy, make_vec_env(env, N_ENVS), n_steps=2 * N_STEPS, **{**SETTINGS, **settings})
    model.set_logger(Logger(None, []))
    return model


def messages_of_iterations(rank: int) -> dict[str, tuple[Counter[str], dict[str, Any]]]:
    """Return the messages from the start of the second rollout to that of the third, and the log of the update between."""
    found = {}
    for name, (algorithm, policy, env, settings, _, _) in CASES.items():
        model = make(algorithm, policy, env, **settings)
        with counting() as counter:
            notes = EachIteration(counter)
            model.learn(3 * 2 * N_STEPS * N_ENVS, callback=notes, log_interval=1000)
        _, (before, _), (after, log) = notes.notes
        found[name] = after - before, log
    return found


PLAIN = (TRPO, "MlpPolicy", partial(RandomEnv, VECTOR, BOX_ACTION))
CASES: dict[str, tuple[type[TRPO], str, Any, dict[str, Any], int, int]] = {
    # Settings, minibatches of an epoch, and further vectors: one more where advantages are standardized.
    "minibatches": (*PLAIN, {"batch_size": 32}, 4, 1),
    "products": (*PLAIN, {"batch_size": 128, "n_critic_updates": 5, "cg_max_steps": 7, "fisher_subsampling": 3}, 1, 1),
    "line search": (
        *PLAIN,
        {"batch_size": 64, "target_kl": 2.0, "line_search_shrinking_factor": 0.95, "normalize_advantage": False},
        2,
        0,
    ),
    # Also which parameters are the policy's, and batch norm's statistics.
    "batch norm": (*PLAIN, {"batch_size": 64, "policy_kwargs": {"features_extractor_class": Whitening}}, 2, 3),
    "LSTM": (
        RecurrentTRPO,
        "MlpLstmPolicy",
        partial(RestlessEnv, VECTOR),
        {"batch_size": 64, "policy_kwargs": {"lstm_hidden_size": 8}},
        2,
        1,
    ),
}


@pytest.fixture(scope="module")
def found() -> list[dict[str, tuple[Counter[str], dict[str, Any]]]]:
    return in_ranks(2, messages_of_iterations)


@pytest.mark.parametrize("case", CASES)
def test_every_product_candidate_and_minibatch_is_one_message_and_little_else_is_sent(found, case):
    (messages, log), (others, _) = (of_rank[case] for of_rank in found)
    *_, changed, n_minibatches, n_more = CASES[case]
    settings = {**SETTINGS, **changed}
    assert log["train/cg_iterations"] == settings["cg_max_steps"]
    assert case != "line search" or log["train/line_search_steps"] > 1
    n_products, n_candidates = log["train/cg_iterations"], log["train/line_search_steps"]
    n_vectors = ALWAYS + n_more + n_products + n_candidates + settings["n_critic_updates"] * n_minibatches
    assert messages == others == Counter({"vector": n_vectors})
