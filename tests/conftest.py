"""Settings for every test: one thread, repeatable examples, warnings and signals as they are by default."""

import signal

import pytest
import torch as th
from hypothesis import Phase, settings
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.monitor import ResultsWriter

th.set_num_threads(1)  # small matrices get slower with more, and results may differ
settings.register_profile("default", max_examples=50, deadline=None, derandomize=True, phases=set(Phase) - {Phase.explain})
settings.load_profile("default")


@pytest.fixture(autouse=True)
def _torch_validates_distributions():
    """Put back what torch.compile switches off for good."""
    th.distributions.Distribution.set_default_validate_args(__debug__)


@pytest.fixture(autouse=True)
def _signals_have_their_usual_effect():
    """Undo what the tests may have been started with: a shell lets its background jobs ignore SIGINT."""
    usual = {"SIGTERM": signal.SIG_DFL, "SIGINT": signal.default_int_handler, "SIGUSR1": signal.SIG_DFL}
    numbers = {getattr(signal, name): handler for name, handler in usual.items() if hasattr(signal, name)}
    before = {number: signal.signal(number, handler) for number, handler in numbers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)


@pytest.fixture(autouse=True)
def _logs_are_closed(monkeypatch):
    """Close the files that a run leaves open when it breaks off, as most of those in tests do."""
    opened = []
    for kind in (Logger, ResultsWriter):

        def build_and_remember(self, *args, build=kind.__init__, **kwargs):
            build(self, *args, **kwargs)
            opened.append(self)

        monkeypatch.setattr(kind, "__init__", build_and_remember)
    yield
    for each in opened:
        each.close()
