import pytest


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr("benchmarks.learning.study.RESAMPLES", 500)
