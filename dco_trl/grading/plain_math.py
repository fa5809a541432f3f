r"""Mathematics as models without LaTeX write it: `pi/2`, `x**2 + 1`, `sqrt(3)/2`, `-2*pi`, `e^(2x)`."""

import re

_FUNCTIONS = "sin|cos|tan|cot|sec|csc|sinh|cosh|tanh|arcsin|arccos|arctan|log|ln|exp|sqrt"
_CONSTANTS = "pi|theta|alpha|beta|gamma|lambda|phi|omega|infinity|inf|oo"
# Numbers, single letters and known names, and what joins them: any other word makes a text prose, which is left alone.
_PLAIN = re.compile(
    rf"(?:(?<![A-Za-z\\])(?:{_FUNCTIONS}|{_CONSTANTS})(?![A-Za-z])|(?<![A-Za-z\\])(?:[A-Za-z]|and|or)(?![A-Za-z])|[0-9.]"
    r"|[-+*/^()\[\]{},;:=<>!|_\s])+"
)
# What of it needs putting into LaTeX.
_SIGNS = re.compile(rf"\*|\^\(|(?<![A-Za-z])(?:{_FUNCTIONS}|{_CONSTANTS})(?![A-Za-z])|[<>!]=")
_NAME = re.compile(rf"(?<![A-Za-z\\])({_FUNCTIONS}|{_CONSTANTS})(?![A-Za-z])")
_OPENS_GROUP = re.compile(r"(\\sqrt|\\exp|\^)\s?\(")
_BARE_ROOT = re.compile(r"\\sqrt\s?([0-9]+|[A-Za-z](?![A-Za-z]))")
_BARE_POWER = re.compile(r"\^\s?(-?\d+(?:\.\d+)?)")
_MAX_CHARS = 300


def as_latex(answer: str) -> str:
    r"""An answer in plain-text mathematics as LaTeX; any other as it is.

    Powers `**` and `^(...)`, roots, products `*`, the names of functions, Greek letters and infinity. Nothing is
    guessed: a text with a word that is no such name, or with a backslash, is left alone.

    Args:
        answer: An extracted answer.

    Returns:
        LaTeX that math-verify reads.

    Examples:
        >>> as_latex("-2*pi"), as_latex("sqrt(x**2 + 1)/2"), as_latex("2 * apples")
        ('-2 \\cdot \\pi', '\\sqrt{x^{2} + 1}/2', '2 * apples')
    """
    if len(answer) > _MAX_CHARS or "\\" in answer or not _SIGNS.search(answer) or not _PLAIN.fullmatch(answer):
        return answer
    text = answer.replace("**", "^")
    text = _NAME.sub(lambda m: r"\infty " if m[1] in ("infinity", "inf", "oo") else f"\\{m[1]} ", text)
    text = _groups(re.sub(r"(\\[a-z]+) (?=[^A-Za-z0-9]|$)", r"\1", text))
    text = _BARE_ROOT.sub(r"\\sqrt{\1}", text)
    text = _BARE_POWER.sub(r"^{\1}", text)
    for sign, latex in (("<=", r"\le "), (">=", r"\ge "), ("!=", r"\ne ")):
        text = text.replace(sign, latex)
    text = re.sub(r"(?<=\d)\s?\*\s?(?=i(?![A-Za-z]))", "", text)  # math-verify knows 2i only
    return re.sub(r"\s?\*\s?", r" \\cdot ", text)


def _groups(text: str) -> str:
    """`sqrt(...)`, `exp(...)` and `^(...)` with braces, where the parenthesis closes."""
    closing: list[int | None] = []
    pieces: list[str] = []
    at = 0
    opening = {match.end() - 1: match for match in _OPENS_GROUP.finditer(text)}
    for i, character in enumerate(text):
        if i in opening:
            match = opening[i]
            pieces += [text[at : match.start()], r"e^{" if match[1] == r"\exp" else match[1] + "{"]
            at = i + 1
            closing.append(1)
        elif character == "(":
            closing.append(None)
        elif character == ")" and closing and closing.pop():
            pieces += [text[at:i], "}"]
            at = i + 1
    return text if any(closing) else "".join(pieces) + text[at:]
