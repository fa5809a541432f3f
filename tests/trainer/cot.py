"""Small chain-of-thought training runs that the tests share: sums of two digits, with the sum written first."""

from typing import Any

import training
from light_grader import last_word

from dco_trl import CoTDCOConfig, CoTDCOTrainer
from dco_trl.sampling import Sample, SampleRequest, TransformersSampler

ROWS = [
    {"prompt": f"{a}+{b}=", "completion": f"{a}+{b} {a + b}", "answer": str(a + b)}
    for a in range(1, 5)
    for b in range(1, 4)
]
COUNTED = [{**row, "num_sampled": 64, "num_correct": 5 * i} for i, row in enumerate(ROWS)]
# An untrained model gets none right. Some are right, and some are not, after training a while with weights of 1.
TRAINED = dict(num_attempts=1, num_rationales=1)


def settings(**overrides) -> dict[str, Any]:
    own = dict(max_rationale_tokens=8, num_rationales=16, ce_warmup_steps=0, num_attempts=16)
    return training.settings(**{"max_steps": -1, "num_train_epochs": 2, **own, **overrides})


def make_cot_trainer(rows=ROWS, grader=last_word, model=None, **options) -> CoTDCOTrainer:
    options = {"train_dataset": rows, "grader": grader, **settings(**options)}
    return training.construct(CoTDCOTrainer, CoTDCOConfig, model, options)


def trained(*args, **kwargs) -> CoTDCOTrainer:
    trainer = make_cot_trainer(*args, **kwargs)
    trainer.train()
    return trainer


def weights_after(trainer, **train_kwargs) -> dict:
    trainer.train(**train_kwargs)
    return {name: weight.clone() for name, weight in trainer.model.state_dict().items()}


def record_samples(monkeypatch) -> list[tuple[SampleRequest, list[Sample]]]:
    """Each request to the Transformers sampler from now on, and what it draws for it."""
    recorded: list[tuple[SampleRequest, list[Sample]]] = []
    sample = TransformersSampler.sample

    def recording(self, requests, params):
        groups = sample(self, requests, params)
        recorded.extend(zip(requests, groups, strict=True))
        return groups

    monkeypatch.setattr(TransformersSampler, "sample", recording)
    return recorded
