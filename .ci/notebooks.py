"""Execute the example notebooks whole and keep their outputs, or give them the repository's address.

    python .ci/notebooks.py [NAME …]                        # all of them, or those named
    python .ci/notebooks.py --repository https://github.com/OWNER/NAME

An executed notebook holds a hash of its code, so that tests/test_notebooks.py finds older outputs. The address
makes links absolute, for Colab, where nothing lies beside a notebook, and brings Colab's badge.
"""

import argparse
import hashlib
import re
from pathlib import Path
from typing import Any

import nbformat

FOLDER = Path(__file__).resolve().parents[1] / "examples" / "notebooks"
ADDRESS = re.compile(r'^REPOSITORY = "(.*)"$', re.MULTILINE)


def code_hash(notebook: Any) -> str:
    """A hash of the code cells, whatever the repository's address is."""
    sources = [ADDRESS.sub("", cell.source).strip() for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\0".join(sources).encode()).hexdigest()[:16]


def run(notebook: Any, folder: Path) -> None:
    """Run from top to bottom in a fresh kernel; a cell that raises makes this raise, with cell and traceback."""
    from nbclient import NotebookClient

    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    resources = {"metadata": {"path": folder}}
    NotebookClient(
        notebook, timeout=None, kernel_name="python3", resources=resources, record_timing=False, coalesce_streams=True
    ).execute()


def execute(path: Path) -> None:
    """Run a notebook where it lies, and write it with its outputs and the hash of its code."""
    notebook = nbformat.read(path, as_version=4)
    run(notebook, path.parent)
    notebook.metadata["code_hash"] = code_hash(notebook)
    nbformat.write(notebook, path)


def set_repository(path: Path, address: str) -> None:
    """Write the address into a notebook: the variable of its first code cell, its links and its badge."""
    notebook = nbformat.read(path, as_version=4)
    owner_and_name = address.rstrip("/").removeprefix("https://github.com/")
    first = notebook.cells[0]
    colab = "https://colab.research.google.com"
    badge = (
        f"[![Open in Colab]({colab}/assets/colab-badge.svg)]"
        f"({colab}/github/{owner_and_name}/blob/main/examples/notebooks/{path.name})\n\n"
    )
    first.source = badge + re.sub(r"^\[!\[Open in Colab\].*\n\n", "", first.source)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.source = ADDRESS.sub(f'REPOSITORY = "https://github.com/{owner_and_name}"', cell.source)
        else:
            cell.source = cell.source.replace("](../../", f"](https://github.com/{owner_and_name}/blob/main/")
    nbformat.write(notebook, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="Which notebooks, without .ipynb; all of them by default.")
    parser.add_argument("--repository", help="The address to write. Nothing is executed.")
    args = parser.parse_args()
    for path in [FOLDER / f"{name}.ipynb" for name in args.names] or sorted(FOLDER.glob("*.ipynb")):
        if args.repository:
            set_repository(path, args.repository)
        else:
            print(path.stem, flush=True)
            execute(path)


if __name__ == "__main__":
    main()
