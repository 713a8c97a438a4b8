"""Settings for every test: one thread, repeatable examples, and helpers beside the tests importable from subfolders too."""

import sys
from pathlib import Path

import pytest
import torch as th
from hypothesis import Phase, settings

sys.path.insert(0, str(Path(__file__).parent))
th.set_num_threads(1)  # small matrices get slower with more, and results may differ
settings.register_profile("default", deadline=None, derandomize=True, phases=set(Phase) - {Phase.explain})
settings.load_profile("default")


@pytest.fixture(autouse=True)
def _torch_validates_distributions():
    """Put back what torch.compile switches off for good."""
    th.distributions.Distribution.set_default_validate_args(__debug__)
