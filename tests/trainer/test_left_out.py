"""`leave_out_below`: which examples an epoch trains on, and that nothing else changes."""

from collections import defaultdict

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from peft import LoraConfig
from training import MANY, assert_same_run, dataset, make_trainer, run
from transformers import DataCollatorWithPadding, TrainerCallback
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from dco_trl import CoTDCOConfig, DCOConfig, DCOTrainer
from dco_trl.trainer.collator import TRAIN_ROW
from dco_trl.trainer.left_out import LEFT_OUT_NAME, LeftOut

# Weights of the untrained model are spread around it at this N.
BELOW = 0.5
EPOCHS = dict(num_attempts=MANY, max_steps=-1, num_train_epochs=6, learning_rate=3e-3, leave_out_below=BELOW)


class Recording(DCOTrainer):
    """Notes, for each epoch, which rows were trained on and which weights they had."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seen = defaultdict(dict)

    def _see(self, rows, weights, segments, documents):
        super()._see(rows, weights, segments, documents)
        if self.model.training:
            # Units of one sequence and one prompt only; those of padding are behind.
            self.seen[int(self.state.epoch)] |= dict(zip(rows.tolist(), weights.tolist(), strict=False))


def expected(weights_of_epochs, batches, recheck=3, below=BELOW):
    """Rows that each epoch trains on, by the definition."""
    last = {}
    for epoch, weights in enumerate(weights_of_epochs):
        trained = set()
        for batch in batches[epoch]:
            due = [row for row in batch if row not in last or last[row][1] >= below or epoch - last[row][0] >= recheck]
            trained |= set(due or batch[:1])
        yield trained
        last |= {row: (epoch, weights[row]) for row in trained}


class Batches(TrainerCallback):
    """Notes the batches before anything is left out."""

    def __init__(self, trainer):
        self.batches = defaultdict(list)
        collate = trainer.data_collator.torch_call

        def noting(rows):
            if TRAIN_ROW in rows[0]:
                self.batches[int(trainer.state.epoch or 0)].append([row[TRAIN_ROW] for row in rows])
            return collate(rows)

        trainer.data_collator.torch_call = noting


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"padding_free": True, "max_length": None},
        {"gradient_accumulation_steps": 2, "loss_reduction": "sequence_mean"},
        {"recheck_epochs": 2},
        {"recheck_epochs": 1},
    ],
    ids=str,
)
def test_an_epoch_trains_on_what_counts_or_was_not_seen_for_long(settings):
    trainer = make_trainer(Recording, **EPOCHS, **settings)
    noted = Batches(trainer)
    trainer.train()
    # The loader is a batch ahead, so that a batch may be noted an epoch early: put them together again.
    batches = [batch for epoch in sorted(noted.batches) for batch in noted.batches[epoch]]
    batches = [batches[3 * i : 3 * i + 3] for i in range(6)]
    assert [sorted(sum(epoch, [])) for epoch in batches] == [list(range(12))] * 6
    seen = [trainer.seen[epoch] for epoch in range(6)]
    assert [set(of_epoch) for of_epoch in seen] == list(
        expected(seen, batches, settings.get("recheck_epochs", 3))
    )
    sizes = [len(of_epoch) for of_epoch in seen]
    if settings.get("recheck_epochs") == 1:
        assert sizes == [12] * 6  # always looked at again
    else:
        assert min(sizes) < 12
