"""Small training runs that the trainer's tests share."""

import tempfile
from typing import Any

import torch
from datasets import Dataset
from tiny_models import make_model, make_tokenizer
from trl import SFTConfig

from dco_trl import DCOConfig, DCOTrainer

# Short answers of several lengths: at these sizes p is about 1e-3 to 1e-6 before training.
ROWS = [{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a in (1, 7, 23) for b in (2, 5, 88, 99)]
# Large enough that the weights of an untrained model differ from 1.
MANY = 20_000


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


def construct(trainer_class, config_class, model, options: dict[str, Any]):
    """A trainer. Options that its configuration does not know are its arguments; data sets may be lists of rows."""
    config = {name: options[name] for name in options.keys() & config_class.__dataclass_fields__.keys()}
    arguments = {name: value for name, value in options.items() if name not in config}
    for name in ("train_dataset", "eval_dataset"):
        if isinstance(arguments.get(name), list):
            arguments[name] = Dataset.from_list(arguments[name])
    arguments.setdefault("processing_class", make_tokenizer())
    return trainer_class(make_model() if model is None else model, args=config_class(**config), **arguments)


def make_trainer(trainer_class=DCOTrainer, model=None, **options):
    config_class = DCOConfig if issubclass(trainer_class, DCOTrainer) else SFTConfig
    return construct(trainer_class, config_class, model, {"train_dataset": ROWS, **settings(**options)})


def steps_of(trainer) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "grad_norm" in entry]


def run(*args, **options) -> tuple[list[float], list[float], dict[str, torch.Tensor]]:
    """Train, and return the losses, the gradient norms and the final weights."""
    trainer = make_trainer(*args, **options)
    trainer.train()
    steps = steps_of(trainer)
    return [s["loss"] for s in steps], [s["grad_norm"] for s in steps], trainer.model.state_dict()


def token_log_probs(model, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """The log-probability of each token of a completion."""
    log_probs = model(input_ids=torch.tensor([[*prompt, *completion]])).logits.log_softmax(-1)
    return log_probs[0, len(prompt) - 1 : -1].gather(-1, torch.tensor(completion)[:, None])[:, 0]


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
