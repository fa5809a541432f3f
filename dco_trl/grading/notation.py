r"""Put notation that math-verify misreads as it reads it.

This is Unicode and LaTeX such as `½`, `90°`, `\dbinom52`, `3 1/2`, `\sin 30^\circ`, and plain text such as `pi/2`,
`x**2 + 1`, `sqrt(3)/2`, `-2*pi`, `e^(2x)`.
"""

import re
import unicodedata

_SYMBOLS = dict(
    pair.split("=")
    for pair in r"−=-|﹣=-|⁄=/|×=\times |·=\cdot |⋅=\cdot |÷=\div |≤=\le |≥=\ge |≠=\ne |∞=\infty |π=\pi |°=^\circ |"
    r"∪=\cup |∩=\cap |∈=\in |∅=\emptyset |…=...".split("|")
)
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_SUPERSCRIPT = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+")
_SUBSCRIPT = re.compile("[₀₁₂₃₄₅₆₇₈₉]+")
_ROOT = re.compile(r"√(?:(\d+|\w)|\(([^()√]*)\)|\{([^{}√]*)\})")

_DEGREES = r"(\d+(?:\.\d+)?)\s*\^\s*(?:\\circ|\{\s*\\circ\s*\})"
_SINE_OF_DEGREES = re.compile(rf"(\\(?:sin|cos|tan|cot|sec|csc)(?:\^\{{?\d\}}?)?\s?(?:\\left)?[({{]?\s?){_DEGREES}")
_BINOMIAL = re.compile(r"\\binom\s?(\d)\s?(\d)")
_MIXED_NUMBER = re.compile(
    r"(-?\d{1,15})(?: (\d{1,15})/(\d{1,15})|\\frac\{(\d{1,15})\}\{(\d{1,15})\})((?: [A-Za-z]+){0,3})"
)
_IMAGINARY = re.compile(r"(?<=\d)\s+(?=i(?![A-Za-z]))")  # math-verify reads the i of "2 i" as a letter
_THIN_SPACE = re.compile(r"(?<=\d)\\,(?=\d{3}(?!\d))")
_REPEATING = re.compile(r"(?<![\w.}])(\d{0,15})\.(\d{0,15})\\overline\{(\d{1,15})\}")
_DOTTED = re.compile(r"(?<![\w.}])(\d{0,15})\.(\d{0,15})\\dot\{?(\d)\}?")
# 0.1666...: a last digit written three times, or a longer period written twice, repeats for ever.
_REPEATED = re.compile(
    r"(?<![\w.}])(\d{0,15})\.(\d{0,15}?)(?:(?P<one>\d)(?P=one){2,15}|(?P<more>\d{2,15})(?P=more){1,7})(?:\.\.\.|\\l?dots)"
)
# "3, 5 and 7"
_ENTRY = r"-?(?:\d+(?:\.\d+)?(?:/\d+)?|\\frac\{\d+\}\{\d+\})"
_LIST = re.compile(rf"{_ENTRY}(?:, ?{_ENTRY})*,? and {_ENTRY}")
_AND = re.compile(r",? and ")
_OR = re.compile(r"\s*(?:\\text\{\s*or\s*\}|\bor\b|\\lor\b|\\vee\b)\s*")
_RELATION = re.compile(r"\\(?:leqslant|leq|le|geqslant|geq|ge|lt|gt)(?![A-Za-z])|<=|>=|<|>")
_INTERVAL = re.compile(r"(?:\\left)?[\[(].+,.+(?:\\right)?[\])]", re.DOTALL)

_FUNCTIONS = "sin|cos|tan|cot|sec|csc|sinh|cosh|tanh|arcsin|arccos|arctan|log|ln|exp|sqrt"
_CONSTANTS = "pi|theta|alpha|beta|gamma|lambda|phi|omega|infinity|inf|oo"
_NAME = rf"(?<![A-Za-z\\])(?:{_FUNCTIONS}|{_CONSTANTS})(?![A-Za-z])"
# Numbers, single letters, known names, and what joins them. A text with any other word is prose, and left alone.
_PLAIN = re.compile(
    rf"(?:{_NAME}|(?<![A-Za-z\\])(?:[A-Za-z]|and|or)(?![A-Za-z])|[0-9.]"
    r"|[-+*/^()\[\]{},;:=<>!|_\s])+"
)
# What of it has to be put into LaTeX.
_SIGNS = re.compile(rf"\*|\^\(|{_NAME}|[<>!]=")
_OPENS_GROUP = re.compile(r"(\\sqrt|\\exp|\^)\s?\(")
_BARE_ROOT = re.compile(r"\\sqrt\s?([0-9]+|[A-Za-z](?![A-Za-z]))")
_BARE_POWER = re.compile(r"\^\s?(-?\d+(?:\.\d+)?)")
_MAX_CHARS = 300


def plain_characters(text: str) -> str:
    """A text with Unicode's digits in ASCII and its signs in LaTeX: `５` is 5, `x²` is `x^{2}`."""
    if text.isascii():
        return text
    text = _SUPERSCRIPT.sub(lambda m: f"^{{{m[0].translate(_SUPERSCRIPTS)}}}", text)
    text = _SUBSCRIPT.sub(lambda m: f"_{{{m[0].translate(_SUBSCRIPTS)}}}", text)
    text = "".join(map(_plain_character, text))
    for _ in range(2):  # the root of a root
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
    """`3 1/2`, perhaps with a unit, as a formula; None for other texts."""
    match = _MIXED_NUMBER.fullmatch(plain_characters(text))
    if match is None:
        return None
    whole, numerator, denominator, unit = match[1], match[2] or match[4], match[3] or match[5], match[6]
    if int(numerator) >= int(denominator):
        return None
    return f"{whole}\\frac{{{numerator}}}{{{denominator}}}" + (f"\\text{{{unit}}}" if unit else "")


def as_list(answer: str) -> str:
    """`3, 5 and 7` with commas; any other text unchanged."""
    is_list = "and" in answer and len(answer) <= _MAX_CHARS and _LIST.fullmatch(answer)
    return _AND.sub(", ", answer) if is_list else answer


def rewrite(answer: str) -> str:
    r"""An answer in a notation that math-verify reads as intended."""
    answer = _IMAGINARY.sub("", _THIN_SPACE.sub("", as_latex(plain_characters(answer))))
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
    """An inequality in one letter as an interval, if the reference is one; else the answer unchanged."""
    inequality = plain_characters(answer)
    if len(answer) > _MAX_CHARS or not _INTERVAL.fullmatch(reference) or not _RELATION.search(inequality):
        return answer
    intervals = [_interval(part) for part in _OR.split(inequality)]
    return "\\cup ".join(filter(None, intervals)) if all(intervals) else answer


def _interval(inequality: str) -> str | None:
    """The interval of `1 < x <= 3`, or of `x > 2`, whose missing end is infinity; None for others."""
    parts = [part.strip() for part in _RELATION.split(inequality)]
    signs = [
        ("<" if sign.startswith(("<", "\\l")) else ">", "e" in sign or "=" in sign)
        for sign in _RELATION.findall(inequality)
    ]
    if len(parts) == 2:
        is_first, direction = len(parts[0]) == 1 and parts[0].isalpha(), signs[0][0]
        at = 0 if is_first else 2
        parts.insert(at, "-\\infty" if (direction == "<") == is_first else "\\infty")
        signs.insert(at, (direction, False))
    if len(parts) != 3 or not all(parts) or "," in inequality or not (len(parts[1]) == 1 and parts[1].isalpha()):
        return None
    if signs[0][0] != signs[1][0]:
        return None
    if signs[0][0] == ">":
        parts, signs = parts[::-1], signs[::-1]
    return ("[" if signs[0][1] else "(") + f"{parts[0]},{parts[2]}" + ("]" if signs[1][1] else ")")


def as_latex(answer: str) -> str:
    r"""An answer in plain-text mathematics as LaTeX; any other unchanged.

    It reads powers `**` and `^(...)`, roots, products `*`, and the names of functions, Greek letters and infinity.
    Nothing is guessed: a text with any other word, or with a backslash, is left alone.

    Examples:
        >>> as_latex("-2*pi"), as_latex("sqrt(x**2 + 1)/2"), as_latex("2 * apples")
        ('-2 \\cdot \\pi', '\\sqrt{x^{2} + 1}/2', '2 * apples')
    """
    if len(answer) > _MAX_CHARS or "\\" in answer or not _SIGNS.search(answer) or not _PLAIN.fullmatch(answer):
        return answer
    text = answer.replace("**", "^")
    text = re.sub(_NAME, lambda m: r"\infty " if m[0] in ("infinity", "inf", "oo") else f"\\{m[0]} ", text)
    text = _groups(re.sub(r"(\\[a-z]+) (?=[^A-Za-z0-9]|$)", r"\1", text))
    text = _BARE_ROOT.sub(r"\\sqrt{\1}", text)
    text = _BARE_POWER.sub(r"^{\1}", text)
    for sign, latex in (("<=", r"\le "), (">=", r"\ge "), ("!=", r"\ne ")):
        text = text.replace(sign, latex)
    text = re.sub(r"(?<=\d)\s?\*\s?(?=i(?![A-Za-z]))", "", text)  # math-verify knows 2i only
    return re.sub(r"\s?\*\s?", r" \\cdot ", text)


def _groups(text: str) -> str:
    """`sqrt(...)`, `exp(...)` and `^(...)` with braces, if all their parentheses close."""
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
