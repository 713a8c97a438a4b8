"""Switching off the argument checks of torch's distributions; tests/faults/test_threads.py does it in several threads."""

import math

import pytest
import torch as th

from sb3_trpo.distributions.argument_checks import unvalidated


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("error", [None, KeyboardInterrupt], ids=["normal", "exception"])
def test_unvalidated_accepts_nan_inside_and_restores_the_setting(before, error, monkeypatch):
    monkeypatch.setattr(th.distributions.Distribution, "_validate_args", before)
    try:
        with unvalidated():
            assert th.distributions.Normal(th.tensor(math.nan), th.tensor(-1.0)).loc.isnan()
            if error:
                raise error
    except KeyboardInterrupt:
        assert error is KeyboardInterrupt
    assert th.distributions.Distribution._validate_args is before
