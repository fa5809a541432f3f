"""The two tasks of the comparison: what is learnt, by which model, with which optimizer.

`Multiplication` is the demonstration's: minutes a run on one CPU core, so that five seeds and every rival are cheap.
`MathAnswers` is a real model on real problems: SmolLM2-135M answering MATH at once, without a rationale.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from dco_trl.demo import task
from dco_trl.demo.training import NUM_EPOCHS, SETTINGS, training_arguments


@dataclass(frozen=True)
class Problems:
    """Rows with `prompt` and `completion`: to train on, to choose settings on, to report."""

    train: Dataset
    validation: Dataset
    test: Dataset


@dataclass(frozen=True)
class Multiplication:
    """Two-digit multiplication by a tiny Llama from nothing; the seed draws problems, first weights and batches."""

    title = "Two-digit multiplication"
    description = "two-digit multiplication, 1,500 problems to train on, 250 of validation and 250 of test"
    num_epochs = NUM_EPOCHS
    settings = SETTINGS

    def make_problems(self, seed: int) -> Problems:
        train, held_out = task.make_problems(seed)
        half = len(held_out) // 2
        return Problems(train, held_out.select(range(half)), held_out.select(range(half, len(held_out))))

    def make_tokenizer(self) -> PreTrainedTokenizerBase:
        return task.make_tokenizer()

    def make_model(self, seed: int) -> PreTrainedModel:
        return task.make_model(seed)

    def arguments(self, folder: str, num_problems: int, num_epochs: int, seed: int) -> dict[str, Any]:
        return training_arguments(folder, num_problems, num_epochs, seed)


@dataclass(frozen=True)
class MathAnswers:
    """Direct answers to MATH, all weights of a pretrained model tuned; the seed draws the batches.

    The shortest problems are taken, so that a CPU can do it: of the training split `num_train + num_test`, divided at
    random (the same for every seed) into those to train on and those of validation; of the test split `num_test`.

    Attributes:
        model: Name on the hub, or folder.
        dataset: Name on the hub, or folder with `train.jsonl` and `test.jsonl`; columns `problem` and `answer`.
        num_train: Problems to train on.
        num_test: Problems of validation, and of test.
    """

    model: str
    dataset: str
    num_train: int
    num_test: int

    num_epochs = 6
    settings = {
        "per_device_train_batch_size": 32,
        "learning_rate": 1e-4,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": 20,
        "adam_beta2": 0.99,
        "weight_decay": 0.0,
        "bf16": True,
    }

    @property
    def title(self) -> str:
        return f"MATH, direct answers, {Path(self.model).name}"

    @property
    def description(self) -> str:
        return (
            f"{self.title}: {self.num_train:,} of the shortest "
            f"problems to train on, {self.num_test:,} of validation, the {self.num_test:,} shortest of the test split"
        )

    @cached_property
    def _splits(self) -> tuple[Dataset, Dataset]:
        splits = load_dataset(self.dataset)
        missing = {"train", "test"} - set(splits)
        if missing:
            raise ValueError(f"{self.dataset} has the splits {list(splits)}; train and test are needed")
        return self._by_length(splits["train"]), self._by_length(splits["test"])

    def _by_length(self, rows: Dataset) -> Dataset:
        """Prompts and completions, the shortest first; rows without an answer are left out."""
        missing = {"problem", "answer"} - set(rows.column_names)
        if missing:
            raise ValueError(f"{self.dataset} has the columns {rows.column_names}; problem and answer are needed")
        tokenizer = self.make_tokenizer()
        texts = [
            {"prompt": f"{problem.strip()}\nAnswer:", "completion": f" {answer.strip()}"}
            for problem, answer in zip(rows["problem"], rows["answer"], strict=True)
            if answer and answer.strip()
        ]
        lengths = [len(ids) for ids in tokenizer([row["prompt"] + row["completion"] for row in texts]).input_ids]
        return Dataset.from_list([texts[i] for i in sorted(range(len(texts)), key=lengths.__getitem__)])

    def make_problems(self, seed: int) -> Problems:
        train, test = self._splits
        drawn = self.num_train + self.num_test
        if len(train) < drawn or len(test) < self.num_test:
            raise ValueError(
                f"{self.dataset} has {len(train):,} and {len(test):,} problems with an answer; "
                f"--num_train {self.num_train} and --num_test {self.num_test} need {drawn:,} and {self.num_test:,}"
            )
        shuffled = train.select(range(drawn)).shuffle(seed=0)
        return Problems(
            shuffled.select(range(self.num_train)),
            shuffled.select(range(self.num_train, len(shuffled))),
            test.select(range(self.num_test)),
        )

    def make_tokenizer(self) -> PreTrainedTokenizerBase:
        return AutoTokenizer.from_pretrained(self.model)

    def make_model(self, seed: int) -> PreTrainedModel:
        return AutoModelForCausalLM.from_pretrained(self.model, dtype=torch.float32)

    def arguments(self, folder: str, num_problems: int, num_epochs: int, seed: int) -> dict[str, Any]:
        return dict(
            output_dir=folder,
            num_train_epochs=num_epochs,
            seed=seed,
            use_cpu=not torch.cuda.is_available(),
            gradient_checkpointing=False,
            report_to="none",
            logging_strategy="no",
            save_strategy="no",
            disable_tqdm=True,
            **self.settings,
        )
