"""Small training runs that the trainer's tests share."""

import tempfile
from typing import Any

import torch
from datasets import Dataset
from tiny_models import make_model, make_tokenizer
from trl import SFTConfig, SFTTrainer

from dco_trl import DCOConfig, DCOTrainer

# Short answers of several lengths: at these sizes p is about 1e-3 to 1e-6 before training.
ROWS = [{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a in (1, 7, 23) for b in (2, 5, 88, 99)]
# Large enough that the weights of an untrained model differ from 1.
MANY = 20_000


def dataset(num_rows: int = len(ROWS)) -> Dataset:
    return Dataset.from_list(ROWS[:num_rows])


def settings(**overrides) -> dict[str, Any]:
    defaults = dict(
        output_dir=tempfile.mkdtemp(),
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
        per_device_train_batch_size=4,
        max_steps=3,
        logging_steps=1,
        learning_rate=1e-2,
        max_length=32,
        gradient_checkpointing=False,
        save_strategy="no",
    )
    return {**defaults, **overrides}


def make_trainer(trainer_class=DCOTrainer, family="llama", model=None, trainer_kwargs=None, **overrides):
    config_class = DCOConfig if issubclass(trainer_class, DCOTrainer) else SFTConfig
    trainer_kwargs = {"train_dataset": dataset(), "processing_class": make_tokenizer(), **(trainer_kwargs or {})}
    return trainer_class(
        make_model(family) if model is None else model, args=config_class(**settings(**overrides)), **trainer_kwargs
    )


def run(*args, **kwargs) -> tuple[list[float], list[float], dict[str, torch.Tensor]]:
    """Train, and return the losses, the gradient norms and the final weights."""
    trainer = make_trainer(*args, **kwargs)
    trainer.train()
    steps = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    return [s["loss"] for s in steps], [s["grad_norm"] for s in steps], trainer.model.state_dict()


def assert_same_weights(actual: dict, expected: dict, **tolerance) -> None:
    """Bit for bit, unless a tolerance is given."""
    assert actual.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(actual[name], weight, **(tolerance or dict(rtol=0, atol=0)), msg=name)


def assert_same_run(actual, expected, **tolerance) -> None:
    """Bit for bit, unless a tolerance is given."""
    for ours, theirs in zip(actual[:2], expected[:2], strict=True):
        torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), **(tolerance or dict(rtol=0, atol=0)))
    assert_same_weights(actual[2], expected[2], **tolerance)


__all__ = ["MANY", "ROWS", "SFTTrainer", "assert_same_run", "assert_same_weights", "dataset", "make_trainer", "run"]
