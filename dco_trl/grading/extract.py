"""Find the final answer in a completion. Linear in the text's length."""

import re
from collections.abc import Sequence
from typing import Any

from .boxes import boxed_answer, is_joint
from .normalize import clean
from .thoughts import THOUGHT_TAGS, strip_thoughts

# A text that marks no answer is a direct answer if it is no longer than this (the longest of MATH's 12,500 answers has
# 159 characters). A longer one is a rationale that never says what its answer is, and has none.
MAX_DIRECT_CHARS = 300
# Characters that are looked at after a mark, and the longest answer that is searched for a remark.
_WINDOW = 1_000

_ANSWER_IS = re.compile(
    r"(?:answer|(?:correct|right|best) (?:option|choice|letter))(?: to [^.\n]{1,80}?)?[*_]{0,3}"
    r"(?:\s{1,9}(?:is|are|would be|should be|must be)(?!n['’]t)|\s{0,9}[:：=]|\s[-–—]\s)[*_]{0,3}:?\s*"
    r"(?:(?:therefore|thus|then|hence|simply|indeed|clearly|definitely|given by|equal to|as follows)\b[,:]?\s*){0,3}",
    re.IGNORECASE,
)
# "The answer is not 5", "I hope the answer is correct": no answer.
_NO_ANSWER = re.compile(
    r"(?:not|found|shown|obtained|based)\b|(?:wrong|incorrect|correct|right|clear|obvious|unknown)\s?(?:[^\w\s]|$)",
    re.IGNORECASE,
)
_NOT_BUT = re.compile(r"not\b[^.\n]{1,80}?,? but (?:rather )?", re.IGNORECASE)
# The answer comes before a remark: "7, not 5", "7 rather than 5", "7 because 3 + 4 = 7".
_REMARK = re.compile(
    r"(?:[,;(–—]\s?|\s-{1,2}\s|(?<=[\d$)}\]%])\s|\s(?=(?:and|but)\s))"
    r"(?:(?:and|but|definitely|certainly|clearly)\s){0,2}not\b"
    r"|\b(?:rather\sthan|instead\sof|in\splace\sof|as\sopposed\sto|unlike|contrary\sto)\b"
    # "15 (slippers) + 5 (lipstick) = 20" goes on to its answer.
    r"|(?P<note>\s\((?!mod\b|maybe\b|perhaps\b|possibly\b|either\b)[A-Za-z]{3}(?![^)]*\).*=))"
    r"|(?P<weak>\b(?:because|since)\b|\swhich\s(?:is|are|was|means|equals?)\b|[,;(–—]\s?"
    r"(?:which|as|so|but|where|while|although|though|thus|hence|therefore|i\.e\.|that\sis|meaning)\b)",
    re.IGNORECASE,
)
_MARK = re.compile(r"#{4,}")
_HEADING_WORDS = (
    r"(?:\d{1,2}[.)]\s{1,3})?(?:step|part|case|problem|question|task|solution|explanation|conclusion|summary|verif\w*|"
    r"check\w*|calculat\w*|comput\w*|analy\w*|given|approach|method|example|note|proof|reasoning|understand\w*|find\w*|"
    r"determin\w*|solv\w*|simplif\w*|substitut\w*|using|use|let|first|second|third|next|then|finally|therefore|thus|"
    r"how|what|why|set|setting|defin\w*|identif\w*|appl\w*|combin\w*|express\w*|rewrit\w*|convert\w*|add|adding|"
    r"subtract\w*|multipl\w*|divid\w*|key|additional|hint|tips?)\b"
)
_HEADING = re.compile(rf"{_HEADING_WORDS}|(?:answer|final|result)\b|[^\d\\$]*:$", re.IGNORECASE)
_HEADING_LINE = re.compile(
    rf"^[ \t]{{0,3}}#{{1,6}}[*_ \t]{{0,5}}(?:{_HEADING_WORDS}.*)?$", re.IGNORECASE | re.MULTILINE
)
_ANSWER_HEADING = re.compile(
    r"^[#*_>\- \t]{0,12}(?:the[ \t])?(?:(?:final|short|correct)[ \t])?(?:answer|result)s?[*_:：# \t]{0,12}$",
    re.IGNORECASE | re.MULTILINE,
)
# Below a heading or a colon "- 42" is an entry of a list.
_BULLET = re.compile(r"^[^\S\n]*\n\s*[-*•]\s+")
_TAG = re.compile(r"<(/?)(?:final_?)?answer>", re.IGNORECASE)
# In a box: "The answer is 5", `\text{The answer is } 5` and `\text{The answer is 5}`.
_BOXED_SENTENCE = re.compile(rf"[\w ]{{0,80}}?{_ANSWER_IS.pattern}(.*)", re.IGNORECASE | re.DOTALL)
_BOXED_TEXT = re.compile(rf"\\text\w*\{{{_BOXED_SENTENCE.pattern[:-4]}([^{{}}]*)\}}(.*)", re.IGNORECASE | re.DOTALL)
_SENTENCE = re.compile(r"[A-Za-z]{2,}\s")
_SENTENCE_END = re.compile(r"(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bDr)(?<!\bSt)(?<!\bNo)(?<!\bvs)\.(?=\s+[A-Z](?![.)]))")


def completion_text(completion: Any) -> str:
    """The text of one completion in TRL's format: a string, or a list of messages whose last one counts.

    Args:
        completion: `str`, or `[{"role": "assistant", "content": ...}]`; a content of several parts is joined.

    Returns:
        The text; empty if the message has no content.

    Raises:
        TypeError: The completion is neither.

    Examples:
        >>> completion_text([{"role": "assistant", "content": "It is 4."}])
        'It is 4.'
    """
    if isinstance(completion, str):
        return completion
    if isinstance(completion, (list, tuple)) and completion and isinstance(completion[-1], dict):
        content = completion[-1].get("content")
        if isinstance(content, (list, tuple)):
            return "".join(part.get("text") or "" for part in content if isinstance(part, dict))
        return content or ""
    raise TypeError(
        f"a completion must be a string or a list of messages such as [{{'role': 'assistant', 'content': '...'}}], "
        f"got {type(completion).__name__}: {str(completion)[:80]!r}"
    )


def extract_answer(text: str, thought_tags: Sequence[tuple[str, str]] = THOUGHT_TAGS) -> str:
    r"""The final answer in a completion.

    Thoughts do not count (`strip_thoughts`). The answer is the first of these that the text has:

    1. the content of the last complete, non-empty `\boxed{}` or `\fbox{}`, or of several boxes with only commas, "and"
       and the like between them, joined by commas; but an `<answer>` after the last box replaces it;
    2. the line after the last `####` that is not a heading;
    3. the content of the last `<answer>` tag;
    4. what follows the last "answer is" or "answer:", up to the end of the sentence or formula;
    5. what stands below a heading such as "Final Answer";
    6. the whole text, if it has at most 300 characters. A longer text has no answer: a number in passing is not one.

    A remark after the answer ("7, not 5") is not part of it.

    Args:
        text: A completion.
        thought_tags: Pairs of the tags around a thought.

    Returns:
        The answer, without surrounding white space and math delimiters; "" if there is none.

    Examples:
        >>> extract_answer(r"so $x^2 = 3$ and $x = \boxed{\frac{1}{2}}$.")
        '\\frac{1}{2}'
        >>> extract_answer("<think>18? No.</think>9 * 3 = 27\n#### 27")
        '27'
        >>> extract_answer("The answer is $12$, not $13$. I hope it is correct.")
        '12'
        >>> extract_answer("42")
        '42'

    Relations:
        `extract_reference` for the reference side; `normalize_answer` for what `exact` compares.
    """
    text = strip_thoughts(text, thought_tags)
    last_box = max(text.rfind("boxed"), text.rfind("fbox"))
    if last_box >= 0:
        is_tagged_after = text.rfind("<answer>") > last_box
        if answer := (is_tagged_after and _tagged(text)) or _unwrap_sentence(boxed_answer(text)):
            return answer
    for found in (_marked, _tagged, stated_answer, _below_heading):
        if answer := found(text):
            return answer
    stripped = text.strip()
    if len(stripped) > MAX_DIRECT_CHARS:
        return ""
    return _without_remark(clean(_HEADING_LINE.sub("", stripped) if "#" in stripped else stripped))


def stated_answer(text: str) -> str:
    """What the last "answer is", "answer:" or "correct option is" states, to the end of its sentence or formula."""
    if "nswer" not in text and "NSWER" not in text and "option" not in text and "choice" not in text:
        return ""
    last = None
    for match in _ANSWER_IS.finditer(text):
        if not _NO_ANSWER.match(text, match.end()) or _NOT_BUT.match(text, match.end()):
            last = match
    if last is None:
        return ""
    return _without_remark(clean(_sentence("\n" * ("\n" in last[0]) + text[last.end() :])))


def extract_reference(reference: Any) -> str:
    """The answer in a reference: as `extract_answer`, but a long unmarked reference is as a whole the answer.

    Args:
        reference: A row's `answer` (or `solution`): a bare answer, or a worked solution that marks it; numbers become
            strings.

    Examples:
        >>> extract_reference(r"2 + 2, hence \\boxed{4}"), extract_reference("x = 4 or x = 5"), extract_reference(4)
        ('4', 'x = 4 or x = 5', '4')

    Relations:
        `extract_answer` for what a model wrote.
    """
    text = reference if isinstance(reference, str) else str(reference)
    return extract_answer(text) or text.strip()


def _marked(text: str) -> str:
    """The line after the last `####` that is not a heading, as in GSM8K, or what is below "#### Final Answer"."""
    for mark in reversed(list(_MARK.finditer(text))):
        window = text[mark.end() : mark.end() + _WINDOW]
        line = window.lstrip().partition("\n")[0]
        bare = clean(line).strip("*_ ")
        if _ANSWER_HEADING.fullmatch(bare) or _ANSWER_IS.search(bare):
            below = window[window.find(line) + len(line) * bool(_ANSWER_HEADING.fullmatch(bare)) :]
            return stated_answer(below) or _without_remark(clean(_sentence(below)))
        below = window[window.find(line) + len(line) :].strip()
        is_prose = len(bare.split()) > 4 and not any(sign in bare for sign in "0123456789\\$=")
        if bare and not bare.startswith("#") and not _HEADING.match(bare) and not (is_prose and below):
            return _without_remark(clean(line))
    return ""


def _tagged(text: str) -> str:
    """The content of the last `<answer>`. An unclosed one ends with the text: `</answer>` may be a stop string."""
    if "nswer>" not in text and "NSWER>" not in text:
        return ""
    parts: list[str] = []
    after: int | None = None
    tags = list(_TAG.finditer(text))
    for tag, following in zip(reversed(tags), [None, *reversed(tags)], strict=False):
        if tag[1]:
            continue
        closing = following if following is not None and following[1] else None
        end = closing.start() if closing else len(text)
        if after is not None and not (closing and is_joint(text, closing.end(), after)):
            break
        content = clean(text[tag.end() : end]) if closing or end - tag.end() <= MAX_DIRECT_CHARS else ""
        if content:
            parts.append(_without_remark(content))
            after = tag.start()
    return ", ".join(dict.fromkeys(reversed(parts)))


def _below_heading(text: str) -> str:
    """What stands below the last heading "Final Answer" or the like."""
    if "nswer" not in text and "NSWER" not in text and "esult" not in text:
        return ""
    headings = list(_ANSWER_HEADING.finditer(text))
    return _without_remark(clean(_sentence(text[headings[-1].end() :]))) if headings else ""


def _without_remark(answer: str) -> str:
    """An answer without what is said about it: "7, not 5" is 7."""
    if len(answer) > _WINDOW or " " not in answer:
        return answer
    if contrast := _NOT_BUT.match(answer):
        answer = answer[contrast.end() :]
    remark = _REMARK.search(" ".join(answer.split()))
    if remark is None:
        return clean(answer)
    before = clean(remark.string[: remark.start()].rstrip(" ,;(–—-"))
    # A sentence may state its answer after "because" or ", so"; "Paris (Texas)" is not Paris.
    is_bare = len(before.split()) <= 3 and not _SENTENCE.match(before) and remark["note"] is None
    is_statement = remark["weak"] is None and "\n" not in answer and not _SENTENCE_END.search(before)
    return before if before and (is_bare or (is_statement and any(c in before for c in "0123456789\\$="))) else answer


def _unwrap_sentence(content: str) -> str:
    r"""The content of a box; if it is a sentence, as in `\text{The answer is } 5`, what it states."""
    content = clean(content)
    if "nswer" in content or "NSWER" in content:
        for sentence in (_BOXED_TEXT.fullmatch(content), _BOXED_SENTENCE.fullmatch(content)):
            answer = clean("".join(sentence.groups(""))) if sentence else ""
            if answer:
                return answer
    return content


def _sentence(text: str) -> str:
    text = _BULLET.sub("", text).lstrip()
    for opening, closing in (("$$", "$$"), ("\\[", "\\]")):  # a displayed formula may run over several lines
        if text.startswith(opening):
            end = text.find(closing, 2)
            if end > 0:
                return text[2:end]
    line = text.partition("\n")[0]
    stop = _SENTENCE_END.search(line)
    return line if stop is None else line[: stop.start()]
