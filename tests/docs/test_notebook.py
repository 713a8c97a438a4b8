"""The notebook: its cells run, in a kernel of their own and with short runs, and it is stored without what they print."""

from pathlib import Path

import nbclient
import nbformat
import pytest
from helpers.pages import DOCS

import sb3_trpo

NOTEBOOK = DOCS / "notebooks" / "quickstart.ipynb"
IMPORTED_FROM = [str(Path(sb3_trpo.__file__).parents[1]), str(Path(__file__).parents[1])]
SHORT_RUNS = f"""
import sys
sys.path[:0] = {IMPORTED_FROM}
import pytest
from helpers.pages import shorten
shorten(pytest.MonkeyPatch())
"""


def read():
    return nbformat.read(NOTEBOOK, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_the_notebook_is_valid_and_stored_without_outputs():
    notebook = read()
    nbformat.validate(notebook)
    assert [cell.id for cell in code_cells(notebook) if cell.outputs or cell.execution_count] == []


@pytest.mark.filterwarnings("default")  # those of the client, which runs an event loop
def test_the_notebook_runs(tmp_path, monkeypatch):
    for variable in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    notebook = read()
    notebook.cells.insert(0, nbformat.v4.new_code_cell(SHORT_RUNS))
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = {kind for cell in code_cells(notebook) for output in cell.outputs for kind in output.get("data", ())}
    assert {"image/png", "image/gif"} <= shown  # the learning curve, the animation
    assert (tmp_path / "notebook_logs").is_dir()
