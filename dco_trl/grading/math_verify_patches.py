"""Two shortcuts inside math-verify that leave its verdicts as they are. Installed in the workers only.

Parsing in two stages: ANTLR's full-context prediction costs most of math-verify's time. Its simpler SLL prediction
gives the same tree or a syntax error (Parr, "The Definitive ANTLR 4 Reference", section 13.7), so full prediction is
needed after an error only.

Refuting by a number: `simplify(a - b)` is asked whether it is zero. An expression that is plainly not zero at one
positive point of its variables is not zero, so `simplify` is needed only where the number is (near) zero.
"""

from typing import Any

_MAX_NODES = 200
_MAX_SYMBOLS = 6


def install() -> None:
    """Put both into math-verify and latex2sympy. A version with other internals is left alone."""
    from antlr4.atn.PredictionMode import PredictionMode
    from latex2sympy2_extended import latex2sympy2
    from math_verify import grader

    converter: Any = getattr(latex2sympy2, "_Latex2Sympy", None)
    if hasattr(converter, "create_parser"):
        create_parser = converter.create_parser

        def create_two_stage_parser(self: Any, latex: str) -> Any:
            parser = create_parser(self, latex)
            parser._interp.predictionMode = PredictionMode.SLL
            parse = parser.math

            def math() -> Any:
                try:
                    return parse()
                except Exception:  # with a new lexer: the old one does not reread what it could not read
                    return create_parser(self, latex).math()

            parser.math = math
            return parser

        converter.create_parser = create_two_stage_parser

    simplify: Any = getattr(grader, "simplify", None)
    if simplify is not None:
        from sympy import S

        def simplify_unless_nonzero(difference: Any) -> Any:
            return S.One if certainly_nonzero(difference) else simplify(difference)

        grader.simplify = simplify_unless_nonzero


def certainly_nonzero(difference: Any) -> bool:
    """Whether a sympy expression is algebraic and far from zero at one positive point; False says nothing."""
    from sympy import Add, Float, Mul, Number, NumberSymbol, Pow, Symbol, preorder_traversal
    from sympy.core.numbers import ImaginaryUnit

    symbols = set()
    for count, node in enumerate(preorder_traversal(difference)):
        if count > _MAX_NODES or not isinstance(node, (Add, Mul, Pow, Number, NumberSymbol, Symbol, ImaginaryUnit)):
            return False
        if isinstance(node, Symbol):
            symbols.add(node)
    if len(symbols) > _MAX_SYMBOLS:
        return False
    # Positive, so that identities such as sqrt(x**2) = x hold.
    point = {s: Float(f"{0.8316 + 0.3719 * i:.4f}") for i, s in enumerate(sorted(symbols, key=str))}
    try:
        value = complex(difference.evalf(15, subs=point) if point else difference.evalf(15))
    except Exception:
        return False
    return 1e-3 < abs(value) < 1e12
