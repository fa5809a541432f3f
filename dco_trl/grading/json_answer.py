"""The grader `json`: a value of JSON, however it is written."""

import json
import re
from collections.abc import Sequence
from typing import Any

from .extract import completion_text, extract_answer
from .reward_function import reference_column

# A column of booleans as a run folder keeps it, as text.
_BOOLEANS = {"True": "true", "False": "false"}
_JSON_BLOCK = re.compile(r"```[ \t]*(?:json)?[ \t]*\r?\n(.*?)```", re.DOTALL | re.IGNORECASE)


def json_grader(completions: Sequence, answer: Sequence | None = None, **kwargs: Any) -> list[float | None]:
    """Score 1 where the completion's JSON equals the reference's: whatever the order of keys, spaces, 1 or 1.0.

    The JSON of a completion is the last code block, else the whole text, else the last object or list in it. `true` is
    not 1, and the order of a list counts.

    Args:
        completions: Strings, or lists of messages.
        answer: The references, one per completion: JSON, or values that are no strings; absent, `solution`.
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
        except ValueError:
            scores.append(None)
            continue
        try:
            scores.append(float(_is_same(_last_json(completion_text(completion)), right)))
        except (ValueError, RecursionError):
            scores.append(0.0)
    return scores


def json_answer(completion: Any) -> str:
    """The JSON of a completion in one spelling, for a vote: keys sorted, 1.0 as 1; without JSON, its answer."""
    text = completion_text(completion)
    try:
        return json.dumps(_one_spelling(_last_json(text)), sort_keys=True, ensure_ascii=False)
    except (ValueError, RecursionError):
        return extract_answer(text)


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
    blocks = _JSON_BLOCK.findall(text)
    text = (blocks[-1] if blocks else text).strip()
    try:
        return _parse(text)
    except ValueError:
        pass
    decoder = json.JSONDecoder(parse_constant=_refuse)
    found, at = None, 0
    # Objects and lists one after the other; what is within one is part of it.
    while (start := min((i for i in (text.find("{", at), text.find("[", at)) if i >= 0), default=-1)) >= 0:
        try:
            value, at = decoder.raw_decode(text, start)
            found = (value,)
        except ValueError:
            at = start + 1
    if found is None:
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
