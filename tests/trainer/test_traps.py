"""Settings and data that would not train coverage raise an error, or a warning with a number."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator, ParallelismConfig
from datasets import Dataset, IterableDataset
from peft import PrefixTuningConfig, PromptTuningConfig
from tiny_models import make_model, make_tokenizer
from training import MANY, ROWS, make_trainer, settings, steps_of
from transformers import Trainer
from trl import SFTConfig

from dco_trl import DCOConfig, DCOTrainer

UNPREPARED = {"dataset_kwargs": {"skip_prepare_dataset": True}}


def on(rows: list[dict], **overrides) -> DCOTrainer:
    return make_trainer(train_dataset=rows, **overrides)


def train_on(rows: list[dict], **overrides) -> DCOTrainer:
    trainer = on(rows, **overrides)
    trainer.train()
    return trainer


# ------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"label_smoothing_factor": 0.1}, "`label_smoothing_factor=0.1` replaces TRL's loss.*Set it to 0: D"),
        ({"loss_type": "dft"}, "`loss_type='dft'` would be computed from.*already carry.*Use `loss_type='nll'`"),
        ({"packing": True, "packing_strategy": "wrapped"}, "`packing_strategy='wrapped'` cuts sequences.*'bfd'"),
        ({"packing": True, "packing_strategy": "bfd_split"}, "`packing_strategy='bfd_split'` cuts.*Use .*'bfd'"),
        ({"eval_packing": True, "packing_strategy": "wrapped"}, "`packing_strategy='wrapped'` cuts.*Use .*'bfd'"),
        ({"completion_only_loss": False}, "`completion_only_loss=False`.*prompt and completion together.*unset"),
        ({"num_attempts": 0}, "`num_attempts` must be an integer of at least 1.*got 0"),
        ({"num_attempts": 2.0}, "`num_attempts` must be an integer of at least 1.*got 2.0"),
        ({"loss_reduction": "mean"}, r"`loss_reduction` must be one of .*'sequence_mean'., got 'mean'. Leave it out"),
        ({"coverage_at": [1, 0]}, r"`coverage_at\[1\]` must be an integer of at least 1, got 0"),
        ({"coverage_at": 16}, r"`coverage_at` must be a list of integers, such as \[1, 16\], got 16"),
        ({"coverage_at": "16"}, r"`coverage_at` must be a list of integers, such as \[1, 16\], got '16'"),
        ({"unit": "step"}, r"`unit` must be one of \('sequence', 'turn'\), got 'step'"),
        ({"compute_loss_func": print}, "`compute_loss_func` replaces TRL's loss.*or use it with `num_attempts=1`"),
        ({"formatting_func": print}, "`formatting_func` merges prompt and completion.*`dataset.map`"),
    ],
)
def test_refused_setting(overrides, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(**overrides)


def test_numpys_integers_are_integers():
    args = DCOConfig(**settings(num_attempts=np.int64(4), coverage_at=[np.int64(1), 7]))
    assert type(args.num_attempts) is int and args.coverage_at == [1, 7] and type(args.coverage_at[0]) is int


def test_arguments_of_another_kind():
    with pytest.raises(TypeError, match="`args` must be a `DCOConfig`, got `SFTConfig`.*takes the same arguments"):
        DCOTrainer(make_model(), args=SFTConfig(**settings()))
    with pytest.raises(TypeError, match="takes the arguments after `model` by name, and got 2 by position"):
        DCOTrainer(make_model(), DCOConfig(**settings()), ROWS)


@pytest.mark.parametrize(("size", "name"), [("cp_size", "Context"), ("sp_size", "Sequence"), ("dp_shard_size", None)])
def test_sharded_sequences_are_refused(size, name, monkeypatch):
    # A real one needs several processes. A trainer would find this after it has made its accelerator.
    parallelism = ParallelismConfig(**{size: 2})
    make_accelerator = Trainer.create_accelerator_and_postprocess

    def make_sharding_accelerator(trainer):
        make_accelerator(trainer)
        sharding = {"parallelism_config": property(lambda _: parallelism)}
        trainer.accelerator.__class__ = type("ShardingAccelerator", (Accelerator,), sharding)

    monkeypatch.setattr(Trainer, "create_accelerator_and_postprocess", make_sharding_accelerator)
    if name is None:
        make_trainer()
        return
    with pytest.raises(ValueError, match=f"{name} parallelism splits a sequence over devices.*`{size}=1`"):
        make_trainer()
    assert make_trainer(num_attempts=1)._has_no_p == {"train", "eval"}


def test_default_arguments(monkeypatch, tmp_path):
    # TRL's defaults ask for bfloat16, which TrainingArguments allows on a GPU only unless `use_cpu` is set.
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)
    monkeypatch.chdir(tmp_path)
    model = make_model()
    model.config._name_or_path = "somebody/tiny-model"
    args = DCOTrainer(model, train_dataset=Dataset.from_list(ROWS), processing_class=make_tokenizer()).args
    assert isinstance(args, DCOConfig) and (args.output_dir, args.num_attempts) == ("tiny-model-DCO", 16)


# ------------------------------------------------------------------------------ data

QUESTION, ANSWER = {"role": "user", "content": "1+1"}, {"role": "assistant", "content": "2"}
UNSEPARATED = "dataset has the columns .* do not tell the answer from the prompt"


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"text": "1+1=2"}], {}, f"The train {UNSEPARATED}"),
        ([{"messages": [QUESTION, ANSWER, QUESTION, ANSWER]}], {}, f"The train {UNSEPARATED}"),
        ([{"input_ids": [4, 5, 6]}], {}, f"The train {UNSEPARATED}"),
        ([{"input_ids": [4, 5, 6]}], UNPREPARED, f"The train {UNSEPARATED}"),
        ([{"prompt": "1+1=", "completions": ["2", "02"]}], {}, "one `completion`. Turn a list .* into one row each"),
        (
            [*ROWS[:3], *({"prompt": "1+1=", "completion": empty} for empty in ("", "  ", None))],
            {},
            r"3 of 6 rows of the train dataset \(first: row 3\) have an empty `completion`",
        ),
        (
            [{"prompt": [QUESTION], "completion": [{**ANSWER, "content": content}]} for content in ("2", "")],
            {},
            r"1 of 2 rows of the train dataset \(first: row 1\) have an empty `completion`",
        ),
    ],
    ids=["text", "messages", "tokenised", "unprepared", "several answers", "empty", "empty message"],
)
def test_rows_that_are_refused(rows, options, message):
    with pytest.raises(ValueError, match=message):
        on(rows, **options)


def test_evaluation_rows_are_checked_too():
    text = Dataset.from_list([{"text": "1+1=2"}])
    with pytest.raises(ValueError, match=f"The eval {UNSEPARATED}"):
        make_trainer().evaluate(text)
    with pytest.raises(ValueError, match=f"The test {UNSEPARATED}"):
        make_trainer(eval_dataset={"test": text})


def test_unprepared_rows_need_labels():
    with pytest.raises(ValueError, match="labels"):  # TRL's own
        train_on([{"input_ids": [4, 5, 6], "completion_mask": [0, 1, 1]}], **UNPREPARED)
    trainer = train_on([{"input_ids": [4, 5, 6], "labels": [-100, 5, 6]}], **UNPREPARED, max_steps=1)
    assert trainer.state.log_history[0]["log_p"] < 0


TOO_LONG = [{"prompt": "1=", "completion": "1" * 40}, {"prompt": "1" * 40 + "=", "completion": "2"}]
CUT, START = "lose labelled tokens: their p is the probability of a piece", "lose the start of their prompt"


@pytest.mark.parametrize(
    ("options", "told", "num_left"),
    [
        ({}, {CUT: 2, START: 0, "have no labelled token and are dropped": 1}, 6),
        ({"packing": True}, {CUT: 2, START: 0, "have no labelled token and count in no mean": 1}, None),
        ({"truncation_mode": "keep_end"}, {CUT: 1, START: 1, "have no labelled token": 0}, 7),
    ],
    ids=["start kept", "packed", "end kept"],
)
def test_truncated_rows_are_counted(caplog, options, told, num_left):
    trainer = train_on([*ROWS[:5], *TOO_LONG], max_length=20, **options)
    said = {record.getMessage() for record in caplog.records}
    for text, count in told.items():
        row = 6 if text == START or "no labelled" in text else 5
        expected = f"{count} of 7 rows of the train dataset (first: row {row}) at `max_length=20` {text}"
        assert any(expected in message for message in said) == (count > 0), text
    assert num_left in (None, len(trainer.train_dataset))


def test_several_answers_in_a_row_are_counted(caplog):
    one = {"input_ids": [4, 5, 6, 1], "labels": [-100, 5, 6, 1]}
    two = {"input_ids": [4, 5, 6, 1], "labels": [-100, 5, -100, 1]}
    on([one, two, one, two, one])
    [said] = [record.getMessage() for record in caplog.records if "several answers" in record.getMessage()]
    assert "2 of 5 rows of the train dataset (first: row 1) have several answers" in said
    assert "Set `unit='turn'`, which gives each its own; or make one row of each turn, with the messages" in said
    caplog.clear()
    on([two], num_attempts=1)
    assert "several answers" not in caplog.text


def test_answers_without_a_prompt_or_an_end(caplog):
    rows = [{"input_ids": [4, 5, 6, 1], "labels": labels} for labels in ([-100, 5, 6, 1], [4, 5, 6, 1])]
    told = r"dataset \(first: row {}\) have an answer that begins at the first token.*prompt"
    with pytest.raises(ValueError, match=f"1 of 2 rows of the train {told.format(1)}"):
        on(rows)
    assert on(rows, num_attempts=1)._has_no_p
    with pytest.raises(ValueError, match=f"2 of 2 rows of the eval {told.format(0)}"):
        make_trainer().evaluate(Dataset.from_list([{"prompt": "", "completion": "2"}] * 2))
    train_on([{"input_ids": [4, 5, end, 4], "labels": [-100, 5, end, -100]} for end in (1, 6, 7)])
    assert "2 of 3 rows of the train dataset (first: row 1) have an answer without an end of sequence" in caplog.text
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    chat = {"train_dataset": [{"prompt": [QUESTION], "completion": [ANSWER]}], "processing_class": tokenizer}
    with pytest.raises(ValueError, match="No answer of the train dataset ends with an end.*Set `eos_token` to the"):
        make_trainer(**chat)
    model = make_model()  # whose generation config names the token that ends a turn
    model.generation_config.eos_token_id = [tokenizer.convert_tokens_to_ids("\n")]
    make_trainer(model=model, **chat)


def test_whole_rows_raise_no_warning(caplog):
    make_trainer()
    assert not [record for record in caplog.records if record.name.startswith("dco_trl")]


def test_streaming_rows_train():
    streamed = IterableDataset.from_generator(lambda: iter(ROWS))
    trainer = make_trainer(num_attempts=MANY, train_dataset=streamed)
    trainer.train()
    assert trainer.state.log_history[0]["coverage_weight"] < 1


@pytest.mark.slow
def test_rows_without_labels_are_a_step_of_zero_loss_and_count_in_no_mean():
    labelled = {"input_ids": [4, 5, 6], "labels": [-100, 5, 6]}
    unlabelled = {"input_ids": [4, 5, 6], "labels": [-100, -100, -100]}
    settings = dict(**UNPREPARED, num_attempts=MANY, max_steps=1)
    trainer = train_on([unlabelled] * 4, **settings)
    step = trainer.state.log_history[0]
    assert step["loss"] == 0.0 and step["grad_norm"] == 0.0
    assert all(torch.isfinite(weight).all() for weight in trainer.model.state_dict().values())
    for reduction in ("token", "sequence", "sequence_mean"):
        alone = train_on([labelled] * 2, loss_reduction=reduction, **settings).state.log_history[0]
        mixed = train_on([labelled, unlabelled] * 2, loss_reduction=reduction, **settings).state.log_history[0]
        for key in ("loss", "coverage_loss", "coverage_weight", "log_p", "grad_norm"):
            assert mixed[key] == pytest.approx(alone[key], rel=1e-5), (reduction, key)


def test_a_flattened_batch_must_say_where_documents_end():
    trainer = make_trainer(padding_free=True, max_length=None)
    batch = next(iter(trainer.get_train_dataloader()))
    del batch["seq_idx"]
    with pytest.raises(ValueError, match="without `seq_idx`, got .*cu_seq_lens_k.*Use TRL's own collator"):
        trainer.compute_loss(trainer.model, batch)


def test_nan_logits_are_one_clear_error():
    model = make_model()
    with torch.no_grad():
        model.lm_head.weight[3] = float("nan")
    message = "The log-probability of an answer became NaN by step {}.*learning rate"
    with pytest.raises(FloatingPointError, match=message.format(1)):
        make_trainer(model=model).train()
    with pytest.raises(FloatingPointError, match=message.format(0)):
        make_trainer(model=model, eval_dataset=ROWS).evaluate()


LONG = [{"prompt": f"{a}=", "completion": "because of this and that the answer is 4"} for a in range(12)]


@pytest.mark.parametrize(("rows", "num_attempts", "times"), [(LONG, 16, 1), (ROWS, 1, 0), (ROWS, MANY, 0)])
def test_says_once_that_dco_is_cross_entropy_and_only_then(caplog, rows, num_attempts, times):
    train_on(rows, num_attempts=num_attempts, max_steps=6, max_length=64, learning_rate=1e-5)
    said = [record.getMessage() for record in caplog.records if "DCO is cross-entropy so far" in record.getMessage()]
    assert len(said) == times
    for text in said:
        assert "over the first 6 steps the mean weight is 1.000" in text
        assert "where log p is above -4.4" in text and "sampled rationales" in text


@pytest.mark.parametrize("kind", [PromptTuningConfig, PrefixTuningConfig])
def test_virtual_tokens_stand_before_each_row_or_the_batch_is_refused(kind):
    def make(**overrides):
        adapter = kind(task_type="CAUSAL_LM", num_virtual_tokens=3)
        return make_trainer(peft_config=adapter, eval_dataset=ROWS, **overrides)

    message = r"A \w+_TUNING adapter puts its virtual tokens before a batch.*Set `padding_free=False` and `packing=Fal"
    for flattened in ({"padding_free": True, "max_length": None}, {"packing": True}):
        with pytest.raises(ValueError, match=message):
            make(**flattened)
    assert make(packing=True, num_attempts=1)._has_no_p == {"train", "eval"}
    trainer = make(num_attempts=MANY, learning_rate=0.0, logging_steps=3)  # 3 steps of 4 rows: each row once
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(ROWS))])
    labels = batch["labels"][:, 1:]
    with torch.no_grad():  # some adapters' logits are of the virtual tokens too
        logits = trainer.model(**{k: batch[k] for k in ("input_ids", "attention_mask")}).logits
        log_probs = logits[:, -labels.size(1) - 1 : -1].log_softmax(-1)
    log_p = (log_probs.gather(-1, labels.clamp(min=0)[..., None])[..., 0] * (labels != -100)).sum(1)
    trainer.train()
    [step] = steps_of(trainer)
    assert step["grad_norm"] > 0 and step["log_p"] == pytest.approx(log_p.mean().item(), rel=1e-5)
    assert trainer.evaluate()["eval_log_p"] == pytest.approx(log_p.mean().item(), rel=1e-5)
