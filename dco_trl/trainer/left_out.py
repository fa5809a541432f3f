"""Examples that the model has learnt are left out for some epochs: `leave_out_below` of `DCOConfig`."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .checkpoints import CompleteCheckpoints, read_state, write_state
from .collator import TRAIN_ROW, DCOCollator
from .dco_config import DCOConfig
from .segments import Segments, sum_by_example

# What a checkpoint has besides.
LEFT_OUT_NAME = "dco_left_out.json"

_UNSEEN, _LEARNT, _COUNTS = 0, 1, 2


class LeftOut:
    """Which training examples an epoch leaves out: those that were learnt when they were last seen, not long ago.

    What a process sees stays on its device until the epoch's end, so that no step waits for it.

    Args:
        num_examples: Examples, with the numbers 0, 1, …
        recheck_epochs: Epochs after which a learnt example is looked at again.
        accelerator: The trainer's.
    """

    def __init__(self, num_examples: int, recheck_epochs: int, accelerator: Accelerator):
        self.recheck_epochs, self.accelerator = recheck_epochs, accelerator
        # In shared memory: processes that load data read it.
        self.mask: Bool[Tensor, " example"] = torch.zeros(num_examples, dtype=torch.bool).share_memory_()
        # One more, for batches that stand in for examples left out.
        self._seen = torch.full((num_examples + 1,), _UNSEEN, dtype=torch.uint8, device=accelerator.device)
        self.forget()

    def forget(self) -> None:
        """Training begins: every example is due."""
        self.epoch = -1
        # The epoch whose visit found an example learnt; -1: it counts, or was never seen.
        self._learnt_in = np.full(len(self.mask), -1)
        self.mask.fill_(False)
        self._seen.fill_(_UNSEEN)

    def see(self, rows: Int[Tensor, " seen"], counts: Bool[Tensor, " seen"]) -> None:
        """Note whether examples of a batch still count."""
        self._seen[rows] = torch.where(counts, _COUNTS, _LEARNT).to(torch.uint8)

    def begin_epoch(self, epoch: int) -> None:
        """Decide for an epoch, on every process; nothing changes if it goes on."""
        if epoch == self.epoch:
            return
        self._collect()
        self.epoch = epoch
        is_learnt = (self._learnt_in >= 0) & (epoch - self._learnt_in < self.recheck_epochs)
        self.mask.copy_(torch.from_numpy(is_learnt))

    def _collect(self) -> None:
        """What all processes have seen since the last time. An example that two of them saw counts if it did once."""
        seen = self.accelerator.gather(self._seen[None]).amax(0).cpu().numpy()[:-1]
        self._learnt_in[seen == _COUNTS] = -1
        self._learnt_in[seen == _LEARNT] = self.epoch
        self._seen.fill_(_UNSEEN)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs; the same on every process, all of which have to ask."""
        self._collect()
        left_out = self.mask.nonzero()[:, 0].tolist()
        return {"epoch": self.epoch, "left_out": left_out, "learnt_in": self._learnt_in.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raise a `ValueError` if the state is of another number of examples."""
        if len(state["learnt_in"]) != len(self.mask):
            raise ValueError(
                f"The checkpoint knows which of {len(state['learnt_in'])} training examples are learnt, and there are "
                f"{len(self.mask)}: resume with the same data set, or start anew from the checkpoint's weights."
            )
        self.epoch, self._learnt_in = state["epoch"], np.array(state["learnt_in"])
        self.mask.fill_(False)
        self.mask[state["left_out"]] = True


class LeavesOutLearnt(CompleteCheckpoints):
    """`SFTTrainer` that can leave examples out of batches, and whose checkpoints know which."""

    args: DCOConfig
    model: torch.nn.Module
    _left_out: LeftOut | None = None

    def _leave_out_learnt(self) -> None:
        """Begin to do so; the trainer is made."""
        dataset: Any = self.train_dataset
        if dataset is None:
            return
        check_can_leave_out(dataset, self.args, self.data_collator, self.accelerator)
        self.train_dataset = dataset.add_column(TRAIN_ROW, np.arange(len(dataset)))
        self._left_out = LeftOut(len(dataset), self.args.recheck_epochs, self.accelerator)
        self._own_state_files = (*self._own_state_files, LEFT_OUT_NAME)
        collator: Any = self.data_collator
        collator.left_out = self._left_out.mask
        self.add_callback(_BeginsEpochs(self._left_out))

    def _see(self, rows: torch.Tensor, weights: torch.Tensor, segments: Segments, documents: Any) -> None:
        """Note which examples of a training batch still count: those with a unit whose weight is not small."""
        if self._left_out is None or not self.model.training:
            return
        counts = segments.valid & ~(weights < self.args.leave_out_below * self.args.num_required)
        by_example = sum_by_example(segments.by_sequence(counts.to(weights.dtype)[:, None]), documents)
        self._left_out.see(rows, by_example[:, 0] > 0)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns: Any = self._signature_columns
        if TRAIN_ROW not in columns:
            columns.append(TRAIN_ROW)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self._left_out is not None and self.model.training:
            self._metrics["train"]["left_out"].append(float(self._left_out.mask.double().mean()))
        super().log(logs, start_time)

    def _save_own_state(self, folder: Path) -> None:
        super()._save_own_state(folder)
        if self._left_out is not None:
            state = self._left_out.state_dict()
            if self.args.should_save:
                write_state(folder / LEFT_OUT_NAME, state)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self._left_out is not None:
            self._left_out.forget()
            if checkpoint is not None:
                self._left_out.load_state_dict(read_state(Path(checkpoint, LEFT_OUT_NAME)))


class _BeginsEpochs(TrainerCallback):
    def __init__(self, left_out: LeftOut):
        self.left_out = left_out

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # The state's epoch is a sum of fractions, and in a resumed epoch that of its step.
        self.left_out.begin_epoch(int((state.epoch or 0.0) + 1e-6))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.left_out.forget()  # so that an evaluation of the training set is whole


def check_can_leave_out(dataset: Any, args: DCOConfig, data_collator: Any, accelerator: Accelerator) -> None:
    """Raise a `ValueError` where examples have no number, or batches are not put together here."""
    reason = None
    if not isinstance(dataset, Dataset):
        reason = f"rows need a number, and the train dataset is a `{type(dataset).__name__}`. Give a `Dataset`"
    elif args.packing:
        reason = "packed documents cannot leave their pack. Set `packing=False`; `padding_free=True` pads as little"
    elif type(data_collator) is not DCOCollator:
        reason = f"TRL's own collator is needed, got `{type(data_collator).__name__}`. Leave `data_collator` out"
    elif accelerator.dispatch_batches:
        reason = "each process must put its own batches together. Set `dispatch_batches` to False"
    if reason:
        raise ValueError(f"`leave_out_below={args.leave_out_below}`: {reason}, or set it to 0.")
