import sys
from pathlib import Path

import pytest

# At the end, so that a wheel under test goes before the checkout.
sys.path.append(str(Path(__file__).parents[2]))


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr("benchmarks.learning.study.RESAMPLES", 500)
