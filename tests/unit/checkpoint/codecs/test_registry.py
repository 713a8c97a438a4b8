"""The list of codecs: complete, each reachable, and none hidden behind an earlier one."""

import importlib
import inspect
import pickle
import pkgutil
from collections import Counter

import pytest

from sb3_trpo.checkpoint import codecs
from sb3_trpo.checkpoint.codecs.codec import Codec
from sb3_trpo.checkpoint.codecs.registry import CODECS, REPLAYED

MODULES = [importlib.import_module(found.name) for found in pkgutil.walk_packages(codecs.__path__, f"{codecs.__name__}.")]


def test_every_codec_is_listed_once():
    defined = {each for module in MODULES for each in vars(module).values() if inspect.isclass(each)}
    concrete = {each for each in defined if issubclass(each, Codec) and not inspect.isabstract(each)}
    assert len(concrete) > 20
    assert Counter(type(codec) for codec in CODECS) == Counter(concrete)


def test_no_codec_is_hidden_behind_an_earlier_one():
    hidden = [(codec, cls) for codec in CODECS for cls in codec.types if cls not in CODECS.of_class(cls).types]
    assert hidden == []


def test_every_kind_is_decoded_by_one_codec():
    counts = Counter(kind for codec in CODECS for kind in codec.kinds)
    assert set(counts.values()) == {1}
    for codec in CODECS:
        assert all(CODECS.of_kind(kind, "v") is codec for kind in codec.kinds)


def test_workers_are_sent_the_same_list():
    sent = pickle.loads(pickle.dumps(CODECS))
    assert [type(codec) for codec in sent] == [type(codec) for codec in CODECS]


@pytest.mark.parametrize("name", REPLAYED)
def test_replayed_environments_exist_under_their_names(name):
    module, _, cls = name.rpartition(".")
    pytest.importorskip("Box2D" if "box2d" in name else "ale_py")
    assert inspect.isclass(getattr(importlib.import_module(module), cls))
