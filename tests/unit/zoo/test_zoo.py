"""The package itself: its public names."""

import sys

import pytest

import sb3_trpo.zoo
from sb3_trpo.zoo import algorithms, experiment, masking, patches, reporting, search_spaces


def test_public_names_come_from_their_modules():
    homes = (algorithms, experiment, masking, patches, reporting, search_spaces, sys.modules["sb3_trpo.zoo.command"])
    assert set(sb3_trpo.zoo.__all__) == sb3_trpo.zoo.HOMES.keys()
    for name in sb3_trpo.zoo.__all__:
        found = getattr(sb3_trpo.zoo, name)
        assert any(found is getattr(home, name, None) for home in homes), name
    with pytest.raises(ImportError, match="cannot import name 'screens'"):
        from sb3_trpo.zoo import screens  # noqa: F401
