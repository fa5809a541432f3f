"""With one attempt `DCOTrainer` is `SFTTrainer`, bit for bit, on everything that `SFTTrainer` accepts."""

import math
import re
from typing import Any

import pytest
import torch
from datasets import Dataset, IterableDataset
from tiny_models import make_model, make_tokenizer
from training import ROWS, assert_same_run, assert_same_weights, make_trainer, run
from trl import SFTTrainer

TEXT = [{"text": row["prompt"] + row["completion"]} for row in ROWS]
# A line break follows the end of a turn, as in ChatML: a sampler stops before it.
TEMPLATE = "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }}<eos>\n{% endfor %}"
MARKING = TEMPLATE.replace(
    "{{ m['content'] }}<eos>\n",
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}<eos>{{ '\n' }}{% endgeneration %}"
    "{% else %}{{ m['content'] }}<eos>{{ '\n' }}{% endif %}",
)


def conversation(row: dict, turns: int = 1) -> dict:
    one = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
    return {"messages": one * turns}


def tokenised(**columns: Any) -> list[dict]:
    return [{"input_ids": [4 + i, 5, 6, 7 + i], **columns} for i in range(8)]


def mean_of_outputs(outputs, labels, num_items_in_batch=None):
    return outputs.logits.float().square().mean()


def template(text: str, **changes: Any):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = text
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    return {"processing_class": tokenizer}


# By name: rows, options of the trainer, and whether p is that of an answer.
INPUTS: dict[str, tuple[list[dict], dict, bool]] = {
    "text": (TEXT, {}, False),
    "text, packed": (TEXT, {"packing": True, "max_length": 24}, False),
    "wrapped": (ROWS, {"packing": True, "packing_strategy": "wrapped", "max_length": 16}, False),
    "text, wrapped": (TEXT, {"packing": True, "packing_strategy": "wrapped", "max_length": 16}, False),
    "split": (ROWS, {"packing": True, "packing_strategy": "bfd_split", "max_length": 6}, False),
    "formatting": (
        [{"question": row["prompt"], "answer": row["completion"]} for row in ROWS],
        {"formatting_func": lambda row: row["question"] + row["answer"]},
        False,
    ),
    "tokenised": (tokenised(), {}, False),
    "tokenised, with labels": (tokenised(labels=[-100, 5, 6, -100]), {}, True),
    "tokenised, unprepared": (tokenised(), {"dataset_kwargs": {"skip_prepare_dataset": True}}, False),
    "dft": (ROWS, {"loss_type": "dft"}, True),
    "dft on text": (TEXT, {"loss_type": "dft"}, False),
    "label smoothing": (ROWS, {"label_smoothing_factor": 0.1}, True),
    "loss of one's own": (ROWS, {"compute_loss_func": mean_of_outputs}, True),
    "the prompt's loss too": (ROWS, {"completion_only_loss": False}, False),
    "an empty completion": ([*ROWS[:7], {"prompt": "1+1=", "completion": ""}], {}, True),
    "conversations": ([conversation(row) for row in ROWS], template(TEMPLATE), False),
    "a tokenizer without an end of sequence": (
        [{"prompt": c["messages"][:1], "completion": c["messages"][1:]} for c in map(conversation, ROWS)],
        template(TEMPLATE, eos_token=None),
        True,
    ),
    "several turns": (
        [conversation(row, 2) for row in ROWS],
        {"assistant_only_loss": True, "max_length": 64, **template(MARKING)},
        True,
    ),
    "keep_end": (ROWS, {"truncation_mode": "keep_end", "max_length": 6}, True),
}


@pytest.mark.filterwarnings("ignore:.*deprecated")
@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.slow
def test_one_attempt_is_sft_bit_for_bit_on(name):
    rows, options, has_p = INPUTS[name]
    options = {"eval_strategy": "steps", "eval_steps": 3, "train_dataset": rows, "eval_dataset": rows[:5], **options}
    ours, theirs = make_trainer(num_attempts=1, **options), make_trainer(SFTTrainer, **options)
    assert ours.train_dataset.to_list() == theirs.train_dataset.to_list()
    ours.train(), theirs.train()
    timing = {"runtime", "samples_per_second", "steps_per_second"}
    logs = [
        [{k: v for k, v in row.items() if not any(t in k for t in timing)} for row in trainer.state.log_history]
        for trainer in (ours, theirs)
    ]
    assert [{k: row[k] for k in other} for row, other in zip(*logs, strict=True)] == logs[1]
    assert_same_weights(ours.model.state_dict(), theirs.model.state_dict())
    # What is logged beyond TRL's, and only where p is that of an answer.
    assert ("log_p" in logs[0][0]) == has_p
    assert any("eval_coverage@16" in row for row in logs[0]) == has_p


@pytest.mark.slow
def test_nan_losses_are_trls_affair():
    def broken():
        model = make_model()
        with torch.no_grad():
            model.lm_head.weight[3] = float("nan")
        return model

    evaluation = {"eval_dataset": ROWS, "logging_nan_inf_filter": False}
    ours = make_trainer(model=broken(), num_attempts=1, **evaluation)
    theirs = make_trainer(SFTTrainer, model=broken(), **evaluation)
    for trainer in (ours, theirs):
        trainer.train()
        assert math.isnan(trainer.state.log_history[0]["loss"])
        assert math.isnan(trainer.evaluate()["eval_loss"])


@pytest.mark.slow
def test_an_evaluation_set_without_answers_leaves_training_its_metrics():
    trainer = make_trainer(num_attempts=1, eval_dataset=TEXT)
    trainer.train()
    assert trainer.state.log_history[0]["log_p"] < 0
    assert not [key for key in trainer.evaluate() if "coverage" in key]


@pytest.mark.slow
def test_streaming_text():
    streamed = {"train_dataset": IterableDataset.from_generator(lambda: iter(TEXT))}
    assert_same_run(run(num_attempts=1, **streamed), run(SFTTrainer, **streamed))


@pytest.mark.parametrize("name", ["text", "wrapped", "split", "formatting", "tokenised", "dft", "label smoothing"])
@pytest.mark.parametrize("more", [{"num_attempts": 16}, {"num_attempts": 1, "loss_reduction": "sequence"}])
def test_what_needs_p_or_the_loss_is_refused(name, more):
    rows, options, _ = INPUTS[name]
    with pytest.raises(ValueError, match="the answer|replaces TRL's loss|already carry|cuts|merges"):
        make_trainer(train_dataset=rows, **options, **more)


def test_the_baseline_of_conversations_is_told_to_be_another_experiment(caplog):
    rows, tokenizer = Dataset.from_list([conversation(row) for row in ROWS]), template(TEMPLATE)
    make_trainer(train_dataset=rows, num_attempts=1, **tokenizer)
    assert "trains prompt and answer of `messages` rows alike; more attempts train the answer alone" in caplog.text
    way_out = re.search(r"dataset.map\(.*?remove_columns='messages'\)", caplog.text).group()
    caplog.clear()
    ours = make_trainer(train_dataset=eval(way_out, {"dataset": rows}), num_attempts=1, **tokenizer)
    many = make_trainer(train_dataset=rows, num_attempts=2, **tokenizer)
    labels = [[row["labels"] for row in trainer.get_train_dataloader().dataset] for trainer in (ours, many)]
    assert labels[0] == labels[1] and "more attempts train" not in caplog.text
