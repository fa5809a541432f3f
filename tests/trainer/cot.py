"""Small chain-of-thought training runs that the tests share: sums of two digits, with the sum written first."""

from typing import Any

import training
from datasets import Dataset
from light_grader import last_word
from tiny_models import make_model, make_tokenizer

from dco_trl import CoTDCOConfig, CoTDCOTrainer

ROWS = [
    {"prompt": f"{a}+{b}=", "completion": f"{a}+{b} {a + b}", "answer": str(a + b)}
    for a in range(1, 5)
    for b in range(1, 4)
]
COUNTED = [{**row, "num_sampled": 64, "num_correct": 5 * i} for i, row in enumerate(ROWS)]
# Of an untrained model none is right; so that some are, and some are not, train a while with weights of 1.
TRAINED = dict(num_attempts=1, num_rationales=1)


def settings(**overrides) -> dict[str, Any]:
    own = dict(max_rationale_tokens=8, num_rationales=16, ce_warmup_steps=0, num_attempts=16)
    return training.settings(**{"max_steps": -1, "num_train_epochs": 2, **own, **overrides})


def make_cot_trainer(rows=None, grader=last_word, model=None, trainer_kwargs=None, **overrides) -> CoTDCOTrainer:
    return CoTDCOTrainer(
        make_model() if model is None else model,
        args=CoTDCOConfig(**settings(**overrides)),
        train_dataset=Dataset.from_list(ROWS if rows is None else rows),
        grader=grader,
        **{"processing_class": make_tokenizer(), **(trainer_kwargs or {})},
    )


def trained(*args, **kwargs) -> CoTDCOTrainer:
    trainer = make_cot_trainer(*args, **kwargs)
    trainer.train()
    return trainer


def steps_of(trainer) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "grad_norm" in entry]


def weights_after(trainer, **train_kwargs) -> dict:
    trainer.train(**train_kwargs)
    return {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
