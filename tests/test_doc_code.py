"""Every command and every block of code in the README and the guide is executed, on tiny models and data.

Only this is replaced: models' names stand for tiny checkpoints in folders of the same names, numbers of samples and
steps are small, Transformers takes the place of vLLM (tested elsewhere), and training runs on the CPU. Commands that
take minutes (`make`, `dco-trl train` with a recipe, the benchmarks) have tests of their own; here only their arguments
are checked.
"""

import contextlib
import functools
import glob
import importlib.util
import io
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tiny_models import make_model, save_checkpoint

from dco_trl import CoTDCOConfig, DCOConfig
from dco_trl.cli import main as dco_trl
from dco_trl.cli.train import parse

ROOT = Path(__file__).resolve().parent.parent
GUIDE = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RESULTS = sorted((ROOT / "docs" / "results").glob("*.md"))
EXTRAS = "|".join(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
MODELS = """
    HuggingFaceTB/SmolLM2-135M HuggingFaceTB/SmolLM2-135M-Instruct meta-llama/Meta-Llama-3-8B Qwen/Qwen2.5-1.5B
    models/SmolLM2-135M-Instruct my-model MODEL
""".split()
ROWS = [
    {"prompt": f"{a}+1=", "completion": f" {a + 1}", "answer": str(a + 1), "problem": f"what is {a}+1?"}
    for a in range(4)
]
ON_CPU = ["--use_cpu", "true", "--bf16", "false"]
SMALL = {"--num-samples": "2", "--num-attempts": "8", "--max-tokens": "4"}


def blocks(path: Path, *languages: str) -> list[str]:
    found = re.findall(r"^```(\w+)\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL)
    return [code for language, code in found if language in languages]


def commands(path: Path) -> list[list[str]]:
    return commands_of("".join(blocks(path, "sh", "bash")))


def commands_of(shell: str) -> list[list[str]]:
    lines = shell.replace("\\\n", " ").replace(" && ", "\n").splitlines()
    split = [shlex.split(line, comments=True) for line in lines]
    # Environment variables before a command are left out.
    return [words[next(i for i, word in enumerate(words) if "=" not in word) :] for words in split if words]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_documents_have_code():
    assert sum(len(commands(path)) for path in GUIDE) > 15
    assert sum(len(blocks(path, "python")) for path in GUIDE) > 5


@pytest.fixture
def world(tmp_path, monkeypatch):
    """The folder that the documents assume: models under their names, and data."""
    monkeypatch.chdir(tmp_path)
    checkpoint = save_checkpoint("checkpoint", max_position_embeddings=1024)
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    (checkpoint / "chat_template.jinja").write_text(template)
    for name in MODELS:
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).symlink_to(checkpoint.resolve(), target_is_directory=True)
    Path("data/gsm8k").mkdir(parents=True)
    for name in ("problems", "data/test", "data/validation", "data/gsm8k/train", "data/gsm8k/test"):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


def save_adapter(folder: str) -> None:
    base = make_model(max_position_embeddings=1024)
    base.config._name_or_path = "MODEL"
    get_peft_model(base, LoraConfig(r=2, target_modules="all-linear")).save_pretrained(folder)


def run_dco_trl(words: list[str]) -> None:
    """Run the command, made small."""
    words = list(words)
    for i, word in enumerate(words):
        if word in SMALL:
            words[i + 1] = SMALL[word]
        if word == "--sampler" and words[i + 1] == "vllm":
            words[i + 1] = "transformers"
    for i in range(words.index("--adapter") + 1 if "--adapter" in words else len(words), len(words)):
        if words[i].startswith("--"):
            break
        if not Path(words[i], "adapter_config.json").exists():
            words[i] += "-adapter"
            save_adapter(words[i])
    if words[0] in ("sample", "eval", "estimate", "solve") and "--max-tokens" not in words:
        words += ["--max-tokens", SMALL["--max-tokens"]]
    if words[0] in ("grade", "report"):
        folders = [word for word in words[1 : words.index("--output") if "--output" in words else 2] if word[0] != "-"]
        for folder in folders:  # runs that a document assumes
            if not Path(folder, "manifest.json").exists():
                sample = "sample --model MODEL --dataset data/test.jsonl --num-samples 2 --output"
                run_dco_trl([*sample.split(), folder])
            if words[0] == "report" and not Path(folder, "grades").exists():
                assert dco_trl(["grade", folder, "--grader", "math"]) == 0
    assert dco_trl(words) == 0, words


def small(code: str) -> str:
    """A block of Python, made small, and to run on a CPU."""
    code = code.replace('sampler="vllm"', 'sampler="transformers", max_rationale_tokens=4')
    cpu = "" if "use_cpu=True" in code else "use_cpu=True, bf16=False, "
    return re.sub(r'(output_dir="[^"]*")', rf'\1, {cpu}max_steps=1, report_to="none"', code)


@pytest.mark.slow
def test_the_blocks_of_the_readme_run_one_after_the_other(tmp_path, monkeypatch):
    """In a folder with the clone's `examples`, and a model and a data set in place of the hub's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    save_checkpoint("HuggingFaceTB/SmolLM2-135M", max_position_embeddings=1024)
    hub = Path("nlile/hendrycks-MATH-benchmark")
    hub.mkdir(parents=True)
    for split, rows in {"train": range(540), "test": range(600, 620)}.items():
        lines = [json.dumps({"problem": f"what is {i}+1?", "answer": str(i + 1)}) for i in rows]
        (hub / f"{split}.jsonl").write_text("\n".join(lines))
    Path("examples").symlink_to(ROOT / "examples")
    text = (ROOT / "README.md").read_text()
    for language, code in re.findall(r"^```(sh|python)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        if language == "python":
            exec(compile(small(code), "README.md", "exec"), {})
            continue
        for words in commands_of(code):
            words = [name for word in words for name in (sorted(glob.glob(word)) if "*" in word else [word])]
            if words[0] == "dco-trl":
                run_dco_trl(words[1:])
            elif words[0] == "python":  # a character is a token here, and no package holds the tiny model
                words += ["--model", "HuggingFaceTB/SmolLM2-135M"] if "prepare_smollm2" in words[1] else []
                if "--max_tokens" in words:
                    words[words.index("--max_tokens") + 1] = "480"
                run_script(words[1:])
            else:
                check_arguments(words)
    assert Path("report/report.html").is_file() and Path("runs/solved/answers.jsonl").is_file()


def run_script(words: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch, mock.patch.dict(os.environ):
        patch.setattr(sys, "argv", words)
        patch.syspath_prepend(str((ROOT / words[0]).parent))
        runpy.run_path(str(ROOT / words[0]), run_name="__main__")


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in GUIDE[1:] if commands(path)], ids=name_of)
def test_commands_of_the_guide_run(path, world):
    for words in commands(path):
        # Clusters and imported samples have tests of their own.
        if words[0] != "dco-trl" or words[1] in ("train", "train-cot", "demo", "import") or "--ray-workers" in words:
            check_arguments(words)
        else:
            run_dco_trl(words[1:])


@pytest.mark.parametrize("path", [path for path in GUIDE + RESULTS if commands(path)], ids=name_of)
def test_commands_name_what_exists(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    for words in commands(path):
        check_arguments(words)


def test_make_targets_that_are_named_exist():
    places = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / ".github").rglob("*.*")]
    named = {
        name for path in places for name in re.findall(r"(?:`|: |^)make ([a-z-]+)", path.read_text(), re.MULTILINE)
    }
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"check", "test", "test-long", "coverage", "wheel", "fuzz"} <= named
    assert not named - targets


def check_arguments(words: list[str]) -> None:
    """The command exists and takes these arguments; training recipes are parsed as in a run."""
    if words[0] == "accelerate":
        assert all((ROOT / word).is_file() for word in words if word.endswith(".yaml")), words
        words = ["dco-trl", *words[words.index("dco_trl") + 1 :]]
    if words[0] == "pip":
        package = rf"bitsandbytes|gguf|--no-deps|(\.|dco-trl)(\[({EXTRAS}|,)+\])?"
        assert words[1] == "install" and re.fullmatch(package, words[2]), words
    elif words[0] == "make":
        subprocess.run(["make", "--dry-run", *words[1:]], cwd=ROOT, check=True, capture_output=True)
    elif words[0] == "dco-trl" and words[1] in ("train", "train-cot"):
        config_class = {"train": DCOConfig, "train-cot": CoTDCOConfig}[words[1]]
        parse([str(ROOT / word) if word.endswith(".yaml") else word for word in words[2:]] + ON_CPU, config_class)
    elif words[0] == "dco-trl":
        check_flags(words, help_of("dco-trl", words[1]))
    elif words[0] == "vllm":
        check_flags(words, flags_of_vllm())
    else:
        assert words[0] == "python", words
        if words[1] == "-m" and words[2].startswith("research."):
            words = ["python", words[2].replace(".", "/") + ".py", *words[3:]]
        assert (ROOT / words[1]).is_file(), words
        if any(word.startswith("--") for word in words):
            check_flags(words, help_of("python", words[1]))


@functools.cache
def help_of(program: str, command: str) -> str:
    """What `--help` prints. A script runs in this process, which has imported most of what it needs."""
    with contextlib.redirect_stdout(io.StringIO()) as printed, pytest.raises(SystemExit) as exit:
        dco_trl([command, "--help"]) if program == "dco-trl" else run_script([command, "--help"])
    assert not exit.value.code
    return printed.getvalue()


def flags_of_vllm() -> str:
    """The source that names the arguments of vLLM's engine; without vLLM, all words of the guide."""
    spec = importlib.util.find_spec("vllm")
    if spec is None:
        return "\n".join(word for path in GUIDE for words in commands(path) for word in words)
    return (Path(spec.origin).parent / "engine/arg_utils.py").read_text()


def check_flags(words: list[str], help: str) -> None:
    """Every flag is one of this command's own."""
    known = {flag.replace("-", "_") for flag in re.findall(r"--[\w-]+", help)}
    unknown = [word for word in words if word.startswith("--") and word.replace("-", "_") not in known]
    assert not unknown, f"{unknown} of {words} is no argument of this command"


def test_a_flag_of_another_command_is_found_out():
    with pytest.raises(AssertionError, match=r"\['--grader'\] of .* is no argument of this command"):
        check_arguments("dco-trl sample --model m --grader math".split())
    with pytest.raises(AssertionError, match="--epochs"):
        check_arguments("python examples/scripts/prepare_math.py --dataset d --epochs 2".split())


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in GUIDE[1:] if blocks(path, "python")], ids=name_of)
def test_python_of_the_guide_runs(path, world, capsys):
    added = []
    names = {
        "dataset": Dataset.from_list(ROWS),
        "trainer": SimpleNamespace(add_callback=added.append, processing_class=None, model=make_model()),
    }
    for code in blocks(path, "python"):
        exec(compile(small(code), str(path), "exec"), names)  # each block continues where the last one stopped
        printed = capsys.readouterr().out
        for output in blocks(path, "text"):
            assert output in printed
