"""`unit="turn"`: each contiguous run of labelled tokens has a probability of its own."""

import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_equivalence import BATCHES, assert_same_gradients, gradients
from tiny_models import make_model
from training import MANY, assert_same_run, make_trainer, run
from trl import SFTTrainer

from dco_trl.trainer.segments import Segments, one_label_per_unit

# Runs of labels: at the start, at the end, one token, several, none but one, of several rows.
MASKS = ["0011011", "01", "0101010", "00111", "0110001101", "0100"]
TOKENS = [[4 + (3 * i + j) % 40 for j in range(len(mask))] for i, mask in enumerate(MASKS)]
ROWS = [
    {"input_ids": ids, "labels": [token if bit == "1" else -100 for token, bit in zip(ids, mask, strict=True)]}
    for ids, mask in zip(TOKENS, MASKS, strict=True)
]
BATCH = {
    "padded": {"per_device_train_batch_size": 6},
    "padding-free": {"per_device_train_batch_size": 6, "padding_free": True, "max_length": None},
    "packed": {"per_device_train_batch_size": 6, "packing": True, "max_length": 20},
}


def runs_of(mask: list[bool]) -> list[list[int]]:
    """Positions of each contiguous run."""
    runs: list[list[int]] = []
    for i, bit in enumerate(mask):
        if bit and i and mask[i - 1]:
            runs[-1].append(i)
        elif bit:
            runs.append([i])
    return runs


def log_p_of_turns(model) -> list[list[tuple[torch.Tensor, int]]]:
    """Log-probability, with a gradient, and number of tokens of each turn of each row, one row at a time."""
    found = []
    for row in ROWS:
        ids = torch.tensor([row["input_ids"]])
        log_probs = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
        runs = runs_of([label != -100 for label in row["labels"][1:]])
        found.append([(log_probs[run].sum(), len(run)) for run in runs])
    return found


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=7), min_size=1, max_size=5))
def test_runs_equal_a_loop(masks):
    width = max(map(len, masks))
    padded = torch.tensor([mask + [False] * (width - len(mask)) for mask in masks])
    flattened = torch.tensor([[bit for mask in masks for bit in mask]])
    of_document = torch.tensor([[i for i, mask in enumerate(masks) for _ in mask]])
    expected = [(i, len(run)) for i, mask in enumerate(masks) for run in runs_of(mask)]
    for whole in (Segments.rows(padded), Segments.packed(of_document, flattened, len(masks))):
        turns = whole.turns()
        assert (
            list(zip(turns.sequence_of[turns.valid].tolist(), turns.num_tokens[turns.valid].tolist(), strict=True))
            == expected
        )
        assert one_label_per_unit(turns).tolist()[0].count(0) == len(expected)
        ones = torch.ones_like(turns.label_mask, dtype=torch.float32)
        assert turns.by_sequence(turns.sum(ones)[:, None]).flatten().tolist() == [float(sum(mask)) for mask in masks]


@pytest.mark.parametrize("reduction", ["token", "sequence", "sequence_mean"])
@pytest.mark.parametrize("batch", BATCH)
def test_gradient_is_autograds_of_the_sum_over_turns(batch, reduction):
    model = make_model().double()
    trainer = make_trainer(
        model=model, num_attempts=MANY, unit="turn", loss_reduction=reduction, train_dataset=ROWS, **BATCH[batch]
    )
    trainer.current_gradient_accumulation_steps = 1
    (inputs,) = list(trainer.get_train_dataloader())
    num_items = trainer._get_num_items_in_batch([dict(inputs)], torch.device("cpu"))
    ours = gradients(trainer.compute_loss(model, dict(inputs), num_items_in_batch=num_items), model)
    turns = [turn for row in log_p_of_turns(model) for turn in row]
    losses = torch.stack([-torch.log(1 - (1 - log_p.exp()) ** MANY) for log_p, _ in turns])
    lengths = torch.tensor([length for _, length in turns])
    expected = {
        "token": losses.sum() / lengths.sum(),
        "sequence": losses.mean(),
        "sequence_mean": (losses / lengths).mean(),
    }
    assert_same_gradients(ours, gradients(expected[reduction], model), rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("batches", BATCHES)
@pytest.mark.slow
def test_a_row_of_one_turn_is_todays_trainer_bit_for_bit(batches):
    settings = dict(num_attempts=MANY, loss_reduction="sequence", **BATCHES[batches])
    assert_same_run(run(unit="turn", **settings), run(**settings))


@pytest.mark.slow
def test_one_attempt_is_sft_bit_for_bit():
    assert_same_run(run(unit="turn", num_attempts=1, train_dataset=ROWS), run(SFTTrainer, train_dataset=ROWS))


@pytest.mark.parametrize("batches", [{"per_device_eval_batch_size": 4}, BATCH["padding-free"], {"eval_packing": True}])
def test_metrics_are_means_over_turns(tmp_path, batches):
    model = make_model()
    steps = dict(max_steps=1, eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1)
    training = dict(unit="turn", num_attempts=MANY, coverage_at=[50], learning_rate=0.0, eval_dataset=ROWS)
    options = {"max_length": 20, **batches, **steps, **training}
    trainer = make_trainer(model=model, output_dir=str(tmp_path), **options)
    trainer.train()
    metrics = trainer.evaluate()
    with torch.no_grad():
        rows = [torch.stack([log_p for log_p, _ in row]).double() for row in log_p_of_turns(model)]
    log_p = torch.cat(rows)
    assert metrics["eval_log_p"] == pytest.approx(log_p.mean().item(), rel=1e-4)
    assert metrics["eval_coverage@50"] == pytest.approx((1 - (1 - log_p.exp()) ** 50).mean().item(), rel=1e-4)
    if "eval_packing" not in batches:  # the file keeps the whole row's
        table = pq.read_table(tmp_path / "checkpoint-1" / "eval_log_p.parquet").to_pydict()
        assert table["row"] == [*range(6)]
        assert table["log_p"] == pytest.approx([row.sum().item() for row in rows], rel=1e-4)


def test_turns_raise_no_warning_about_several_answers(caplog):
    make_trainer(unit="turn", train_dataset=ROWS)
    assert "several answers" not in caplog.text
    make_trainer(train_dataset=ROWS)
    assert "have several answers, usually turns" in caplog.text
