"""TRL's collator, telling besides which examples a batch holds and of how many documents each is."""

from dataclasses import dataclass
from typing import Any

import torch

from .eval_log_p import EVAL_ROW
from .trl_contract import DataCollatorForLanguageModeling

DOCUMENTS_PER_EXAMPLE = "documents_per_example"
EXAMPLE_ID = "example_id"


@dataclass
class DCOCollator(DataCollatorForLanguageModeling):
    """TRL's collator plus, for flattened batches, the number of documents of each example, int64 `(examples,)`; and
    the examples' ids where they have any.

    Packing merges documents into examples and padding-free batches merge examples into one row. Distributed evaluation
    repeats *examples* to even out the last batch, so an exact mean over documents must know which belong to a repeat.
    """

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().torch_call(examples)
        if self.padding_free:
            batch[DOCUMENTS_PER_EXAMPLE] = torch.tensor(
                [len(example["seq_lengths"]) if "seq_lengths" in example else 1 for example in examples]
            )
        for number in (EXAMPLE_ID, EVAL_ROW):
            if all(number in example for example in examples):
                batch[number] = torch.tensor([example[number] for example in examples])
        return batch
