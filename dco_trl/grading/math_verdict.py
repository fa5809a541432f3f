r"""What `math` means: which pairs strings settle, and what math-verify is given for the others.

For a reference r and an extracted answer a, both as `extract` returns them, the verdict is that of `rules.settle`
where it has one, else

    verify(math_verify_parse(r), math_verify_parse(a))

after `notation.rewrite`. An answer that stands alone is read as `\boxed{a}`, because math-verify reads LaTeX only
within delimiters and would take 3 from `\left(3, \frac{\pi}{2}\right)`. An answer that has delimiters of its own, or
that is prose ("12 inches"), is first tried unchanged.
"""

import re
from functools import lru_cache
from importlib.metadata import version
from itertools import starmap
from typing import Any

from .normalize import signed
from .notation import as_interval, as_list, mixed_number, rewrite
from .rules import settle
from .verdict import Verdict, builtin_source, shorten

# Longer answers are not sent to math-verify: its regular expressions need quadratic time.
MAX_ANSWER_CHARS = 10_000
# Numbers below `_SMALL` differ if they are more than `_RELATIVE` apart, relative to their size; larger ones, `_GROSS`.
_SMALL, _RELATIVE, _GROSS = 1e-3, 1e-5, 0.02

_DELIMITED = re.compile(r"(?<!\\)\$.+?(?<!\\)\$|\\\(.+?\\\)|\\\[.+?\\\]|\\boxed", re.DOTALL)
_FUNCTION_NAMES = (
    "sin|cos|tan|cot|sec|csc|sinh|cosh|tanh|arcsin|arccos|arctan|log|exp|sqrt|max|min|lim|mod|gcd|lcm|det"
)
_WORD = re.compile(
    rf"(?:^|\s)(?!(?:{_FUNCTION_NAMES})\b)(?:[A-Za-z]{{3,}}|[Ii][tsn]|[Ww]e|[Hh]e|[Ss]o)(?=['’\s.,:;!?]|$)"
)
_INTEGER = re.compile(r"-?[0-9]{1,15}")


def identity() -> str:
    """Names everything a verdict of `math` depends on: this package, math-verify and the two libraries under it."""
    libraries = ("math-verify", "latex2sympy2_extended", "sympy")
    return ", ".join([builtin_source(), *(f"{name} {version(name)}" for name in libraries)])


def quick_verdict(reference: str, answer: str) -> Verdict | None:
    """The verdict on an extracted reference and answer where strings settle it, else None.

    Equal strings are equal (math-verify agrees whenever it can read the reference at all), and two plain integers are
    equal if their values are. `settle` adds the pairs of which math-verify reads only a part.
    """
    if not reference:
        return Verdict(None, shorten(answer), "unparsed")
    if not answer:
        return Verdict(0.0, "", "unparsed")
    reference, answer = signed(reference), signed(answer)
    if answer == reference:
        return Verdict(1.0, shorten(answer))
    if _INTEGER.fullmatch(answer) and _INTEGER.fullmatch(reference):
        return Verdict(float(int(answer) == int(reference)), answer)
    if len(answer) > MAX_ANSWER_CHARS or len(reference) > MAX_ANSWER_CHARS:
        return Verdict(None, shorten(answer), "unparsed")
    score = settle(reference, answer)
    return None if score is None else Verdict(score, answer)


def judge(reference: str, answer: str) -> Verdict:
    """Ask math-verify, in a process that may be killed: it can run for ever and fill the memory."""
    from math_verify import verify

    reference, answer = signed(reference), signed(answer)
    gold = math_verify_parse(reference)
    if not gold:
        return Verdict(None, shorten(answer), "unparsed")
    predicted = math_verify_parse(as_interval(answer, reference))
    correct = verify(gold, predicted, timeout_seconds=None) and not differ_in_size(gold, predicted)
    if correct or any(not isinstance(part, str) for part in predicted):
        is_read = predicted and isinstance(predicted[-1], str) and reads_as_text(answer)
        return Verdict(float(correct), shorten(predicted[-1] if is_read else answer))
    return Verdict(0.0, shorten(answer), "unparsed")


def differ_in_size(gold: list, predicted: list) -> bool:
    """Whether values differ that math-verify takes for equal: it compares six decimals, also of small numbers."""
    try:
        wanted, given = _numbers(gold[0]), _numbers(predicted[0])
        if type(gold[0]) is not type(predicted[0]) or getattr(gold[0], "is_FiniteSet", False):
            wanted, given = sorted(wanted), sorted(given)
        return any(starmap(_differ, zip(wanted, given, strict=True)))
    except Exception:  # no numbers: strings, expressions with letters
        return False


def _differ(a: Any, b: Any) -> bool:
    if not all(value._prec > 20 for value in (a, b) if value):
        return False  # a value that cancels to zero has no certain digit
    larger = max(abs(a), abs(b))
    return abs(a - b) > (_RELATIVE if larger < _SMALL else _GROSS) * larger


def _numbers(value: Any) -> list:
    """A number, those of a tuple, a set or an interval, or that of `x = 3`."""
    if getattr(value, "is_Relational", False):
        return _numbers(value.rhs) if value.lhs.is_Symbol else [value.lhs]
    if getattr(value, "is_Interval", False):
        return [number for end in (value.start, value.end) for number in _numbers(end)]
    if getattr(value, "is_FiniteSet", False) or type(value).__name__ == "Tuple":
        return [number for entry in value.args for number in _numbers(entry)]
    return [value.evalf(15)]


@lru_cache(maxsize=2048)
def math_verify_parse(answer: str, parsing_timeout: int | None = None) -> list:
    """What `math_verify.parse` reads in an extracted answer or reference: sympy expressions and a string, or nothing.

    `parsing_timeout` is math-verify's own limit, in seconds; None if the caller can kill the process.
    """
    from math_verify import parse

    answer = as_list(answer)
    mixed = mixed_number(answer)
    formula = mixed or rewrite(answer)
    if reads_as_text(answer) and not mixed:
        parsed = parse(formula, parsing_timeout=parsing_timeout)
        if parsed:
            return parsed
    return parse(f"\\boxed{{{formula}}}", parsing_timeout=parsing_timeout)


def reads_as_text(answer: str) -> bool:
    """Whether an answer is text for math-verify to search, rather than a formula that stands alone."""
    return bool(_DELIMITED.search(answer)) or ("\\" not in answer and bool(_WORD.search(answer)))
