"""Two processes, each sampling its own prompts, give the weights of one: gloo, on a CPU."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from forks import run

HERE = Path(__file__).parent
RUNS = {
    "epoch": {"sampling_interval": "epoch", "ce_warmup_steps": 1},
    "two steps, sampled targets": {"sampling_interval": 2, "targets": "sampled", "num_targets": 3},
}


def launch(num_processes: int, folder: Path) -> dict[str, dict]:
    sizes = {"per_device_train_batch_size": 4 // num_processes, "learning_rate": 1e-3}
    settings = json.dumps([{**options, **sizes} for options in RUNS.values()])
    script, results = HERE / "cot_distributed_run.py", folder / f"{num_processes}.pt"
    code, output = run(script, settings, results, processes=num_processes, ACCELERATE_USE_CPU="true")
    assert code == 0, output[-3000:]
    return dict(zip(RUNS, torch.load(folder / f"{num_processes}.pt", weights_only=False), strict=True))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cot-distributed")
    return launch(1, folder), launch(2, folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_two_processes_are_one(results, name):
    one, two = results[0][name], results[1][name]
    # The first window is sampled from the same weights, with the same draws: the same counts.
    first = next(step for step in one["steps"] if "rationales" in step)
    theirs = next(step for step in two["steps"] if "rationales" in step)
    for key in ("rationales", "rationale_tokens", "success_rate", "rationales_truncated"):
        assert theirs[key] == pytest.approx(first[key], rel=1e-6), key
    for ours, others in zip(two["steps"], one["steps"], strict=True):
        keys = ("loss", "coverage_weight", "log_p")
        assert {k: ours[k] for k in keys} == pytest.approx({k: others[k] for k in keys}, rel=5e-3, abs=1e-4)
    np.testing.assert_allclose(two["prior"], one["prior"], rtol=1e-3)
    for ours, others in zip(two["counts"], one["counts"], strict=True):
        np.testing.assert_allclose(ours, others)
    for weight_name, weight in one["weights"].items():
        torch.testing.assert_close(two["weights"][weight_name], weight, rtol=1e-3, atol=5e-4, msg=weight_name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "scenario, failing, own, what",
    [
        ("grader", 1, "raised ZeroDivisionError", "sampling and grading rationales"),
        ("saving", 0, "File too large", "saving the weights for the sampler"),
    ],
)
def test_a_process_that_fails_stops_all_of_them(tmp_path, scenario, failing, own, what):
    # The issue is a job that hangs: here nobody ends the other process but itself.
    code, output = run(HERE / "cot_failing_run.py", scenario, tmp_path, processes=2, ACCELERATE_USE_CPU="true")
    assert code != 0 and own in output
    assert re.search(f"RuntimeError: Process {failing} failed while {what}, so all of them stop: .*{own}", output)
    assert not list(tmp_path.glob(".dco-sampler-*"))
