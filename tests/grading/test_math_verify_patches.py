"""The shortcuts inside math-verify change neither what it reads nor its verdicts. They run in their own process."""

import json
import subprocess
import sys

import pytest
import sympy
from sympy.abc import x, y

from dco_trl.grading.math_verify_patches import certainly_nonzero

STRINGS = [
    *("1", "x^5-x^4+1", "3x^2 + 27x + 60", "y = x^2 + 2", "\\left[ \\frac{\\pi^3}{32}, \\frac{7 \\pi^3}{8} \\right]"),
    *("(-\\infty, -7)\\cup(-7, 3)", "0,\\tfrac32, 2i, -2i", "\\begin{pmatrix} 1 \\\\ -2 \\end{pmatrix}", "\\{1,2\\}"),
    *("\\fac{1}{\\sqrt{10}}", "7 - 2 \\2pi", "75^\\cic", "\\text(C)}", "12\\sqrt{1\\3}", "11z^{17}(5+11z^{17})"),
    "2^{",
    *("\\sin^2 x + \\cos^2 x", "x^2+2x+1", "(x+1)^2", "\\sqrt{x^2}", "x", "52_8", "1,000", "a < b", "3 \\le x < 5"),
    "=",
]
CODE = """
import json, logging, sys
logging.disable(logging.CRITICAL)
from math_verify import verify
from dco_trl.grading.math_verdict import math_verify_parse
if sys.argv[1] == "fast":
    from dco_trl.grading import math_verify_patches as patches
    patches.install()
    from latex2sympy2_extended import latex2sympy2
    from math_verify import grader
    assert latex2sympy2._Latex2Sympy.create_parser.__module__ == grader.simplify.__module__ == patches.__name__
parsed = [math_verify_parse(s) for s in json.load(sys.stdin)]
verdicts = [verify(a, b, timeout_seconds=None) for a in parsed for b in parsed]
print(json.dumps([[repr(p) for p in parsed], verdicts]))
"""


@pytest.mark.slow
def test_readings_and_verdicts_stay_the_same():
    plain, fast = (
        json.loads(
            subprocess.run(
                [sys.executable, "-c", CODE, way],
                input=json.dumps(STRINGS),
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        for way in ("plain", "fast")
    )
    assert fast == plain
    assert 20 < sum(plain[1]) < len(STRINGS) ** 2


@pytest.mark.parametrize(
    ("expression", "known"),
    [
        (x**2 - y, True),
        (sympy.sqrt(2) - sympy.pi, True),
        (sympy.I * x + 3, True),
        (sympy.Integer(7), True),
        ((x + 1) ** 2 - x**2 - 2 * x - 1, False),
        (sympy.sqrt(x**2) - x, False),
        (sympy.sqrt(5 + 2 * sympy.sqrt(6)) - sympy.sqrt(2) - sympy.sqrt(3), False),
        (sympy.Integer(0), False),
        (sympy.Rational(1, 10**6), False),  # too near to tell
        (sympy.nan, False),
        (sympy.zoo, False),
        (sympy.oo, False),
        (sympy.sin(x) + 9, False),  # only algebra is looked at
        (sympy.Matrix([1]), False),
        (sympy.Symbol("A", commutative=False) + 1, True),
        (sum(sympy.symbols("a:8")) + 1, False),
        (sum(x**i for i in range(300)), False),
        (None, False),
        ("text", False),
    ],
)
def test_certainly_nonzero(expression, known):
    assert certainly_nonzero(expression) is known
