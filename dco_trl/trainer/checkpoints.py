"""A checkpoint is complete or it is not resumed."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate.logging import get_logger
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

logger = get_logger(__name__)

# What a resumed run needs, and the files that hold it: those of one process, of FSDP, and of DeepSpeed ("latest").
_PARTS = {
    "weights": ("model.safetensors*", "pytorch_model*", "adapter_model.*", "*/adapter_model.*", "latest"),
    "optimizer.pt": ("optimizer.pt", "optimizer.bin", "optimizer_*", "latest"),
    "scheduler.pt": ("scheduler.pt", "latest"),
    "rng_state.pth": ("rng_state*.pth",),
}


@contextmanager
def writing_checkpoint(folder: Path, should_save: bool) -> Iterator[None]:
    """Mark a checkpoint as incomplete until the block has written it, and name it if that fails.

    `Trainer` writes `trainer_state.json` last and rotates old checkpoints away afterwards, so a folder without that
    file was being written when the run stopped.
    """
    if should_save:
        folder.mkdir(parents=True, exist_ok=True)
        # A complete checkpoint that is overwritten is incomplete for a while too.
        (folder / TRAINER_STATE_NAME).unlink(missing_ok=True)
    try:
        yield
    except Exception as error:  # PyTorch reports a full disk as "iostream error"
        error.add_note(
            f"The checkpoint {folder} could not be written: is the disk full? Earlier ones are unharmed; "
            "`resume_from_checkpoint` goes on from the last complete one."
        )
        raise


def checkpoint_to_resume(asked: str | bool | None, output_dir: str | None, also: Sequence[str] = ()) -> str | None:
    """The checkpoint folder that `resume_from_checkpoint` means: none, a given one, or the last complete one.

    Args:
        asked: A folder; True or "true" for the last complete one in `output_dir`; None, False or "false" for none.
        output_dir: The run's folder.
        also: Files that must be there besides `Trainer`'s own.

    Raises:
        FileNotFoundError: There is none, or the given one is not complete; the message names what is missing.
    """
    if asked in (None, False, "false", "False"):
        return None
    if asked not in (True, "true", "True"):
        given = Path(str(asked))
        if not given.is_dir():
            raise FileNotFoundError(f"`resume_from_checkpoint`: there is no folder {given}.")
        if missing := missing_parts(given, also):
            raise FileNotFoundError(
                f"The checkpoint {given} is not complete: it has no {', '.join(missing)}. Resuming it would continue "
                "a different run. Resume from another checkpoint, or start anew from its weights: pass the folder as "
                "`model`."
            )
        return str(given)
    folder = Path(output_dir or ".")
    name = f"{PREFIX_CHECKPOINT_DIR}-"
    steps = {path: path.name.removeprefix(name) for path in folder.glob(f"{name}*")}
    found = [path for path, step in steps.items() if step.isdecimal() and path.is_dir()]
    skipped: list[str] = []
    for path in sorted(found, key=lambda path: int(steps[path]), reverse=True):
        missing = missing_parts(path, also)
        if not missing:
            for text in skipped:
                logger.warning(f"{text}: it is skipped, and training resumes from {path.name}.")
            return str(path)
        skipped.append(f"The checkpoint {path.name} is not complete (no {', '.join(missing)})")
    raise FileNotFoundError(
        f"`resume_from_checkpoint` is set, but there is no complete checkpoint in {folder}. "
        f"{''.join(f'{text}. ' for text in skipped)}Start without `resume_from_checkpoint`."
    )


def missing_parts(checkpoint: Path, also: Sequence[str] = ()) -> list[str]:
    """The files of `Trainer`, and those in `also`, that a checkpoint folder lacks; empty if it is complete."""
    missing = [part for part, patterns in _PARTS.items() if not any(any(checkpoint.glob(p)) for p in patterns)]
    missing += [name for name in also if not (checkpoint / name).is_file()]
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text())
    except (OSError, ValueError):
        missing.append(TRAINER_STATE_NAME)
    return missing


def write_state(path: Path, state: Any) -> None:
    """Write a state as JSON, with a checksum of it."""
    text = json.dumps(state)
    path.write_text(json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest(), "state": text}))


def read_state(path: Path) -> Any:
    """The state that `write_state` wrote; a `ValueError` if the file was damaged or changed since."""
    try:
        saved = json.loads(path.read_text())
        if hashlib.sha256(saved["state"].encode()).hexdigest() == saved["sha256"]:
            return json.loads(saved["state"])
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise ValueError(
        f"{path} was damaged or changed since it was written: resuming it would continue a different run. Resume "
        "from another checkpoint, or start anew from its weights: pass the folder as `model`."
    )
