"""Find the final answer in a completion, and normalise answers for string comparison. Linear in the text's length."""

import re
from typing import Any

from .notation import plain_characters

# A text that marks no answer is a direct answer if it is no longer than this (the longest of MATH's 12,500 answers has
# 159 characters). Longer, it is a rationale that never says what its answer is, and has none.
MAX_DIRECT_CHARS = 300

_BOX_OR_BRACE = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_BOX_WITHOUT_BRACES = re.compile(r"\\boxed\s+([^\s${}]+)")
_ANSWER_IS = re.compile(r"answer[*_]{0,3}(?:\s+is|\s+are|\s*:|\s*=)[*_]{0,3}:?\s*", re.IGNORECASE)
# In a box: "The answer is 5", `\text{The answer is } 5` and `\text{The answer is 5}`.
_BOXED_SENTENCE = re.compile(rf"[\w ]{{0,80}}?{_ANSWER_IS.pattern}(.*)", re.IGNORECASE | re.DOTALL)
_BOXED_TEXT = re.compile(rf"\\text\w*\{{{_BOXED_SENTENCE.pattern[:-4]}([^{{}}]*)\}}(.*)", re.IGNORECASE | re.DOTALL)
_SENTENCE_END = re.compile(r"\.(?=\s+[A-Z])")
_DELIMITERS = (("$$", "$$"), ("\\[", "\\]"), ("\\(", "\\)"), ("$", "$"))

_ALIASES = (
    *(("\\dfrac", "\\frac"), ("\\tfrac", "\\frac"), ("\\dbinom", "\\binom"), ("\\tbinom", "\\binom")),
    *(("\\left", ""), ("\\right", ""), ("\\$", ""), ("^{\\circ}", ""), ("^\\circ", ""), ("\\ ", " "), ("~", " ")),
)
# A spacing command means nothing, nor does white space, but between two digits or two letters.
_SPACING = re.compile(r"\s?\\[!,;:]\s?")
_IDLE_SPACE = re.compile(r" (?!(?<=\d )\d|(?<=[^\W\d_] )[^\W\d_])")
_SHORT_FRACTION = re.compile(r"\\frac(\d) ?(\d)")
_SHORT_BINOMIAL = re.compile(r"\\binom(\d) ?(\d)")
_SHORT_ROOT = re.compile(r"\\sqrt(\d)")
_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mbox)\{([^{}]*)\}")
_THOUSANDS = re.compile(r"-?\d{1,3}(?:,(?:\\!)?\d{3})+(?:\.\d+)?")
_DECIMAL = re.compile(r"(-?)(\d*)\.(\d*)")


def completion_text(completion: Any) -> str:
    """The text of one completion in TRL's format: a string, or a list of messages, of which the last one counts.

    Args:
        completion: `str`, or `[{"role": "assistant", "content": ...}]`; a content of several parts is joined.

    Returns:
        The text; empty where a message has no content.

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


def extract_answer(text: str) -> str:
    r"""The final answer in a completion.

    The first of these that is there: the content of the last complete, non-empty `\boxed{}` or `\fbox{}` (nested
    braces are matched); the rest of the line after the last `####`; the content of the last `<answer>` tag; what
    follows the last "answer is" or "answer:" up to the end of the sentence or formula; the whole text if it is at most
    300 characters long (a direct answer). A longer text without any of these has no answer: numbers in passing are not
    one.

    Args:
        text: A completion.

    Returns:
        The answer, without surrounding white space and math delimiters; "" if there is none.

    Examples:
        >>> extract_answer(r"so $x^2 = 3$ and $x = \boxed{\frac{1}{2}}$.")
        '\\frac{1}{2}'
        >>> extract_answer("9 * 2 = 18\n#### 18")
        '18'
        >>> extract_answer("The answer is $12$. I hope it is correct.")
        '12'
        >>> extract_answer("42")
        '42'

    Relations:
        `extract_reference` for the reference side; `normalize_answer` for what `exact` compares.
    """
    if "\\boxed" in text or "\\fbox" in text:
        answer = _last_boxed(text)
        if answer:
            return answer
    mark = text.rfind("####")
    if mark >= 0:
        answer = _clean(_first_line(text[mark + 4 :]))
        if answer:
            return answer
    close = text.rfind("</answer>")
    if close >= 0:
        opening = text.rfind("<answer>", 0, close)
        answer = _clean(text[opening + 8 : close]) if opening >= 0 else ""
        if answer:
            return answer
    if "nswer" in text or "NSWER" in text:
        end = None
        for match in _ANSWER_IS.finditer(text):
            end = match.end()
        answer = _clean(_sentence(text[end:])) if end is not None else ""
        if answer:
            return answer
    stripped = text.strip()
    return _clean(stripped) if len(stripped) <= MAX_DIRECT_CHARS else ""


def extract_reference(reference: Any) -> str:
    """The answer in a reference: as `extract_answer`, but a long unmarked reference is an answer as a whole.

    Args:
        reference: A row's `answer` (or `solution`): a bare answer, or a worked solution that marks it; numbers become
            strings.

    Returns:
        The answer to compare with.

    Examples:
        >>> extract_reference(r"2 + 2, hence \\boxed{4}"), extract_reference("x = 4 or x = 5"), extract_reference(4)
        ('4', 'x = 4 or x = 5', '4')

    Relations:
        `extract_answer` for what a model wrote.
    """
    text = reference if isinstance(reference, str) else str(reference)
    return extract_answer(text) or text.strip()


def normalize_answer(answer: str) -> str:
    r"""An answer with the differences taken out that mean nothing.

    White space (but not between two digits or two letters), math delimiters, `\left` and `\right`, spacing commands,
    `\text{}` wrappers, degree and dollar signs, a full stop at the end, thousands separators; `\dfrac` and `\frac12`
    become `\frac{1}{2}`, `.50` becomes `0.5`, Unicode's digits and signs become ASCII and LaTeX. Nothing is computed:
    `1/2` and `0.5` stay different.

    Args:
        answer: An extracted answer.

    Returns:
        The string that `exact` compares.

    Examples:
        >>> normalize_answer(r"$\left( \dfrac12, 1{,}000 \right)$")
        '(\\frac{1}{2},1,000)'
        >>> normalize_answer("1,000.50")
        '1000.5'
    """
    answer = plain_characters(_clean(answer))
    for old, new in _ALIASES:
        if old in answer:
            answer = answer.replace(old, new)
    answer = _TEXT.sub(r"\1", answer).replace("{,}", ",")
    answer = " ".join(_SPACING.sub("", answer).split())
    answer = _IDLE_SPACE.sub("", answer)
    answer = _SHORT_FRACTION.sub(r"\\frac{\1}{\2}", answer)
    answer = _SHORT_BINOMIAL.sub(r"\\binom{\1}{\2}", answer)
    answer = _SHORT_ROOT.sub(r"\\sqrt{\1}", answer)
    if _THOUSANDS.fullmatch(answer):
        answer = answer.replace(",", "")
    decimal = _DECIMAL.fullmatch(answer)
    if decimal and (decimal[2] or decimal[3]):
        fraction = decimal[3].rstrip("0")
        answer = decimal[1] + (decimal[2] or "0") + ("." + fraction if fraction else "")
    return answer


def _last_boxed(text: str) -> str:
    # One pass with a stack, so that thousands of unclosed boxes cost no more than one.
    first = min(i for i in (text.find("\\boxed"), text.find("\\fbox")) if i >= 0)
    best_start, best = -1, ""
    stack: list[int | None] = []
    for match in _BOX_OR_BRACE.finditer(text, first):
        token = match.group()
        if token == "}":
            start = stack.pop() if stack else None
            if start is not None and start > best_start:
                content = _boxed_answer(text[start : match.start()])
                if content:
                    best_start, best = start, content
        elif token == "{":
            stack.append(None)
        elif len(token) > 2:
            stack.append(match.end())
    if not best:
        bare = _BOX_WITHOUT_BRACES.findall(text)
        best = bare[-1].rstrip(".,") if bare else ""
    return best


def _boxed_answer(content: str) -> str:
    r"""A box's content; of a sentence in it, `\text{The answer is } 5`, what comes after it."""
    content = _clean(content)
    if "nswer" in content or "NSWER" in content:
        for sentence in (_BOXED_TEXT.fullmatch(content), _BOXED_SENTENCE.fullmatch(content)):
            answer = _clean("".join(sentence.groups(""))) if sentence else ""
            if answer:
                return answer
    return content


def _first_line(text: str) -> str:
    text = text.lstrip()
    end = text.find("\n")
    return text if end < 0 else text[:end]


def _sentence(text: str) -> str:
    for opening, closing in (("$$", "$$"), ("\\[", "\\]")):  # a displayed formula may run over several lines
        if text.startswith(opening):
            end = text.find(closing, 2)
            if end > 0:
                return text[2:end]
    line = _first_line(text)
    stop = _SENTENCE_END.search(line)
    return line if stop is None else line[: stop.start()]


def _clean(answer: str) -> str:
    answer = answer.strip().strip("*").strip()
    if answer.endswith(".") and not answer.endswith(".."):
        answer = answer[:-1].rstrip().rstrip("*")
    return _unwrap(answer)


def _unwrap(answer: str) -> str:
    for opening, closing in _DELIMITERS:
        if len(answer) > len(opening) + len(closing) and answer.startswith(opening) and answer.endswith(closing):
            inner = answer[len(opening) : -len(closing)]
            # `$1$ and $2$` is two formulas, `$5\$` ends in a dollar sign: leave both.
            if opening not in inner and closing not in inner and not inner.endswith("\\"):
                return inner.strip()
    return answer
