"""Which tokens form one unit: the sequence whose probability is p.

A unit is a row of a padded batch, or a document of a packed one, or a turn of either. Only tokens with a label count;
a unit without any (padding, a document whose completion was cut off) is not `valid`, and is left out of every mean.
Text that a chat template writes after an answer's end of sequence is never sampled, and belongs to no unit.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..sampling.end_of_sequence import CONTENT, END


@dataclass(frozen=True)
class Segments:
    """The unit of every token position, and whether the position has a label.

    Args:
        ids: Unit of each position, int64, `(batch, seq)`; from 0 to `num_segments - 1`.
        label_mask: Whether the position has a label, bool, `(batch, seq)`.
        num_segments: Number of units. A Python number, so that no shape waits for the device.
        sequence_of: Sequence of each unit, int64, `(unit,)`, where units are turns; None where they are sequences.
        num_sequences: Number of sequences, where units are turns.

    Examples:
        ```python
        >>> import torch
        >>> from dco_trl.trainer.segments import Segments
        >>> mask = torch.tensor([[True, True, False], [True, False, False]])
        >>> segments = Segments.rows(mask)
        >>> segments.sum(torch.tensor([[-1.0, -2.0, 0.0], [-3.0, 0.0, 0.0]]))
        tensor([-3., -3.], dtype=torch.float64)
        >>> segments.num_tokens
        tensor([2, 1])

        ```

    Relations:
        `of_batch` chooses `rows` for padded batches, `packed` for flattened ones; `turns` splits either.
    """

    ids: Int[Tensor, "batch seq"]
    label_mask: Bool[Tensor, "batch seq"]
    num_segments: int
    sequence_of: Int[Tensor, " unit"] | None = None
    num_sequences: int | None = None

    @classmethod
    def rows(cls, label_mask: Bool[Tensor, "batch seq"]) -> "Segments":
        """Each row is a unit."""
        ids = torch.arange(label_mask.size(0), device=label_mask.device)[:, None].expand_as(label_mask)
        return cls(ids, label_mask, label_mask.size(0))

    @classmethod
    def packed(
        cls, seq_idx: Int[Tensor, "1 seq"], label_mask: Bool[Tensor, "1 width"], num_segments: int
    ) -> "Segments":
        """Each document of one flattened row is a unit.

        `seq_idx` is the document of each position. `label_mask` is wider where a prompt-learning adapter puts virtual
        tokens, which have no labels, in front: the two are aligned on the right.
        """
        extra = label_mask.size(1) - seq_idx.size(1)
        return cls(torch.nn.functional.pad(seq_idx.long(), (extra, 0)), label_mask, num_segments)

    @classmethod
    def of_batch(cls, batch: Mapping[str, Any], label_mask: Bool[Tensor, "batch width"]) -> "Segments":
        """The units of a batch of TRL's collator: rows if it is padded, documents if it is flattened."""
        if "seq_idx" in batch:
            return cls.packed(batch["seq_idx"][:, 1:], label_mask, batch["cu_seq_lens_q"].numel() - 1)
        if "attention_mask" in batch:
            return cls.rows(label_mask)
        raise ValueError(
            f"A flattened batch (padding-free or packed) came without `seq_idx`, got {sorted(batch)}: the whole row "
            "would count as one answer. Use TRL's own collator, or padded batches with an `attention_mask`."
        )

    def _runs(self) -> tuple[Int[Tensor, " position"], int]:
        """The contiguous run of labels, from 0, of each labelled position; and the most runs that there can be."""
        sequence, labelled = self.ids.flatten(), self.label_mask.flatten()
        goes_on = labelled[:-1] & (sequence[1:] == sequence[:-1])
        starts = labelled & ~torch.nn.functional.pad(goes_on, (1, 0))
        # A sequence of L positions has at most (L + 1) / 2 runs.
        return (starts.cumsum(0) - 1).clamp(min=0), (labelled.numel() + self.num_segments) // 2

    def up_to_end(self, kinds: Int[Tensor, " token"], token_ids: Int[Tensor, "batch width"]) -> "Segments":
        """Drop the labels after the end of sequence of each run; `answer_length` defines which they are.

        `kinds` is from `dco_trl.sampling.end_of_sequence.token_kinds`; `token_ids` are aligned on the right.
        """
        token_ids = torch.nn.functional.pad(token_ids, (self.label_mask.size(1) - token_ids.size(1), 0))
        kind = kinds[token_ids.clamp(0, len(kinds) - 1)].flatten()
        labelled, (runs, num_runs) = self.label_mask.flatten(), self._runs()
        # The tail of a run is where all content of the run has been seen.
        content = (labelled & (kind == CONTENT)).cumsum(0)
        at_end = torch.zeros(num_runs, dtype=torch.long, device=kind.device)
        at_end = at_end.scatter_reduce(0, runs, torch.where(labelled, content, 0), "amax")
        tail = labelled & (kind != CONTENT) & (content == at_end[runs])
        is_end = tail & (kind == END)
        ends_before = is_end.cumsum(0) - is_end.long()
        first = torch.full_like(at_end, labelled.numel())
        first = first.scatter_reduce(0, runs, torch.where(tail, ends_before, labelled.numel()), "amin")
        behind = tail & (ends_before > first[runs])
        return dataclasses.replace(self, label_mask=self.label_mask & ~behind.view_as(self.label_mask))

    def turns(self) -> "Segments":
        """Each contiguous run of labelled positions of a sequence as a unit of its own."""
        ids, num_turns = self._runs()
        sequence = torch.where(self.label_mask, self.ids, 0).flatten()
        of_turn = torch.zeros(num_turns, dtype=torch.long, device=ids.device)
        of_turn = of_turn.scatter_reduce(0, ids, sequence, "amax")
        return Segments(ids.view_as(self.ids), self.label_mask, num_turns, of_turn, self.num_segments)

    def sum(self, values: Float[Tensor, "batch seq"]) -> Float[Tensor, " unit"]:
        """Sum `values` over the labelled positions of each unit, in float64 where the device has it."""
        dtype = torch.float32 if values.device.type == "mps" else torch.float64
        values = torch.where(self.label_mask, values.to(dtype), 0.0)
        totals = torch.zeros(self.num_segments, dtype=dtype, device=values.device)
        return totals.index_add(0, self.ids.flatten(), values.flatten())

    @cached_property
    def num_tokens(self) -> Int[Tensor, " unit"]:
        """Number of labelled positions of each unit."""
        counts = torch.zeros(self.num_segments, dtype=torch.long, device=self.label_mask.device)
        return counts.index_add(0, self.ids.flatten(), self.label_mask.flatten().long())

    @property
    def valid(self) -> Bool[Tensor, " unit"]:
        """Whether the unit has any labelled position."""
        return self.num_tokens > 0

    def by_sequence(self, table: Float[Tensor, "unit column"]) -> Float[Tensor, "sequence column"]:
        """Sum a table of units over the units of each sequence."""
        if self.sequence_of is None or self.num_sequences is None:
            return table
        return table.new_zeros(self.num_sequences, table.size(1)).index_add(0, self.sequence_of, table)

    def expand(self, per_unit: Float[Tensor, " unit"]) -> Float[Tensor, "batch seq"]:
        """Give every position its unit's value."""
        return per_unit[self.ids]


def one_label_per_unit(segments: Segments) -> Int[Tensor, "1 units"]:
    """Labels of shape `(1, 1 + units)`: 0 for each unit that counts, -100 for the others."""
    labels = torch.where(segments.valid, 0, -100)
    return torch.nn.functional.pad(labels, (1, 0), value=-100)[None]


def sum_by_example(
    table: Float[Tensor, "unit column"], documents_per_example: Int[Tensor, " example"] | None
) -> Float[Tensor, "example column"]:
    """Sum a table of units over the units of each example; without a count, each unit is an example."""
    if documents_per_example is None:
        return table
    # Units beyond the last example's end are padding: they go to one more example, which is dropped.
    units = torch.arange(table.size(0), device=table.device)
    example = torch.searchsorted(documents_per_example.cumsum(0), units, right=True)
    sums = torch.zeros((documents_per_example.numel() + 1, table.size(1)), dtype=table.dtype, device=table.device)
    return sums.index_add(0, example, table)[:-1]
