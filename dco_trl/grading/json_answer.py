"""The grader `json`: a value of JSON, however it is written."""

import json
import re
from collections.abc import Sequence
from typing import Any

from .code_blocks import code_blocks
from .extract import completion_text, extract_answer
from .reward_function import reference_column
from .thoughts import THOUGHT_TAGS, strip_thoughts

# A column of booleans as a run folder keeps it, as text.
_BOOLEANS = {"True": "true", "False": "false"}
_OPENING = re.compile(r"[\[{]")
# Characters that are read in search of values in prose, per character of it.
_MOST_READINGS = 8


def json_grader(
    completions: Sequence,
    answer: Sequence | None = None,
    *,
    thought_tags: Sequence[tuple[str, str]] = THOUGHT_TAGS,
    **kwargs: Any,
) -> list[float | None]:
    """Score 1 where the completion's JSON equals the reference's: whatever the order of keys, spaces, 1 or 1.0.

    The JSON of a completion is the last code block that is JSON, else the whole text, else the last object or list in
    it. `true` is not 1, and the order of a list counts.

    Args:
        completions: Strings, or lists of messages.
        answer: The references, one per completion: JSON, or values that are no strings; absent, `solution`.
        thought_tags: Pairs of the tags around a thought, as in `strip_thoughts`.
        kwargs: Further columns.

    Returns:
        1.0 or 0.0 for each completion; None where the reference is no JSON.

    Raises:
        GraderError: There is no reference column, or its length differs.

    Examples:
        >>> json_grader(['{"b": 2.0, "a": [1]}', "[1, 2"], answer=['{"a": [1], "b": 2}', "[1, 2]"])
        [1.0, 0.0]

    Relations:
        `exact_grader` compares text.
    """
    references = reference_column("json", completions, ("answer", answer), ("solution", kwargs.get("solution")))
    scores: list[float | None] = []
    for completion, reference in zip(completions, references, strict=True):
        try:
            right = _parse(_BOOLEANS.get(reference, reference)) if isinstance(reference, str) else reference
        except (ValueError, RecursionError):
            scores.append(None)
            continue
        try:
            text = strip_thoughts(completion_text(completion), thought_tags)
            scores.append(float(_is_same(_last_json(text), right)))
        except (ValueError, RecursionError):
            scores.append(0.0)
    return scores


def json_answer(text: str) -> str:
    """The JSON of a text in one spelling, for a vote: keys sorted, 1.0 as 1; without JSON, its answer."""
    try:
        return json.dumps(_one_spelling(_last_json(text)), sort_keys=True, ensure_ascii=False)
    except (ValueError, RecursionError):
        return extract_answer(text, ())


def _one_spelling(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _one_spelling(of_key) for key, of_key in value.items()}
    if isinstance(value, list):
        return [_one_spelling(entry) for entry in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _parse(text: str) -> Any:
    return json.loads(text, parse_constant=_refuse)


def _refuse(constant: str) -> Any:
    raise ValueError(constant)  # NaN and Infinity are Python's, not JSON's


def _last_json(text: str) -> Any:
    for candidate in (*(block.text for block in code_blocks(text)), text):
        try:
            return _parse(candidate)
        except (ValueError, RecursionError):
            continue
    decoder = json.JSONDecoder(parse_constant=_refuse)
    found: tuple | None = None
    at, budget = 0, _MOST_READINGS * len(text) + 10_000
    # Objects and lists one after the other; what is within one is part of it.
    while budget > 0 and (opening := _OPENING.search(text, at)):
        start = opening.start()
        try:
            value, at = decoder.raw_decode(text, start)
            found = (value,)
        except json.JSONDecodeError as error:
            budget -= error.pos - start + error.pos // 200  # the error counts the lines before it
            at = start + 1
        except ValueError:  # NaN, or a number too long for Python
            at = start + 1
            budget -= 1_000
    if found is None or budget <= 0:
        raise ValueError(text)
    return found[0]


def _is_same(a: Any, b: Any) -> bool:
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_is_same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(_is_same, a, b))
    return a == b
