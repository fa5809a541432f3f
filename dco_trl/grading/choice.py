"""The grader `choice`: the letter of a multiple choice."""

import json
import re
import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from .extract import completion_text, extract_answer, extract_reference, stated_answer
from .normalize import normalize_answer
from .reward_function import reference_column
from .thoughts import THOUGHT_TAGS, strip_thoughts

# What surrounds a letter: `\text{B}`, `\mathbf{(B)}`.
_WRAPPER = re.compile(r"\\(?:text\w*|math\w+|mbox|boldsymbol|bm|bf|rm|underline|boxed|fbox)\s?\{([^{}]*)\}")
_DRESS = re.compile(r"\\(?:left|right|[,;:! ])|[`*_$\"'“”‘’「」【】{}]|\\(?=[()\[\]])")
# Letters of other alphabets that look like A and C and have no other place among the options.
_LOOKALIKES = str.maketrans("АСΑΒ", "ACAB")
_INTRODUCTION = re.compile(
    r"[\W_]*(?:i (?:think|believe|guess) (?:that )?)?(?:(?:it s|it (?:is|must be|should be)|clearly|definitely|so|"
    r"thus|therefore|hence|(?:i (?:would |d |ll |will )?)?(?:choose|pick|select|go with))\b[\W_]*)?"
    r"(?:(?:the|my)\s)?(?:(?:correct|right|best|final)\s)?(?:(?:option|choice|answer|letter|ans)\b(?:\sis)?[\W_]*)?",
    re.IGNORECASE,
)
# A letter or number that stands alone: "(C)", "C)", "C.", "C - Paris", "C because". Not "A dog" or "E coli".
_LABEL = re.compile(
    r"[\[(<]\s?([A-Za-z]|\d{1,3})\s?[\])>]|([A-Za-z]|\d{1,3})(?=\s?(?:[):;\]}>]|[.,](?!\d)|$)|\s[-–—]\s)"
    r"|([A-Z])(?=\s(?:because|since|as|is|was|which|that|due|for|given|\())"
)
# "E. coli" is a species and not option E.
_SPECIES = re.compile(
    r"[A-Z]\.\s(?:coli|aureus|elegans|melanogaster|sapiens|subtilis|thaliana|difficile|pylori|cerevisiae|falciparum|"
    r"tuberculosis|musculus|pneumoniae|albicans|pyogenes|cholerae|rerio|laevis|pombe|rex|diff|botulinum|anthracis|"
    r"burgdorferi|typhi|faecalis|vivax|cruzi|gondii)\b"
)
# A second option after the first: joined to it, or as bare.
_ANOTHER = re.compile(
    r"[\s\])>}.,;:(]*(?:(?:or|and|und|maybe|perhaps|possibly|both|nor|either)\b|[,;&/|+])[\W_]*"
    r"(?:(?:or|and|maybe|perhaps|possibly|option|choice)\b[\W_]*)*(?:[A-Z]|\d{1,3}|[a-z](?=[)\]]))(?![\w'’])"
    r"|[\s\])>}.:]*[\[(]?[A-Z](?=\s?(?:[)\].,;:/|]|$|[A-Z]\b))",
)
# "A is wrong", "(B) isn't right" (without its apostrophe). Not "B. Cannot be A.".
_DENIED = re.compile(
    r"[\s\])>}]*(?:(?:is|was)\s(?:not|never|wrong|incorrect|false|untrue|impossible|eliminated|ruled out|out)"
    r"|isn t|wasn t|cannot|can t|doesn t|does not)\b",
    re.IGNORECASE,
)
_MARKED = re.compile(r"[\[(]\s?([A-Z])\s?[\])]|(?<![\w'’])([A-Z])(?=[):])|^\s*([A-Z])\.(?=\s)", re.MULTILINE)


def choice_grader(
    completions: Sequence,
    answer: Sequence | None = None,
    choices: Sequence | None = None,
    *,
    thought_tags: Sequence[tuple[str, str]] = THOUGHT_TAGS,
    **kwargs: Any,
) -> list[float | None]:
    r"""Score 1 where the completion's letter is the reference's, in a question of multiple choice.

    The answer that `extract_answer` finds must begin with the letter (bare, in brackets or before a full stop), or be
    the text of one of the `choices`. If a box has neither, what the text states as its answer counts. Several letters
    ("A or B", "A, B, C, D") count as none. A reference is a letter, an option's text, or the index from 0 of an option
    (MMLU). The options of a question are a list of texts, or have the lists `text` and `label` (ARC).

    Args:
        completions: Strings, or lists of messages.
        answer: The references, one per completion. Without it, the column `answerKey` or `solution` counts.
        choices: The options of each question, if the data set has them.
        thought_tags: As in `exact_grader`.
        kwargs: Further columns.

    Returns:
        1.0 or 0.0 for each completion; None if the reference is not an option.

    Raises:
        GraderError: As `exact_grader`.

    Examples:
        >>> choice_grader(["The answer is (B).", "c) red", "A dog"], answer=["B", "C", "A"])
        [1.0, 1.0, 0.0]
        >>> choice_grader(["blue"], answer=[1], choices=[["red", "blue"]])
        [1.0]

    Relations:
        `exact_grader` compares whole answers: "B" and "(B) blue" differ.
    """
    more = {name: kwargs.get(name) for name in ("answerKey", "solution")}
    references = reference_column("choice", completions, answer=answer, **more)
    options = [None] * len(completions) if choices is None else choices
    scores: list[float | None] = []
    for completion, reference, of_row in zip(completions, references, options, strict=True):
        labels, texts = _options(of_row)
        right = _reference_label(reference, labels, texts)
        if labels is None and of_row and right is not None and right.isdecimal():
            right = None  # an index, of options that cannot be read
        given = _given_label(strip_thoughts(completion_text(completion), thought_tags), labels, texts)
        scores.append(None if right is None else float(given == right))
    return scores


def choice_answer(text: str, choices: Any = None) -> str:
    """The letter that a text gives, or else its answer, for a vote: "(b)" and "B." are one."""
    return _given_label(text, *_options(choices)) or extract_answer(text, ())


def _options(choices: Any) -> tuple[list[str] | None, list[str]]:
    """Labels and texts of a question's options; the labels are None if the options are unknown."""
    if isinstance(choices, str):
        with suppress(ValueError):
            choices = json.loads(choices)
        choices = choices if isinstance(choices, list | dict) else None
    if isinstance(choices, dict):
        return [str(label).upper() for label in choices["label"]], [str(text) for text in choices["text"]]
    if choices is None or not len(choices):
        return None, []
    return [chr(ord("A") + i) for i in range(len(choices))], [str(text) for text in choices]


def _reference_label(reference: Any, labels: list[str] | None, texts: list[str]) -> str | None:
    text = extract_reference(reference)
    if labels is not None and text.upper() not in labels and text.isdecimal():  # an index
        return labels[int(text)] if int(text) < len(labels) else None
    return _label(text, labels, texts)


def _given_label(text: str, labels: list[str] | None, texts: list[str]) -> str | None:
    """The label of the extracted answer, or else of the answer that the text states beside a box."""
    return _label(extract_answer(text, ()), labels, texts) or _label(stated_answer(text), labels, texts)


def _label(answer: str, labels: list[str] | None, texts: list[str]) -> str | None:
    """The label that an answer is, else whose text it is, else that it begins with; None for several labels."""
    normal = normalize_answer(answer).casefold()
    plain = unicodedata.normalize("NFKC", answer).translate(_LOOKALIKES)
    plain = " ".join(_DRESS.sub(" ", _WRAPPER.sub(r" \1 ", _WRAPPER.sub(r" \1 ", plain))).split())
    start = _INTRODUCTION.match(plain)
    match = _LABEL.match(plain, start.end() if start else 0) or _LABEL.match(plain)
    label = "".join(match.groups("")).upper() if match else None
    rest = plain[match.end() :] if match else ""
    is_option = labels is None or label in labels
    if label is not None and is_option and not re.search(r"\w", rest):
        return label
    of_text = {normalize_answer(text).casefold(): option for option, text in zip(labels or (), texts, strict=True)}
    if normal and normal in of_text:
        return of_text[normal]
    if match is None or label is None or not is_option or _SPECIES.match(plain, match.start()):
        return None
    marked = {"".join(found) for found in _MARKED.findall(plain)}
    if _DENIED.match(rest) or _ANOTHER.match(rest) or len(marked | {label}) > 1 and label in marked:
        return None
    # "B. London", where London is option A.
    beside = of_text.get(normalize_answer(rest.strip(" ).:,;-–—]")).casefold(), label)
    return label if beside == label else None
