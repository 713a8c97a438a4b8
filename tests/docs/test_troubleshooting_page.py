"""The messages on the page on troubleshooting are those of the package, and all of its warnings are on the page."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest
from helpers.pages import DOCS, ROOT

PAGE = (DOCS / "guide" / "troubleshooting.md").read_text()
MESSAGES = re.findall(r"^\| `([^`]+)` \| [^|]+ \| [^|]+ \|$", PAGE.partition("## Messages by their text")[2], re.MULTILINE)
WARN = ("warn", "_warn", "_warn_once")
TREES = {str(path): ast.parse(path.read_text()) for path in sorted((ROOT / "sb3_trpo").rglob("*.py"))}


def text_of(node: ast.AST) -> str | None:
    """Give the text of a string, with "..." for what is filled in; ``None`` for anything else."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) or "..." for part in node.values)
    if isinstance(node, ast.BinOp):  # added up
        return (text_of(node.left) or "...") + (text_of(node.right) or "...")
    return None


def texts_in(tree: ast.AST) -> Iterator[str]:
    found = (text_of(node) for node in ast.walk(tree) if isinstance(node, (ast.Constant, ast.JoinedStr, ast.BinOp)))
    yield from (text for text in found if text is not None)


def shows(message: str, text: str) -> bool:
    """Check that the message has the words of the text in their order; dots stand for anything."""
    pattern = ".*".join(re.escape(part) for part in message.split("..."))
    return re.match(pattern, text, re.DOTALL) is not None


TEXTS = [text for tree in TREES.values() for text in texts_in(tree)]
WARNINGS = sorted(
    {
        text
        for tree in TREES.values()
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and (getattr(call.func, "attr", None) or getattr(call.func, "id", None)) in WARN
        for text in filter(None, map(text_of, call.args))
        if " " in text and len(text) > 20
    }
)


def test_messages_and_warnings_are_found():
    assert len(MESSAGES) >= 30
    assert len(WARNINGS) >= 18


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_is_in_the_package(message):
    if "lost in rounding" in message:  # put together of an outcome's name and its advice
        message = message.partition(". ")[2]
    assert any(shows(message, text) for text in TEXTS)


@pytest.mark.parametrize("warning", WARNINGS)
def test_a_warning_is_on_the_page(warning):
    assert any(shows(message, warning) for message in MESSAGES)
