"""Every notebook runs from top to bottom in a fresh kernel, and is committed with the outputs of such a run."""

import atexit
import contextlib
import importlib.util
import io
import json
import re
import shlex
import shutil
import sys
import tomllib
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import nbformat
import numpy as np
import pytest
import yaml
from IPython.core.interactiveshell import InteractiveShell
from lengths import NOTEBOOK_SIZE
from local_server import served
from packaging.requirements import Requirement
from tiny_models import save_checkpoint
from traitlets.config import Config

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "examples" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
# Cells with this tag print the same whatever the notebook's size is.
SAME = "same-at-every-size"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ADDRESS = PROJECT.get("urls", {}).get("Repository", "")
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)

spec = importlib.util.spec_from_file_location("notebooks", ROOT / ".ci" / "notebooks.py")
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)


def code_cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


def outputs(notebook) -> list:
    return [output for cell in code_cells(notebook) for output in cell.outputs]


def count_pictures(notebook) -> int:
    return sum("image/png" in output.get("data", {}) for output in outputs(notebook))


def texts(cell) -> str:
    """What a cell prints, and the Markdown that it shows."""
    parts = [output.get("text") or output.get("data", {}).get("text/markdown", "") for output in cell.outputs]
    return "".join(parts)


def printed_by_same_cells(notebook) -> list[str]:
    return [texts(cell) for cell in code_cells(notebook) if SAME in cell.metadata.get("tags", [])]


def cell_with(name: str, text: str):
    [found] = [c for c in code_cells(nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)) if text in c.source]
    return found


@contextlib.contextmanager
def repository_served():
    """The address of a server that serves this repository like a hosted branch `main`."""

    class Branch(SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(ROOT))

        def do_GET(self):
            assert self.path.startswith("/owner/dco_trl/main/"), self.path
            self.path = self.path.removeprefix("/owner/dco_trl/main")
            super().do_GET()

    with served(Branch) as address:
        yield f"{address}/owner/dco_trl"


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.slow
@each_notebook
def test_runs_from_top_to_bottom_outside_the_clone(path, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("DCO_TRL_NOTEBOOK_SIZE", str(NOTEBOOK_SIZE))
    committed, notebook = (nbformat.read(path, as_version=4) for _ in range(2))
    with repository_served() as address:
        first = code_cells(notebook)[0]
        first.source = tool.ADDRESS.sub(f'REPOSITORY = "{address}"', first.source)
        tool.run(notebook, tmp_path)
    assert count_pictures(notebook) == count_pictures(committed)
    assert printed_by_same_cells(notebook) == printed_by_same_cells(committed)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Specifying null_placement:FutureWarning")  # datasets, as it calls pyarrow 25
def test_table1_trains_the_real_models_way_and_goes_on(tmp_path, monkeypatch):
    """Unchanged, except for the model, the data, the processor and the epochs: one, then another after a stop."""
    monkeypatch.chdir(tmp_path)
    save_checkpoint(tmp_path / "MODEL", max_position_embeddings=128)
    (tmp_path / "DATA").mkdir()
    rows = [{"problem": f"{'what is ' * (4 - a)}{a}+1?", "answer": str(a + 1)} for a in range(4)]
    for split in ("train", "test"):
        lines = [json.dumps(row) for row in [*rows, {"problem": "without an answer", "answer": ""}]]
        (tmp_path / "DATA" / f"{split}.jsonl").write_text("\n".join(lines))
    names = {"K": [1, 16], "Path": Path, "np": np}
    exec(cell_with("table1", "RUN_SMALL = False").source, names)
    names |= {"MODEL": "MODEL", "DATA": "DATA", "NUM_TRAIN": 2, "NUM_VALIDATION": 1, "NUM_TEST": 2}
    on_cpu = {"fp16": False, "use_cpu": True, "disable_tqdm": True, "dataloader_pin_memory": False}
    for num_epochs in (1, 2):
        names["SETTINGS"] |= on_cpu | {"num_train_epochs": num_epochs}
        assert names["small"](256).shape == (num_epochs, 2)
    assert [folder.name for folder in Path("table1-small/N-256").glob("checkpoint-*")] == ["checkpoint-2"]
    assert [row["prompt"] for row in names["shortest"]("test", 2)] == [
        "what is 3+1?\nAnswer:",
        "what is what is 2+1?\nAnswer:",
    ]


def test_table1_opens_with_the_stored_table_from_the_network_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown: list = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    cell = cell_with("table1", "def stored")
    with repository_served() as address, contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(cell.source, {"REPOSITORY": address, "K": [1, 16, 256, 4096]})
    assert shown[0].data + printed.getvalue() == texts(cell)
    rows = [re.sub(" +", " ", line.replace("*", "")) for line in shown[0].data.splitlines()[2:]]
    readme = (ROOT / "README.md").read_text()
    assert len(rows) == 6 and all(row in readme for row in rows if not row.startswith("| 5"))


def test_answers_skips_programs_where_the_kernel_cannot_confine_them(monkeypatch, capsys):
    monkeypatch.setattr("dco_trl.grading.code_sandbox.unconfinable", lambda: "this kernel offers no Landlock")
    exec(cell_with("answers", "import code_grader").source, {})
    assert capsys.readouterr().out == "Skipped: this kernel offers no Landlock.\n"


def test_what_cot_says_of_its_recipe_is_there():
    text = "".join(cell.source for cell in nbformat.read(FOLDER / "cot.ipynb", as_version=4).cells)
    said = yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.DOTALL).group(1))
    recipe = yaml.safe_load((FOLDER.parent / "recipes" / "qwen2.5-1.5b-gsm8k-cot-lora.yaml").read_text())
    assert len(said) > 10 and {key: recipe[key] for key in said} == said


def test_the_guide_has_the_figures_of_choose_n():
    printed = texts(cell_with("choose_n", "paired_difference(before, after"))
    figures = re.search(r"pass@256 .* %\s+([+-][\d.]+)\s+\[([+-][\d.]+), ([+-][\d.]+)\]", printed).groups()
    mean, low, high = (f"{float(figure):+.0f}" for figure in figures)
    guide = " ".join((ROOT / "docs/choosing-n.md").read_text().split())
    assert f"finds {mean} points at pass@256, [{low}, {high}]." in guide


@each_notebook
@pytest.mark.slow
def test_installs_from_the_repository_what_is_missing(path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "dco_trl" else find(name))
    # A shell replaces the main module, and ends with the process.
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    shell, asked = InteractiveShell(config=Config(HistoryManager={"enabled": False})), []
    atexit.unregister(shell.atexit_operations)
    shell.register_magic_function(asked.append, magic_name="pip")
    source = code_cells(nbformat.read(path, as_version=4))[0].source
    address = "https://github.com/somebody/dco_trl"
    shell.run_cell(tool.ADDRESS.sub(f'REPOSITORY = "{address}"', source)).raise_error()
    [_, requirement] = [word for word in shlex.split(asked[0]) if not word.startswith("-")]  # pip install …
    found = Requirement(requirement)
    assert (found.name, found.extras, found.url) == (PROJECT["name"], {"eval"}, f"git+{address}")
    if not ADDRESS:
        with pytest.raises(ValueError, match="set REPOSITORY to the address that you have this notebook from"):
            shell.run_cell(source, silent=True).raise_error()
    shell.atexit_operations()


@each_notebook
def test_links_lead_to_files(path):
    text = "".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown")
    links = re.findall(rf"\]\((?:\.\./\.\./|{re.escape(ADDRESS or 'no address')}/blob/main/)([^)#]*)", text)
    assert all((ROOT / link).exists() for link in links), links
    # In Colab there are no files beside a notebook.
    assert not ADDRESS or "](../" not in text


@each_notebook
def test_has_the_address_once_the_repository_has_one(path):
    first, code = (nbformat.read(path, as_version=4).cells[i].source for i in (0, 1))
    assert tool.ADDRESS.findall(code) == [ADDRESS or "https://github.com/OWNER/dco_trl"]
    assert ("colab-badge" in first) == bool(ADDRESS)


def test_the_address_makes_links_absolute_and_no_outputs_old(tmp_path):
    for path in NOTEBOOKS:
        copy = Path(shutil.copy(path, tmp_path))
        for _ in range(2):
            tool.set_repository(copy, "https://github.com/somebody/dco_trl/")
        notebook = nbformat.read(copy, as_version=4)
        badge = f"colab.research.google.com/github/somebody/dco_trl/blob/main/examples/notebooks/{path.name})"
        assert notebook.cells[0].source.count(badge) == 1
        assert 'REPOSITORY = "https://github.com/somebody/dco_trl"\n' in notebook.cells[1].source
        text = "".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
        assert "](../" not in text
        assert notebook.metadata["code_hash"] == tool.code_hash(notebook)


@each_notebook
def test_outputs_are_not_older_than_the_code(path):
    notebook = nbformat.read(path, as_version=4)
    assert notebook.metadata.get("code_hash") == tool.code_hash(notebook), f"execute it: .ci/notebooks.py {path.stem}"
    code_cells(notebook)[-1].source += "\nprint()"
    assert notebook.metadata["code_hash"] != tool.code_hash(notebook)


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
def test_opens_with_what_it_shows_how_long_it_takes_and_its_size(path):
    notebook = nbformat.read(path, as_version=4)
    first, [setup, *rest] = notebook.cells[0], code_cells(notebook)
    assert first.cell_type == "markdown" and first.source.startswith("# ")
    assert re.search(r"what it shows", first.source, re.IGNORECASE)
    assert re.search(r"how long it takes.*(second|minute|hour)", first.source, re.IGNORECASE | re.DOTALL)
    assert 'SIZE = float(os.environ.get("DCO_TRL_NOTEBOOK_SIZE", 1))' in setup.source
    assert any("scaled(" in cell.source for cell in rest)


@each_notebook
def test_names_no_machine(path):
    text = "".join(cell.source for cell in nbformat.read(path, as_version=4).cells)
    text += "".join(str(output) for output in outputs(nbformat.read(path, as_version=4)))
    assert not re.search(r"(?<![\w.:/])/(home|root|work|tmp|Users|mnt|opt)/", text)
