"""Markdown tables of raw results."""

from __future__ import annotations

from collections.abc import Iterable


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """
    Format a Markdown table.

    :param head: names of the columns
    :param rows: the cells
    :return: Markdown
    """
    head = list(head)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))
