"""Verdicts by rule, where math-verify reads one number and drops the rest: units, bases, a second number."""

import re
from decimal import Decimal
from fractions import Fraction

from .notation import plain_characters

_MAX_CHARS = 200
_DIGITS = r"(?:\d{1,3}(?:(?:,|\{,\})\d{3})+|\d{1,60})(?:\.\d{0,60})?|\.\d{1,60}"
_NUMBER = re.compile(rf"[+-]?(?:{_DIGITS})", re.ASCII)
# 1.6\times10^{-19}, 10^{-3}, 1e3
_SCIENTIFIC = re.compile(
    rf"(?P<sign>[+-]?)(?:(?P<digits>{_DIGITS})\s*(?:\\times|\\cdot|[*x])\s*)?10\s*(?:\^|\*\*)\s*"
    rf"(?:\{{\s*(?P<braced>[+-]?\d{{1,4}})\s*\}}|\((?P<round>[+-]?\d{{1,4}})\)|(?P<bare>-?\d{{1,4}}))"
    rf"|(?P<mantissa>[+-]?(?:{_DIGITS}))[eE](?P<exponent>[+-]?\d{{1,4}})",
    re.ASCII,
)
_DOTS = re.compile(r"\\[lcd]?dots[cbmo]?(?![A-Za-z])|(?<=[,;:+])\s?\.\.\.|\.\.\.(?=\s?[,;:+])")
_SEPARATOR = re.compile(r"[,;]")
# "not 42", "isn't the answer", "not a solution", "I don't think", "wrong"; not "he did not hit 175 - 65 = 110 balls".
_NEGATION = re.compile(
    r"\b(?:anything but|wrong|incorrect|instead of|rather than)\b"
    r"|(?:\b(?:not|never|cannot|neither|nor)\b|n['’]t\b)\W*"
    r"(?:(?:(?:be|is|it|equal|equals|to|exactly|simply|just|even|quite|around|about|necessarily|really|actually|either|"
    r"the|a|an|answer|value)\b\W*){0,4}(?:\d|\\|[B-HJ-Zb-hj-z]\b|$|(?:solution|possible|allowed)\b(?!\sto\b))"
    r"|.*\b(?:think|believe|sure|certain|convinced|know|correct|right|true|answer|valid|satisfy|solve|want)\b)",
    re.IGNORECASE,
)
_HEDGE = re.compile(r"\b(?:or|maybe|perhaps|possibly|either|might|one of)\b|\\(?:lor|vee)(?![A-Za-z])", re.IGNORECASE)
# "$1/2$, maybe $1/3$", "1/2 \\to 1/3".
_GUESSES = re.compile(r"\$.*\b(?:maybe|perhaps|possibly)\b.*\$|^(?!.*\\lim).*(?:\\(?:to|rightarrow)(?![A-Za-z])|->|→)")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_WORD_OF_TEXT = re.compile(r"[A-Za-z]{4,}")
_BASE = re.compile(r"([0-9A-Za-z]{1,60})_(?:\{(\d{1,2})\}|(\d{1,2}))", re.ASCII)
_FRACTION = re.compile(r"([+-]?)(?:\\[dt]?frac\{(\d{1,20})\}\{(\d{1,20})\}|(\d{1,20})/(\d{1,20}))", re.ASCII)
_SPACE = re.compile(r"\\[,;: ]|~")
_TEXT = re.compile(r"\\(?:text|textrm|mathrm|mbox)\{([^{}]*)\}")
_AMOUNT = (
    rf"(?:{_DIGITS})\s?\\(?:times|cdot)\s?10\^(?:\{{-?\d{{1,4}}\}}|\d)|\\[dt]?frac\{{\d+\}}\{{\d+\}}|\d+/\d+|{_DIGITS}"
)
_ANY_AMOUNT = re.compile(rf"(?<![\w.])(?:{_AMOUNT})", re.ASCII)
_QUANTITY = re.compile(
    rf"(\\?\$)?\s*([+-]?(?:{_AMOUNT}))(\s*)(?:(square|sq|cubic) )?([A-Za-z]*)\s*(?:\^\s*\{{?([23])\}}?)?\s*\.?",
    re.ASCII,
)
_IDLE = re.compile(r"\\(?:left|right|[,;:! {}])|\s")
_INTEGER = re.compile(r"-?\d{1,15}", re.ASCII)
_REPEATED_DIGITS = re.compile(r"\.\d+(?:\.\.\.|\\l?dots)")
_MOST_TERMS = 1_000
_ONE = rf"[+-]?(?:{_DIGITS})"
_WORDS = r"(?: [A-Za-z]+){0,3}?"
# "4 apples and 5 oranges", "Room 3 of 5", "3 out of 5": not one number.
_TWO_NUMBERS = re.compile(
    rf"(?:[A-Za-z]+[ :]+){{0,3}}?({_DIGITS}){_WORDS},? (?:and|or|out of|of|to|versus|vs\.?) (?:the |a total of )?"
    rf"({_DIGITS}){_WORDS}\.?",
    re.ASCII,
)
# "41 | 42", "41 -> 42", "41? 42?": numbers in a row.
_ROW = re.compile(
    rf"{_ONE}(?:(?:\s|\||-{{1,2}}>|→|\\(?:to|rightarrow|mid|quad|qquad|newline|\\)|[?;=]){{1,6}}{_ONE})+\s?\??",
    re.ASCII,
)
# "at most 42", "less than 42", "< 42": a bound.
_BOUND = re.compile(
    r"(?:[A-Za-z]+ ){0,5}?(?:(?:less|fewer|more|greater|larger|smaller|higher|lower) than|at (?:most|least)) "
    rf"\\?\$?{_ONE}\W*"
    rf"|(?:[<>]=?|\\(?:l|g)(?:t|e|eq|eqslant))\s?{_ONE}",
    re.ASCII,
)
# After one of these the last number is what the sentence finds.
_CONCLUDES = re.compile(
    r"\b(?:is|are|was|were|equals?|makes?|gives?|gets?|totals?|altogether|so|thus|hence|therefore|leaves?|leaving|"
    r"left|answer|result|or rather|actually)\b",
    re.IGNORECASE,
)


_UNITS_BY_DIMENSION = {
    "length": "1/1000 mm millimeter millimetre; 1/100 cm centimeter centimetre; 1/10 dm decimeter decimetre; "
    "1 m meter metre; 1000 km kilometer kilometre; 254/10000 in inch inche; 3048/10000 ft foot feet; "
    "9144/10000 yd yard; 1609344/1000 mi mile",
    "mass": "1/1000 mg milligram; 1 g gram; 1000 kg kilogram; 45359237/100000 lb pound; 45359237/1600000 oz ounce",
    "time": "1/1000 ms millisecond; 1 s sec second; 60 min minute; 3600 h hr hour; 86400 day; 604800 week",
    "volume": "1/1000 ml mL milliliter millilitre; 1 l L liter litre",
    "money": "1 cent penny pennie; 100 dollar",
    "months": "1 month; 12 year yr",
}
_UNITS = {
    name: (dimension, Fraction(factor))
    for dimension, rows in _UNITS_BY_DIMENSION.items()
    for factor, *names in map(str.split, rows.split("; "))
    for name in names
}


def settle(reference: str, answer: str) -> float | None:
    """The verdict on a pair that a rule settles, else None. Only strings are compared: nothing is evaluated.

    Decimal numbers, with or without a power of ten, are compared exactly; numerals with a base, by their values;
    quantities whose units are known and differ, by their values in a common unit; sequences with dots, by their terms.
    An answer that names two different numbers, or says what the answer is not, is not a number.
    """
    if len(reference) > _MAX_CHARS or len(answer) > _MAX_CHARS:
        return None
    reference, answer = plain_characters(reference).strip(), plain_characters(answer).strip()
    wanted, given = number(reference), number(answer)
    if wanted is not None and given is not None:
        return float(wanted == given)
    if wanted is not None and (_names_two_numbers(answer) or _BOUND.fullmatch(answer)):
        return 0.0
    is_formula = not _WORD_OF_TEXT.search(_COMMAND.sub("", reference))
    if is_formula and _NEGATION.search(_conclusion(answer)) and not _NEGATION.search(reference):
        return 0.0
    if is_formula and _GUESSES.search(answer) and not _GUESSES.search(reference):
        return 0.0
    if _DOTS.search(reference) or _DOTS.search(answer):
        return _compare_sequences(reference, answer)
    if "_" in reference and "_" in answer:
        return _compare_bases(reference, answer)
    return _compare_quantities(reference, answer)


def number(text: str) -> Decimal | None:
    """The value of a plain decimal number, which may have thousands separators or a power of ten; else None."""
    if _NUMBER.fullmatch(text):
        return Decimal(text.replace("{,}", "").replace(",", ""))
    if "10" in text or "e" in text or "E" in text:
        found = _SCIENTIFIC.fullmatch(text)
        if found is not None:
            digits = found["mantissa"] or found["sign"] + (found["digits"] or "1")
            exponent = found["exponent"] or found["braced"] or found["round"] or found["bare"]
            return Decimal(digits.replace("{,}", "").replace(",", "")).scaleb(int(exponent))
    return None


def _names_two_numbers(answer: str) -> bool:
    if _HEDGE.search(_conclusion(answer)) or _ROW.fullmatch(answer):
        return len({_value(amount) for amount in _ANY_AMOUNT.findall(answer)}) > 1
    match = _TWO_NUMBERS.fullmatch(answer)
    return match is not None and number(match[1]) != number(match[2]) and not _CONCLUDES.search(answer)


def _conclusion(answer: str) -> str:
    """The last line with a number, if there is one: "not" and "or" above it belong to the reasoning."""
    lines = [line for line in answer.split("\n") if any(map(str.isdigit, line))]
    return lines[-1] if lines else answer


def _compare_sequences(reference: str, answer: str) -> float | None:
    r"""`1, 2, \ldots, n` is `1, 2, 3, ..., n`. Where dots stand for anything else, the strings decide."""
    if _REPEATED_DIGITS.search(reference) or _REPEATED_DIGITS.search(answer):
        return None
    return float(_sequence(reference) == _sequence(answer))


def _sequence(text: str) -> tuple[str, ...]:
    """The terms of a list. Integers with a constant step are written out, if they are not too many."""
    text = _IDLE.sub("", _DOTS.sub("...", text))
    terms = [term for term in _SEPARATOR.split(text.strip("{}$")) if term]
    if terms.count("...") != 1:
        return tuple(terms)
    at = terms.index("...")
    first, last = terms[:at], terms[at + 1 :]
    numbers = [int(term) for term in first if _INTEGER.fullmatch(term)]
    steps = {b - a for a, b in zip(numbers, numbers[1:], strict=False)}
    if len(numbers) != len(first) or len(steps) != 1 or steps == {0}:
        return tuple(terms)
    step = steps.pop()
    ends = [int(term) for term in last if _INTEGER.fullmatch(term)]
    if last and len(ends) == len(last) and abs(ends[0] - numbers[0]) <= _MOST_TERMS * abs(step):
        return tuple(map(str, range(numbers[0], ends[0], step))) + tuple(map(str, ends))
    return (*map(str, numbers[:2]), "...", *last)


def _compare_bases(reference: str, answer: str) -> float | None:
    values = []
    for text in (reference, answer):
        match = _BASE.fullmatch(text)
        base = int(match[2] or match[3]) if match else 0
        if match is None or not 2 <= base <= 36:
            return None
        try:
            values.append(int(match[1], base))
        except ValueError:  # x_2, or a digit that the base does not have
            return None
    return float(values[0] == values[1])


def _compare_quantities(reference: str, answer: str) -> float | None:
    wanted, given = _quantity(reference), _quantity(answer)
    if wanted is None or given is None or wanted[1:] == given[1:]:
        return None
    if wanted[1] != given[1]:
        return 0.0
    return float(wanted[0] * wanted[2] == given[0] * given[2])


def _quantity(text: str) -> tuple[Fraction, tuple[str, int], Fraction] | None:
    """Number, dimension (a name and a power), and the factor to the dimension's own unit."""
    match = _QUANTITY.fullmatch(_TEXT.sub(r" \1 ", _SPACE.sub(" ", text)).strip())
    if match is None:
        return None
    dollar, value, space, power_word, name, exponent = match.groups()
    if len(name) == 1 and not space:  # 5m is five times m
        return None
    if dollar and not name:
        name = "dollar"
    unit = _UNITS.get(name) or _UNITS.get(name.lower()) or _UNITS.get(name.lower().removesuffix("s"))
    amount = _value(value)
    if unit is None or amount is None or (power_word and exponent):
        return None
    power = 3 if power_word == "cubic" else 2 if power_word else int(exponent or 1)
    return amount, (unit[0], power), unit[1] ** power


def _value(text: str) -> Fraction | None:
    match = _FRACTION.fullmatch(text)
    if match is None:
        return Fraction(number(text) or 0)
    denominator = int(match[3] or match[5])
    return Fraction(int(match[1] + (match[2] or match[4])), denominator) if denominator else None
