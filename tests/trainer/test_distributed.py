"""Two processes are one: gloo, on a CPU."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from forks import run

HERE = Path(__file__).parent


RUNS = {
    "token": {"loss_reduction": "token"},
    "sequence, accumulated": {"loss_reduction": "sequence", "gradient_accumulation_steps": 3, "max_steps": 2},
    "sequence mean, padding-free": {"loss_reduction": "sequence_mean", "padding_free": True, "max_length": None},
    "turns": {"unit": "turn", "loss_reduction": "sequence"},
    "packed evaluation": {"eval_packing": True, "max_length": 24},
}


def launch(num_processes: int, folder: Path) -> dict[str, dict]:
    """Results of each of `RUNS`, with the same batches whatever the number of processes."""
    # 11 evaluation rows over 2 processes: the last batch is evened out with repeats, which must not count.
    sizes = {"per_device_train_batch_size": 4 // num_processes, "per_device_eval_batch_size": 6 // num_processes}
    settings = json.dumps([{**options, **sizes} for options in RUNS.values()])
    script, results = HERE / "distributed_run.py", folder / f"{num_processes}.pt"
    code, output = run(script, settings, results, processes=num_processes, ACCELERATE_USE_CPU="true")
    assert code == 0, output[-3000:]
    results = dict(zip(RUNS, torch.load(results), strict=True))
    for number, result in enumerate(results.values()):
        written = list((folder / str(num_processes) / str(number)).glob("*/eval_log_p.parquet"))
        result["eval_log_p"] = pq.read_table(written[0]).to_pydict() if written else None
    return results


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    return launch(1, folder), launch(2, folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_two_processes_are_one(results, name):
    one, two = results[0][name], results[1][name]
    keys = ("loss", "grad_norm", "coverage_loss", "coverage_weight", "weight_below_0.1", "log_p")
    for ours, theirs in zip(two["steps"], one["steps"], strict=True):
        assert {k: ours[k] for k in keys} == pytest.approx({k: theirs[k] for k in keys}, rel=2e-3, abs=1e-5)
    for key in one["metrics"]:
        if "coverage" in key or "log_p" in key:
            assert two["metrics"][key] == pytest.approx(one["metrics"][key], rel=2e-3), key
    if name != "packed evaluation":
        assert two["eval_log_p"]["row"] == one["eval_log_p"]["row"] == list(range(11))
        assert two["eval_log_p"]["log_p"] == pytest.approx(one["eval_log_p"]["log_p"], rel=2e-3)
    for weight_name, weight in one["weights"].items():
        torch.testing.assert_close(two["weights"][weight_name], weight, rtol=1e-3, atol=5e-4, msg=weight_name)
