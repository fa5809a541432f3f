"""Fuzz the graders: any text against any text, plain numbers in any form, whatever a user's function may return.

    python tests/fuzz/fuzz_graders.py 10000      # examples of each property; an example is several cases

No text may hang a grader (each verdict has its limit), raise anything but `GraderError`, or be accepted where plain
numbers differ.
"""

import math
import unicodedata
from collections.abc import Callable
from decimal import Decimal

import numpy as np
from fuzz.cases import main, run_cases
from hypothesis import strategies as st

from dco_trl.grading import BulkGrader, GraderError, call_grader, extract_answer, normalize_answer

TIMEOUT = 2.0
CASES_PER_EXAMPLE = 20
STATUSES = {"graded", "unparsed", "timeout", "error"}

FRAGMENTS = (
    *("0", "7", "12", "-1", ".5", "1,000", "x", "y", "i", "e", "\\pi", "∞", "½", "３", "²", "₂", "°", "√", "−", "×"),
    *("^", "^{", "_", "_{2}", "{", "}", "(", ")", "[", "]", ",", ";", "=", "<", "\\le", "≥", "\\in", "\\cup", "!"),
    *("\\frac", "\\frac{1}{", "\\dbinom52", "\\sqrt", "\\sqrt{", "\\sin ", "\\log_", "\\sum_{n=1}^", "\\int_0^1"),
    *("30^\\circ", "101_2", "3 1/2", " m", " cm^2", "\\text{ cm}", "\\$", "\\%", "0.\\overline{3}", "\\pm"),
    "\\emptyset",
    *("\\boxed{", "\\text{", "The answer is ", "answer: ", "#### ", "<answer>", "</answer>", "$", "\\(", "\\]", "**"),
    *("4 apples and 5 oranges", "<think>", "</think>", "\\boxed{7}", ", not ", " or maybe ", "\\ldots", "...", "pi/2"),
    *("sqrt(", "**", "\\times10^{-19}", "#### Step 1\n", " out of ", " or ", " and ", " is ", "\n", " ", "\\,", "~"),
    *("\\begin{pmatrix}", "&", "\\\\", "\\end{pmatrix}", "9^{9^{9", "__import__('os').getpid()", "'", '"', "%s", "\\"),
    *("\x00", "\x01", "\x1b[2J", "\x7f", "\r", "\t", "\u200b", "\u202e", "\ufeff", "\ud800", "\udfff", "😀", "٣"),
    *("9", "10", "999999999", "1e999", "\\infty", "inf", "nan", "!!", "!!!!", "|", "\\ne", "\\sqrt[", "\\binom{99}{"),
    *("\\sum_{n=1}^{", "\\prod_{k=1}^{", "\\int_0^{", "\\lim_{x\\to", "\\log_{", "\\)", "\\[", "$$", "%", "#", "`"),
    *("__import__('os')", "os.system", "eval(", "exec(", "lambda:0", "Symbol('x')", "import os", "().__class__"),
    *("12 inches", "answer is ", "I hope", "one hundred", "//", "@", ".", ":"),
)
TEXTS = st.one_of(
    st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join),
    st.text(max_size=40),
    st.text("0123456789.,-+/ _{}()\\^x", max_size=15),
)
NUMBERS = st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-(10**9), max_value=10**9)


def _full_width(text: str) -> str:
    return "".join(
        unicodedata.lookup(f"FULLWIDTH DIGIT {unicodedata.name(c)[6:]}") if c.isdigit() else c for c in text
    )


DRESSES: tuple[Callable[[Decimal], str], ...] = (
    str,
    lambda x: f"{x:,}",
    lambda x: f"{x:,}".replace(",", "{,}"),
    lambda x: f"{x:.6f}",
    lambda x: f"\\boxed{{{x}}}",
    lambda x: f"\\boxed{{\\text{{The answer is }} {x}.}}",
    lambda x: f"so it is ${x}$, and\n#### {x}",
    lambda x: f"The answer is {x}.",
    lambda x: _full_width(str(x)),
    lambda x: str(x).replace("-", "−"),
)
RESULTS = st.one_of(
    st.none(),
    st.lists(
        st.one_of(st.none(), st.floats(), st.integers(), st.booleans(), st.text(max_size=3), st.binary(max_size=3)),
        max_size=3,
    ),
    st.lists(st.floats(width=32), max_size=3).map(np.array),
    st.dictionaries(st.text(max_size=2), st.floats(), max_size=3),
    st.floats(),
    st.text(max_size=5),
)


def fuzz_texts(examples: int) -> int:
    """Any text against any text, and against itself."""
    with BulkGrader("math", num_workers=1, timeout=TIMEOUT) as math_bulk, BulkGrader("exact") as exact_bulk:

        def check(pairs: list[tuple[str, str]]) -> None:
            references = [reference for reference, _ in pairs] * 2
            completions = [completion for _, completion in pairs] + references[: len(pairs)]
            for bulk in (math_bulk, exact_bulk):
                verdicts = bulk.grade(None, completions, references, progress=False)
                assert len(verdicts) == len(completions)
                for reference, completion, verdict in zip(references, completions, verdicts, strict=True):
                    assert verdict.status in STATUSES and verdict.score in (0.0, 1.0, None)
                    assert verdict.status in ("graded", "unparsed") or verdict.score is None
                    # A long text without a mark has no answer, but as a reference it is one as a whole.
                    answer = extract_answer(completion)
                    assert verdict.score != 1.0 or answer, (reference, completion)
                    if completion == reference and normalize_answer(answer):
                        assert verdict.score == 1.0, reference

        half = CASES_PER_EXAMPLE // 2
        pairs = st.lists(st.tuples(TEXTS, TEXTS), min_size=half, max_size=half)
        return run_cases(check, examples, pairs, cases_per_example=CASES_PER_EXAMPLE)


def fuzz_numbers(examples: int) -> int:
    """Plain numbers in any form are equal exactly if their values are."""
    dressed = st.tuples(NUMBERS, st.sampled_from(DRESSES), st.sampled_from(DRESSES))
    near = st.sampled_from([Decimal(d) for d in ("0", "0", "0.001", "-0.001", "1", "1000", "0.1", "-10")])
    with BulkGrader("math", num_workers=1, timeout=TIMEOUT) as bulk:

        def check(cases: list[tuple]) -> None:
            references = [dress(number) for (number, dress, _), _ in cases]
            completions = [dress(number + away) for (number, _, dress), away in cases]
            verdicts = bulk.grade(None, completions, references, progress=False)
            for reference, completion, verdict, (_, away) in zip(
                references, completions, verdicts, cases, strict=True
            ):
                assert verdict.score == float(away == 0), (reference, completion)

        cases = st.lists(st.tuples(dressed, near), min_size=CASES_PER_EXAMPLE, max_size=CASES_PER_EXAMPLE)
        count = run_cases(check, examples, cases, cases_per_example=CASES_PER_EXAMPLE)
        assert bulk.stats.computed == 0, "a plain number went to math-verify"
        return count


def fuzz_results(examples: int) -> int:
    """Whatever a user's function returns, the result is finite scores or a `GraderError`."""

    def check(result: object, count: int) -> None:
        try:
            scores = call_grader(lambda completions: result, None, ["a"] * count, ["a"] * count)  # type: ignore
        except GraderError as error:
            assert "grader " in str(error)
        else:
            assert len(scores) == count and all(s is None or math.isfinite(s) for s in scores)

    return run_cases(check, examples * CASES_PER_EXAMPLE, RESULTS, st.integers(0, 3))


PROPERTIES = (fuzz_texts, fuzz_numbers, fuzz_results)


if __name__ == "__main__":
    main(*PROPERTIES)
