"""Graders of a few lines: the letter of a multiple choice, JSON, a regular expression."""

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from .errors import GraderError
from .extract import completion_text, extract_answer, extract_reference, normalize_answer

# "(C)", "C)", "C.", "**C**", "option C", "C because": a letter or digit that stands alone. "A dog" is not an A.
_LABEL = re.compile(
    r"[\W_]*(?:(?:option|choice|answer)\b[\W_]*)?"
    r"(?:\(\s*([A-Za-z]|\d+)\s*\)|([A-Za-z]|\d+)(?=[\s*_]*(?:[).:,;*_\]}]|$))|([B-HJ-Z])(?=\s))",
    re.IGNORECASE,
)
_ANOTHER = re.compile(r"[\W_]*(?:or|and)[\W_]+(?:[A-Z]|\d+)\b", re.IGNORECASE)
# A column of booleans as a run folder keeps it, as text.
_BOOLEANS = {"True": "true", "False": "false"}
_JSON_BLOCK = re.compile(r"```[ \t]*(?:json)?[ \t]*\r?\n(.*?)```", re.DOTALL | re.IGNORECASE)


def choice_grader(
    completions: Sequence, answer: Sequence | None = None, choices: Sequence | None = None, **kwargs: Any
) -> list[float | None]:
    r"""Score 1 where the completion's letter is the reference's, in a question of multiple choice.

    The answer that `extract_answer` finds begins with the letter, bare, in brackets or before a full stop, or is the
    text of one of the `choices`. References are taken as they are published: a letter (`answer`, or `answerKey`), or
    the index from 0 of one of the `choices` (MMLU); `choices` is a list of texts, or has the lists `text` and `label`
    (ARC).

    Args:
        completions: Strings, or lists of messages.
        answer: The references, one per completion; absent, the column `answerKey` or `solution`.
        choices: The options of each question, where the data set has them.
        kwargs: Further columns.

    Returns:
        1.0 or 0.0 for each completion; None where the reference is no option.

    Raises:
        GraderError: There is no reference column, or its length differs.

    Examples:
        >>> choice_grader(["The answer is (B).", "c) red", "A dog"], answer=["B", "C", "A"])
        [1.0, 1.0, 0.0]
        >>> choice_grader(["blue"], answer=[1], choices=[["red", "blue"]])
        [1.0]

    Relations:
        `exact_grader` compares whole answers: it takes "B" and "(B) blue" for different ones.
    """
    references = _references("choice", completions, answer, kwargs, "answerKey")
    options = [None] * len(completions) if choices is None else choices
    scores: list[float | None] = []
    for completion, reference, of_row in zip(completions, references, options, strict=True):
        labels, texts = _options(of_row)
        right = _reference_label(reference, labels, texts)
        if labels is None and of_row and right is not None and right.isdecimal():
            right = None  # an index, of options that cannot be read
        given = _given_label(extract_answer(completion_text(completion)), labels, texts)
        scores.append(None if right is None else float(given == right))
    return scores


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
    scores: list[float | None] = []
    for completion, reference in zip(
        completions, _references("json", completions, answer, kwargs, "solution"), strict=True
    ):
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


def regex_grader(completions: Sequence, answer: Sequence | None = None, **kwargs: Any) -> list[float | None]:
    r"""Score 1 where the extracted answer matches the reference, a regular expression of Python, as a whole.

    Begin the expression with `(?is).*` to search the answer instead, whatever its case and lines. An expression that
    backtracks without end is stopped where verdicts have a time limit: in `BulkGrader` and the commands.

    Args:
        completions: Strings, or lists of messages.
        answer: The expressions, one per completion; absent, the column `pattern` or `solution`.
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
    scores: list[float | None] = []
    for completion, reference in zip(
        completions, _references("regex", completions, answer, kwargs, "pattern"), strict=True
    ):
        pattern = _compile(str(reference)) if reference else None
        given = extract_answer(completion_text(completion))
        scores.append(None if pattern is None else float(pattern.fullmatch(given) is not None))
    return scores


def choice_answer(completion: Any, choices: Any = None) -> str:
    """The letter that a completion gives, for a vote: "(b)" and "B." are one answer; without a letter, its answer."""
    answer = extract_answer(completion_text(completion))
    return _given_label(answer, *_options(choices)) or answer


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


def _references(
    name: str, completions: Sequence, answer: Sequence | None, columns: dict[str, Any], other: str
) -> Sequence:
    references = next((c for c in (answer, columns.get(other), columns.get("solution")) if c is not None), None)
    if references is None:
        raise GraderError(f"grader {name!r} needs a column named `answer` or `{other}`, and there is neither")
    if len(references) != len(completions):
        raise GraderError(
            f"grader {name!r} needs a reference for each completion, got {len(references)} for {len(completions)}"
        )
    return references


def _options(choices: Any) -> tuple[list[str] | None, list[str]]:
    """Labels and texts of a question's options; no labels where nothing is known of them."""
    if isinstance(choices, str):
        try:
            choices = json.loads(choices)
        except ValueError:
            choices = None
    if isinstance(choices, dict):
        return [str(label).upper() for label in choices["label"]], [str(text) for text in choices["text"]]
    if choices is None or not len(choices):
        return None, []
    return [chr(ord("A") + i) for i in range(len(choices))], [str(text) for text in choices]


def _reference_label(reference: Any, labels: list[str] | None, texts: list[str]) -> str | None:
    text = extract_reference(reference)
    if labels is not None and text.upper() not in labels and text.isdecimal():  # an index
        return labels[int(text)] if int(text) < len(labels) else None
    return _given_label(text, labels, texts)


def _given_label(answer: str, labels: list[str] | None, texts: list[str]) -> str | None:
    """The label of an answer: alone, else as its text, else at its beginning; none of several labels."""
    normal = normalize_answer(answer).casefold()
    match = _LABEL.match(answer)
    label = "".join(match.groups("")).upper() if match else None
    is_alone = match is not None and not re.search(r"\w", answer[match.end() :])
    if label is not None and (labels is None or label in labels) and is_alone:
        return label
    for option, text in zip(labels or (), texts, strict=True):
        if normal and normal == normalize_answer(text).casefold():
            return option
    if match is not None and _ANOTHER.match(answer[match.end() :]):
        return None
    return label if labels is None or label in labels else None


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


@lru_cache(maxsize=4096)
def _compile(pattern: str) -> re.Pattern | None:
    try:
        return re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        return None
