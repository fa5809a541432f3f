r"""Notation that math-verify misreads, put as it reads it: `½`, `90°`, `\dbinom52`, `3 1/2`, `\sin 30^\circ`."""

import re
import unicodedata

from .plain_math import as_latex

_SYMBOLS = dict(
    pair.split("=")
    for pair in r"−=-|﹣=-|⁄=/|×=\times |·=\cdot |⋅=\cdot |÷=\div |≤=\le |≥=\ge |≠=\ne |∞=\infty |π=\pi |°=^\circ |"
    r"∪=\cup |∩=\cap |∈=\in |∅=\emptyset |…=...".split("|")
)
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_SUPERSCRIPT = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+")
_SUBSCRIPT = re.compile("[₀₁₂₃₄₅₆₇₈₉]+")
_ROOT = re.compile(r"√(?:(\w)|\(([^()√]*)\)|\{([^{}√]*)\})")
_ROOT_OF_DIGITS = re.compile(r"√(\d+)")

_DEGREES = r"(\d+(?:\.\d+)?)\s*\^\s*(?:\\circ|\{\s*\\circ\s*\})"
_SINE_OF_DEGREES = re.compile(rf"(\\(?:sin|cos|tan|cot|sec|csc)(?:\^\{{?\d\}}?)?\s?(?:\\left)?[({{]?\s?){_DEGREES}")
_BINOMIAL = re.compile(r"\\binom\s?(\d)\s?(\d)")
_MIXED_NUMBER = re.compile(
    r"(-?\d{1,15})(?: (\d{1,15})/(\d{1,15})|\\frac\{(\d{1,15})\}\{(\d{1,15})\})((?: [A-Za-z]+){0,3})"
)
_REPEATING = re.compile(r"(?<![\w.}])(\d{0,15})\.(\d{0,15})\\overline\{(\d{1,15})\}")
_DOTTED = re.compile(r"(?<![\w.}])(\d{0,15})\.(\d{0,15})\\dot\{?(\d)\}?")
# 0.1666...: the last digits that stand there three times, or a longer period that stands there twice, go on for ever.
_REPEATED = re.compile(
    r"(?<![\w.}])(\d{0,15})\.(\d{0,15}?)(?:(?P<one>\d)(?P=one){2,15}|(?P<more>\d{2,15})(?P=more){1,7})(?:\.\.\.|\\l?dots)"
)
# "3, 5 and 7"
_ENTRY = r"-?(?:\d+(?:\.\d+)?(?:/\d+)?|\\frac\{\d+\}\{\d+\})"
_LIST = re.compile(rf"{_ENTRY}(?:, {_ENTRY})*,? and {_ENTRY}")
_AND = re.compile(r",? and ")
_OR = re.compile(r"\s*(?:\\text\{\s*or\s*\}|\bor\b|\\lor\b|\\vee\b)\s*")
_RELATION = re.compile(r"\\(?:leqslant|leq|le|geqslant|geq|ge|lt|gt)(?![A-Za-z])|<=|>=|<|>")
_SIGN = {"\\lt": "<", "\\gt": ">", "<": "<", ">": ">"}
_INTERVAL = re.compile(r"(?:\\left)?[\[(].+,.+(?:\\right)?[\])]", re.DOTALL)
_MAX_CHARS = 300


def plain_characters(text: str) -> str:
    """A text with Unicode's digits in ASCII and its signs in LaTeX: `５` is 5, `x²` is `x^{2}`."""
    if text.isascii():
        return text
    text = _SUPERSCRIPT.sub(lambda m: f"^{{{m[0].translate(_SUPERSCRIPTS)}}}", text)
    text = _SUBSCRIPT.sub(lambda m: f"_{{{m[0].translate(_SUBSCRIPTS)}}}", text)
    text = "".join(map(_plain_character, text))
    if "√" in text:
        text = _ROOT_OF_DIGITS.sub(r"\\sqrt{\1}", text)
        text = _ROOT.sub(lambda m: f"\\sqrt{{{m[1] or m[2] or m[3]}}}", text)
    return text


def _plain_character(character: str) -> str:
    if character in _SYMBOLS:
        return _SYMBOLS[character]
    if "！" <= character <= "～":  # full-width ASCII
        return chr(ord(character) - 0xFEE0)
    if character.isdecimal():
        return str(unicodedata.decimal(character))
    if character.isspace() and not character.isascii():
        return " "
    category = unicodedata.category(character)
    if category == "No":
        numerator, bar, denominator = unicodedata.normalize("NFKC", character).partition("⁄")
        if bar and denominator:
            return f"\\frac{{{numerator}}}{{{denominator}}}"
    return "" if category == "Cf" else character  # invisible


def mixed_number(text: str) -> str | None:
    """`3 1/2`, perhaps with a unit, as a formula."""
    match = _MIXED_NUMBER.fullmatch(plain_characters(text))
    if match is None:
        return None
    whole, numerator, denominator, unit = match[1], match[2] or match[4], match[3] or match[5], match[6]
    if int(numerator) >= int(denominator):
        return None
    return f"{whole}\\frac{{{numerator}}}{{{denominator}}}" + (f"\\text{{{unit}}}" if unit else "")


def as_list(answer: str) -> str:
    """`3, 5 and 7` with commas; another text as it is."""
    is_list = "and" in answer and len(answer) <= _MAX_CHARS and _LIST.fullmatch(answer)
    return _AND.sub(", ", answer) if is_list else answer


def rewrite(answer: str) -> str:
    r"""An answer in a notation that math-verify reads as it is meant."""
    answer = as_latex(plain_characters(answer))
    if "..." in answer or "dot" in answer:
        answer = _DOTTED.sub(_repeating, _REPEATED.sub(_repeating, answer))
    if "binom" in answer:
        answer = _BINOMIAL.sub(
            r"\\binom{\1}{\2}", answer.replace("\\dbinom", "\\binom").replace("\\tbinom", "\\binom")
        )
    if "\\circ" in answer:
        answer = _SINE_OF_DEGREES.sub(r"\1(\\frac{\2\\pi}{180})", answer)
    if "\\overline" in answer:
        answer = _REPEATING.sub(_repeating, answer)
    return answer.replace("\\varnothing", "\\emptyset")


def _repeating(match: re.Match) -> str:
    whole, fixed, *periods = match.groups()
    period = next(filter(None, periods))
    numerator = int(whole + fixed + period) - int(whole + fixed or "0")
    return f"\\frac{{{numerator}}}{{{10 ** len(fixed) * (10 ** len(period) - 1)}}}"


def as_interval(answer: str, reference: str) -> str:
    """An inequality in one letter as an interval, where the reference is an interval; else the answer as it is."""
    inequality = plain_characters(answer)
    if len(answer) > _MAX_CHARS or not _INTERVAL.fullmatch(reference) or not _RELATION.search(inequality):
        return answer
    intervals = [_interval(part) for part in _OR.split(inequality)]
    return "\\cup ".join(filter(None, intervals)) if all(intervals) else answer


def _interval(inequality: str) -> str | None:
    parts = [part.strip() for part in _RELATION.split(inequality)]
    signs = [_SIGN.get(sign, "<=" if "l" in sign or "<" in sign else ">=") for sign in _RELATION.findall(inequality)]
    letter = parts[1] if len(parts) == 3 else parts[0]
    if len(parts) == 2 and not _is_letter(letter):  # 3 > x
        letter = parts[1]
        parts, signs = parts[::-1], [{"<": ">", ">": "<"}[signs[0][0]] + signs[0][1:]]
    if not _is_letter(letter) or len(parts) not in (2, 3) or "," in inequality or not all(parts):
        return None
    if len(parts) == 2:
        closed = "=" in signs[0]
        if signs[0][0] == "<":
            return f"(-\\infty,{parts[1]}" + ("]" if closed else ")")
        return ("[" if closed else "(") + f"{parts[1]},\\infty)"
    if signs[0][0] != signs[1][0]:
        return None
    if signs[0][0] == ">":
        parts, signs = parts[::-1], signs[::-1]
    return ("[" if "=" in signs[0] else "(") + f"{parts[0]},{parts[2]}" + ("]" if "=" in signs[1] else ")")


def _is_letter(text: str) -> bool:
    return len(text) == 1 and text.isalpha()
