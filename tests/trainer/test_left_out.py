"""`leave_out_below`: which examples an epoch trains on, and that nothing else changes."""

from collections import defaultdict

import pytest
import test_turns
import torch
from accelerate import Accelerator
from datasets import Dataset
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from peft import LoraConfig
from training import MANY, assert_same_run, dataset, make_trainer, run
from transformers import DataCollatorWithPadding, TrainerCallback

from dco_trl import CoTDCOConfig, DCOConfig, DCOTrainer
from dco_trl.trainer.collator import TRAIN_ROW
from dco_trl.trainer.left_out import LEFT_OUT_NAME, LeftOut

# Weights of the untrained model are spread around it at this N.
BELOW = 0.5
EPOCHS = dict(num_attempts=MANY, max_steps=-1, num_train_epochs=6, learning_rate=3e-3, leave_out_below=BELOW)


LAYOUTS = {"padded": {}, "padding-free": {"padding_free": True, "max_length": None}}


class Recording(DCOTrainer):
    """Notes, for each epoch, which rows were trained on and which weights they had."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seen = defaultdict(dict)

    def _see(self, rows, weights, segments, documents):
        super()._see(rows, weights, segments, documents)
        if self.model.training:
            # Units of one sequence and one prompt only; those of padding are behind.
            seen = dict(zip(rows.tolist(), weights.tolist(), strict=False))
            seen.pop(len(self.train_dataset), None)  # it stands in for those left out
            self.seen[int(self.state.epoch)] |= seen


def expected(weights_of_epochs, batches, recheck=3, below=BELOW):
    """Rows that each epoch trains on, by the definition."""
    last = {}
    for epoch, weights in enumerate(weights_of_epochs):
        trained = set()
        for batch in batches[epoch]:
            due = [row for row in batch if row not in last or last[row][1] >= below or epoch - last[row][0] >= recheck]
            trained |= set(due)
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
    assert [set(of_epoch) for of_epoch in seen] == list(expected(seen, batches, settings.get("recheck_epochs", 3)))
    sizes = [len(of_epoch) for of_epoch in seen]
    if settings.get("recheck_epochs") == 1:
        assert sizes == [12] * 6  # always looked at again
    else:
        assert min(sizes) < 12


def test_a_threshold_that_no_weight_is_below_changes_nothing():
    plain = {**EPOCHS, "leave_out_below": 0.0, "num_train_epochs": 2}
    assert_same_run(run(**{**plain, "leave_out_below": 1e-300}), run(**plain))


def test_what_is_left_is_a_batch_of_its_own():
    """The loss is normalised by what is trained on: a step over a batch less its learnt rows is one over the rest."""
    options = dict(num_attempts=MANY, max_steps=1, per_device_train_batch_size=12, loss_reduction="sequence")
    trainer = make_trainer(leave_out_below=BELOW, **options)

    class LeaveOut(TrainerCallback):
        def on_epoch_begin(self, *args, **kwargs):
            trainer._left_out.mask[1::2] = True

    trainer.add_callback(LeaveOut())
    trainer.train()
    half = make_trainer(**options, trainer_kwargs={"train_dataset": dataset().select(range(0, 12, 2))})
    half.train()
    for ours, theirs in zip(trainer.model.parameters(), half.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-6)
    logged = trainer.state.log_history[0]
    assert logged["left_out"] == 0.5
    assert logged["num_tokens"] == half.state.log_history[0]["num_tokens"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_where_all_of_a_batch_are_learnt_nothing_is_trained_on(layout):
    trainer = make_trainer(Recording, **{**EPOCHS, "leave_out_below": 1.0, "num_train_epochs": 4, **LAYOUTS[layout]})
    trainer.train()
    assert [len(trainer.seen[epoch]) for epoch in range(4)] == [12, 0, 0, 12]
    logs = trainer.state.log_history
    tokens = [entry["num_tokens"] for entry in logs if "loss" in entry]
    assert tokens[8] == tokens[2] + 6 * 2  # two tokens a step
    assert [entry["left_out"] for entry in logs if "loss" in entry] == [0] * 3 + [1] * 6 + [0] * 3
    assert [entry["loss"] for entry in logs if "loss" in entry][3:9] == [0.0] * 6


def test_batches_of_one_are_as_cheap_and_as_exact():
    """Micro-batches of one and their accumulation are a batch: what is left out does not count in the mean."""
    options = {**EPOCHS, "learning_rate": 1e-3, "loss_reduction": "sequence"}
    whole = run(**options)
    single = run(**options, **{"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4})
    assert_same_run(single, whole, rtol=1e-3, atol=1e-4)


def learnt_after_one_batch(trainer, rows, weights):
    """Rows that are learnt once a batch of `rows` had units with these weights."""
    weights = torch.tensor(weights, dtype=torch.float64)
    trainer._left_out.begin_epoch(0)
    trainer._weights = lambda log_p: torch.nn.functional.pad(weights, (0, len(log_p) - len(weights)))
    trainer.model.train()
    trainer.compute_loss(trainer.model, trainer.data_collator([trainer.train_dataset[row] for row in rows]))
    return {row for row, epoch in enumerate(trainer._left_out.state_dict()["learnt_in"]) if epoch != -1}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_example_counts_while_one_of_its_turns_does(layout):
    kwargs = {"train_dataset": Dataset.from_list(test_turns.ROWS)}
    trainer = make_trainer(unit="turn", trainer_kwargs=kwargs, **{**EPOCHS, **LAYOUTS[layout]})
    # Row 2 has three turns, row 0 two, row 3 one.
    assert learnt_after_one_batch(trainer, [2, 0, 3], [0.1, 0.1, 0.9, 0.1, 0.2, 0.3]) == {0, 3}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_example_is_all_references_of_its_prompt(layout):
    rows = [{"prompt": f"{n}=", "completions": ["7", "1+6", "2+5"][: n % 3 + 1]} for n in range(6)]
    trainer = make_trainer(trainer_kwargs={"train_dataset": Dataset.from_list(rows)}, **{**EPOCHS, **LAYOUTS[layout]})
    trainer._left_out.mask[2] = True
    batch = trainer.data_collator([trainer.train_dataset[2]])
    assert batch["labels"].tolist() == [[-100, -100]] and batch[TRAIN_ROW].tolist() == [6]
    assert torch.isfinite(trainer.compute_loss(trainer.model.train(), batch))
    assert learnt_after_one_batch(trainer, [5, 0, 1], [0.1, 0.1, 0.1, 0.9, 0.3, 0.3]) == {5, 1}


def test_a_weight_is_relative_to_the_largest():
    trainer = make_trainer(num_required=4, **EPOCHS)
    assert learnt_after_one_batch(trainer, [3, 7], [1.9, 2.1]) == {3}


# ------------------------------------------------------------------ the memory


@given(st.lists(st.lists(st.sampled_from("cls"), min_size=4, max_size=4), max_size=9), st.integers(1, 4))
@examples(max_examples=50, deadline=None)
def test_the_memory_is_the_definition(epochs, recheck):
    """Each epoch an example counts, is learnt, or is skipped by chance; those left out are skipped."""
    left_out, last = LeftOut(4, recheck, Accelerator(cpu=True)), {}
    for epoch, outcomes in enumerate(epochs):
        left_out.begin_epoch(epoch)
        expected = [row in last and epoch - last[row] < recheck for row in range(4)]
        assert left_out.mask.tolist() == expected
        for row, outcome in enumerate(outcomes):
            if outcome != "s" and not expected[row]:
                left_out.see(torch.tensor([row]), torch.tensor([outcome == "c"]))
                last.pop(row, None)
                if outcome == "l":
                    last[row] = epoch
        if epoch % 2:
            state = left_out.state_dict()
            left_out = LeftOut(4, recheck, Accelerator(cpu=True))
            left_out.load_state_dict(state)
        mask = left_out.mask.tolist()
        left_out.begin_epoch(epoch)  # a resumed epoch
        assert left_out.mask.tolist() == mask


def test_training_again_begins_anew_and_evaluation_is_whole():
    trainer = make_trainer(Recording, **EPOCHS)
    trainer.train()
    assert trainer._left_out.mask.sum() == 0
    trainer.seen.clear()
    trainer.train()
    assert len(trainer.seen[0]) == 12


# -------------------------------------------------------- resuming, processes


@pytest.mark.parametrize("step", [5, 6, 7, 8])  # three steps an epoch
def test_a_resumed_run_goes_on_as_if_it_had_not_been_stopped(step, tmp_path):
    saving = {**EPOCHS, "output_dir": str(tmp_path), "save_strategy": "steps", "save_steps": 1}
    trainer = make_trainer(Recording, **saving)
    trainer.train()
    resumed = make_trainer(Recording, **saving)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    for epoch in range(step // 3 + 1, 6):
        assert resumed.seen[epoch] == trainer.seen[epoch]
    for ours, theirs in zip(resumed.model.parameters(), trainer.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_checkpoint_of_another_data_set_or_without_the_file_is_refused(tmp_path):
    saving = {**EPOCHS, "output_dir": str(tmp_path), "save_strategy": "steps", "save_steps": 1, "num_train_epochs": 2}
    make_trainer(**saving).train()
    checkpoint = tmp_path / "checkpoint-2"
    with pytest.raises(ValueError, match=r"knows which of 12 training examples are learnt, and there are 11"):
        make_trainer(trainer_kwargs={"train_dataset": dataset(11)}, **saving).train(str(checkpoint))
    (checkpoint / LEFT_OUT_NAME).unlink()
    with pytest.raises(FileNotFoundError, match=rf"is not complete: it has no {LEFT_OUT_NAME}"):
        make_trainer(**saving).train(str(checkpoint))


@pytest.mark.parametrize("persistent", [False, True])
def test_loading_in_processes_of_its_own_changes_nothing(persistent):
    options = {**EPOCHS, "num_train_epochs": 4}
    workers = dict(dataloader_num_workers=1, dataloader_persistent_workers=persistent)
    assert_same_run(run(**options, **workers), run(**options))


def test_lora_and_one_attempt():
    trainer = make_trainer(Recording, trainer_kwargs={"peft_config": LoraConfig()}, **{**EPOCHS, "learning_rate": 0.1})
    trainer.train()
    assert min(len(seen) for seen in trainer.seen.values()) < 12
    trainer = make_trainer(**{**EPOCHS, "num_attempts": 1, "num_train_epochs": 1})
    assert trainer._left_out is None  # every weight is 1


# ------------------------------------------------------------------- bad input


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_a_threshold_is_a_weight(value):
    with pytest.raises(ValueError, match=r"`leave_out_below` is a weight relative to the largest, from 0 to 1, got"):
        DCOConfig("out", leave_out_below=value, use_cpu=True, bf16=False)


def test_epochs_are_counted_from_one():
    with pytest.raises(ValueError, match="`recheck_epochs` must be an integer of at least 1, got 0"):
        DCOConfig("out", recheck_epochs=0, use_cpu=True, bf16=False)


@pytest.mark.parametrize(
    ("options", "kwargs", "message"),
    [
        (
            {},
            {"train_dataset": dataset().to_iterable_dataset()},
            "rows need a number, and the train dataset is a `It",
        ),
        ({"packing": True}, {}, "packed documents cannot leave their pack. Set `packing=False`"),
        ({}, {"data_collator": DataCollatorWithPadding(None)}, "TRL's own collator is needed, got `DataCollatorWithP"),
        ({"accelerator_config": {"dispatch_batches": True}}, {}, "each process must put its own batches together"),
    ],
    ids=["streaming", "packed", "collator", "dispatched"],
)
def test_what_cannot_be_left_out_is_refused(options, kwargs, message):
    with pytest.raises(ValueError, match=f"^`leave_out_below=0.5`: {message}.*, or set it to 0.$"):
        make_trainer(leave_out_below=BELOW, trainer_kwargs=kwargs, **options)


def test_a_chain_of_thought_has_another_way():
    with pytest.raises(ValueError, match="Leave it at 0; `max_success_rate` leaves out rows by the rate"):
        CoTDCOConfig("out", leave_out_below=0.01, use_cpu=True, bf16=False)
