"""Settings and data that would train something else than coverage: an error, or a warning with a number."""

import logging

import numpy as np
import pytest
import torch
from accelerate import Accelerator, ParallelismConfig
from datasets import Dataset
from peft import PrefixTuningConfig, PromptTuningConfig
from tiny_models import make_model, make_tokenizer
from training import MANY, ROWS, make_trainer, settings
from transformers import Trainer
from trl import SFTConfig

from dco_trl import DCOConfig, DCOTrainer


def train_on(rows: list[dict], **overrides) -> DCOTrainer:
    kwargs = {"trainer_kwargs": {"train_dataset": Dataset.from_list(rows)}}
    trainer = make_trainer(**kwargs, **overrides)
    trainer.train()
    return trainer


# ------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"label_smoothing_factor": 0.1},
            "`label_smoothing_factor=0.1` takes the loss from elsewhere.*Set it to 0: DCO limits confidence",
        ),
        ({"loss_type": "dft"}, "`loss_type='dft'` would be computed from.*already carry.*Use `loss_type='nll'`"),
        (
            {"packing": True, "packing_strategy": "wrapped"},
            "`packing_strategy='wrapped'` cuts sequences, so p would .*'bfd'",
        ),
        ({"packing": True, "packing_strategy": "bfd_split"}, "`packing_strategy='bfd_split'` cuts.*Use .*'bfd'"),
        ({"eval_packing": True, "packing_strategy": "wrapped"}, "`packing_strategy='wrapped'` cuts.*Use .*'bfd'"),
        ({"completion_only_loss": False}, "`completion_only_loss=False`.*prompt and completion together.*unset"),
        ({"num_attempts": 0}, "`num_attempts` must be an integer of at least 1.*got 0"),
        ({"num_attempts": 2.0}, "`num_attempts` must be an integer of at least 1.*got 2.0"),
        (
            {"loss_reduction": "mean"},
            r"`loss_reduction` must be one of .*'sequence_mean'., got 'mean'. Leave it out for the first",
        ),
        ({"coverage_at": [1, 0]}, r"`coverage_at\[1\]` must be an integer of at least 1, got 0"),
        ({"coverage_at": [1, 2.0]}, r"`coverage_at\[1\]` must be an integer of at least 1, got 2.0"),
        ({"coverage_at": 16}, r"`coverage_at` must be a list of integers, such as \[1, 16\], got 16"),
        ({"coverage_at": "16"}, r"`coverage_at` must be a list of integers, such as \[1, 16\], got '16'"),
    ],
)
def test_refused_setting(overrides, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(**overrides)


def test_numpys_integers_are_integers():
    args = DCOConfig(**settings(num_attempts=np.int64(4), coverage_at=[np.int64(1), 7]))
    assert type(args.num_attempts) is int and args.coverage_at == [1, 7] and type(args.coverage_at[0]) is int


def test_refused_arguments():
    with pytest.raises(
        ValueError, match="`compute_loss_func` takes the loss from elsewhere.*or use it with `num_attempts=1`"
    ):
        make_trainer(trainer_kwargs={"compute_loss_func": lambda outputs, labels, num_items_in_batch: outputs.loss})
    with pytest.raises(ValueError, match="`formatting_func` merges prompt and completion.*`dataset.map`"):
        make_trainer(trainer_kwargs={"formatting_func": lambda row: row["prompt"] + row["completion"]})


def test_sft_config_is_refused_by_name():
    with pytest.raises(TypeError, match="`args` must be a `DCOConfig`, got `SFTConfig`.*takes the same arguments"):
        DCOTrainer(
            make_model(),
            args=SFTConfig(**settings()),
            train_dataset=Dataset.from_list(ROWS),
            processing_class=make_tokenizer(),
        )


@pytest.mark.parametrize(("size", "name"), [("cp_size", "Context"), ("sp_size", "Sequence"), ("dp_shard_size", None)])
def test_sharded_sequences_are_refused(size, name, monkeypatch):
    # A real one needs as many processes: this is what a trainer would find after it has made its accelerator.
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
    trainer = DCOTrainer(model, train_dataset=Dataset.from_list(ROWS), processing_class=make_tokenizer())
    assert isinstance(trainer.args, DCOConfig)
    assert trainer.args.output_dir == "tiny-model-DCO"
    assert trainer.args.num_attempts == 16


# ------------------------------------------------------------------------------ data

QUESTION, ANSWER = {"role": "user", "content": "1+1"}, {"role": "assistant", "content": "2"}


@pytest.mark.parametrize(
    "rows",
    [[{"text": "1+1=2"}], [{"messages": [QUESTION, ANSWER, QUESTION, ANSWER]}], [{"input_ids": [4, 5, 6]}]],
    ids=["text", "messages", "tokenised"],
)
def test_rows_that_do_not_tell_the_answer_from_the_prompt_are_refused(rows):
    with pytest.raises(
        ValueError, match="The train dataset has the columns .* do not tell the answer from the prompt"
    ):
        train_on(rows)


def test_evaluation_rows_are_checked_too():
    trainer = make_trainer()
    text = Dataset.from_list([{"text": "1+1=2"}])
    with pytest.raises(ValueError, match="The eval dataset has the columns .* do not tell the answer from the prompt"):
        trainer.evaluate(text)
    with pytest.raises(ValueError, match="The test dataset has the columns"):
        make_trainer(trainer_kwargs={"eval_dataset": {"test": text}})


def test_unprepared_rows_need_labels():
    rows = [{"input_ids": [4, 5, 6], "completion_mask": [0, 1, 1]}]
    with pytest.raises(ValueError, match="labels"):
        train_on(rows, dataset_kwargs={"skip_prepare_dataset": True})
    with pytest.raises(ValueError, match="do not tell the answer from the prompt"):
        train_on([{"input_ids": [4, 5, 6]}], dataset_kwargs={"skip_prepare_dataset": True})
    rows = [{"input_ids": [4, 5, 6], "labels": [-100, 5, 6]}]
    trainer = train_on(rows, dataset_kwargs={"skip_prepare_dataset": True}, max_steps=1)
    assert trainer.state.log_history[0]["log_p"] < 0


@pytest.mark.parametrize("empty", ["", "  ", None])
def test_empty_completions_are_counted(empty):
    rows = [*ROWS[:3], {"prompt": "1+1=", "completion": empty}, ROWS[4], {"prompt": "2+2=", "completion": ""}]
    with pytest.raises(
        ValueError, match=r"2 of 6 rows of the train dataset have an empty `completion` \(first: row 3"
    ):
        train_on(rows)


def test_empty_conversational_completions_are_counted():
    def row(content):
        return {
            "prompt": [{"role": "user", "content": "1+1"}],
            "completion": [{"role": "assistant", "content": content}],
        }

    with pytest.raises(ValueError, match="1 of 2 rows of the train dataset have an empty `completion`"):
        train_on([row("2"), row("")])


@pytest.mark.parametrize("packing", [False, True])
def test_truncated_rows_are_counted(caplog, packing):
    rows = [*ROWS[:5], {"prompt": "1=", "completion": "1" * 40}, {"prompt": "1" * 40 + "=", "completion": "2"}]
    with caplog.at_level(logging.WARNING):
        trainer = train_on(rows, max_length=20, packing=packing)
    assert "2 of 7 rows of the train dataset are longer than `max_length=20` tokens and are cut" in caplog.text
    fate = "count in no mean" if packing else "are dropped"
    assert f"1 of 7 rows of the train dataset have no labelled token within `max_length=20` and {fate}" in caplog.text
    if not packing:
        assert len(trainer.train_dataset) == 6


def test_a_prompt_that_loses_its_start_is_not_an_answer_cut(caplog):
    rows = [*ROWS[:3], {"prompt": "1" * 40 + "=", "completion": "2"}, {"prompt": "1=", "completion": "1" * 40}]
    with caplog.at_level(logging.WARNING):
        trainer = train_on(rows, max_length=20, truncation_mode="keep_end")
    assert "1 of 5 rows of the train dataset are longer than `max_length=20` tokens and are cut" in caplog.text
    assert (
        "1 of 5 rows of the train dataset are longer than `max_length=20` tokens and lose the start of their prompt "
        "(`truncation_mode='keep_end'`): their p is that of the answer to what is left of it." in caplog.text
    )
    assert "no labelled token" not in caplog.text
    assert len(trainer.train_dataset) == 5


def test_several_answers_in_a_row_are_counted(caplog):
    one = {"input_ids": [4, 5, 6, 1], "labels": [-100, 5, 6, 1]}
    two = {"input_ids": [4, 5, 6, 1], "labels": [-100, 5, -100, 1]}
    with caplog.at_level(logging.WARNING):
        make_trainer(trainer_kwargs={"train_dataset": Dataset.from_list([one, two, one, two, one])})
    said = [record.getMessage() for record in caplog.records if "several answers" in record.getMessage()]
    assert len(said) == 1 and "2 of 5 rows of the train dataset have several answers" in said[0]
    assert "Set `unit='turn'`, which gives each its own; or make one row of each turn, with the messages" in said[0]
    caplog.clear()
    make_trainer(num_attempts=1, trainer_kwargs={"train_dataset": Dataset.from_list([two])})
    assert "several answers" not in caplog.text


def test_several_answers_to_a_prompt_are_several_rows():
    rows = Dataset.from_list([{"prompt": "1+1=", "completions": ["2", "02"]}])
    with pytest.raises(
        ValueError, match="each row needs one `completion`. Of a list .* `completions` make one row each"
    ):
        make_trainer(trainer_kwargs={"train_dataset": rows})


def test_answers_without_a_prompt_or_an_end(caplog):
    rows = [{"input_ids": [4, 5, 6, 1], "labels": labels} for labels in ([-100, 5, 6, 1], [4, 5, 6, 1])]
    with pytest.raises(
        ValueError, match=r"1 of 2 rows .* train .* from their first token on \(first: row 1\).*prompt"
    ):
        train_on(rows)
    assert make_trainer(num_attempts=1, trainer_kwargs={"train_dataset": Dataset.from_list(rows)})._has_no_p
    with pytest.raises(ValueError, match="2 of 2 rows .* eval dataset have an answer from their first token on"):
        make_trainer().evaluate(Dataset.from_list([{"prompt": "", "completion": "2"}] * 2))
    rows = [{"input_ids": [4, 5, end, 4], "labels": [-100, 5, end, -100]} for end in (1, 6, 7)]
    train_on(rows)
    assert "2 of 3 rows of the train dataset have an answer without an end of sequence: their p is not" in caplog.text
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    chat = Dataset.from_list([{"prompt": [QUESTION], "completion": [ANSWER]}])
    kwargs = {"train_dataset": chat, "processing_class": tokenizer}
    with pytest.raises(ValueError, match="No answer of the train dataset ends with an end.*Set `eos_token` to the"):
        make_trainer(trainer_kwargs=kwargs)
    model = make_model()  # whose generation config names the token that ends a turn
    model.generation_config.eos_token_id = [tokenizer.convert_tokens_to_ids("\n")]
    make_trainer(model=model, trainer_kwargs=kwargs)


def test_whole_rows_raise_no_warning(caplog):
    with caplog.at_level(logging.WARNING, logger="dco_trl"):
        make_trainer()
    assert not [record for record in caplog.records if record.name.startswith("dco_trl")]


def test_streaming_rows_train():
    from datasets import IterableDataset

    streamed = IterableDataset.from_generator(lambda: iter(ROWS))
    trainer = make_trainer(num_attempts=MANY, trainer_kwargs={"train_dataset": streamed})
    trainer.train()
    assert trainer.state.log_history[0]["coverage_weight"] < 1


def test_a_batch_without_any_label_is_a_step_of_zero_loss():
    rows = [{"input_ids": [4, 5, 6], "labels": [-100, -100, -100]}] * 4
    trainer = train_on(rows, dataset_kwargs={"skip_prepare_dataset": True}, num_attempts=MANY, max_steps=1)
    step = trainer.state.log_history[0]
    assert step["loss"] == 0.0 and step["grad_norm"] == 0.0
    assert all(torch.isfinite(weight).all() for weight in trainer.model.state_dict().values())


def test_rows_without_labels_count_in_no_mean():
    labelled = {"input_ids": [4, 5, 6], "labels": [-100, 5, 6]}
    unlabelled = {"input_ids": [4, 5, 6], "labels": [-100, -100, -100]}
    settings = dict(dataset_kwargs={"skip_prepare_dataset": True}, num_attempts=MANY, max_steps=1)
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
    with pytest.raises(
        FloatingPointError, match="The log-probability of an answer became NaN by step 1.*learning rate"
    ):
        make_trainer(model=model).train()
    with pytest.raises(FloatingPointError, match="became NaN"):
        make_trainer(model=model, trainer_kwargs={"eval_dataset": Dataset.from_list(ROWS)}).evaluate()


# ------------------------------------------------------------------- doing nothing


def long_rows() -> list[dict]:
    return [{"prompt": f"{a}=", "completion": "because of this and that the answer is 4"} for a in range(12)]


def test_says_once_that_dco_is_cross_entropy(caplog):
    with caplog.at_level(logging.WARNING):
        train_on(long_rows(), num_attempts=16, max_steps=6, max_length=64, learning_rate=1e-5)
    said = [record.getMessage() for record in caplog.records if "DCO is cross-entropy so far" in record.getMessage()]
    assert len(said) == 1
    assert "over the first 6 steps the mean weight is 1.000" in said[0]
    assert "where log p is above -4.4" in said[0]
    assert "sampled rationales" in said[0]


@pytest.mark.parametrize("num_attempts", [1, MANY])
def test_does_not_say_so_otherwise(caplog, num_attempts):
    with caplog.at_level(logging.WARNING):
        train_on(ROWS, num_attempts=num_attempts, max_steps=6)
    assert "DCO is cross-entropy" not in caplog.text


def test_what_follows_the_model_is_given_by_name():
    with pytest.raises(
        TypeError, match="`DCOTrainer` takes what follows `model` by name, and got 2 arguments without"
    ):
        DCOTrainer(make_model(), DCOConfig(**settings()), Dataset.from_list(ROWS))


@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "PREFIX_TUNING"])
def test_virtual_tokens_stand_before_each_row_or_the_batch_is_refused(kind):
    config = {"PROMPT_TUNING": PromptTuningConfig, "PREFIX_TUNING": PrefixTuningConfig}[kind]

    def make(**overrides):
        peft_config = config(task_type="CAUSAL_LM", num_virtual_tokens=3)
        kwargs = {"peft_config": peft_config, "eval_dataset": Dataset.from_list(ROWS)}
        return make_trainer(trainer_kwargs=kwargs, **overrides)

    message = f"A {kind} adapter puts its virtual tokens before a batch.*Set `padding_free=False` and `packing=False`"
    for flattened in ({"padding_free": True, "max_length": None}, {"packing": True}):
        with pytest.raises(ValueError, match=message):
            make(**flattened)
    assert make(packing=True, num_attempts=1)._has_no_p == {"train", "eval"}
    rowwise, batched = (make(per_device_eval_batch_size=size) for size in (1, 8))
    torch.manual_seed(0)
    state = {n: torch.randn_like(p) for n, p in rowwise.model.named_parameters() if p.requires_grad}
    for trainer in (rowwise, batched):
        trainer.model.load_state_dict(state, strict=False)
    assert rowwise.evaluate()["eval_log_p"] == pytest.approx(batched.evaluate()["eval_log_p"], abs=1e-5)
