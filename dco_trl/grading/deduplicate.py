"""Grade by reference and extracted answer alone, as "math" and "exact" do: each distinct pair is judged once."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from .cache import VerdictCache
from .extract import completion_text, extract_answer, extract_reference, normalize_answer
from .math_verdict import MAX_ANSWER_CHARS, MAX_SHOWN_CHARS, quick_verdict
from .pool import Outcome, WorkerPool
from .verdict import GradingStats, Verdict

_CHUNK = 65_536


def grade_pairs(
    completions: Sequence,
    answers: Sequence,
    pool: WorkerPool | None,
    cache: VerdictCache | None,
    stats: GradingStats,
    progress: bool,
) -> tuple[list[Verdict], np.ndarray]:
    """The distinct verdicts, and for each completion its verdict's index. Without a pool, strings are compared."""
    pairs, too_long, slots = _distinct_pairs(completions, answers, None if pool is None else MAX_ANSWER_CHARS)
    outcomes: list[Outcome | None] = [None] * len(pairs)
    unsettled = []
    for i, pair in enumerate(pairs):
        if pool is None:
            outcomes[i] = (exact_score(*pair), "graded" if pair[1] else "unparsed", None)
        elif (quick := (None, "unparsed") if i in too_long else quick_verdict(*pair)) is not None:
            outcomes[i] = (*quick, None)
        else:
            unsettled.append(i)
    if pool is not None:
        _judge(pairs, unsettled, outcomes, pool, cache, stats, progress)
    verdicts = []
    for (_, answer), outcome in zip(pairs, outcomes, strict=True):
        assert outcome is not None
        score, status, shown = outcome
        verdicts.append(Verdict(score, shorten(answer if shown is None else shown), status))
    return verdicts, slots


def _judge(
    pairs: list[tuple[str, str]],
    unsettled: list[int],
    outcomes: list[Outcome | None],
    pool: WorkerPool,
    cache: VerdictCache | None,
    stats: GradingStats,
    progress: bool,
) -> None:
    if cache is not None:
        for i, known in cache.get(pairs[u] for u in unsettled):
            outcomes[unsettled[i]] = known
            stats.from_cache += 1
        unsettled = [u for u in unsettled if outcomes[u] is None]
    with progress_bar("math", len(unsettled), progress) as bar:
        for i, outcome in pool.run([pairs[u] for u in unsettled]):
            outcomes[unsettled[i]] = outcome
            stats.computed += 1
            if cache is not None:
                cache.put(pairs[unsettled[i]], outcome)
            bar.update()
    if cache is not None:
        cache.flush()


def exact_score(reference: str, answer: str, normalize: Callable[[str], str] = normalize_answer) -> float:
    """1.0 if an extracted answer and an extracted reference are equal once normalised, and not empty; else 0.0."""
    normalized = normalize(answer)
    return float(bool(normalized) and normalized == normalize(reference))


def progress_bar(grader: str, total: int, enabled: bool) -> tqdm:
    """The bar of a grader."""
    return tqdm(total=total, desc=f"grading ({grader})", unit="sample", disable=not enabled or not total)


def shorten(answer: str) -> str:
    """An answer as a verdict shows it."""
    return answer if len(answer) <= MAX_SHOWN_CHARS else answer[:MAX_SHOWN_CHARS] + "…"


def chunks(column: Sequence) -> Iterator[Sequence]:
    """A column in lists: a list, a tuple, a NumPy array or a pyarrow array."""
    for start in range(0, len(column), _CHUNK):
        if hasattr(column, "to_pylist"):
            yield column.slice(start, _CHUNK).to_pylist()  # type: ignore[attr-defined]
        else:
            part = column[start : start + _CHUNK]
            yield part.tolist() if hasattr(part, "tolist") else part


def _distinct_pairs(
    completions: Sequence, answers: Sequence, max_chars: int | None
) -> tuple[list[tuple[str, str]], set[int], np.ndarray]:
    # Texts are read one chunk at a time and forgotten: one integer per row and the distinct answers stay.
    slots = np.empty(len(completions), dtype=np.int64)
    slot_of: dict[tuple[str, str], int] = {}
    too_long: set[int] = set()
    references: dict[Any, str] = {}
    row = 0
    for texts, golds in zip(chunks(completions), chunks(answers), strict=True):
        seen: dict[tuple, int] = {}
        for text, gold in zip(texts, golds, strict=True):
            if type(text) is not str:
                text = completion_text(text)
            slot = seen.get((gold, text))
            if slot is None:
                reference = references.get(gold)
                if reference is None:
                    if gold is None:
                        raise ValueError(f"answers[{row}] is None: a sample without a reference cannot be graded")
                    reference = references[gold] = extract_reference(gold)
                answer = extract_answer(text)
                long = max_chars is not None and len(answer) > max_chars and answer != reference
                pair = (reference, shorten(answer) if long else answer)
                slot = seen[gold, text] = slot_of.setdefault(pair, len(slot_of))
                if long:
                    too_long.add(slot)
            slots[row] = slot
            row += 1
    return list(slot_of), too_long, slots
