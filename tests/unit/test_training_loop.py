"""The loop around rollouts and updates: who is called when, what ends it, and what a run says once."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch as th
from helpers.envs import RandomEnv
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import CallbackList
from stable_baselines3.common.logger import Logger

from sb3_trpo import TRPO
from sb3_trpo.callbacks import TrainingLifecycle
from sb3_trpo.training_loop import TrainingLoop


class Noted(TRPO):
    """Notes its updates and its logs instead of making them."""

    def train(self):
        self.events.append("train")

    def dump_logs(self, iteration=0):
        self.events.append(f"log {iteration}")


class Noting(TrainingLifecycle):
    """Notes every call in its model's list; ends the training after some iterations, or within a rollout."""

    def __init__(self, events, n_iterations=99, n_steps=99):
        super().__init__()
        self.events, self.left, self.n_steps = events, n_iterations, n_steps

    @contextmanager
    def training(self, model, root):
        self.events.append("enter")
        try:
            yield
        finally:
            self.events.append("exit")

    def before_training_start(self, root):
        self.events.append("before start")

    def after_training_start(self, root):
        self.events.append("after start")

    def after_iteration(self):
        self.events.append("after iteration")
        self.left -= 1
        return self.left > 0

    def _on_training_start(self):
        self.events.append("start")

    def _on_rollout_start(self):
        self.events.append("rollout")

    def _on_rollout_end(self):
        self.events.append("rollout over")

    def _on_training_end(self):
        self.events.append("end")

    def _on_step(self):
        return self.n_calls < self.n_steps


def noted(**settings):
    model = Noted("MlpPolicy", RandomEnv(), n_steps=4, batch_size=4, seed=0, **settings)
    model.events = []
    return model


START, END = ["enter", "before start", "start", "after start"], ["end", "exit"]


def iteration(number, logged=True):
    return ["rollout", "rollout over", *([f"log {number}"] if logged else []), "train", "after iteration"]


def test_a_subclass_defines_the_update_and_nothing_else():
    assert "train" not in vars(TrainingLoop)
    assert not {"collect_rollouts", "_run", "_iterate"} & vars(TRPO).keys()


def test_everyone_is_called_in_order():
    model = noted()
    model.learn(8, Noting(model.events))
    assert model.events == [*START, *iteration(1), *iteration(2), *END]
    assert model._n_iterations == 2


def test_logs_are_dumped_at_every_kth_update():
    model = noted()
    model.learn(16, Noting(model.events), log_interval=3)
    assert [event for event in model.events if event.startswith("log")] == ["log 3"]
    model.learn(8, None, log_interval=None)
    assert [event for event in model.events if event.startswith("log")] == ["log 3"]


def test_a_lifecycle_may_end_the_training_between_two_iterations():
    model = noted()
    model.learn(99, CallbackList([Noting(model.events, n_iterations=2)]))
    assert model.events == [*START, *iteration(1), *iteration(2), *END]
    assert model.num_timesteps == 8


def test_a_callback_may_end_it_within_a_rollout_from_which_nothing_is_learned():
    model = noted()
    model.learn(99, Noting(model.events, n_steps=6))
    assert model.events == [*START, *iteration(1), "rollout", *END]
    assert model.num_timesteps == 6


def test_a_lifecycle_is_left_when_the_update_fails():
    model = noted()
    model.train = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        model.learn(8, Noting(model.events))
    assert model.events[-1] == "exit"
    assert "end" not in model.events


def test_the_progress_does_not_fall_below_0_when_the_last_rollout_overshoots():
    seen = []
    model = noted()
    model.train = lambda: seen.append(model._current_progress_remaining)
    model.learn(10)
    assert model.num_timesteps == 12
    assert seen == pytest.approx([0.6, 0.2, 0.0])


def test_schedules_are_evaluated_at_the_present_progress():
    model = noted(target_kl=lambda p: 0.01 * p, ent_coef=lambda p: p, learning_rate=lambda p: 0.1 * p)
    loose = noted(max_state_kl=lambda p: 0.2 * p)
    model.set_logger(Logger(folder=None, output_formats=[]))
    model._current_progress_remaining = loose._current_progress_remaining = 0.5
    assert model._evaluate_schedules() == (pytest.approx(0.005), pytest.approx(0.5), None)
    loose.set_logger(model.logger)
    assert loose._evaluate_schedules().max_state_kl == pytest.approx(0.1)
    assert model.policy.optimizer.param_groups[0]["lr"] == pytest.approx(0.05)


def test_something_is_said_once_by_each_model():
    one, other = noted(), noted()
    assert [one._is_first_time("a"), one._is_first_time("a"), one._is_first_time("b")] == [True, False, True]
    assert other._is_first_time("a")


class OwnBuffer(RolloutBuffer):
    """A class that the fast loop does not know."""


@pytest.mark.parametrize(("kind", "n_general"), [(RolloutBuffer, 0), (OwnBuffer, 1)])
def test_buffers_of_unknown_classes_are_filled_by_the_general_loop(kind, n_general):
    calls = []

    class Counting(Noted):
        def _general_loop(self, *arguments):
            calls.append(arguments)
            return TrainingLoop._general_loop(self, *arguments)

    model = Counting("MlpPolicy", RandomEnv(), n_steps=4, batch_size=4, seed=0, rollout_buffer_class=kind)
    model.events = []
    model.learn(4)
    assert len(calls) == n_general
    assert model.rollout_buffer.full


def test_an_error_that_is_no_observations_fault_is_not_explained_away():
    model = noted()
    model.policy.forward = lambda *_: 1 / 0  # unknown to the fast loop, which then is not used
    with pytest.raises(ZeroDivisionError):
        model.learn(4)
    model = noted()
    model.policy.mlp_extractor.policy_net.append(th.nn.Linear(1, 1))  # does not fit
    with pytest.raises(RuntimeError, match=r"size mismatch|cannot be multiplied"):
        model.learn(4)


def test_an_observation_that_is_not_finite_is_named_instead_of_a_stack_trace():
    class Broken(RandomEnv):
        def step(self, action):
            observation, *rest = super().step(action)
            return (np.full_like(observation, np.nan) if self.n_steps == 2 else observation), *rest

    model = Noted("MlpPolicy", Broken(), n_steps=4, batch_size=4, seed=0)
    model.events = []
    with pytest.raises(ValueError, match=r"environment 0 at step 2"):
        model.learn(4)
