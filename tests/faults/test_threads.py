"""Models that learn in several threads of one process, as in a search with several jobs, do not disturb each other."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch as th
from helpers.envs import BOX_ACTION, VECTOR, RandomEnv
from helpers.runs import parameters_of
from stable_baselines3.common.callbacks import BaseCallback
from torch.optim import optimizer as optimizer_module

import sb3_trpo.policies
from sb3_trpo import TRPO
from sb3_trpo.distributions.argument_checks import unvalidated

SMALL = {"n_steps": 64, "batch_size": 32, "n_critic_updates": 2, "device": "cpu"}
N_UPDATES = 3


def process_state() -> tuple[Any, ...]:
    """Read the settings of the whole process that this package might touch."""
    return (
        th.distributions.Distribution._validate_args,
        th.backends.cudnn.enabled,
        len(optimizer_module._global_optimizer_pre_hooks),
        len(optimizer_module._global_optimizer_post_hooks),
        th.is_grad_enabled(),
        th.get_default_dtype(),
        th.get_num_threads(),
        np.geterr(),
    )


class PausingPolicy(sb3_trpo.policies.MlpPolicy):
    """Takes the general path; calls a function when it is asked for its distribution with a graph."""

    pause: Callable[[], None] = staticmethod(lambda: None)

    def get_distribution(self, obs: th.Tensor) -> Any:
        if th.is_grad_enabled():
            self.pause()
        return super().get_distribution(obs)


class PausingCallback(BaseCallback):
    """Calls a function in the middle of the second rollout."""

    def __init__(self, pause: Callable[[], None]) -> None:
        super().__init__()
        self.pause = pause

    def _on_step(self) -> bool:
        if self.n_calls == 64 + 20:
            self.pause()
        return True


def make(policy: Any = "MlpPolicy", seed: int = 0, **settings: Any) -> TRPO:
    return TRPO(policy, RandomEnv(VECTOR, BOX_ACTION), seed=seed, **SMALL | settings)


def learned_alone(policy: Any, seed: int) -> dict[str, bytes]:
    return parameters_of(make(policy, seed).learn(64 * N_UPDATES))


def keeping_generators(run: Callable[[], None]) -> None:
    """Run something that uses the process's random generators, and restore them."""
    torch_state, numpy_state = th.get_rng_state(), np.random.get_state()
    run()
    th.set_rng_state(torch_state)
    np.random.set_state(numpy_state)


@pytest.mark.parametrize("where", ["rollout", "policy step"])
@pytest.mark.parametrize("other_policy", ["MlpPolicy", PausingPolicy], ids=["fast", "general"])
def test_a_model_learns_the_same_if_another_one_learns_in_between(where, other_policy):
    """The other model learns from beginning to end, in another thread, while the first one waits."""
    results, before = {}, process_state()

    def learn_other() -> None:
        results["validates"] = bool(th.distributions.Distribution._validate_args)
        results["other"] = learned_alone(other_policy, seed=1)

    def pause() -> None:
        if "other" not in results:
            thread = threading.Thread(target=learn_other)
            keeping_generators(lambda: (thread.start(), thread.join()))

    if where == "rollout":
        model = make().learn(64 * N_UPDATES, callback=PausingCallback(pause))
        alone = learned_alone("MlpPolicy", seed=0)
    else:
        model = make(PausingPolicy)
        model.policy.pause = pause
        model.learn(64 * N_UPDATES)
        calm = make(PausingPolicy)
        calm.policy.pause = lambda: None  # patched too, so that it takes the same paths
        alone = parameters_of(calm.learn(64 * N_UPDATES))
    assert results["validates"]
    assert results["other"] == learned_alone(other_policy, seed=1)
    assert parameters_of(model) == alone
    assert process_state() == before


class TakingTurns(BaseCallback):
    """Lets models collect one rollout at a time, each with its own random numbers; updates overlap freely."""

    turn = threading.Lock()

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed

    def _on_rollout_start(self) -> None:
        self.turn.acquire()
        self.seed += 1
        th.manual_seed(self.seed)

    def _on_rollout_end(self) -> None:
        self.turn.release()

    def _on_step(self) -> bool:
        return True


def test_models_that_learn_at_the_same_time_learn_what_they_learn_in_turn():
    """Without critic fits, which take the order of minibatches from the process's generator."""
    before = process_state()
    policies = ["MlpPolicy", PausingPolicy, "MlpPolicy", PausingPolicy]

    def models() -> list[TRPO]:
        return [make(policy, seed=index, n_critic_updates=0) for index, policy in enumerate(policies)]

    def learn(index: int, model: TRPO) -> dict[str, bytes]:
        return parameters_of(model.learn(64 * 10, callback=TakingTurns(1000 * index)))

    in_turn = [learn(*each) for each in enumerate(models())]
    with ThreadPoolExecutor(len(policies)) as pool:
        assert [*pool.map(learn, range(len(policies)), models())] == in_turn
    assert process_state() == before


def test_validation_is_off_only_in_the_thread_that_asks_for_it():
    seen: dict[str, bool] = {}

    def validates() -> bool:
        try:
            th.distributions.Normal(th.tensor(float("nan")), th.tensor(1.0))
        except ValueError:
            return True
        return False

    def look(name: str) -> None:
        seen[name] = validates()

    first, second = unvalidated(), unvalidated()
    with first:
        assert not validates()
        with unvalidated():
            assert not validates()
        assert not validates()
        thread = threading.Thread(target=look, args=("another thread",))
        thread.start()
        thread.join()
        entered = threading.Thread(target=second.__enter__)
        entered.start()
        entered.join()
    assert validates()  # though another thread is still inside
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading, "get_ident", lambda: entered.ident)
        second.__exit__(None, None, None)
    assert seen == {"another thread": True}
    assert th.distributions.Distribution._validate_args is True


def test_a_setting_changed_by_others_in_the_meantime_stays():
    with unvalidated():
        th.distributions.Distribution.set_default_validate_args(False)
    assert th.distributions.Distribution._validate_args is False
