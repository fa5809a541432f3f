"""Each evaluation row's log p, beside the checkpoint of the same step."""

import json

import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from test_metrics import log_probabilities
from test_one_attempt import TEXT
from tiny_models import make_model
from training import MANY, ROWS, dataset, make_trainer
from transformers import AutoModelForCausalLM

# The third row is all prompt within `max_length`, and dropped.
LONG = [*ROWS[:2], {"prompt": "1" * 40 + "=", "completion": "2"}, *ROWS[2:7]]


@pytest.mark.parametrize("batches", [{}, {"padding_free": True, "max_length": None}])
@pytest.mark.parametrize("num_attempts", [1, MANY])
def test_each_row_of_the_evaluation_set_as_it_was_given(tmp_path, batches, num_attempts):
    trainer = make_trainer(
        output_dir=str(tmp_path),
        num_attempts=num_attempts,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=1,
        max_steps=4,
        shuffle_dataset=True,
        per_device_eval_batch_size=3,
        trainer_kwargs={"eval_dataset": Dataset.from_list(LONG if not batches else LONG[:2] + LONG[3:])},
        **batches,
    )
    trainer.train()
    # Checkpoints of steps that were not evaluated have none.
    assert sorted(path.parent.name for path in tmp_path.glob("*/eval_log_p.parquet")) == [
        "checkpoint-2",
        "checkpoint-4",
    ]
    for step in (2, 4):
        folder = tmp_path / f"checkpoint-{step}"
        table = pq.read_table(folder / "eval_log_p.parquet").to_pydict()
        assert set(table["arm"]) == {f"checkpoint-{step}"} and set(table["dataset"]) == {""}
        assert table["row"] == ([0, 1, 3, 4, 5, 6, 7] if not batches else [*range(7)])
        expected = log_probabilities(AutoModelForCausalLM.from_pretrained(folder), ROWS[:7])
        assert table["log_p"] == pytest.approx(expected.tolist(), rel=1e-4)


def test_several_evaluation_sets_keep_their_names(tmp_path):
    trainer = make_trainer(
        output_dir=str(tmp_path),
        eval_strategy="steps",
        eval_steps=3,
        save_strategy="steps",
        save_steps=3,
        trainer_kwargs={"eval_dataset": {"easy_one": dataset(4), "hard": Dataset.from_list(ROWS[4:])}},
    )
    trainer.train()
    table = pq.read_table(tmp_path / "checkpoint-3" / "eval_log_p.parquet").to_pydict()
    assert list(zip(table["dataset"], table["row"], strict=True)) == [
        *(("easy_one", i) for i in range(4)),
        *(("hard", i) for i in range(8)),
    ]


def test_the_file_tells_which_rows_were_evaluated(tmp_path):
    """Runs with other rows, or the same in another order, are not to be paired by their numbers."""

    def fingerprints(name, evaluation, **settings):
        trainer = make_trainer(
            output_dir=str(tmp_path / name),
            eval_strategy="steps",
            eval_steps=1,
            save_strategy="steps",
            save_steps=1,
            max_steps=1,
            trainer_kwargs={"eval_dataset": evaluation},
            **settings,
        )
        trainer.train()
        [file] = (tmp_path / name).rglob("eval_log_p.parquet")
        return json.loads(pq.read_schema(file).metadata[b"dco_eval_rows"])

    rows = [{"id": str(i), **row} for i, row in enumerate(ROWS[:4])]
    first = fingerprints("a", Dataset.from_list(rows))
    assert list(first) == [""]
    # Neither the columns that training does not read nor the way of training are part of it.
    assert fingerprints("b", Dataset.from_list(ROWS[:4]), num_attempts=1, shuffle_dataset=True) == first
    shuffled = fingerprints("c", {"x": Dataset.from_list(rows[::-1]), "y": Dataset.from_list(rows)})
    assert shuffled["y"] == first[""] != shuffled["x"]


@pytest.mark.parametrize(
    ("settings", "rows"),
    [({}, None), ({"eval_strategy": "steps"}, TEXT), ({"eval_strategy": "steps", "packing": True}, ROWS)],
    ids=["no evaluation", "no answers", "packed"],
)
def test_nothing_is_written_without_an_evaluation_of_rows(tmp_path, settings, rows):
    trainer = make_trainer(
        output_dir=str(tmp_path),
        model=make_model(),
        num_attempts=1,
        save_strategy="steps",
        save_steps=3,
        trainer_kwargs={"eval_dataset": Dataset.from_list(rows)} if rows else {},
        **({"eval_steps": 3} if settings else {}),
        **settings,
    )
    trainer.train()
    assert (tmp_path / "checkpoint-3").is_dir()
    assert not list(tmp_path.rglob("eval_log_p*"))
