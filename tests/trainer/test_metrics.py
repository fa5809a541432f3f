"""Logged metrics against brute force."""

import math
from types import MappingProxyType

import pytest
import torch
from datasets import Dataset
from tiny_models import make_model, make_tokenizer
from training import MANY, ROWS, make_trainer, token_log_probs

from dco_trl import coverage_loss, coverage_weight


def log_probabilities(model, rows: list[dict]) -> torch.Tensor:
    """Log-probability of each row's whole answer, one row at a time, float64."""
    tokenizer, values = make_tokenizer(), []
    for row in rows:
        prompt, answer = (tokenizer(row[name])["input_ids"] for name in ("prompt", "completion"))
        with torch.no_grad():
            log_probs = token_log_probs(model.eval(), prompt, [*answer, tokenizer.eos_token_id])
        values.append(log_probs.double().sum())
    return torch.stack(values)


BATCHES = {
    "padded": {"per_device_eval_batch_size": 5},
    "padding-free": {"padding_free": True, "max_length": None, "per_device_eval_batch_size": 5},
    "packed": {"packing": True, "max_length": 24, "per_device_eval_batch_size": 2},
    "packed for evaluation alone": {"eval_packing": True, "max_length": 24, "per_device_eval_batch_size": 2},
}


@pytest.mark.parametrize("batches", BATCHES)
def test_evaluation_is_exact_over_the_whole_set(batches):
    model = make_model()
    trainer = make_trainer(
        model=model,
        num_attempts=MANY,
        coverage_at=[1, 7, MANY],
        eval_dataset=ROWS[:11],  # 11 rows in batches of 5: the last one is partial
        **BATCHES[batches],
    )
    metrics = trainer.evaluate()
    log_p = log_probabilities(model, ROWS[:11])
    expected = {
        "eval_log_p": log_p.mean(),
        "eval_coverage_loss": coverage_loss(log_p, MANY).mean(),
        "eval_coverage_weight": coverage_weight(log_p, MANY).mean(),
        "eval_weight_below_0.1": (coverage_weight(log_p, MANY) < 0.1).double().mean(),
        **{f"eval_coverage@{k}": (1 - (1 - log_p.exp()) ** k).mean() for k in (1, 7, MANY)},
    }
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value.item(), rel=1e-4), name
    assert trainer.state.log_history[-1]["eval_coverage@7"] == metrics["eval_coverage@7"]


@pytest.mark.slow
def test_a_second_evaluation_starts_from_nothing():
    trainer = make_trainer(num_attempts=MANY, eval_dataset=ROWS)
    before = trainer.evaluate()["eval_log_p"]
    trainer.train()
    after = trainer.evaluate()["eval_log_p"]
    assert after == pytest.approx(log_probabilities(trainer.model, ROWS).mean().item(), rel=1e-4)
    assert after != pytest.approx(before, rel=1e-2)


def test_several_evaluation_sets_keep_their_names():
    model, sets = make_model(), {"easy": ROWS[:4], "hard": ROWS[4:]}
    evaluation = MappingProxyType({name: Dataset.from_list(rows) for name, rows in sets.items()})
    metrics = make_trainer(model=model, eval_dataset=evaluation).evaluate()
    for name, rows in sets.items():
        expected = (1 - (1 - log_probabilities(model, rows).exp()) ** 16).mean().item()
        assert metrics[f"eval_{name}_coverage@16"] == pytest.approx(expected, rel=1e-4)


def test_predict_reports_coverage_too():
    trainer = make_trainer(prediction_loss_only=True)
    rows, tokenizer = Dataset.from_list(ROWS), trainer.processing_class
    prepared = trainer._prepare_dataset(rows, tokenizer, trainer.args, False, None, "test")
    assert 0 < trainer.predict(prepared).metrics["test_coverage@4096"] < 1


@pytest.mark.slow
def test_training_metrics_are_means_over_the_sequences_since_the_last_log():
    model = make_model()
    before = log_probabilities(model, ROWS)
    options = dict(loss_reduction="sequence", learning_rate=0.0, max_steps=3, logging_steps=3)
    trainer = make_trainer(model=model, num_attempts=MANY, **options)
    trainer.train()  # 3 steps of 4 rows: each row once
    step = trainer.state.log_history[0]
    weights = coverage_weight(before, MANY)
    assert step["loss"] == pytest.approx(-(weights * before).mean().item(), rel=1e-4)
    assert step["log_p"] == pytest.approx(before.mean().item(), rel=1e-4)
    assert step["coverage_weight"] == pytest.approx(weights.mean().item(), rel=1e-4)
    assert step["weight_below_0.1"] == pytest.approx((weights < 0.1).double().mean().item())
    assert step["coverage_loss"] == pytest.approx(coverage_loss(before, MANY).mean().item(), rel=1e-4)


@pytest.mark.slow
def test_a_second_log_starts_from_nothing():
    trainer = make_trainer(num_attempts=MANY, learning_rate=0.0, max_steps=6, logging_steps=2, num_train_epochs=2)
    trainer.train()  # 3 logs of 8 rows: each row twice, but not in each log
    values = [entry["log_p"] for entry in trainer.state.log_history if "loss" in entry]
    assert sum(values) / 3 == pytest.approx(log_probabilities(trainer.model, ROWS).mean().item(), rel=1e-4)
    assert len(set(values)) == 3


@pytest.mark.slow
def test_training_metrics_survive_an_evaluation_between_two_logs():
    settings = dict(num_attempts=MANY, max_steps=4, logging_steps=4)
    evaluation = {"eval_strategy": "steps", "eval_steps": 1, "eval_dataset": ROWS}
    plain, evaluated = make_trainer(**settings), make_trainer(**evaluation, **settings)
    for trainer in (plain, evaluated):
        trainer.train()
    [expected], [found] = ([e for e in t.state.log_history if "loss" in e] for t in (plain, evaluated))
    for key in ("coverage_loss", "coverage_weight", "weight_below_0.1", "log_p"):
        assert found[key] == expected[key]


@pytest.mark.slow
def test_best_model_can_be_chosen_by_coverage(tmp_path):
    best = dict(load_best_model_at_end=True, metric_for_best_model="eval_coverage@256", greater_is_better=True)
    steps = dict(max_steps=6, eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2)
    trainer = make_trainer(output_dir=str(tmp_path), num_attempts=MANY, eval_dataset=ROWS, **steps, **best)
    trainer.train()
    evaluations = [entry["eval_coverage@256"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert trainer.state.best_metric == max(evaluations)
    assert trainer.evaluate()["eval_coverage@256"] == pytest.approx(max(evaluations), rel=1e-5)


@pytest.mark.slow
def test_one_forward_a_step():
    model = make_model()
    calls = []
    model.model.register_forward_hook(lambda *_: calls.append(1))
    trainer = make_trainer(model=model, num_attempts=MANY, max_steps=3)
    trainer.train()
    assert len(calls) == 3


@pytest.mark.slow
def test_trls_own_metrics_are_unweighted():
    settings = dict(learning_rate=0.0, max_steps=1)
    one, many = (make_trainer(num_attempts=n, **settings) for n in (1, MANY))
    for trainer in (one, many):
        trainer.train()
    for key in ("entropy", "mean_token_accuracy", "num_tokens", "log_p"):
        assert many.state.log_history[0][key] == one.state.log_history[0][key]
    assert many.state.log_history[0]["loss"] < one.state.log_history[0]["loss"]
    assert not math.isnan(many.state.log_history[0]["loss"])


@pytest.mark.slow
def test_so_many_attempts_that_nothing_is_trained_are_reported(caplog):
    trainer = make_trainer(num_attempts=10**9, max_steps=20, learning_rate=0.0)
    trainer.train()
    weights = [row["coverage_weight"] for row in trainer.state.log_history if "coverage_weight" in row]
    assert max(weights) < 0.02
    assert "`num_attempts=1000000000` leaves next to nothing to train: over the first 20 steps the mean" in caplog.text
