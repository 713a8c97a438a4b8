"""The pages of the documentation: their code runs, their links lead somewhere, and they are not too long."""

import re

import pytest
from helpers.pages import DOCS, ROOT, blocks_of, pages, run_page, shorten

PAGES = {str(page.relative_to(ROOT)): page for page in pages()}
TEXTS = [*sorted({*ROOT.glob("[A-Z]*.md"), *ROOT.glob("*/README.md")} - {*PAGES.values()})]
"""Texts that are no pages of the site."""
LONGEST_PAGE = 300
each_page = pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)


def test_blocks_are_found_with_the_code_that_a_reader_has_already():
    text = "Text.\n\n% setup\n% x = 1\n%\n% y = 2\n\n```python\nassert (x, y) == (1, 2)\n```\n\n```console\nno\n```\n"
    assert blocks_of(text) == ["x = 1\n\ny = 2\n", "assert (x, y) == (1, 2)\n"]


@pytest.mark.parametrize("page", [page for page in PAGES.values() if blocks_of(page.read_text())], ids=lambda page: page.stem)
@pytest.mark.filterwarnings("default")
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shorten(monkeypatch)
    run_page(page)


@each_page
def test_no_page_is_long(page):
    assert len(page.read_text().splitlines()) <= LONGEST_PAGE


def anchors_of(page):
    """List the anchors of a page's headings, as GitHub and MyST make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES.values(), *TEXTS], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_inside_the_repository_lead_somewhere(page):
    for file, anchor in re.findall(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]*))?\)", page.read_text()):
        target = page.parent / file if file else page
        assert target.exists(), file
        assert not anchor or anchor in anchors_of(target), f"{file}#{anchor}"


@each_page
def test_files_that_a_page_includes_exist(page):
    for file in re.findall(r"^```{(?:literal)?include} (\S+)$", page.read_text(), re.MULTILINE):
        assert (page.parent / file).exists(), file


def test_every_page_is_in_the_index():
    listed = set(re.findall(r"^(\w+(?:/\w+)?)$", (DOCS / "index.md").read_text(), re.MULTILINE))
    assert listed == {str(page.relative_to(DOCS).with_suffix("")) for page in DOCS.rglob("*.md")} - {"index"}
