"""TRL's collators, which also tell which examples a batch holds and how many documents each has."""

from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypedDict

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .trl_contract import DataCollatorForLanguageModeling, DataCollatorForVisionLanguageModeling

# The column with a row's number in the data set as it was given: preparation may shuffle rows and drop some.
ROW = "dco_row"
# A batch describes its examples under this one key, in a dictionary that every library moves to the device.
INFO = "dco"


class BatchInfo(TypedDict, total=False):
    """What a batch may tell about its examples beyond TRL's columns."""

    row: Int[Tensor, " example"]  # its number in the data set
    documents: Int[Tensor, " example"]  # how many it holds, in flattened batches
    # Where rationales were sampled: the row's weight, its estimated log p (nats), and the sequence's share of it.
    weight: Float[Tensor, " sequence"]
    log_p: Float[Tensor, " sequence"]
    share: Float[Tensor, " sequence"]


@dataclass
class DCOCollator(DataCollatorForLanguageModeling):
    """TRL's collator plus a `BatchInfo`: rows where examples have numbers, documents where batches are flattened.

    Packing merges documents into examples and padding-free batches merge examples into one row. Distributed evaluation
    repeats *examples* to even out the last batch, so an exact mean over documents must know which belong to a repeat.

    Args:
        splits_packs: Whether packed documents become rows of their own where batches are padded, as with
            `eval_packing` alone. TRL leaves such a pack as one sequence, and p would be that of all its documents.
    """

    splits_packs: bool = False

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        lengths = [example.get("seq_lengths", [0]) for example in examples]
        splits = not self.padding_free and self.splits_packs and "seq_lengths" in examples[0]
        sequences = examples
        if splits:
            sequences = [part for e, some in zip(examples, lengths, strict=True) for part in _parts(e, some)]
        batch = super().torch_call(sequences)
        info = {}
        if self.padding_free or splits:
            info["documents"] = torch.tensor([len(some) for some in lengths])
        if all(ROW in example for example in examples):
            info["row"] = torch.tensor([example[ROW] for example in examples])
        return batch | ({INFO: info} if info else {})


@dataclass
class DCOVisionCollator(DataCollatorForVisionLanguageModeling):
    """TRL's collator of pictures, and the evaluation rows' numbers."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        numbers = [example[ROW] for example in examples if ROW in example]
        batch = super().torch_call(examples)
        return {**batch, INFO: {"row": torch.tensor(numbers)}} if numbers else batch


def _parts(example: dict[str, Any], lengths: list[int]) -> list[dict[str, Any]]:
    ends = accumulate(lengths)
    return [
        {name: example[name][end - length : end] for name in ("input_ids", "labels")}
        for end, length in zip(ends, lengths, strict=True)
    ]
