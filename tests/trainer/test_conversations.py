"""Conversations: what is read as prompt and completion, what is refused, and that p is the same either way."""

import pytest
from datasets import Dataset, IterableDataset
from test_one_attempt import MARKING, TEMPLATE, conversation, template
from tiny_models import save_checkpoint
from training import ROWS, make_trainer, settings

from dco_trl import DCOConfig, DCOTrainer

ONE_TURN = [conversation(row) for row in ROWS]
TWO_TURNS = [conversation(row, 2) for row in ROWS]


def evaluated(rows, chat_template, **overrides):
    return make_trainer(train_dataset=rows, eval_dataset=rows, max_length=64, **template(chat_template), **overrides)


@pytest.mark.parametrize("assistant_only_loss", [False, True])
@pytest.mark.slow
def test_single_turns_are_split_where_the_answer_cannot_be_marked(caplog, assistant_only_loss):
    trainer = evaluated(ONE_TURN, TEMPLATE, assistant_only_loss=assistant_only_loss)
    for split in ("train", "eval"):
        assert f"The conversations of the {split} dataset have one assistant turn each. They are" in caplog.text
    expected = evaluated([{"prompt": r["messages"][:1], "completion": r["messages"][1:]} for r in ONE_TURN], TEMPLATE)
    assert trainer.train_dataset["labels"] == expected.train_dataset["labels"]
    metrics = trainer.evaluate()
    assert metrics["eval_log_p"] == expected.evaluate()["eval_log_p"]
    trainer.train()
    # Handed to `evaluate`, they are split as well.
    assert trainer.evaluate(Dataset.from_list(ONE_TURN[:3]))["eval_log_p"] < 0


def test_conversations_whose_answers_are_marked_are_left_to_trl(caplog):
    trainer = evaluated(ONE_TURN, MARKING, assistant_only_loss=True)
    assert "They are split into `prompt`" not in caplog.text
    assert "messages" in trainer.train_dataset.column_names
    assert trainer.evaluate()["eval_log_p"] < 0


def test_the_template_of_a_model_folder_is_asked(tmp_path):
    folder = save_checkpoint(tmp_path)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    args = DCOConfig(**settings(assistant_only_loss=True, max_length=64))
    trainer = DCOTrainer(str(folder), args=args, train_dataset=Dataset.from_list(ONE_TURN))
    assert {"prompt", "completion"} <= set(trainer.train_dataset.column_names)
    assert args.assistant_only_loss  # the caller's own is not touched


def test_several_turns_that_cannot_be_marked_are_refused_with_the_way_out():
    expected = (
        r"chat template does not mark the assistant's tokens .*`assistant_only_loss=True` cannot tell .*; and 2 of 3 "
        r"rows of the train dataset \(first: row 1\) do not end with their only assistant turn\. "
        r"Give the dataset `prompt` and `completion` columns, one row per assistant turn.*every"
    )
    with pytest.raises(ValueError, match=expected):
        evaluated([ONE_TURN[0], *TWO_TURNS[:2]], TEMPLATE, assistant_only_loss=True)
    with pytest.raises(ValueError, match="do not tell the answer from the prompt.* one row per assistant turn"):
        evaluated([ONE_TURN[0], *TWO_TURNS[:2]], TEMPLATE)
    streamed = IterableDataset.from_generator(lambda: iter(ONE_TURN), features=Dataset.from_list(ONE_TURN).features)
    with pytest.raises(ValueError, match="does not mark the assistant's tokens.*one row per assistant turn"):
        make_trainer(train_dataset=streamed, assistant_only_loss=True, **template(TEMPLATE))


@pytest.mark.parametrize("how", ["marked", "completion"])
def test_several_turns_in_one_row_are_reported_once(caplog, how):
    rows = [ONE_TURN[0], *TWO_TURNS[:2]]
    if how == "completion":
        rows = [{"prompt": row["messages"][:1], "completion": row["messages"][1:]} for row in rows]
    options = {"assistant_only_loss": how == "marked", **template(MARKING if how == "marked" else TEMPLATE)}
    trainer = make_trainer(train_dataset=rows, max_length=64, **options)
    assert len(trainer.train_dataset) == 3
    assert (
        caplog.text.count("2 of 3 rows of the train dataset (first: row 1) have several answers, usually turns") == 1
    )


def test_a_prompt_is_compared_with_its_row_where_that_keeps_the_conversation():
    """The prompt is what a sampler is given; here the template renders it differently for training."""
    rows = [{**row, "prompt": row["messages"][:1], "completion": row["messages"][1:]} for row in ONE_TURN]
    with pytest.raises(ValueError, match="the prompt of row 0 of the train dataset differently when it is alone"):
        evaluated(rows, TEMPLATE + "{% if add_generation_prompt %}b:{% endif %}")
