"""Two processes train like one, even if they share a model between them: DDP, FSDP 2 and DeepSpeed ZeRO, on a CPU."""

import importlib.util
import json
import re
from pathlib import Path

import forks
import numpy as np
import pytest
import torch
from sharding import CONFIGS, HERE, launch_environment, run
from tiny_models import save_checkpoint
from training import assert_same_weights

# All but the first train a checkpoint: once DeepSpeed runs, ZeRO-3 initialises a model in memory differently.
SAVED, EPOCH = {"model": "saved"}, {"num_train_epochs": 1, "max_steps": -1}
COT = {**SAVED, "cot": True}
SAVING = {"save_strategy": "steps", "save_steps": 2}
RUNS = {
    # The last batch of the epoch is uneven, and evaluation comes between steps.
    "token": dict(EPOCH, rows=[*range(11)], train_sampling_strategy="sequential", eval_strategy="steps", eval_steps=1),
    # The last window of the epoch is uneven.
    "sequence": dict(SAVED, loss_reduction="sequence", gradient_accumulation_steps=2, **EPOCH),
    "sequence_mean": dict(SAVED, loss_reduction="sequence_mean", padding_free=True, max_length=None, **SAVING),
    # Evaluated where it is saved, so that each row's log p is written.
    "turns": dict(SAVED, unit="turn", loss_reduction="sequence", eval_strategy="steps", eval_steps=2, **SAVING),
    "packed evaluation": dict(SAVED, eval_packing=True, max_length=24),
    "LoRA": dict(SAVED, lora=True, loss_reduction="sequence", gradient_checkpointing=True),
    # Saved in the middle of a window.
    "CoT": dict(COT, gradient_checkpointing=True, sampling_interval=2, ce_warmup_steps=1, max_steps=5, **SAVING),
    "CoT, LoRA": dict(COT, lora=True, max_steps=3, targets="sampled", num_targets=3),
    # Rounding differs between strategies: this is not compared with one process.
    "CoT, bfloat16": dict(COT, sampling_interval=2, max_steps=4, bf16=True),
}
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
STRATEGIES = {"ddp": "MULTI_CPU", "fsdp2": "FSDP", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED"}


def launch(strategy: str | None, folder: Path) -> dict[str, dict]:
    settings = {}
    saved = str(save_checkpoint(folder / "saved"))
    for name, options in RUNS.items():
        # 11 evaluation rows over 2 processes: the last batch is evened out with repeats, which must not count.
        num_processes = 1 if strategy is None else 2
        sizes = {"per_device_train_batch_size": 4 // num_processes, "per_device_eval_batch_size": 6 // num_processes}
        settings[name] = {**options, **sizes} | ({"model": saved} if "model" in options else {})
    if strategy is None:  # accelerate fills up an uneven last batch with the first rows
        settings["token"]["rows"] = [*RUNS["token"]["rows"], 0]
    run(strategy, HERE / "sharded_run.py", json.dumps(settings), folder)
    return torch.load(folder / "results.pt", weights_only=False)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return launch(None, tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module", params=STRATEGIES)
def sharded(request, tmp_path_factory):
    if request.param.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed: pip install deepspeed")
    results = launch(request.param, tmp_path_factory.mktemp(request.param))
    assert {result["distributed_type"] for result in results.values()} == {STRATEGIES[request.param]}
    return results


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in RUNS if "bfloat16" not in name])
def test_two_processes_are_one(one, sharded, name):
    ours, theirs = sharded[name], one[name]
    keys = ("loss", "grad_norm", "coverage_loss", "coverage_weight", "weight_below_0.1", "log_p")
    assert len(ours["steps"]) == len(theirs["steps"]) > 1
    for step, expected in zip(ours["steps"], theirs["steps"], strict=True):
        assert {k: step[k] for k in keys} == pytest.approx({k: expected[k] for k in keys}, rel=1e-5, abs=1e-5)
    for key, value in theirs.get("metrics", {}).items():
        if "coverage" in key or "log_p" in key:
            assert ours["metrics"][key] == pytest.approx(value, rel=1e-5, abs=1e-7), key
    # After the last step, and for "turns" in its two checkpoints too; packed evaluation has no rows.
    num_files = {"packed evaluation": 0, "turns": 3}.get(name, 1)
    if "metrics" in theirs:
        assert len(ours["eval_log_p"]) == len(theirs["eval_log_p"]) == num_files
        for ours_of_row, theirs_of_row in zip(ours["eval_log_p"], theirs["eval_log_p"], strict=True):
            assert ours_of_row["row"] == theirs_of_row["row"] == list(range(11))
            assert ours_of_row["log_p"] == pytest.approx(theirs_of_row["log_p"], rel=1e-5)
    for counts, expected in zip(ours.get("counts", ()), theirs.get("counts", ()), strict=True):
        np.testing.assert_array_equal(counts, expected)
    assert_same_weights(ours["weights"], theirs["weights"], **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["CoT", "CoT, LoRA", "CoT, bfloat16"])
def test_a_server_is_given_the_whole_weights(sharded, name):
    assert_same_weights(sharded[name]["served"], sharded[name]["weights"], **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sequence_mean", "turns", "CoT"])
def test_a_sharded_run_can_be_resumed(sharded, name):
    if sharded[name]["distributed_type"] == "MULTI_CPU":
        pytest.skip("PyTorch cannot load an optimizer's state to 'cpu:0', the device of DDP on a CPU")
    assert_same_weights(sharded[name]["resumed"], sharded[name]["weights"], **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize(
    "scenario, failing, own, what",
    [
        ("grader", 1, "raised ZeroDivisionError", "sampling and grading rationales"),
        ("saving", 0, "File too large", "saving the weights for the sampler"),
    ],
)
def test_a_process_that_fails_stops_all_of_them(tmp_path, scenario, failing, own, what):
    # A job must not hang: nothing but itself ends the other process here.
    script = HERE / "cot_failing_run.py"
    code, output = forks.run(script, scenario, tmp_path, processes=2, ACCELERATE_USE_CPU="true")
    assert code != 0 and own in output
    assert re.search(f"RuntimeError: Process {failing} failed while {what}, so all of them stop: .*{own}", output)
    assert not list(tmp_path.glob(".dco-sampler-*"))


@pytest.mark.parametrize("strategy", ["fsdp2", "zero2", "zero3"])
def test_the_examples_are_what_they_are_named(strategy):
    environment = launch_environment(strategy)
    if strategy == "fsdp2":
        assert environment["ACCELERATE_USE_FSDP"] == "true" and environment["FSDP_VERSION"] == "2"
        assert environment["FSDP_STATE_DICT_TYPE"] == "FULL_STATE_DICT"
    else:
        assert environment["ACCELERATE_USE_DEEPSPEED"] == "true"
        assert environment["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == strategy[-1]
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == set(STRATEGIES) - {"ddp"}
