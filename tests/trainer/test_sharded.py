"""Two processes that share a model between them are one that has it whole: FSDP 2 and DeepSpeed ZeRO, on a CPU."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sharding import CONFIGS, HERE, launch_environment, run
from tiny_models import save_checkpoint

# All but the first train a checkpoint: once DeepSpeed runs, ZeRO-3 initialises a model in memory otherwise.
RUNS = {
    # The last batch of the epoch is uneven, and evaluation comes between steps.
    "token": {
        "rows": [*range(11)],
        "num_train_epochs": 1,
        "max_steps": -1,
        "train_sampling_strategy": "sequential",
        "eval_strategy": "steps",
        "eval_steps": 1,
    },
    # The last window of the epoch is uneven.
    "sequence": {
        "model": "saved",
        "loss_reduction": "sequence",
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 1,
        "max_steps": -1,
    },
    "sequence_mean": {
        "model": "saved",
        "loss_reduction": "sequence_mean",
        "padding_free": True,
        "max_length": None,
        "save_strategy": "steps",
        "save_steps": 2,
    },
    "LoRA": {"lora": True, "loss_reduction": "sequence", "model": "saved", "gradient_checkpointing": True},
    # Saved in the middle of a window.
    "CoT": {
        "cot": True,
        "model": "saved",
        "gradient_checkpointing": True,
        "sampling_interval": 2,
        "max_steps": 5,
        "save_strategy": "steps",
        "save_steps": 3,
    },
    "CoT, LoRA": {
        "cot": True,
        "lora": True,
        "model": "saved",
        "sampling_interval": "epoch",
        "max_steps": 3,
        "targets": "sampled",
    },
    # Rounding is another under each strategy: not compared with one process.
    "CoT, bfloat16": {"cot": True, "model": "saved", "sampling_interval": 2, "max_steps": 4, "bf16": True},
}
STRATEGIES = {"fsdp2": "FSDP", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED"}


def launch(strategy: str | None, folder: Path) -> dict[str, dict]:
    settings = {}
    saved = str(save_checkpoint(folder / "saved"))
    for name, options in RUNS.items():
        # 11 evaluation rows over 2 processes: the last batch is evened out with repeats, which must not count.
        num_processes = 1 if strategy is None else 2
        sizes = {"per_device_train_batch_size": 4 // num_processes, "per_device_eval_batch_size": 6 // num_processes}
        settings[name] = {**options, **sizes} | ({"model": saved} if "model" in options else {})
    if strategy is None:  # accelerate fills an uneven last batch up with the first rows, so that all have as many
        settings["token"]["rows"] = [*RUNS["token"]["rows"], 0]
    run(strategy, HERE / "sharded_run.py", json.dumps(settings), folder)
    return torch.load(folder / "results.pt", weights_only=False)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return launch(None, tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module", params=STRATEGIES)
def sharded(request, tmp_path_factory):
    if request.param != "fsdp2" and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed: pip install deepspeed")
    results = launch(request.param, tmp_path_factory.mktemp(request.param))
    assert {result["distributed_type"] for result in results.values()} == {STRATEGIES[request.param]}
    return results


def assert_close(actual: dict, expected: dict) -> None:
    assert actual.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(actual[name], weight, rtol=1e-5, atol=1e-5, msg=name)


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
    for counts, expected in zip(ours.get("counts", ()), theirs.get("counts", ()), strict=True):
        np.testing.assert_array_equal(counts, expected)
    assert_close(ours["weights"], theirs["weights"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["CoT", "CoT, LoRA", "CoT, bfloat16"])
def test_a_server_is_given_the_whole_weights(sharded, name):
    assert_close(sharded[name]["served"], sharded[name]["weights"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sequence_mean", "CoT"])
def test_a_sharded_run_can_be_resumed(sharded, name):
    assert_close(sharded[name]["resumed"], sharded[name]["weights"])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_examples_are_what_they_are_named(strategy):
    environment = launch_environment(strategy)
    if strategy == "fsdp2":
        assert environment["ACCELERATE_USE_FSDP"] == "true" and environment["FSDP_VERSION"] == "2"
        assert environment["FSDP_STATE_DICT_TYPE"] == "FULL_STATE_DICT"
    else:
        assert environment["ACCELERATE_USE_DEEPSPEED"] == "true"
        assert environment["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == strategy[-1]
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == set(STRATEGIES)
