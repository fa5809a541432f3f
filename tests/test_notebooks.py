"""Every notebook runs from top to bottom in a fresh kernel, and is committed as such a run left it."""

import json
import re
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml
from lengths import NOTEBOOK_SIZE
from nbclient import NotebookClient
from tiny_models import save_checkpoint

FOLDER = Path(__file__).resolve().parent.parent / "examples" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
ALL_N = "N_PRIME = [16, 256, 4096]"
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


def outputs(notebook) -> list:
    return [output for cell in code_cells(notebook) for output in cell.outputs]


def count_pictures(notebook) -> int:
    return sum("image/png" in output.get("data", {}) for output in outputs(notebook))


def replace(notebook, old: str, new: str) -> None:
    for cell in code_cells(notebook):
        cell.source = cell.source.replace(old, new)


def test_there_are_notebooks():
    assert NOTEBOOKS


def execute(notebook, folder: Path) -> None:
    """Run in a fresh kernel; a cell that raises makes this raise, with the cell and its traceback in the message."""
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    NotebookClient(notebook, timeout=None, kernel_name="python3", resources={"metadata": {"path": folder}}).execute()


@pytest.mark.slow
@each_notebook
def test_runs_from_top_to_bottom_outside_the_clone(path, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("DCO_TRL_NOTEBOOK_SIZE", str(NOTEBOOK_SIZE))
    committed, notebook = (nbformat.read(path, as_version=4) for _ in range(2))
    if NOTEBOOK_SIZE < 1:
        replace(notebook, ALL_N, "N_PRIME = [256]")
    execute(notebook, tmp_path)
    assert count_pictures(notebook) == count_pictures(committed)


# In this process: a start takes longer than two steps.
SMALL = """
from dco_trl.cli import main

def dco_trl(*arguments):
    assert main([*map(str, arguments)]) == 0

SCALES[SCALE]["train"] |= {
    "model_name_or_path": "MODEL", "dtype": "float32", "bf16": False, "use_cpu": True, "num_train_epochs": 1,
    "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "lora_r": 2,
}
SCALES[SCALE]["sample"] |= {"sampler": "transformers", "num-samples": 4, "max-tokens": 4}
"""


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["small", "paper"])
def test_table1_starts_at_every_scale_and_goes_on(scale, tmp_path):
    """As it is, but for the model, the data and two steps in place of four epochs; once more, as after a stop."""
    save_checkpoint(tmp_path / "MODEL", max_position_embeddings=128)
    data = tmp_path / f"table1-{scale}"
    data.mkdir()
    rows = "".join(f'{{"prompt": "{a}+1=", "completion": " {a + 1}", "answer": "{a + 1}"}}\n' for a in range(4))
    for split in ("train", "test"):
        (data / f"{split}.jsonl").write_text(rows)
    notebook = nbformat.read(FOLDER / "table1.ipynb", as_version=4)
    replace(notebook, 'SCALE = "tiny"', f'SCALE = "{scale}"')
    replace(notebook, ALL_N, "N_PRIME = [256]")
    use = next(i for i, cell in enumerate(notebook.cells) if cell.source.startswith("runs = tiny() if"))
    notebook.cells.insert(use + 1, notebook.cells[use].copy())
    notebook.cells.insert(use, nbformat.v4.new_code_cell(SMALL))
    execute(notebook, tmp_path)
    assert count_pictures(notebook) == 2
    state = json.loads((data / "N-256" / "checkpoint-2" / "trainer_state.json").read_text())
    assert state["global_step"] == 2


def test_the_scales_of_table1_are_the_recipes():
    settings = next(cell for cell in code_cells(nbformat.read(FOLDER / "table1.ipynb", 4)) if "COMMON" in cell.source)
    names = {"K": [1, 16, 256, 4096], "SCALE": "paper"}
    exec(settings.source, names)
    recipe = yaml.safe_load((FOLDER.parent / "recipes" / "llama3-8b-math-lora.yaml").read_text())
    paper = names["SCALES"]["paper"]["train"]
    assert {key: recipe[key] for key in paper} == paper


def test_what_cot_says_of_its_recipe_is_there():
    text = "".join(cell.source for cell in nbformat.read(FOLDER / "cot.ipynb", as_version=4).cells)
    said = yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.DOTALL).group(1))
    recipe = yaml.safe_load((FOLDER.parent / "recipes" / "qwen2.5-1.5b-gsm8k-cot-lora.yaml").read_text())
    assert len(said) > 10 and {key: recipe[key] for key in said} == said


@each_notebook
def test_installs_what_is_missing_and_sets_its_size(path):
    first, *rest = code_cells(nbformat.read(path, as_version=4))
    assert 'SIZE = float(os.environ.get("DCO_TRL_NOTEBOOK_SIZE", 1))' in first.source
    assert any("scaled(" in cell.source for cell in rest)
    assert 'find_spec("dco_trl") is None' in first.source and '%pip install --quiet "dco-trl[eval]"' in first.source


@each_notebook
def test_has_a_badge_once_the_repository_has_an_address(path):
    project = tomllib.loads((FOLDER.parents[1] / "pyproject.toml").read_text())["project"]
    address = project.get("urls", {}).get("Repository", "").removeprefix("https://github.com/")
    badge = f"https://colab.research.google.com/github/{address}/blob/main/examples/notebooks/{path.name}"
    assert (badge in nbformat.read(path, as_version=4).cells[0].source) == bool(address), badge


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
