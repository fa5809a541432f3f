"""One string for answers that differ only in what means nothing."""

import re

from .notation import plain_characters

_DELIMITERS = (("$$", "$$"), ("\\[", "\\]"), ("\\(", "\\)"), ("$", "$"))
_ALIASES = (
    *(("\\dfrac", "\\frac"), ("\\tfrac", "\\frac"), ("\\dbinom", "\\binom"), ("\\tbinom", "\\binom")),
    *(("\\left", ""), ("\\right", ""), ("\\$", ""), ("^{\\circ}", ""), ("^\\circ", ""), ("\\ ", " "), ("~", " ")),
)
# A spacing command means nothing, and white space means something only between two digits or two letters.
_SPACING = re.compile(r"\s?\\[!,;:]\s?")
_IDLE_SPACE = re.compile(r" (?!(?<=\d )\d|(?<=[^\W\d_] )[^\W\d_])")
_SHORT_FRACTION = re.compile(r"\\(frac|binom)(\d) ?(\d)")
_SHORT_ROOT = re.compile(r"\\sqrt(\d)")
_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mbox)\{([^{}]*)\}")
_THOUSANDS = re.compile(r"-?\d{1,3}(?:,(?:\\!)?\d{3})+(?:\.\d+)?")
_NEGATIVE = re.compile(r"(?:negative|minus)\s+(?=[\d.$\\])", re.IGNORECASE)
_DECIMAL = re.compile(r"(-?)(\d*)\.(\d*)")


def normalize_answer(answer: str) -> str:
    r"""The string that `exact` compares: an answer without what means nothing.

    This removes white space (but not between two digits or two letters), math delimiters, `\left` and `\right`,
    spacing commands, `\text{}` wrappers, degree and dollar signs, a full stop at the end and thousands separators.
    `\dfrac` and `\frac12` become `\frac{1}{2}`, `.50` becomes `0.5`, `minus 3` becomes `-3`, and Unicode's digits and
    signs become ASCII and LaTeX. Nothing is computed: `1/2` and `0.5` stay different.

    Args:
        answer: An extracted answer.

    Examples:
        >>> normalize_answer(r"$\left( \dfrac12, 1{,}000 \right)$")
        '(\\frac{1}{2},1,000)'
        >>> normalize_answer("1,000.50")
        '1000.5'
    """
    answer = plain_characters(signed(clean(answer)))
    for old, new in _ALIASES:
        if old in answer:
            answer = answer.replace(old, new)
    answer = _TEXT.sub(r"\1", answer).replace("{,}", ",")
    answer = " ".join(_SPACING.sub("", answer).split())
    answer = _IDLE_SPACE.sub("", answer)
    answer = _SHORT_FRACTION.sub(r"\\\1{\2}{\3}", answer)
    answer = _SHORT_ROOT.sub(r"\\sqrt{\1}", answer)
    if _THOUSANDS.fullmatch(answer):
        answer = answer.replace(",", "")
    decimal = _DECIMAL.fullmatch(answer)
    if decimal and (decimal[2] or decimal[3]):
        fraction = decimal[3].rstrip("0")
        answer = decimal[1] + (decimal[2] or "0") + ("." + fraction if fraction else "")
    return answer


def signed(answer: str) -> str:
    """An answer whose sign is a sign: "negative 3" is -3."""
    sign = _NEGATIVE.match(answer)
    return answer if sign is None else "-" + clean(answer[sign.end() :])


def clean(answer: str) -> str:
    """An answer without white space, emphasis, a full stop and math delimiters around it."""
    answer = answer.strip().strip("*`").strip()
    if answer.endswith(".") and not answer.endswith(".."):
        answer = answer[:-1].rstrip().rstrip("*`")
    for opening, closing in _DELIMITERS:
        if len(answer) > len(opening) + len(closing) and answer.startswith(opening) and answer.endswith(closing):
            inner = answer[len(opening) : -len(closing)]
            # `$1$ and $2$` is two formulas, `$5\$` ends in a dollar sign: leave both.
            if opening not in inner and closing not in inner and not inner.endswith("\\"):
                return inner.strip()
    return answer
