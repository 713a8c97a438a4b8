"""The citation names the version that is released."""

import yaml
from helpers.pages import ROOT

import sb3_trpo


def test_the_citation_has_the_version_of_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == sb3_trpo.__version__
    assert citation["references"][0]["url"] == "https://arxiv.org/abs/1502.05477"
