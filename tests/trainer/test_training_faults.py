"""Training that is killed, out of disk, or left by its endpoint goes on from its last checkpoint, bit for bit."""

import json
import random
import time
from pathlib import Path

import psutil
import pytest
from accelerate import PartialState
from cot import ROWS
from fault_runs import start_endpoint
from forks import Forked
from lengths import KILLS
from safetensors.torch import load_file
from tiny_models import save_checkpoint
from training import assert_same_weights

from dco_trl.trainer.checkpoints import checkpoint_to_resume
from dco_trl.trainer.cot_config import STATE_NAME

pytestmark = pytest.mark.slow
OWN_FILES = {"direct": (), "cot": (STATE_NAME,)}
STEPS = 60


class Run(Forked):
    """One start of `dco-trl train` or `train-cot`, which saves a checkpoint every step or two."""

    def __init__(self, kind: str, place: Path, output: Path, resume: bool = False, size: int | None = None, **options):
        self.folder = output
        data = {"model_name_or_path": place / "MODEL", "dataset_name": place / "rows.jsonl", "output_dir": output}
        saving = {"max_steps": STEPS, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 1}
        quiet = {"logging_steps": 1, "disable_tqdm": True, "report_to": "none", "use_cpu": True, "bf16": False}
        training = {"learning_rate": 1e-2, "per_device_train_batch_size": 4, "max_length": 32, "num_attempts": 16}
        if kind == "cot":
            # Windows of three steps: a checkpoint falls before, into and after one.
            sampling = {"num_rationales": 8, "rationale_batch": 4, "max_rationale_tokens": 8, "sampling_interval": 3}
            training |= {"targets": "sampled", "ce_warmup_steps": 4, "grader": "light_grader:last_word", **sampling}
            saving["save_steps"] = 2
        given = data | saving | quiet | training | {"gradient_checkpointing": False} | options
        given |= {"resume_from_checkpoint": True} if resume else {}
        flags = [
            f"--{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in given.items()
        ]
        command = "train-cot" if kind == "cot" else "train"
        super().__init__("dco_trl", command, *flags, size=size, HF_DATASETS_CACHE=str(place / "cache"))

    def newest_step(self) -> int:
        """The step of the newest checkpoint, whole or not."""
        return max((int(path.name.split("-")[1]) for path in self.folder.glob("checkpoint-*")), default=0)

    def wait_for_step(self, step: int) -> None:
        """Wait until a checkpoint of this step, or a later one, is at least begun."""
        while self.process.is_alive() and self.newest_step() < step:
            time.sleep(0.001)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model and data."""
    folder = tmp_path_factory.mktemp("place")
    save_checkpoint(folder / "MODEL", initializer_range=0.2)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    PartialState()  # without it Accelerate's logger refuses to warn about an incomplete checkpoint
    return folder


@pytest.fixture(scope="module", params=OWN_FILES)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def straight(kind, place, tmp_path_factory):
    """The weights of the run that nobody stopped."""
    run = Run(kind, place, tmp_path_factory.mktemp("straight"))
    assert run.wait() == 0, run.output[-3000:]
    if kind == "cot":  # rationales were right, and counted
        log = json.loads((run.folder / f"checkpoint-{STEPS}/trainer_state.json").read_text())["log_history"]
        assert min(entry.get("coverage_weight", 1) for entry in log) < 0.9
        assert min(entry.get("reference_targets", 1) for entry in log) < 0.5
    return load_file(run.folder / "model.safetensors")


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
    """Whether a process ends within two minutes; its adopter may leave it a zombie."""
    try:
        deadline = time.monotonic() + 120
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
            time.sleep(0.01)
        return time.monotonic() < deadline
    except psutil.NoSuchProcess:
        return True


def assert_ends_as(straight, run):
    assert run.wait() == 0, run.output[-3000:]
    assert_same_weights(load_file(run.folder / "model.safetensors"), straight)
    assert [path.name for path in run.folder.glob("checkpoint-*")] == [f"checkpoint-{STEPS}"]
    assert not list(run.folder.glob(".dco-sampler-*"))


def test_kills_at_random_moments_change_nothing(kind, place, straight, tmp_path):
    seed = random.randrange(2**32)
    moments = random.Random(seed)
    print(f"seed {seed}")  # shown where the test fails
    resumed = []
    for number in range(KILLS):
        resumed.append(step_to_resume(kind, tmp_path))
        run = Run(kind, place, tmp_path, resume=resumed[-1] > 0)
        # Killed while this checkpoint is written, the old one removed, or the next step made or sampled for.
        run.wait_for_step(run.newest_step() + moments.choice([1, 1, 2, 4]))
        time.sleep(moments.uniform(0, 0.06))
        workers = children(run.process.pid)
        assert run.kill(), f"it ended before it was killed: {run.output[-3000:]}"
        assert step_to_resume(kind, tmp_path) >= resumed[-1], f"kill {number}"
        assert all(map(has_ended, workers)), "graders outlive the run"
    assert step_to_resume(kind, tmp_path) >= KILLS - 1, resumed
    assert_ends_as(straight, Run(kind, place, tmp_path, resume=True))


def test_a_disk_that_is_full_leaves_the_checkpoint_before(kind, place, straight, tmp_path):
    run = Run(kind, place, tmp_path)
    run.wait_for_step(9)
    assert run.kill()
    step = step_to_resume(kind, tmp_path)
    for name, own in (("model.safetensors", "File too large"), ("optimizer.pt", "iostream error")):
        size = (tmp_path / f"checkpoint-{step}" / name).stat().st_size - 100
        run = Run(kind, place, tmp_path, resume=True, size=size)
        assert run.wait() and own in run.output
        assert "could not be written: is the disk full? Earlier ones are unharmed; `resume" in run.output
        assert step_to_resume(kind, tmp_path) == step
    assert_ends_as(straight, Run(kind, place, tmp_path, resume=True))


def test_an_endpoint_that_dies_and_comes_back(place, tmp_path):
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # shown where the test fails
    endpoint, port = start_endpoint(str(place / "MODEL"))
    sampling = {"base_url": f"http://127.0.0.1:{port}/v1", "max_retries": 0}
    training = {"sampler": "server", "sampler_kwargs": json.dumps(sampling), "use_peft": True, "max_steps": 15}
    training |= {"ce_warmup_steps": 0, "save_steps": 1}
    whole = Run("cot", place, tmp_path / "whole", **training)
    assert whole.wait() == 0, whole.output[-3000:]
    left = Run("cot", place, tmp_path / "left", **training)
    left.wait_for_step(4)
    time.sleep(random.Random(seed).uniform(0, 0.3))
    endpoint.kill()
    assert left.wait() and "EndpointError: The endpoint at" in left.output
    assert 3 <= step_to_resume("cot", left.folder) < 15
    endpoint, _ = start_endpoint(str(place / "MODEL"), port)
    resumed = Run("cot", place, tmp_path / "left", resume=True, **training)
    assert resumed.wait() == 0, resumed.output[-3000:]
    endpoint.kill()
    assert_same_weights(*(load_file(run.folder / "adapter_model.safetensors") for run in (resumed, whole)))
    assert not list(left.folder.glob(".dco-sampler-*"))
