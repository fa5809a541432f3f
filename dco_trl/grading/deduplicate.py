"""Grade by reference and extracted answer alone, as "math" and "exact" do: each distinct pair is judged once."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import numpy as np
from tqdm.auto import tqdm

from .cache import VerdictCache
from .extract import completion_text, extract_answer, extract_reference
from .math_verdict import MAX_ANSWER_CHARS, quick_verdict
from .normalize import normalize_answer
from .pool import WorkerPool
from .thoughts import THOUGHT_TAGS
from .verdict import GradingStats, Verdict, shorten

_CHUNK = 65_536


def grade_pairs(
    completions: Sequence,
    answers: Sequence,
    pool: WorkerPool | None,
    cache: VerdictCache | None,
    stats: GradingStats,
    progress: bool,
    thought_tags: Sequence[tuple[str, str]] = THOUGHT_TAGS,
) -> tuple[list[Verdict], np.ndarray]:
    """The distinct verdicts, and for each completion its verdict's index. Without a pool, strings are compared."""
    pairs, too_long, slots = _distinct_pairs(
        completions, answers, None if pool is None else MAX_ANSWER_CHARS, thought_tags
    )
    verdicts: list[Verdict | None] = [None] * len(pairs)
    for i, (reference, answer) in enumerate(pairs):
        if pool is None:
            status = "graded" if answer else "unparsed"
            verdicts[i] = Verdict(exact_score(reference, answer), shorten(answer), status)
        else:
            verdicts[i] = Verdict(None, answer, "unparsed") if i in too_long else quick_verdict(reference, answer)
    if pool is not None:
        unsettled = [i for i, verdict in enumerate(verdicts) if verdict is None]
        _judge(pairs, unsettled, verdicts, pool, cache, stats, progress)
    return cast(list[Verdict], verdicts), slots


def _judge(
    pairs: list[tuple[str, str]],
    unsettled: list[int],
    verdicts: list[Verdict | None],
    pool: WorkerPool,
    cache: VerdictCache | None,
    stats: GradingStats,
    progress: bool,
) -> None:
    if cache is not None:
        for i, known in cache.get(pairs[u] for u in unsettled):
            verdicts[unsettled[i]] = known
        stats.add(from_cache=sum(verdicts[u] is not None for u in unsettled))
        unsettled = [u for u in unsettled if verdicts[u] is None]
    with progress_bar("math", len(unsettled), progress) as bar:
        for i, verdict in pool.run([pairs[u] for u in unsettled]):
            verdicts[unsettled[i]] = verdict
            stats.add(computed=1)
            if cache is not None:
                cache.put(pairs[unsettled[i]], verdict)
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


def chunks(column: Sequence) -> Iterator[Sequence]:
    """A column in lists: a list, a tuple, a NumPy array or a pyarrow array."""
    for start in range(0, len(column), _CHUNK):
        if hasattr(column, "to_pylist"):
            yield column.slice(start, _CHUNK).to_pylist()  # type: ignore[attr-defined]
        else:
            part = column[start : start + _CHUNK]
            yield part.tolist() if hasattr(part, "tolist") else part


def _distinct_pairs(
    completions: Sequence, answers: Sequence, max_chars: int | None, thought_tags: Sequence[tuple[str, str]]
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
                answer = extract_answer(text, thought_tags)
                long = max_chars is not None and len(answer) > max_chars and answer != reference
                pair = (reference, shorten(answer) if long else answer)
                slot = seen[gold, text] = slot_of.setdefault(pair, len(slot_of))
                if long:
                    too_long.add(slot)
            slots[row] = slot
            row += 1
    return list(slot_of), too_long, slots
