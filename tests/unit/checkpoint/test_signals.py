"""Listening for signals; ``faults/test_checkpoints.py`` sends them to real runs."""

import multiprocessing
import os
import signal
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from gymnasium.wrappers import TimeLimit
from helpers.envs import RandomEnv
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize

from sb3_trpo.checkpoint import signals
from sb3_trpo.checkpoint.signals import StopRequest
from sb3_trpo.checkpoint.worker_rpc import SIGNALS, call


def handlers():
    return [signal.getsignal(number) for number in SIGNALS]


def worker_handlers(env) -> list[str]:
    return [str(handler) for handler in handlers()]


IGNORING = [str(signal.SIG_IGN)] * 3


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_remembered_and_handlers_are_installed_again(number):
    before = handlers()
    with StopRequest([]) as stop:
        assert stop.received is None
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received == signal.Signals(number).name
    assert handlers() == before


def test_handlers_are_installed_again_after_an_error():
    assert set(SIGNALS) == {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1}
    before = handlers()
    with pytest.raises(ZeroDivisionError), StopRequest([]):
        raise ZeroDivisionError
    assert handlers() == before


def test_the_handler_of_the_script_gets_the_second_interrupt():
    heard = []
    signal.signal(signal.SIGINT, lambda number, _: heard.append(number))
    with StopRequest([]) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert heard == []
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
    assert heard == [signal.SIGINT]
    assert stop.received == "SIGINT"


@pytest.mark.parametrize("number", SIGNALS)
def test_signals_that_were_ignored_before_are_received_and_ignored_again_afterwards(number):
    signal.signal(number, signal.SIG_IGN)
    with StopRequest([]) as stop:
        os.kill(os.getpid(), number)
        assert stop.received == signal.Signals(number).name
    assert signal.getsignal(number) == signal.SIG_IGN


@pytest.mark.parametrize("before", ["ignored", "installed from C", "Python's own"])
def test_the_second_interrupt_interrupts_whatever_was_there_before(before, monkeypatch):
    if before == "ignored":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if before == "installed from C":
        forget_what_was_there(monkeypatch)
    with pytest.raises(KeyboardInterrupt), StopRequest([]) as stop:  # noqa: PT012  # the whole run
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        assert stop.received == "SIGINT"
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
    assert signal.getsignal(signal.SIGINT) == (signal.SIG_IGN if before == "ignored" else signal.default_int_handler)


def forget_what_was_there(monkeypatch):
    """Answer like Python where a handler was not installed from Python: that there is one, but not which."""

    def forgetful(number):
        present = signal.getsignal(number)
        return None if present in (signal.SIG_DFL, signal.default_int_handler) else present

    monkeypatch.setattr(signals, "signal", SimpleNamespace(**vars(signal) | {"getsignal": forgetful}))


def test_handlers_that_python_cannot_install_leave_its_own(monkeypatch):
    forget_what_was_there(monkeypatch)
    before = handlers()
    with StopRequest([]):
        assert handlers() != before
    assert handlers() == before == [signal.SIG_DFL, signal.default_int_handler, signal.SIG_DFL]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_while_handlers_are_installed_is_received(number, monkeypatch):
    def install_and_send(installed, handler):
        previous = signal.signal(installed, handler)
        if installed == number and getattr(handler, "__func__", None) is StopRequest._handle:
            os.kill(os.getpid(), number)
        return previous

    before = handlers()
    monkeypatch.setattr(signals, "signal", SimpleNamespace(**vars(signal) | {"signal": install_and_send}))
    with StopRequest([]) as stop:
        assert stop.received == signal.Signals(number).name
    assert handlers() == before


def test_an_error_while_handlers_are_installed_leaves_none(monkeypatch):
    def fail_at_the_last(installed, handler):
        if installed == [*SIGNALS][-1] and getattr(handler, "__func__", None) is StopRequest._handle:
            raise KeyboardInterrupt
        return signal.signal(installed, handler)

    before = handlers()
    monkeypatch.setattr(signals, "signal", SimpleNamespace(**vars(signal) | {"signal": fail_at_the_last}))
    with pytest.raises(KeyboardInterrupt), StopRequest([]):
        pass
    assert handlers() == before


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_that_ignored_signals_before_ignore_them_afterwards(method):
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    vec_env = make_vec_env("CartPole-v1", 1, vec_env_cls=SubprocVecEnv, vec_env_kwargs={"start_method": method})
    assert call(vec_env, 0, worker_handlers) == IGNORING
    with StopRequest([vec_env]) as stop:
        os.kill(vec_env.processes[0].pid, signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.received == "SIGINT"
        assert call(vec_env, 0, worker_handlers) == IGNORING
    assert call(vec_env, 0, worker_handlers) == IGNORING
    vec_env.close()


@contextmanager
def forked_child():
    """Fork a process that sleeps."""
    context = multiprocessing.get_context("fork")
    is_there = context.Event()
    child = context.Process(target=say_and_sleep, args=(is_there,))
    child.start()
    assert is_there.wait(20)
    yield child
    child.kill()
    child.join(20)


def say_and_sleep(is_there):
    is_there.set()
    time.sleep(60)


def test_a_child_forked_meanwhile_can_be_terminated():
    with StopRequest([]) as stop, forked_child() as child:
        child.terminate()
        child.join(20)
        assert child.exitcode == -signal.SIGTERM
        assert stop.received is None


def test_a_child_forked_meanwhile_ignores_what_was_ignored_before():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with StopRequest([]), forked_child() as child:
        child.terminate()
        child.join(0.5)
        assert child.exitcode is None


def test_workers_ignore_the_signals_for_as_long_as_it_listens():
    vec_env = VecNormalize(make_vec_env("CartPole-v1", 2, vec_env_cls=SubprocVecEnv))
    before = [call(vec_env.venv, index, worker_handlers) for index in range(2)]
    with StopRequest([vec_env, vec_env]):
        for process in vec_env.venv.processes:
            os.kill(process.pid, signal.SIGINT)
            os.kill(process.pid, signal.SIGTERM)
        assert call(vec_env.venv, 1, worker_handlers) == IGNORING != before[1]
        vec_env.reset()
    assert [call(vec_env.venv, index, worker_handlers) for index in range(2)] == before
    vec_env.close()


def test_a_worker_that_has_died_does_not_hide_the_error_of_its_death():
    vec_env = make_vec_env("CartPole-v1", 2, vec_env_cls=SubprocVecEnv)
    vec_env.reset()
    with pytest.raises((EOFError, BrokenPipeError, ConnectionResetError)), StopRequest([vec_env]):  # noqa: PT012  # the whole run
        vec_env.processes[0].kill()
        vec_env.processes[0].join()
        vec_env.reset()


def test_workers_busy_with_a_step_do_not_delay_the_end():
    vec_env = SubprocVecEnv([lambda: TimeLimit(Slow(), 10)], start_method="fork")
    vec_env.reset()
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt), StopRequest([vec_env]):  # noqa: PT012  # the whole run
        vec_env.step_async([0])
        raise KeyboardInterrupt
    assert time.monotonic() - begin < 20
    assert [process.exitcode for process in vec_env.processes] == [-signal.SIGKILL]
    vec_env.close()


class Slow(RandomEnv):
    """Takes a minute for each step."""

    def step(self, action):
        time.sleep(60)
        return super().step(action)


def test_a_bare_env_in_a_worker_does_not_keep_other_workers_from_ignoring_signals():
    bare, wrapped = SubprocVecEnv([RandomEnv]), make_vec_env("CartPole-v1", 1, vec_env_cls=SubprocVecEnv)
    with StopRequest([bare, wrapped]):
        assert call(wrapped, 0, worker_handlers) == IGNORING
    bare.close()
    wrapped.close()


def test_an_env_that_is_closed_is_left_alone():
    vec_env = make_vec_env("CartPole-v1", 1, vec_env_cls=SubprocVecEnv)
    vec_env.close()
    before = handlers()
    with StopRequest([vec_env]):
        assert handlers() != before
    assert handlers() == before
