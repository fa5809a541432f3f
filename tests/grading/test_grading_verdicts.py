"""The verdicts of `math` on a table of pairs, with the right verdict and the one that is given."""

import pytest
from grading_helpers import grade, table

from dco_trl.grading.notation import as_interval, mixed_number, rewrite
from dco_trl.grading.rules import settle

# Right verdict, given verdict, reference, answer. If the verdicts differ, the pair is disputed: math-verify reads it
# otherwise, and no safe rule settles it.
ROWS = table("verdicts.tsv")


@pytest.mark.slow
def test_the_table():
    verdicts, stats = grade("math", [row[3] for row in ROWS], [row[2] for row in ROWS])
    assert stats.timeout == stats.error == 0
    given = [f"{verdict.score:.0f}" for verdict in verdicts]
    wrong = [(row, score) for row, score in zip(ROWS, given, strict=True) if score != row[1]]
    assert not wrong, "\n".join(f"given {score}: {row}" for row, score in wrong)


def test_the_table_is_a_table():
    assert len(ROWS) >= 800 and all(len(row) == 4 and {row[0], row[1]} <= {"0", "1"} for row in ROWS)
    assert len({tuple(row[2:]) for row in ROWS}) == len(ROWS)
    assert 350 < sum(row[0] == "0" for row in ROWS) < 500
    assert sum(row[0] != row[1] for row in ROWS) < 40  # disputed


@pytest.mark.parametrize(
    ("reference", "answer", "score"),
    [
        ("5", "5.0", 1.0),
        ("5", "5.00000000000000000000000000000001", 0.0),
        ("1,000", "1000", 1.0),
        ("1,00", "100", None),
        ("\\frac12", "0.5", None),
        ("5 m", "5 cm", 0.0),
        ("5 m", "500 cm", 1.0),
        ("5 m", "5 m", None),
        ("5 m", "5", None),
        ("5m", "5cm", None),
        ("5 m", "5 apples", None),
        ("1/0 m", "1 cm", None),
        ("\\$5", "500 pennies", 1.0),
        ("101_2", "5", None),
        ("102_2", "102_3", None),
        ("101_1", "101_2", None),
        ("101_99", "101_2", None),
        ("5", "4 and 5 is the answer", None),
        ("x", "4 apples and 5 oranges", None),
        ("5", "4 apples and 5 oranges", 0.0),
        ("5", "5 or maybe 5.0", None),
        ("5", "maybe 5", None),
        ("x", "not x", 0.0),
        ("\\text{no solution}", "not one", None),
        ("1e3", "10^{3}", 1.0),
        ("1e99999", "10", None),
        ("0.333...", "0.3333...", None),
        ("5...", "5", None),
        ("1,...,5", "1,3,...,5", 0.0),
        ("5", "x" * 300, None),
    ],
)
def test_rules(reference, answer, score):
    assert settle(reference, answer) == score


@pytest.mark.parametrize(
    ("answer", "rewritten"),
    [
        ("x\u00a0+\u200b1", "x +1"),
        ("3½", "3\\frac{1}{2}"),
        ("10⁻³", "10^{-3}"),
        ("√(x+1)", "\\sqrt{x+1}"),
        ("√(2+√3)", "\\sqrt{2+\\sqrt{3}}"),
        ("\\sin 2x^\\circ", "\\sin 2x^\\circ"),
        ("\\sin^2 30^\\circ", "\\sin^2 (\\frac{30\\pi}{180})"),
        ("12.3\\overline{45}", "\\frac{12222}{990}"),
        ("\\overline{AB}", "\\overline{AB}"),
        ("\\binom{n}{k}", "\\binom{n}{k}"),
        ("0.1\\dot{6}", "\\frac{15}{90}"),
        ("0.1666…", "\\frac{15}{90}"),
        ("3.14159...", "3.14159..."),
        ("pi/2", "\\pi/2"),
        ("((x+1)**2)**(1/2)", "((x+1)^{2})^{1/2}"),
        ("exp(-x**2/2)/sqrt(2*pi)", "e^{-x^{2}/2}/\\sqrt{2 \\cdot \\pi}"),
        ("2 * apples", "2 * apples"),
        ("pie/2", "pie/2"),
        ("2*\\pi", "2*\\pi"),
        ("sqrt(2", "\\sqrt(2"),
    ],
)
def test_notation(answer, rewritten):
    assert rewrite(answer) == rewritten


@pytest.mark.parametrize(
    ("text", "formula"),
    [
        ("5 6/7", "5\\frac{6}{7}"),
        ("3½ cups", "3\\frac{1}{2}\\text{ cups}"),
        ("-1 1/2 inches", "-1\\frac{1}{2}\\text{ inches}"),
        *((other, None) for other in ("5 7/6", "x = 3 1/2", "1/2", "3 1/2 x + 1")),
    ],
)
def test_mixed_numbers(text, formula):
    assert mixed_number(text) == formula


@pytest.mark.parametrize(
    ("answer", "interval"),
    [
        ("x<3", "(-\\infty,3)"),
        ("3 \\ge t", "(-\\infty,3]"),
        ("1<x\\leqslant 3", "(1,3]"),
        ("x \\geqslant 3", "[3,\\infty)"),
        ("3 > x >= 1", "[1,3)"),
        ("x<1 or 2<x", "(-\\infty,1)\\cup (2,\\infty)"),
        *((same, same) for same in ("1<x>3", "x<y<z<w", "ab<3", "x<", "3", "x<1 or 5", "x<1,x>3", "1<2")),
    ],
)
def test_inequalities(answer, interval):
    assert as_interval(answer, "(0,1)") == interval
    assert as_interval(answer, "7") == answer
