"""`make gpu-check` on a CPU, at tiny sizes: every step to its end, what is kept, and the page."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

# The scripts import each other by name, as they do when one of them is run.
sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import gpu_check
import gpu_page
import gpu_steps
from measure import count_synchronisations


def run(folder: Path, *arguments: str) -> tuple[int, str]:
    command = [sys.executable, gpu_check.__file__, "--tiny", "--output_dir", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_every_step_runs_to_its_end(tmp_path):
    code, output = run(tmp_path)
    assert code == 0, output
    record = json.loads((tmp_path / "gpu.json").read_text())
    done = {name for name, step in record["steps"].items() if step["status"] == "done"}
    without = {"vllm"} | ({"qlora"} if find_spec("bitsandbytes") is None else set())
    assert done == set(gpu_check.DEFAULT_STEPS) - without
    assert all(row["bit for bit"] for row in record["steps"]["equivalence"]["tables"][0]["rows"])
    assert "Does not hold" not in (tmp_path / "gpu.md").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpu.json", "gpu.log", "gpu.md"]

    # What is done is kept, and not run again.
    code, output = run(tmp_path, "--steps", "loss-alone")
    assert code == 0 and "loss-alone …" not in output
    assert json.loads((tmp_path / "gpu.json").read_text()) == record


@pytest.mark.slow
def test_a_step_that_takes_too_long_is_stopped(tmp_path):
    code, output = run(tmp_path, "--steps", "dtypes", "--limit", "0.01")
    assert code == 1 and "dtypes             failed" in output
    [step] = json.loads((tmp_path / "gpu.json").read_text())["steps"].values()
    assert (step["status"], step["reason"]) == ("failed", "it was stopped after 0 s")
    assert "**Failed**: it was stopped after 0 s" in (tmp_path / "gpu.md").read_text()


def test_steps_and_limits_are_of_the_same_names():
    assert [*gpu_steps.STEPS, "table-1"] == list(gpu_check.LIMITS)
    assert all(gpu_check.step_descriptions()[name] for name in gpu_check.LIMITS)


def test_table_1_needs_arguments(tmp_path, capsys):
    with pytest.raises(SystemExit):
        gpu_check.main(["--output_dir", str(tmp_path), "--steps", "table-1"])
    assert "the step table-1 needs --table-1" in capsys.readouterr().err


def test_page():
    environment = {
        "device": {"name": "CARD", "memory_gib": 79.6, "driver": "580"},
        "cpu_cores": 16,
        "versions": {"torch": "2.11.0", "vllm": None},
    }
    rows = [{"model": "8B", "ratio": 1.00312, "quartiles": [0.99, 1.02], "peak": None, "same": True, "small": 2.5e-7}]
    checks = [{"what": "time at most 1.02", "passed": True}, {"what": "memory at most 1.01", "passed": False}]
    steps = {
        "training-steps": {"status": "done", "tables": [{"title": "A step", "rows": rows}], "checks": checks},
        "qlora": {"status": "skipped", "reason": "bitsandbytes is not installed"},
    }
    steps["training-steps"] |= {"headline": "time 1.003", "seconds": 12.3}
    record = {"environment": environment, "steps": steps}
    page = gpu_page.page(record, {"training-steps": "What it is.", "qlora": "Four bits."}, "python x.py")
    assert "CARD, 80 GiB, driver 580, 16 CPU cores; torch 2.11.0." in page
    assert "| 8B | 1.003 | [0.99, 1.02] | not measured | yes | 2.5e-07 |" in page
    assert "1 of 2 checks hold." in page and "- **Does not hold**: memory at most 1.01" in page
    assert "## QLoRA\n\nFour bits.\n\n**Skipped**: bitsandbytes is not installed" in page
    assert [line.split()[:2] for line in gpu_page.summary(record).splitlines()] == [
        ["training-steps", "1"],
        ["qlora", "skipped"],
    ]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: x.sum().item(), 1),
        (lambda x: [float(value) for value in x], 4),
        (lambda x: x[x > 0], 1),
        (lambda x: x.masked_select(x > 0), 1),
        (lambda x: (x > 0).nonzero(), 1),
        (lambda x: x.repeat_interleave(torch.tensor([1, 0, 2, 1])), 1),
        (lambda x: bool((x > 0).all()), 1),
        (lambda x: torch.where(x > 0, x, 0.0)[torch.arange(2)], 0),
    ],
)
def test_waits_are_counted(function, expected):
    assert count_synchronisations(lambda: function(torch.arange(4.0))) == expected


def test_what_was_found_is_kept_when_a_missing_package_comes():
    versions = {"torch": "2.11.0", "bitsandbytes": None, "vllm": None}
    before = {"device": None, "cpu_cores": 2, "versions": versions}
    assert gpu_check.continues(before, {**before, "versions": {**versions, "bitsandbytes": "0.50.2"}})
    assert not gpu_check.continues(before, {**before, "versions": {**versions, "torch": "2.13.0"}})
    assert not gpu_check.continues(before, {**before, "cpu_cores": 16})
    assert not gpu_check.continues({**before, "versions": {**versions, "vllm": "0.31.0"}}, before)
