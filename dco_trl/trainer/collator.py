"""TRL's collator, telling besides which examples a batch holds and of how many documents each is."""

from dataclasses import dataclass
from typing import Any

import numpy as np
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

    Args:
        splits_packs: Whether documents that were packed become rows of their own where batches are padded, as with
            `eval_packing` alone. TRL leaves such a pack one sequence, of which p would be that of all its documents.
    """

    splits_packs: bool = False

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        lengths = [example["seq_lengths"] if "seq_lengths" in example else [0] for example in examples]
        splits = not self.padding_free and self.splits_packs and "seq_lengths" in examples[0]
        sequences = examples
        if splits:
            sequences = [part for e, some in zip(examples, lengths, strict=True) for part in _parts(e, some)]
        batch = super().torch_call(sequences)
        if self.padding_free or splits:
            batch[DOCUMENTS_PER_EXAMPLE] = torch.tensor([len(some) for some in lengths])
        for number in (EXAMPLE_ID, EVAL_ROW):
            if all(number in example for example in examples):
                batch[number] = torch.tensor([example[number] for example in examples])
        return batch


def _parts(example: dict[str, Any], lengths: list[int]) -> list[dict[str, Any]]:
    ends = np.cumsum(lengths).tolist()
    return [
        {name: example[name][end - length : end] for name in ("input_ids", "labels")}
        for end, length in zip(ends, lengths, strict=True)
    ]
