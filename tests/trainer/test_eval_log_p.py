"""Each evaluation row's log p, beside the checkpoint of the same step."""

import json

import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from test_metrics import log_probabilities
from test_one_attempt import TEMPLATE, TEXT, conversation, template
from training import MANY, ROWS, make_trainer
from transformers import AutoModelForCausalLM

from dco_trl.trainer.eval_log_p import rows_fingerprint

# The third row is all prompt within `max_length`, and dropped.
LONG = [*ROWS[:2], {"prompt": "1" * 40 + "=", "completion": "2"}, *ROWS[2:7]]


AT_EACH_STEP = dict(eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1)


@pytest.mark.parametrize("batches", [{}, {"padding_free": True, "max_length": None}])
@pytest.mark.parametrize("num_attempts", [1, MANY])
@pytest.mark.slow
def test_each_row_of_the_evaluation_set_as_it_was_given(tmp_path, batches, num_attempts):
    rows = LONG if not batches else LONG[:2] + LONG[3:]
    steps = AT_EACH_STEP | dict(eval_steps=2, max_steps=4, shuffle_dataset=True, per_device_eval_batch_size=3)
    options = dict(output_dir=str(tmp_path), num_attempts=num_attempts, **steps, **batches)
    make_trainer(eval_dataset=rows, **options).train()
    # Checkpoints of steps that were not evaluated have none.
    found = sorted(path.parent.name for path in tmp_path.glob("*/eval_log_p.parquet"))
    assert found == ["checkpoint-2", "checkpoint-4"]
    for name in found:
        table = pq.read_table(tmp_path / name / "eval_log_p.parquet").to_pydict()
        assert set(table["arm"]) == {name} and set(table["dataset"]) == {""}
        assert table["row"] == ([0, 1, 3, 4, 5, 6, 7] if not batches else [*range(7)])
        expected = log_probabilities(AutoModelForCausalLM.from_pretrained(tmp_path / name), ROWS[:7])
        assert table["log_p"] == pytest.approx(expected.tolist(), rel=1e-4)


@pytest.mark.slow
def test_the_file_tells_which_rows_of_which_set_were_evaluated(tmp_path):
    """Runs on other rows, or on the same in another order, must not be paired by row number."""

    def read(name, evaluation, **settings):
        options = dict(output_dir=str(tmp_path / name), max_steps=1, **AT_EACH_STEP, **settings)
        make_trainer(eval_dataset=evaluation, **options).train()
        table = pq.read_table(tmp_path / name / "checkpoint-1/eval_log_p.parquet")
        numbers = list(zip(table["dataset"].to_pylist(), table["row"].to_pylist(), strict=True))
        return numbers, json.loads(table.schema.metadata[b"dco_eval_rows"])

    rows = [{"id": str(i), **row} for i, row in enumerate(ROWS[:4])]
    numbers, first = read("a", rows)
    assert list(first) == [""] and numbers == [("", i) for i in range(4)]
    # Neither the columns that training does not read nor the way of training are part of it.
    assert read("b", ROWS[:4], num_attempts=1, shuffle_dataset=True)[1] == first
    several = {"of_one": Dataset.from_list(rows[:0:-1]), "y": Dataset.from_list(rows)}
    numbers, found = read("c", several)
    assert found["y"] == first[""] != found["of_one"]
    assert numbers == [*(("of_one", i) for i in range(3)), *(("y", i) for i in range(4))]


def test_a_set_given_to_evaluate_is_that_evaluations_alone(tmp_path):
    own, other = Dataset.from_list(ROWS[:4]), Dataset.from_list(ROWS[2:5])
    trainer = make_trainer(eval_dataset=own, output_dir=str(tmp_path))

    def evaluated(*arguments):
        trainer.evaluate(*arguments)
        trainer._eval_log_p.write(tmp_path, trainer.state.global_step)
        table = pq.read_table(tmp_path / "eval_log_p.parquet")
        return len(table), json.loads(table.schema.metadata[b"dco_eval_rows"])

    assert evaluated() == (4, {"": rows_fingerprint(own)})
    assert evaluated(other) == (3, {"": rows_fingerprint(other)})
    assert evaluated() == (4, {"": rows_fingerprint(own)})


def test_conversations_are_known_as_they_were_given():
    """With several attempts they are split into prompt and completion, and with one they are not."""
    rows = [conversation(row) for row in ROWS[:3]]
    options = {"train_dataset": rows, "eval_dataset": rows, "max_length": 64, **template(TEMPLATE)}
    trainers = [make_trainer(num_attempts=n, **options) for n in (1, MANY)]
    assert ["messages" in trainer.train_dataset.column_names for trainer in trainers] == [True, False]
    one, many = (trainer._eval_log_p.fingerprints for trainer in trainers)
    assert one == many and list(one) == [""]


@pytest.mark.parametrize(
    ("settings", "rows"),
    [({}, None), ({"eval_strategy": "steps"}, TEXT), ({"eval_strategy": "steps", "packing": True}, ROWS)],
    ids=["no evaluation", "no answers", "packed"],
)
@pytest.mark.slow
def test_nothing_is_written_without_an_evaluation_of_rows(tmp_path, settings, rows):
    options = dict(output_dir=str(tmp_path), num_attempts=1, save_strategy="steps", save_steps=3, eval_steps=3)
    make_trainer(eval_dataset=rows, **options, **settings).train()
    assert (tmp_path / "checkpoint-3").is_dir()
    assert not list(tmp_path.rglob("eval_log_p*"))
