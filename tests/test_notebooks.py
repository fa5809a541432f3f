"""Every notebook runs from top to bottom in a fresh kernel, and is committed as such a run left it."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent.parent / "examples" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


def outputs(notebook) -> list:
    return [output for cell in code_cells(notebook) for output in cell.outputs]


def count_pictures(notebook) -> int:
    return sum("image/png" in output.get("data", {}) for output in outputs(notebook))


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.slow
@each_notebook
def test_runs_from_top_to_bottom(path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    committed, notebook = (nbformat.read(path, as_version=4) for _ in range(2))
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    # A cell that raises makes this raise, with the cell and its traceback in the message.
    NotebookClient(notebook, timeout=800, kernel_name="python3", resources={"metadata": {"path": FOLDER}}).execute()
    assert count_pictures(notebook) == count_pictures(committed)


@each_notebook
def test_is_committed_with_the_outputs_of_one_run(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "not one run, in order"
    assert count_pictures(notebook) > 0
    assert not [output for output in outputs(notebook) if output.output_type == "error"]
    # Warnings and progress bars on stderr tell a reader nothing.
    assert not [output.text for output in outputs(notebook) if output.get("name") == "stderr"]


@each_notebook
def test_opens_with_what_it_shows_and_how_long_it_takes(path):
    first = nbformat.read(path, as_version=4).cells[0]
    assert first.cell_type == "markdown" and first.source.startswith("# ")
    assert re.search(r"what it shows", first.source, re.IGNORECASE)
    assert re.search(r"how long it takes.*(second|minute|hour)", first.source, re.IGNORECASE | re.DOTALL)


@each_notebook
def test_names_no_machine(path):
    text = "".join(cell.source for cell in nbformat.read(path, as_version=4).cells)
    text += "".join(str(output) for output in outputs(nbformat.read(path, as_version=4)))
    assert not re.search(r"(?<![\w.:/])/(home|root|work|tmp|Users|mnt|opt)/", text)
