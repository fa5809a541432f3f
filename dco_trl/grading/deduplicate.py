"""Grade by reference and extracted answer only, as "math" and "exact" do: each distinct pair is judged once."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any, cast

import numpy as np
from tqdm.auto import tqdm

from .cache import VerdictCache
from .extract import completion_text, extract_answer, extract_reference
from .math_verdict import quick_verdict
from .pool import WorkerPool
from .verdict import GradingStats, Verdict

_CHUNK = 65_536


def math_verdicts(
    pairs: list[tuple[str, str]],
    pool: WorkerPool,
    cache: VerdictCache | None = None,
    stats: GradingStats | None = None,
    progress: bool = False,
) -> list[Verdict]:
    """The verdict of `math` on each pair (reference, answer): by its strings, the cache or a worker."""
    verdicts = [quick_verdict(*pair) for pair in pairs]
    unsettled = [i for i, verdict in enumerate(verdicts) if verdict is None]
    unknown = unsettled
    if cache is not None:
        for i in unsettled:
            verdicts[i] = cache.get(pairs[i])
        unknown = [i for i in unsettled if verdicts[i] is None]
    with progress_bar("math", len(unknown), progress) as bar, closing(pool.run([pairs[i] for i in unknown])) as judged:
        for number, verdict in judged:
            verdicts[unknown[number]] = verdict
            if cache is not None:
                cache.put(pairs[unknown[number]], verdict)
            bar.update()
    if cache is not None:
        cache.flush()
    if stats is not None:
        stats.add(from_cache=len(unsettled) - len(unknown), computed=len(unknown))
    return cast(list[Verdict], verdicts)


def progress_bar(grader: str, total: int, enabled: bool) -> tqdm:
    """The bar of a grader."""
    return tqdm(total=total, desc=f"grading ({grader})", unit="sample", disable=not enabled or not total)


def values(column: Sequence) -> Iterator:
    """The values of a list, a tuple, a NumPy array or a pyarrow array, as Python objects, one chunk at a time."""
    for start in range(0, len(column), _CHUNK):
        if hasattr(column, "to_pylist"):
            yield from column.slice(start, _CHUNK).to_pylist()  # type: ignore[attr-defined]
        else:
            part = column[start : start + _CHUNK]
            yield from part.tolist() if hasattr(part, "tolist") else part


def distinct_pairs(
    completions: Sequence, answers: Sequence, thought_tags: Sequence[tuple[str, str]]
) -> tuple[list[tuple[str, str]], np.ndarray]:
    """The distinct pairs (reference, extracted answer), and for each completion its pair's index.

    Only one integer per row and the distinct answers are kept in memory.
    """
    slots = np.empty(len(completions), dtype=np.int64)
    slot_of: dict[tuple[str, str], int] = {}
    references: dict[Any, str] = {}
    seen: dict[tuple, int] = {}
    for row, (text, gold) in enumerate(zip(values(completions), values(answers), strict=True)):
        if row % _CHUNK == 0:
            seen = {}
        if type(text) is not str:
            text = completion_text(text)
        slot = seen.get((gold, text))
        if slot is None:
            if gold is None:
                raise ValueError(f"answers[{row}] is None: a sample without a reference cannot be graded")
            reference = references.get(gold)
            if reference is None:
                reference = references[gold] = extract_reference(gold)
            pair = (reference, extract_answer(text, thought_tags))
            slot = seen[gold, text] = slot_of.setdefault(pair, len(slot_of))
        slots[row] = slot
    return list(slot_of), slots
