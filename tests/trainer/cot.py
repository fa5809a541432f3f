"""Small chain-of-thought training runs that the tests share: sums of two digits, with the sum written first."""

import tempfile
from typing import Any

from datasets import Dataset
from tiny_models import make_model, make_tokenizer

from dco_trl import CoTDCOConfig, CoTDCOTrainer

ROWS = [
    {"prompt": f"{a}+{b}=", "completion": f"{a}+{b} {a + b}", "answer": str(a + b)}
    for a in range(1, 5)
    for b in range(1, 4)
]


def last_word(completions: list[str], answer: list[str], **columns) -> list[float]:
    """A grader: the last word is the answer."""
    return [float(text.split(" ")[-1] == reference) for text, reference in zip(completions, answer, strict=True)]


def settings(**overrides) -> dict[str, Any]:
    defaults = dict(
        output_dir=tempfile.mkdtemp(),
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
        per_device_train_batch_size=4,
        num_train_epochs=2,
        logging_steps=1,
        learning_rate=1e-2,
        max_length=32,
        gradient_checkpointing=False,
        save_strategy="no",
        max_rationale_tokens=8,
        num_rationales=16,
        ce_warmup_steps=0,
        num_attempts=16,
    )
    return {**defaults, **overrides}


def make_cot_trainer(rows=None, grader=last_word, model=None, trainer_kwargs=None, **overrides) -> CoTDCOTrainer:
    return CoTDCOTrainer(
        make_model() if model is None else model,
        args=CoTDCOConfig(**settings(**overrides)),
        train_dataset=Dataset.from_list(ROWS if rows is None else rows),
        grader=grader,
        **{"processing_class": make_tokenizer(), **(trainer_kwargs or {})},
    )


def steps_of(trainer: CoTDCOTrainer) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "grad_norm" in entry]


def weights_after(trainer: CoTDCOTrainer, **train_kwargs) -> dict:
    trainer.train(**train_kwargs)
    return {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
