"""Rows with pictures. TRL prepares them batch by batch in its collator, so they are checked here."""

from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset, IterableDataset

from .collator import INFO, ROW
from .columns import counted, has_other_end
from .data_checks import check_texts
from .dco_config import DCOConfig
from .trl_contract import DataCollatorForVisionLanguageModeling

IMAGES = {"image", "images"}


def has_images(dataset: Any) -> bool:
    """Whether the rows have pictures."""
    return isinstance(dataset, Dataset | IterableDataset) and bool(IMAGES & set(dataset.column_names or ()))


def check_images(dataset: Dataset | IterableDataset, args: DCOConfig, processor: Any, name: str) -> None:
    """Raise a `ValueError` where p would not be the probability of a whole answer to a picture."""
    if args.max_length is not None:
        raise ValueError(
            f"`max_length={args.max_length}` may cut answers to pictures, and their p would be that of a piece: how "
            "many tokens a picture takes is known only in the batch. Set `max_length=None`."
        )
    check_texts(dataset, name)
    end = processor.tokenizer.eos_token
    if isinstance(dataset, Dataset) and "completion" in dataset.column_names and end:
        if (endless := has_other_end(dataset, "completion", end)).any():
            raise ValueError(
                f"{counted(endless, name)} have a completion that does not end with {end!r}: TRL appends no end "
                "of sequence to rows with pictures, and p would be that of a beginning. Append it: dataset.map(lambda "
                f"row: {{'completion': row['completion'] + {end!r}}}); or use messages, whose template does."
            )


@dataclass
class DCOVisionCollator(DataCollatorForVisionLanguageModeling):
    """TRL's collator of pictures, and the evaluation rows' numbers."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """As TRL's."""
        numbers = [example[ROW] for example in examples if ROW in example]
        batch = super().torch_call(examples)
        return {**batch, INFO: {"row": torch.tensor(numbers)}} if numbers else batch
