"""The verifiers of reasoning-gym as a grader: `--grader dco_trl.grading.reasoning_gym:score`."""

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from .extract import completion_text, extract_answer
from .thoughts import strip_thoughts
from .verdict import GraderError

try:  # here, where a worker starts, and not within the time of its first verdict
    from reasoning_gym import get_score_answer_fn
except ImportError as error:
    raise GraderError(f"this grader needs reasoning-gym ({error}): pip install reasoning-gym") from error

_verifier = lru_cache(get_score_answer_fn)


def score(completions: Sequence, answer: Sequence, metadata: Sequence, **kwargs: Any) -> list[float | None]:
    """Score completions with the verifier of the reasoning-gym task that each row comes from.

    The verifier gets the row's entry and what stands in the last `<answer>` tag, as in reasoning-gym itself; else the
    answer that `extract_answer` finds; else the whole text, because grids and the like have no mark.

    Args:
        completions: Strings, or lists of messages.
        answer: Column `answer` of the entries.
        metadata: Column `metadata` of the entries, as dicts or JSON; its `source_dataset` names the task.
        kwargs: Further columns; the verifier gets `question`, if there is one.

    Returns:
        1.0 if the verifier gives full marks, else 0.0. Partial credit does not count: a text that merely contains the
        right answer gets up to 0.99, and a score above 0.5 is correct.

    Examples:
        >>> score(["so the answer is 4"], answer=["4"], metadata=[{"source_dataset": "chain_sum"}])
        [1.0]
    """
    scores: list[float | None] = []
    questions = kwargs.get("question") or [None] * len(completions)
    for completion, reference, entry, question in zip(completions, answer, metadata, questions, strict=True):
        entry = json.loads(entry) if isinstance(entry, str) else entry
        text = strip_thoughts(completion_text(completion))
        given = _tagged(text) or extract_answer(text) or text.strip()
        full = {"question": question, "answer": reference, "metadata": entry}
        scores.append(float(_verifier(entry["source_dataset"])(given, full) >= 1.0))
    return scores


def _tagged(text: str) -> str | None:
    close = text.rfind("</answer>")
    opening = text.rfind("<answer>", 0, close) if close >= 0 else -1
    return text[opening + 8 : close].strip() if opening >= 0 else None
