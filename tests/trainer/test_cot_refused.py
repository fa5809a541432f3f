"""Settings, data and graders that `CoTDCOTrainer` refuses."""

import math

import pytest
import torch
from cot import ROWS, make_cot_trainer, settings, trained
from datasets import Dataset, IterableDataset
from tiny_models import make_model

from dco_trl import CoTDCOConfig, CoTDCOTrainer
from dco_trl.grading import GraderError
from dco_trl.sampling import TransformersSampler


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"num_rationales": 0}, "`num_rationales` must be an integer of at least 1, got 0"),
        ({"rationale_batch": 2.0}, "`rationale_batch` must be an integer of at least 1, got 2.0"),
        ({"max_rationale_tokens": 0}, "`max_rationale_tokens` must be an integer of at least 1, got 0"),
        ({"num_targets": 0}, "`num_targets` must be an integer of at least 1, got 0"),
        ({"ce_warmup_steps": -1}, "`ce_warmup_steps` must be an integer of at least 0, got -1"),
        ({"sampling_interval": 0}, "`sampling_interval` must be 'epoch' or a number.*got 0"),
        ({"sampling_interval": "often"}, "`sampling_interval` must be 'epoch' or a number.*got 'often'"),
        ({"sampling_interval": "1.5"}, "`sampling_interval` must be 'epoch' or a number.*got '1.5'"),
        ({"weight_tolerance": float("nan")}, "`weight_tolerance` must be a number from 0 to 1, got nan"),
        ({"weight_floor": -0.1}, "`weight_floor` must be a number from 0 to 1, got -0.1"),
        ({"count_memory": 1.5}, "`count_memory` must be a number from 0 to 1, got 1.5"),
        ({"max_success_rate": 0.0}, "`max_success_rate` must be above 0.*got 0.0.*The authors use 0.1"),
        ({"estimator": "mean"}, r"`estimator` must be one of \('posterior', 'plugin'\), got 'mean'"),
        ({"sampler": "vlm"}, "`sampler` must be one of .*, got 'vlm'"),
        ({"targets": "sampled", "sampler": "none"}, "`targets='sampled'`.*`sampler='none'` samples none"),
        ({"num_targets": 2}, "`num_targets=2` counts sampled.*`targets='reference'` trains on.*`targets='sampled'`"),
        ({"num_required": 2}, "`num_required=2` and .* are for probabilities that are computed, and here p is est"),
        ({"unit": "turn"}, "`unit='turn'` are for probabilities that are computed"),
        ({"packing": True}, "`packing` merges rows, and each row's weight is .*Use `padding_free=True`"),
        ({"sampler": "server"}, "`sampler='server'` needs the endpoint's address.*base_url"),
        ({"auto_find_batch_size": True}, "`auto_find_batch_size` would change.*Lower `per_device_train_batch_size`"),
        ({"sampler_kwargs": '{"batch_size": 4'}, "`sampler_kwargs` must be a dictionary, or JSON"),
        ({"sampler_kwargs": "[4]"}, r"`sampler_kwargs` must be a dictionary, or JSON.*got \[4\]"),
    ],
)
def test_refused_setting(overrides, message):
    with pytest.raises(ValueError, match=message):
        CoTDCOConfig(**settings(**overrides))


def test_sampler_options_may_be_json():
    assert CoTDCOConfig(**settings(sampler_kwargs='{"batch_size": 4}')).sampler_kwargs == {"batch_size": 4}


def counted(num_sampled: int, num_correct: int) -> list[dict]:
    return [{**ROWS[0], "num_sampled": num_sampled, "num_correct": num_correct}]


@pytest.mark.parametrize(
    ("rows", "sampler", "message"),
    [
        ([{"prompt": "1+1=", "completion": "2"}], "transformers", "no `answer`, which sampled rationales are graded"),
        ([*ROWS, {**ROWS[0], "answer": " "}], "transformers", "1 of 13 .* .first: row 12. have no reference `answer`"),
        ([*ROWS, {**ROWS[0], "answer": None}], "transformers", "1 of 13 rows.*no reference `answer`.*filter"),
        (ROWS, "none", "no `num_sampled` and `num_correct`, which `sampler='none'` takes the success .*. Write them"),
        (counted(4, 5), "none", "1 of 1 .* have impossible counts, such as {'num_sampled': 4, 'num_correct': 5}"),
        (counted(0, 0), "none", "at least one sample"),
    ],
)
def test_refused_data(rows, sampler, message):
    with pytest.raises(ValueError, match=message):
        make_cot_trainer(rows, sampler=sampler)


def test_refused_arguments():
    stream = IterableDataset.from_generator(lambda: iter(ROWS))
    with pytest.raises(TypeError, match="`train_dataset` must be a `Dataset`, got `IterableDataset`.*need numbers"):
        make_cot_trainer(stream)
    with pytest.raises(TypeError, match="`args` must be a `CoTDCOConfig`, got `NoneType`"):
        CoTDCOTrainer(make_model(), train_dataset=Dataset.from_list(ROWS))
    with pytest.raises(ValueError, match="`data_collator` must be TRL's own"):
        make_cot_trainer(data_collator=lambda rows: rows)
    with pytest.raises(GraderError, match="grader 'maths' is not known"):
        make_cot_trainer(grader="maths")


@pytest.mark.parametrize(
    ("grader", "message"),
    [
        (lambda completions, **_: 1 / 0, "raised ZeroDivisionError"),
        (lambda completions, **_: [math.nan] * len(completions), "returned nan as score 0: return a finite number"),
        (lambda completions, **_: [1.0], "must return one score per completion: 8 expected, got 1"),
    ],
    ids=["raises", "NaN", "wrong length"],
)
@pytest.mark.slow
def test_a_grader_that_fails_stops_training(grader, message):
    with pytest.raises(GraderError, match=message):
        trained(grader=grader, max_steps=1)


@pytest.mark.slow
def test_missing_samples_are_an_error(monkeypatch):
    monkeypatch.setattr(TransformersSampler, "sample", lambda self, requests, params: [[] for _ in requests])
    with pytest.raises(RuntimeError, match="returned 0 rationales for 4 prompts instead of 8 for each.*resumed"):
        trained(max_steps=1)


def test_a_training_batch_without_weights_is_an_error():
    trainer = make_cot_trainer()
    trainer.state.max_steps = 1
    [batch], _ = trainer.get_batch_samples(iter([{"dco": {"row": torch.arange(4)}}]), 1, torch.device("cpu"))
    lost = {name: value for name, value in batch.items() if name != "dco"}
    trainer.model.train()
    with pytest.raises(RuntimeError, match="came without `dco`, the weights of its rows, got .*must keep them"):
        trainer.compute_loss(trainer.model, dict(lost))
    cut = {name: value if name == "dco" else value[:2] for name, value in batch.items()}
    with pytest.raises(RuntimeError, match="batch of 2 sequences came with the weights of 4: it was cut"):
        trainer.compute_loss(trainer.model, cut)
    trainer.model.eval()
    assert trainer.compute_loss(trainer.model, lost) > 0  # in evaluation p is that of the row itself
