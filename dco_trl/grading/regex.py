"""The grader `regex`: an answer that matches a regular expression."""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from .extract import completion_text, extract_answer
from .reward_function import reference_column
from .thoughts import THOUGHT_TAGS


def regex_grader(
    completions: Sequence,
    answer: Sequence | None = None,
    *,
    thought_tags: Sequence[tuple[str, str]] = THOUGHT_TAGS,
    **kwargs: Any,
) -> list[float | None]:
    r"""Score 1 where the extracted answer matches the reference, a regular expression of Python, as a whole.

    Begin the expression with `(?is).*` to search the answer instead, whatever its case and lines. An expression that
    backtracks without end is stopped where verdicts have a time limit: in `BulkGrader` and the commands.

    Args:
        completions: Strings, or lists of messages.
        answer: The expressions, one per completion; absent, the column `pattern` or `solution`.
        thought_tags: Pairs of the tags around a thought, as in `strip_thoughts`.
        kwargs: Further columns.

    Returns:
        1.0 or 0.0 for each completion; None where the expression is none.

    Raises:
        GraderError: There is no reference column, or its length differs.

    Examples:
        >>> regex_grader(["so the answer is 12 cm", "about 12"], answer=[r"12(\.0)? ?(cm)?"] * 2)
        [1.0, 0.0]

    Relations:
        A list of right answers, where training is to know them: the column `completions` of
        [`DCOTrainer`][dco_trl.trainer.DCOTrainer].
    """
    patterns, solutions = kwargs.get("pattern"), kwargs.get("solution")
    references = reference_column(
        "regex", completions, ("answer", answer), ("pattern", patterns), ("solution", solutions)
    )
    scores: list[float | None] = []
    for completion, reference in zip(completions, references, strict=True):
        pattern = _compile(str(reference)) if reference else None
        given = extract_answer(completion_text(completion), thought_tags)
        scores.append(None if pattern is None else float(pattern.fullmatch(given) is not None))
    return scores


@lru_cache(maxsize=4096)
def _compile(pattern: str) -> re.Pattern | None:
    try:
        return re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        return None
