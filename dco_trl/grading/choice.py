"""The grader `choice`: the letter of a multiple choice."""

import json
import re
from collections.abc import Sequence
from typing import Any

from .extract import completion_text, extract_answer, extract_reference, normalize_answer
from .reward_function import reference_column

# "(C)", "C)", "C.", "**C**", "option C", "C because": a letter or digit that stands alone. "A dog" is not an A.
_LABEL = re.compile(
    r"[\W_]*(?:(?:option|choice|answer)\b[\W_]*)?"
    r"(?:\(\s*([A-Za-z]|\d+)\s*\)|([A-Za-z]|\d+)(?=[\s*_]*(?:[).:,;*_\]}]|$))|([B-HJ-Z])(?=\s))",
    re.IGNORECASE,
)
_ANOTHER = re.compile(r"[\W_]*(?:or|and)[\W_]+(?:[A-Z]|\d+)\b", re.IGNORECASE)


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
    keys, solutions = kwargs.get("answerKey"), kwargs.get("solution")
    references = reference_column(
        "choice", completions, ("answer", answer), ("answerKey", keys), ("solution", solutions)
    )
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


def choice_answer(completion: Any, choices: Any = None) -> str:
    """The letter that a completion gives, for a vote: "(b)" and "B." are one answer; without a letter, its answer."""
    answer = extract_answer(completion_text(completion))
    return _given_label(answer, *_options(choices)) or answer


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
