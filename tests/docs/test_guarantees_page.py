"""Every test that the page on guarantees names exists."""

import ast
import functools
import re

import pytest
from helpers.pages import DOCS, ROOT

PAGE = (DOCS / "algorithm" / "guarantees.md").read_text()
NAMED = sorted(set(re.findall(r"`(tests/\S+\.py)::(\w+)`", PAGE)))


@functools.cache
def names_in(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


@pytest.mark.parametrize(("path", "name"), NAMED, ids=[name for _, name in NAMED])
def test_a_test_that_the_page_names_exists(path, name):
    assert name in names_in(path)


def test_every_promise_names_a_test():
    table = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| promise")]
    assert len(table) >= 30
    for row in table:
        assert re.search(r"\| `tests/\S+\.py::\w+`", row), row
