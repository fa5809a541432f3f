"""Training that is killed, out of disk, or left by its endpoint goes on from its last checkpoint, bit for bit."""

import json
import os
import random
import sys
import time

import psutil
import pytest
from accelerate import PartialState
from fault_runs import ROWS, STEPS, Run, newest_step, options_of, start_endpoint
from lengths import KILLS
from safetensors.torch import load_file
from tiny_models import save_checkpoint

from dco_trl.trainer.checkpoints import checkpoint_to_resume
from dco_trl.trainer.cot_trainer import STATE_NAME

pytestmark = pytest.mark.slow
OWN_FILES = {"direct": (), "cot": (STATE_NAME,)}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model and data. Processes that are forked find the tests' modules, as this one does."""
    folder = tmp_path_factory.mktemp("place")
    save_checkpoint(folder / "MODEL", initializer_range=0.2)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    PartialState()  # or Accelerate's logger refuses to warn of a checkpoint that is not complete
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        yield folder


@pytest.fixture(scope="module", params=OWN_FILES)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def straight(kind, place, tmp_path_factory):
    """The weights of the run that nobody stopped."""
    output = tmp_path_factory.mktemp("straight")
    run = Run(kind, "api", place, options_of(kind, place, output))
    assert run.error() is None, run.log.read_text()[-3000:]
    if kind == "cot":  # rationales were right, and counted
        log = json.loads((output / f"checkpoint-{STEPS}/trainer_state.json").read_text())["log_history"]
        assert min(entry.get("coverage_weight", 1) for entry in log) < 0.9
        assert min(entry.get("reference_targets", 1) for entry in log) < 0.5
    return load_file(output / "model.safetensors")


def step_to_resume(kind, output):
    """The step of the last complete checkpoint; 0 if there is none."""
    try:
        return int(checkpoint_to_resume(True, str(output), OWN_FILES[kind]).rpartition("-")[2])
    except FileNotFoundError:
        return 0


def children(pid):
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def has_ended(process):
    """Whether a process ends within two minutes; who adopts it may leave it a zombie."""
    try:
        deadline = time.monotonic() + 120
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
            time.sleep(0.01)
        return time.monotonic() < deadline
    except psutil.NoSuchProcess:
        return True


def assert_ends_as(straight, run):
    assert run.error() is None, run.log.read_text()[-3000:]
    weights = load_file(run.output / "model.safetensors")
    assert weights.keys() == straight.keys()
    assert all(weights[name].equal(weight) for name, weight in straight.items())
    assert [path.name for path in run.output.glob("checkpoint-*")] == [f"checkpoint-{STEPS}"]
    assert not list(run.output.glob(".dco-sampler-*"))


def test_kills_at_random_moments_change_nothing(kind, place, straight, tmp_path):
    seed = random.randrange(2**32)
    moments = random.Random(seed)
    print(f"seed {seed}")  # shown where the test fails
    options, resumed = options_of(kind, place, tmp_path), []
    for number in range(KILLS):
        resumed.append(step_to_resume(kind, tmp_path))
        run = Run(kind, moments.choice(["shell", "api"]), place, options, resume=resumed[-1] > 0)
        # From there on, while this checkpoint is written, the old one removed, the next step made or sampled for.
        run.wait_for_step(newest_step(tmp_path) + moments.choice([1, 1, 2, 4]))
        time.sleep(moments.uniform(0, 0.06))
        workers = children(run.process.pid)
        assert run.kill(), f"it ended before it was killed: {run.log.read_text()[-3000:]}"
        assert step_to_resume(kind, tmp_path) >= resumed[-1], f"kill {number}"
        assert all(map(has_ended, workers)), "graders outlive the run"
    assert step_to_resume(kind, tmp_path) >= KILLS - 1, resumed
    assert_ends_as(straight, Run(kind, moments.choice(["shell", "api"]), place, options, resume=True))


def test_a_disk_that_is_full_leaves_the_checkpoint_before(kind, place, straight, tmp_path):
    options = options_of(kind, place, tmp_path)
    run = Run(kind, "shell", place, options)
    run.wait_for_step(9)
    assert run.kill()
    step = step_to_resume(kind, tmp_path)
    for name, way, own in (
        ("model.safetensors", "shell", "File too large"),
        ("optimizer.pt", "api", "iostream error"),
    ):
        size = (tmp_path / f"checkpoint-{step}" / name).stat().st_size - 100
        error = Run(kind, way, place, options, resume=True, size=size).error()
        assert own in error and "could not be written: is the disk full? Earlier ones are unharmed; train" in error
        assert step_to_resume(kind, tmp_path) == step
    assert_ends_as(straight, Run(kind, "shell", place, options, resume=True))


def test_an_endpoint_that_dies_and_comes_back(place, tmp_path):
    seed = random.randrange(2**32)
    endpoint, port = start_endpoint(str(place / "MODEL"))
    sampling = {"base_url": f"http://127.0.0.1:{port}/v1", "max_retries": 0}
    training = {"sampler": "server", "sampler_kwargs": json.dumps(sampling), "use_peft": True, "max_steps": 15}

    def start(output, resume=False):
        options = options_of("cot", place, tmp_path / output, ce_warmup_steps=0, save_steps=1, **training)
        return Run("cot", "shell", place, options, resume)

    whole = start("whole")
    assert whole.error() is None, whole.log.read_text()[-3000:]
    left = start("left")
    left.wait_for_step(4)
    time.sleep(random.Random(seed).uniform(0, 0.3))
    endpoint.kill()
    error = left.error()
    assert error and "EndpointError: The endpoint at" in error, f"seed {seed}: {error}"
    step = step_to_resume("cot", left.output)
    assert 3 <= step < 15
    endpoint, _ = start_endpoint(str(place / "MODEL"), port)
    resumed = start("left", resume=True)
    assert resumed.error() is None, f"seed {seed}: {resumed.log.read_text()[-3000:]}"
    endpoint.kill()
    weights, expected = (load_file(run.output / "adapter_model.safetensors") for run in (resumed, whole))
    assert weights.keys() == expected.keys()
    assert all(weights[name].equal(weight) for name, weight in expected.items()), f"seed {seed}"
    assert not list(left.output.glob(".dco-sampler-*"))
