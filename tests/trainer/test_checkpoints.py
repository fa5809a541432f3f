"""A run that was stopped at any moment goes on as if it had not been; a checkpoint is complete or not resumed."""

import functools
import shutil
from pathlib import Path

import pytest
from cot import make_cot_trainer, weights_after
from training import assert_same_weights, make_trainer
from transformers import Trainer, TrainerState

from dco_trl.trainer.checkpoints import checkpoint_to_resume, missing_parts, read_state, write_state
from dco_trl.trainer.cot_config import STATE_NAME
from dco_trl.trainer.cot_trainer import CoTDCOTrainer
from dco_trl.trainer.dco_trainer import DCOTrainer

# Two steps to a window, so that a checkpoint falls into the middle of one.
MAKERS = {
    "direct": lambda **options: make_trainer(max_steps=4, **options),
    "cot": lambda **options: make_cot_trainer(max_steps=4, sampling_interval=2, **options),
}


class Killed(BaseException):
    """Not an `Exception`, so that nothing in between handles it."""


def saving(folder: Path, **options) -> dict:
    return {"output_dir": str(folder), "save_strategy": "steps", "save_steps": 1, "save_total_limit": 1, **options}


def kill_at(monkeypatch, owner: type, name: str, call: int, after: bool) -> None:
    """Raise `Killed` before or after the given call of a function."""
    function, calls = getattr(owner, name), []

    @functools.wraps(function)  # its signature is part of the contract with TRL
    def dies(*args, **kwargs):
        calls.append(name)
        if len(calls) == call and not after:
            raise Killed
        result = function(*args, **kwargs)
        if len(calls) == call:
            raise Killed
        return result

    monkeypatch.setattr(owner, name, dies)


@pytest.fixture(scope="module", params=MAKERS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def straight(kind):
    """Weights of the run that nobody stopped."""
    return weights_after(MAKERS[kind]())


@pytest.fixture(scope="module")
def finished(kind, tmp_path_factory):
    """A folder with `checkpoint-2`, complete, in the middle of a run."""
    folder = tmp_path_factory.mktemp("finished")
    MAKERS[kind](**saving(folder, save_steps=2, save_total_limit=None)).train()
    shutil.rmtree(folder / "checkpoint-4")
    return folder


STAGES = [
    (Trainer, "save_model", False),
    (Trainer, "_save_optimizer_and_scheduler", False),
    (Trainer, "_save_scaler", False),
    (Trainer, "_save_rng_state", True),
    (TrainerState, "save_to_json", False),
    (TrainerState, "save_to_json", True),
    (DCOTrainer, "_save_own_state", False),
    (DCOTrainer, "_save_own_state", True),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "owner, name, after", STAGES, ids=[f"{n}, {'after' if a else 'before'}" for _, n, a in STAGES]
)
def test_killed_while_a_checkpoint_is_written(kind, straight, monkeypatch, tmp_path, caplog, owner, name, after):
    if owner is DCOTrainer and kind == "cot":
        owner = CoTDCOTrainer
    with monkeypatch.context() as patch:
        kill_at(patch, owner, name, 3, after)
        with pytest.raises(Killed):
            MAKERS[kind](**saving(tmp_path)).train()
    resumed = weights_after(MAKERS[kind](**saving(tmp_path)), resume_from_checkpoint=True)
    assert_same_weights(resumed, straight)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-4"]
    # Every folder that was not written to its end is named, with what it lacks.
    is_whole = (owner, after) == (TrainerState, True)
    is_there = (tmp_path / "checkpoint-3").exists() or "checkpoint-3 is not complete" in caplog.text
    assert ("The checkpoint checkpoint-3 is not complete (no " in caplog.text) == (is_there and not is_whole)
    if "is not complete" in caplog.text:
        assert "trainer_state.json): it is skipped, and training resumes from checkpoint-2." in caplog.text


@pytest.mark.slow
def test_a_checkpoint_written_anew_is_incomplete_until_its_end(kind, finished, straight, monkeypatch, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    MAKERS[kind](**saving(tmp_path, save_total_limit=None, save_steps=3)).train()
    shutil.rmtree(tmp_path / "checkpoint-4")
    with monkeypatch.context() as patch:
        kill_at(patch, Trainer, "_save_optimizer_and_scheduler", 1, False)
        with pytest.raises(Killed):
            MAKERS[kind](**saving(tmp_path, save_total_limit=None, save_steps=3)).train()
    # Its weights are new and its optimizer's state is old: it is no checkpoint.
    assert (tmp_path / "checkpoint-3/optimizer.pt").is_file()
    also = (STATE_NAME,) if kind == "cot" else ()
    assert checkpoint_to_resume(True, str(tmp_path), also) == str(tmp_path / "checkpoint-2")


@pytest.mark.parametrize("missing", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", STATE_NAME])
@pytest.mark.slow
def test_an_incomplete_checkpoint_is_refused_and_names_what_it_lacks(kind, finished, tmp_path, missing):
    if missing == STATE_NAME and kind == "direct":
        return  # it has none
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    (tmp_path / "checkpoint-2" / missing).unlink()
    part = "weights" if missing == "model.safetensors" else missing
    message = rf"checkpoint-2 is not complete: it has no {part}\. .*Resume from another.*pass the folder as `model`"
    with pytest.raises(FileNotFoundError, match=message):
        MAKERS[kind](**saving(tmp_path)).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    message = rf"no complete checkpoint in .*\. The checkpoint checkpoint-2 is not complete \(no {part}\)\. Start wit"
    with pytest.raises(FileNotFoundError, match=message):
        MAKERS[kind](**saving(tmp_path)).train(resume_from_checkpoint=True)


@pytest.mark.slow
def test_a_truncated_trainer_state_is_missing(finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "checkpoint-2/trainer_state.json"
    path.write_text(path.read_text()[:50])
    assert missing_parts(path.parent) == ["trainer_state.json"]


def test_where_there_is_nothing_to_resume(tmp_path):
    (tmp_path / "checkpoint-last").mkdir()
    with pytest.raises(FileNotFoundError, match=r"is set, but there is no complete checkpoint in \S+\. Start without"):
        checkpoint_to_resume(True, str(tmp_path))
    with pytest.raises(FileNotFoundError, match="there is no folder nosuch"):
        checkpoint_to_resume("nosuch", str(tmp_path))
    assert checkpoint_to_resume(None, str(tmp_path)) is checkpoint_to_resume("false", str(tmp_path)) is None


def test_the_latest_step_is_the_last_checkpoint(finished, tmp_path):
    for step in (2, 10, "kept-500"):  # the last is the user's own copy
        shutil.copytree(finished / "checkpoint-2", tmp_path / f"checkpoint-{step}")
    assert checkpoint_to_resume("true", str(tmp_path)) == str(tmp_path / "checkpoint-10")


# ------------------------------------------------------------------------- the state of the CoT trainer


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two-checkpoints")
    make_cot_trainer(**saving(folder, save_total_limit=None, max_steps=2)).train()
    return folder


@pytest.fixture
def state_file(two_checkpoints, tmp_path) -> Path:
    """The state of a CoT run in the middle of a window."""
    shutil.copytree(two_checkpoints, tmp_path, dirs_exist_ok=True)
    return tmp_path / "checkpoint-1" / STATE_NAME


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace('\\"batches\\": [', '\\"batches\\": [[],', 1),
        lambda text: text.replace('\\"next_index\\": [', '\\"next_index\\": [1', 1),
        lambda text: text[: len(text) // 2],
        lambda text: "[1]",
    ],
    ids=["a window changed by hand", "a digit more", "cut short", "of another kind"],
)
@pytest.mark.slow
def test_a_damaged_state_is_refused(state_file, damage):
    text = state_file.read_text()
    assert damage(text) != text
    state_file.write_text(damage(text))
    with pytest.raises(ValueError, match=r"cot_state.json was damaged or changed.*Resume from another.*as `model`"):
        read_state(state_file)


def doubled(state):
    return {"processes": state["processes"] * 2}


def shortened(state):
    return {"counts": {name: value[:-1] if name != "prior" else value for name, value in state["counts"].items()}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (doubled, "made by 2 processes, and there are 1.*Resume with as many processes"),
        (shortened, "holds the counts of 11 prompts, the data set has 12"),
    ],
)
@pytest.mark.slow
def test_a_checkpoint_of_other_processes_or_another_data_set_is_refused(state_file, change, message):
    state = read_state(state_file)
    write_state(state_file, {**state, **change(state)})
    trainer = make_cot_trainer(**saving(state_file.parents[1], max_steps=2))
    with pytest.raises(ValueError, match=message):
        trainer.train(resume_from_checkpoint=str(state_file.parent))
