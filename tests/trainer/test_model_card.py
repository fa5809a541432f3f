"""The model card that a training run leaves."""

import pytest
from datasets import Dataset
from huggingface_hub import ModelCard
from tiny_models import make_model, save_checkpoint
from training import ROWS, make_trainer


@pytest.mark.slow
def test_the_card_has_attempts_coverage_base_model_and_paper(tmp_path):
    base = save_checkpoint(tmp_path / "tiny-base")
    out = tmp_path / "out"
    steps = dict(save_strategy="steps", save_steps=3, eval_strategy="steps", eval_steps=1)
    options = dict(num_attempts=256, coverage_at=[1, 64], eval_dataset=ROWS[:5], **steps)
    trainer = make_trainer(model=str(base), output_dir=str(out), **options)
    trainer.train()
    card = (out / "README.md").read_text()
    assert "This model is a fine-tuned version of `tiny-base`." in card and "None" not in card
    assert str(tmp_path) not in card
    assert "It was trained with N = 256 attempts, to be sampled 256 times for each problem." in card
    last = [row for row in trainer.state.log_history if "eval_coverage@64" in row][-1]
    assert "Last evaluation (step 3), exact coverage of the reference answers:" in card
    assert f"| coverage@k | {last['eval_coverage@1']:.1%} | {last['eval_coverage@64']:.1%} |" in card
    assert "@inproceedings{chen2025rethinking," in card and "{2502.07154}" in card
    assert "huggingface.co/papers/2502.07154" in card
    assert {"trl", "sft", "dco"} <= set(ModelCard.load(out / "README.md").data.tags)


def test_several_evaluation_sets_and_a_sampled_pass_at_k(tmp_path):
    evaluation = {"easy_one": Dataset.from_list(ROWS[:4]), "hard": Dataset.from_list(ROWS[4:])}
    trainer = make_trainer(output_dir=str(tmp_path), eval_dataset=evaluation)
    trainer.evaluate()
    trainer.log({"eval_pass@1": 0.25, "eval_pass@16": 0.5})
    trainer.create_model_card("name")
    card = (tmp_path / "README.md").read_text()
    for name in ("easy_one", "hard"):
        assert f"Last evaluation of the evaluation set `{name}` (step 0), exact coverage" in card
    assert "(step 0), pass@k of graded samples:\n\n| k | 1 | 16 |\n|---|---|---|\n| pass@k | 25.0% | 50.0% |" in card


def test_a_model_of_a_hub_keeps_its_name_and_no_evaluation_is_no_table(tmp_path):
    model = make_model()
    model.config._name_or_path = "somebody/tiny-model"
    make_trainer(model=model, output_dir=str(tmp_path)).create_model_card("name")
    card = (tmp_path / "README.md").read_text()
    assert "[somebody/tiny-model](https://huggingface.co/somebody/tiny-model)" in card
    assert "N = 16 attempts" in card and "Last evaluation" not in card


def test_the_card_of_a_baseline_says_cross_entropy(tmp_path):
    make_trainer(output_dir=str(tmp_path), num_attempts=1).create_model_card("name")
    assert "trained with N = 1 attempt, which is cross-entropy: the baseline" in (tmp_path / "README.md").read_text()
