"""Graders that compare strings and JSON: `exact`, `regex` and `json`."""

import json
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

from .code_blocks import code_blocks
from .extract import completion_text, extract_answer, extract_reference
from .normalize import normalize_answer
from .reward_function import reference_column
from .thoughts import THOUGHT_TAGS, strip_thoughts


def exact_grader(
    completions: Sequence,
    answer: Sequence | None = None,
    solution: Sequence | None = None,
    *,
    normalize: Callable[[str], str] = normalize_answer,
    thought_tags: Sequence[tuple[str, str]] = THOUGHT_TAGS,
    **kwargs: Any,
) -> list[float | None]:
    r"""Score 1 where the extracted answer equals the reference as a normalised string.

    `normalize(extract_answer(completion)) == normalize(extract_reference(reference))`, not empty.

    Args:
        completions: Strings, or lists of messages.
        answer: The references, one per completion.
        solution: The same under the data set's other usual name; used if `answer` is absent.
        normalize: Maps equal answers to the same string. The default is for mathematics; `str.casefold` ignores case,
            `str.strip` hardly anything. `functools.partial(exact_grader, normalize=...)` is a grader.
        thought_tags: Pairs of the tags around a thought, as in `strip_thoughts`.
        kwargs: Further columns; not used.

    Returns:
        1.0 or 0.0 for each completion.

    Raises:
        GraderError: There is no reference column, or its length differs.

    Examples:
        >>> exact_grader(["so it is \\boxed{1{,}000}", "999"], answer=["1000", "1000"])
        [1.0, 0.0]
        >>> exact_grader(["The answer is Paris."], answer=["PARIS"], normalize=str.casefold)
        [1.0]

    Relations:
        `math_grader` also accepts equal values written differently.
    """
    references = reference_column("exact", completions, answer=answer, solution=solution)
    return [
        exact_score(extract_reference(reference), extract_answer(completion_text(completion), thought_tags), normalize)
        for completion, reference in zip(completions, references, strict=True)
    ]


def exact_score(reference: str, answer: str, normalize: Callable[[str], str] = normalize_answer) -> float:
    """1.0 if an extracted answer and an extracted reference are equal once normalised, and not empty; else 0.0."""
    normalized = normalize(answer)
    return float(bool(normalized) and normalized == normalize(reference))


def regex_grader(
    completions: Sequence,
    answer: Sequence | None = None,
    *,
    thought_tags: Sequence[tuple[str, str]] = THOUGHT_TAGS,
    **kwargs: Any,
) -> list[float | None]:
    r"""Score 1 where the whole extracted answer matches the reference, a Python regular expression.

    To search the answer instead, whatever its case and lines, put `(?is).*` before and `.*` after the expression. One
    that backtracks without end is stopped where verdicts have a time limit: in `BulkGrader` and the commands.

    Args:
        completions: Strings, or lists of messages.
        answer: The expressions, one per completion. Without it, the column `pattern` or `solution` counts.
        thought_tags: As in `exact_grader`.
        kwargs: Further columns.

    Returns:
        1.0 or 0.0 for each completion; None if the expression is invalid or empty.

    Raises:
        GraderError: As `exact_grader`.

    Examples:
        >>> regex_grader(["so the answer is 12 cm", "about 12"], answer=[r"12(\.0)? ?(cm)?"] * 2)
        [1.0, 0.0]

    Relations:
        `exact_grader` compares with one string.
    """
    more = {name: kwargs.get(name) for name in ("pattern", "solution")}
    references = reference_column("regex", completions, answer=answer, **more)
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


def json_grader(
    completions: Sequence,
    answer: Sequence | None = None,
    *,
    thought_tags: Sequence[tuple[str, str]] = THOUGHT_TAGS,
    **kwargs: Any,
) -> list[float | None]:
    """Score 1 where the completion's JSON equals the reference's.

    The JSON of a completion is the last code block that is JSON, else the whole text, else the last object or list in
    it. The order of keys, spaces, and 1 or 1.0 do not matter; the order of a list does, and `true` is not 1.

    Args:
        completions: Strings, or lists of messages.
        answer: The references, one per completion: JSON, or values other than strings. Without it, `solution` counts.
        thought_tags: As in `exact_grader`.
        kwargs: Further columns.

    Returns:
        1.0 or 0.0 for each completion; None if the reference is not JSON.

    Raises:
        GraderError: As `exact_grader`.

    Examples:
        >>> json_grader(['{"b": 2.0, "a": [1]}', "[1, 2"], answer=['{"a": [1], "b": 2}', "[1, 2]"])
        [1.0, 0.0]

    Relations:
        `exact_grader` compares text.
    """
    references = reference_column("json", completions, answer=answer, solution=kwargs.get("solution"))
    scores: list[float | None] = []
    for completion, reference in zip(completions, references, strict=True):
        right = None
        with suppress(*_NO_JSON):
            text = reference if isinstance(reference, str) else json.dumps(reference, default=_plain)
            # A run folder keeps a column of booleans as Python writes them.
            right = _one_spelling(_DECODER.decode({"True": "true", "False": "false"}.get(text, text)))
        given = _last_json(strip_thoughts(completion_text(completion), thought_tags))
        scores.append(None if right is None else float(given == right))
    return scores


def json_answer(text: str) -> str:
    """The JSON of a text in one spelling (keys sorted, 1.0 as 1), or else its answer, for a vote."""
    return _last_json(text) or extract_answer(text, ())


def _refuse(constant: str) -> Any:
    raise ValueError(constant)  # NaN and Infinity are Python's, not JSON's


def _number(text: str) -> float:
    value = float(text)
    return int(value) if value.is_integer() else value


_DECODER = json.JSONDecoder(parse_float=_number, parse_constant=_refuse)
_NO_JSON = (ValueError, TypeError, RecursionError)
_OPENING = re.compile(r"[\[{]")
# How often the search for values in prose may read each character, on average.
_MOST_READINGS = 8


def _plain(value: Any) -> Any:
    if not hasattr(value, "tolist"):  # NumPy's values have it
        raise TypeError(value)
    return value.tolist()


def _one_spelling(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _last_json(text: str) -> str | None:
    """The last JSON in a text, in one spelling, or None."""
    for candidate in (*(block for _, block in code_blocks(text)), text):
        with suppress(*_NO_JSON):
            return _one_spelling(_DECODER.decode(candidate))
    found = None
    at, budget = 0, _MOST_READINGS * len(text) + 10_000
    # Objects and lists one after the other; those within another are part of it.
    while budget > 0 and (opening := _OPENING.search(text, at)):
        start = opening.start()
        try:
            value, at = _DECODER.raw_decode(text, start)
            found = _one_spelling(value)
        except json.JSONDecodeError as error:
            budget -= error.pos - start + error.pos // 200  # the error counts the lines before it
            at = start + 1
        except RecursionError:
            return None
        except ValueError:  # NaN, or a number too long for Python
            at = start + 1
            budget -= 1_000
    return found if budget > 0 else None
