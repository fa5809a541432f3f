"""`dco_trl.trainer.segments` against plain loops."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dco_trl.sampling.end_of_sequence import BLANK, CONTENT, END, answer_length
from dco_trl.trainer.segments import Segments, one_label_per_unit


@settings(deadline=None, max_examples=50)
@given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=6), seed=st.integers(0, 99), extra=st.integers(0, 3))
def test_packed_sums_equal_a_loop(lengths, seed, extra):
    generator = torch.Generator().manual_seed(seed)
    ids = [unit for unit, length in enumerate(lengths) for _ in range(length)]
    mask = torch.rand(len(ids), generator=generator) < 0.6
    values = torch.randn(len(ids), generator=generator)
    # Virtual tokens of a prompt-learning adapter stand in front, without labels.
    wide_mask = torch.cat([torch.zeros(extra, dtype=torch.bool), mask])[None]
    wide_values = torch.cat([torch.full((extra,), 9.0), values])[None]
    segments = Segments.packed(torch.tensor([ids], dtype=torch.int32), wide_mask, len(lengths))

    expected = [sum(values[i].item() for i in range(len(ids)) if ids[i] == u and mask[i]) for u in range(len(lengths))]
    counts = [sum(bool(mask[i]) for i in range(len(ids)) if ids[i] == u) for u in range(len(lengths))]
    torch.testing.assert_close(segments.sum(wide_values), torch.tensor(expected, dtype=torch.float64))
    assert segments.num_tokens.tolist() == counts
    assert segments.valid.tolist() == [count > 0 for count in counts]
    per_unit = torch.arange(len(lengths), dtype=torch.float64)
    assert segments.expand(per_unit)[0, extra:].tolist() == ids


def test_rows_ignore_unlabelled_positions_even_when_they_are_not_finite():
    mask = torch.tensor([[True, False], [False, False]])
    values = torch.tensor([[-1.5, float("nan")], [float("inf"), float("nan")]])
    segments = Segments.rows(mask)
    assert segments.sum(values).tolist() == [-1.5, 0.0]
    assert segments.valid.tolist() == [True, False]


def test_sums_are_float64():
    # In float32, 1 + 2^-24 rounds back to 1.
    values = torch.tensor([[1.0, 2.0**-24]])
    assert Segments.rows(torch.ones(1, 2, dtype=torch.bool)).sum(values).item() == 1 + 2.0**-24


def test_a_sequence_is_counted_if_a_label_is_predicted():
    # The second token is the first that is predicted: a label of the very first does not count.
    labels = torch.tensor([[-100, 5, -100], [-100, -100, -100], [7, -100, -100], [-100, -100, 9]])
    padded = {"labels": labels, "attention_mask": torch.ones_like(labels)}
    documents = torch.arange(4).repeat_interleave(3)[None]
    ends = torch.arange(0, 13, 3)
    flattened = {"labels": labels.reshape(1, -1).clone(), "seq_idx": documents, "cu_seq_lens_q": ends}
    flattened["labels"][0, 6] = -100  # as TRL's collator does with the first token of a document
    for batch in (padded, flattened):
        segments = Segments.of_batch(batch, batch["labels"][:, 1:] != -100)
        assert one_label_per_unit(segments).tolist() == [[-100, 0, -100, -100, 0]]


@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_units_end_where_a_sampler_stops(data):
    """Against `answer_length`, run by run; kinds 0 (content), 1 (blank), 2 (end) are the tokens themselves."""
    rows = data.draw(st.lists(st.lists(st.sampled_from([-100, 0, 1, 2]), min_size=6, max_size=6), min_size=1))
    kinds = np.array([CONTENT, BLANK, END, CONTENT], dtype=np.int8)
    expected = []
    for row in rows:
        kept, at = [False] * 6, 0
        while at < 6:
            length = next((i for i, token in enumerate(row[at:]) if token == -100), 6 - at)
            end = answer_length(kinds, row[at : at + length])
            kept[at : at + length] = [end is None or i < end for i in range(length)]
            at += length + 1
        expected.append(kept)
    labels, extra = torch.tensor(rows), data.draw(st.integers(0, 2))
    wide = torch.nn.functional.pad(labels != -100, (extra, 0))
    segments = Segments.rows(wide).up_to_end(torch.from_numpy(kinds), labels)
    assert segments.label_mask[:, extra:].tolist() == expected and not segments.label_mask[:, :extra].any()
    documents = torch.arange(len(rows)).repeat_interleave(6)[None]
    flat = Segments.packed(documents, labels.reshape(1, -1) != -100, len(rows))
    flat = flat.up_to_end(torch.from_numpy(kinds), labels.reshape(1, -1))
    assert flat.label_mask.view(len(rows), 6).tolist() == expected
