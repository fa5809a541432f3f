"""The grader of code: published rows, limits and refusals."""

import base64
import json

import pytest
from grading_helpers import needs_confinement

from dco_trl.grading import BulkGrader, GraderError, code_grader
from dco_trl.grading.code_sandbox import Outcome, Watcher, run_program

pytestmark = needs_confinement


@pytest.mark.slow
def test_a_completion_may_be_the_rest_of_the_prompt_or_a_program():
    prompt = 'import math\n\ndef helper(x):\n    return x\n\ndef area(r):\n    """Area of a circle."""\n'
    row = {"test": ["def check(f):\n    assert abs(f(1) - 3.14159) < 1e-4"], "entry_point": ["area"]}
    for completion in (
        "    return helper(math.pi) * r ** 2\n",
        "```python\n    return math.pi * r ** 2\n```",
        "```python\ndef area(r):\n    return helper(math.pi) * r ** 2\n```",
        "First:\n```py\narea = 0\n```\nSo:\n```python\nfrom math import pi\ndef area(r):\n    return pi * r**2\n```",
        [{"role": "assistant", "content": "```\ndef area(r):\n    return math.pi * r * r\n```"}],
    ):
        assert code_grader([completion], [prompt], **row) == [1.0], completion
    for completion in ("", "I do not know.", "```python\n```", "    return 3\n", "def area(r):\n    return r"):
        assert code_grader([completion], [prompt], **row) == [0.0], completion


def test_mbpp_rows():
    tests = ["assert double(2) == 4", "assert double(x) == 2 * x"]
    right, wrong = "```python\ndef double(x):\n    return 2 * x\n```", "def double(x): return 4"
    assert code_grader([right, wrong], test_list=[tests] * 2, test_setup_code=["x = 7"] * 2) == [1.0, 0.0]
    assert code_grader([right], test_list=[["assert double(pi) > 6"]], test_imports=[["from math import pi"]]) == [1.0]


@pytest.mark.slow
def test_livecodebench_rows():
    stdin = json.dumps([{"input": "3\n", "output": "6", "testtype": "stdin"}, {"input": "4", "output": "8\n"}])
    program = "```python\nimport sys\nprint(2 * int(sys.stdin.readline()))\nsys.exit(0)\n```"
    assert code_grader([program, "print(6)"], public_test_cases=[stdin] * 2) == [1.0, 0.0]
    functional = [{"input": "[1, 2]\n3", "output": "6", "testtype": "functional"}]
    starter = "class Solution:\n    def total(self, xs: List[int], y: int) -> int:\n        "
    solution = f"```python\n{starter}return sum(xs) + y\n```"
    for columns in ({"starter_code": [starter]}, {"metadata": ['{"func_name": "total"}']}):
        assert code_grader([solution], public_test_cases=[functional], **columns) == [1.0]


@pytest.mark.parametrize(
    "cases",
    [
        *("", "no JSON", "[]", "{}", "3", "[" * 9999, [{"input": "1"}]),
        [{"input": "x", "output": "1", "testtype": "functional"}],
        # Private cases are published as base64 of a compressed pickle; unpickling would run what is in it.
        base64.b64encode(b"\x80\x04N.").decode(),
    ],
)
def test_rows_whose_tests_cannot_be_used_have_no_verdict(cases):
    assert code_grader(["print(1)"], public_test_cases=[cases], starter_code=["def f(x):"]) == [None]


@pytest.mark.slow
def test_outcomes_name_what_happened():
    assert run_program("assert 1 + 1 == 2") == Outcome("passed")
    assert run_program("x = 3", tests="assert 1 + 1 == x", timeout=20) == Outcome("failed", "AssertionError: ")
    assert run_program("while True: pass", timeout=0.5) == Outcome("timeout", "not done after 0.5 s")
    assert run_program("x = 'a' * 10**11", timeout=20).status == "failed"
    assert run_program("print(1)", [("", "2")]).detail == "expected '2', got '1\\n'"
    assert run_program("import os\nos._exit(3)", [("", "")]).detail == "it ended with exit code 3"
    assert run_program("import os\nos._exit(0)").detail == "it ended before its tests"
    assert run_program("x = '\ud800'").status == "failed"  # not to be encoded, not to be run
    silent = "class E(Exception):\n    def __str__(self): raise E\nraise E"
    assert run_program(silent).detail == "an exception that cannot be printed"


def test_the_same_program_runs_once(monkeypatch):
    ran, run = [], Watcher.run
    monkeypatch.setattr(Watcher, "run", lambda self, program: ran.append(program) or run(self, program))
    assert code_grader(["x = 1"] * 50, test_list=[["assert x"]] * 50) == [1.0] * 50
    assert len(ran) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: code_grader(["x"]), r"grader 'code' found no tests among the columns \[\]: it needs `test` and"),
        (
            lambda: code_grader(["x"], answer=["1"]),
            r"no tests among the columns \['answer'\]: .* whose cases have `input`, `output` and `testtype`",
        ),
        (lambda: code_grader(["x"], test_list=[[], []]), "column 'test_list' has 2 values for 1 completions"),
        (lambda: code_grader(["x"], ["a", "b"], test_list=[[]]), "column 'prompts' has 2 values for 1 completions"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(GraderError, match=message):
        call()


LIMITS = {"unsafe": [True], "timeout": [1e9], "memory_limit": ["64 GB"], "num_workers": [99]}


@pytest.mark.parametrize("name", LIMITS)
def test_a_column_sets_no_limit(name, tmp_path):
    outside = tmp_path / "outside"
    program = f"```python\nopen({str(outside)!r}, 'w').write('mine')\ndef f(): return 1\n```"
    columns = {"test_list": [["assert f() == 1"]], name: LIMITS[name]}
    with BulkGrader("code") as grader:
        [verdict] = grader.grade(["p"], [program], [""], columns, progress=False)
        [right] = grader.grade(["p"], ["def f(): return 1"], [""], columns, progress=False)
    assert (verdict.score, right.score) == (0.0, 1.0) and not outside.exists()
    with pytest.raises(GraderError, match=f"{name} must be one value for all programs, got list"):
        code_grader([program], **columns)


def test_a_program_is_judged_with_the_published_prompt_whatever_the_model_was_asked():
    prompt = 'from typing import List\n\n\ndef f(xs: List[int]) -> int:\n    """Sum."""\n'
    whole, rest = "```python\ndef f(xs: List[int]) -> int:\n    return sum(xs)\n```", "    return sum(xs)\n"
    row = {"test": ["def check(f):\n    assert f([1, 2]) == 3\n"], "entry_point": ["f"]}
    asked = f"Complete this function:\n{prompt}"
    for completion in (whole, rest):
        assert code_grader([completion], [prompt], **row) == [1.0]
        assert code_grader([completion], [asked], prompt=[prompt], **row) == [1.0]
    chat = [[{"role": "user", "content": prompt}]]
    assert code_grader([[{"role": "assistant", "content": whole}]], chat, **row) == [1.0]
