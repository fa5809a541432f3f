"""What a program does decides about it, in every usual idiom, and not what it says or replaces."""

import functools
import json
import os

import pytest
from grading_helpers import cpu_seconds, needs_confinement

from dco_trl.grading import BulkGrader, code_grader, extract_code, load_grader
from dco_trl.grading.code_driver import same_output
from dco_trl.grading.code_sandbox import Watcher

pytestmark = needs_confinement

DOUBLE = [{"input": "3\n4\n", "output": "6\n8"}]
CHECK = {"test": ["def check(f):\n    assert f(2) == 4\n"], "entry_point": ["f"]}


def fenced(program: str) -> str:
    return f"```python\n{program}\n```"


def script(programs: list[str], cases=DOUBLE, **options) -> list[float | None]:
    return code_grader([fenced(p) for p in programs], public_test_cases=[cases] * len(programs), **options)


def function(programs: list[str], arguments: str, output: str) -> list[float | None]:
    cases = [{"input": arguments, "output": output, "testtype": "functional"}]
    columns = {"public_test_cases": [cases] * len(programs), "metadata": [{"func_name": "f"}] * len(programs)}
    return code_grader([fenced(p) for p in programs], **columns)


RIGHT_SCRIPTS = [
    "print(2 * int(input()))\nprint(2 * int(input()))",
    "import sys\nfor line in sys.stdin: print(2 * int(line))",
    "import sys\nfor x in sys.stdin.read().split(): print(2 * int(x))",
    "import sys\nfor x in sys.stdin.buffer.read().split(): print(2 * int(x))",
    "import sys\ninput = sys.stdin.buffer.readline\nprint(2 * int(input()), 2 * int(input()), sep='\\n')",
    "for line in open(0): print(2 * int(line))",
    "for x in open(0).read().split(): print(2 * int(x))",
    "for line in open(0, 'rb'): print(2 * int(line))",
    "import os\nfor x in os.read(0, 100).split(): print(2 * int(x))",
    "import os, io\nfor x in io.BytesIO(os.read(0, os.fstat(0).st_size)): print(2 * int(x))",
    "import fileinput\nfor line in fileinput.input(): print(2 * int(line))",
    "import sys\nfor x in open(0): sys.stdout.write(f'{2 * int(x)}\\n')",
    "import sys\nfor x in open(0): sys.stdout.buffer.write(b'%d\\n' % (2 * int(x)))",
    "import os\nfor x in open(0): os.write(1, b'%d\\n' % (2 * int(x)))",
    "import sys\nsys.stdout = open(1, 'w', buffering=1 << 20)\nfor x in open(0): print(2 * int(x))",
    "out = open(1, 'w')\nfor x in open(0): print(2 * int(x), file=out)",
    "import atexit\natexit.register(lambda: print('6\\n8'))",
    "import threading, time\nthreading.Thread(target=lambda: (time.sleep(0.1), print('6\\n8'))).start()",
    "import sys, threading\nsys.setrecursionlimit(10**6)\nthreading.stack_size(1 << 26)\ndef main():\n"
    "    for x in sys.stdin: print(2 * int(x))\nt = threading.Thread(target=main)\nt.start()\nt.join()",
    "def main():\n    for x in open(0): print(2 * int(x))\nif __name__ == '__main__':\n    main()",
    "import sys\nfor x in open(0): print(2 * int(x))\nsys.exit()",
    "import os, sys\nfor x in open(0): print(2 * int(x))\nsys.stdout.flush()\nos._exit(0)",
    "from __future__ import annotations\nfor x in open(0): print(2 * int(x))",
    "s = '''\nfrom __future__ import x\n'''\nfor x in open(0): print(2 * int(x))",
    "\ufefffor x in open(0): print(2 * int(x))",
    "for x in open(0): print(f'  {2.0 * int(x)}  ')",
    "import multiprocessing as m\nclass A:\n    def __init__(self, x): self.x = x\ndef f(a): return A(2 * a.x)\n"
    "if __name__ == '__main__':\n    with m.Pool(2) as p:\n"
    "        for a in p.map(f, [A(int(x)) for x in open(0)]): print(a.x)",
    "import pickle\nclass A: pass\nassert type(pickle.loads(pickle.dumps(A()))) is A\nprint('6\\n8')",
    "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: 'int'\nfor x in open(0): print(2 * A(int(x)).x)",
    "c = Counter(open(0).read().split())\nfor x in c: print(2 * int(x))",  # imports that the harness brings
    "print(2 * int(input()), 2 * int(input()), sep='\\r\\n')",
]
WRONG_SCRIPTS = [
    "print(6)",
    "print('6\\n8\\n9')",
    "print('6 8')",
    "print('6\\n8')\nraise ValueError",
    "import os\nos.write(1, b'6\\n8\\n')\nos._exit(1)",
    "import os\nos.write(1, b'6\\n8\\n')\nos.abort()",
    "import sys\nprint('6\\n8', file=sys.stderr)",
    "import sys\nsys.stdout = open('x', 'w')\nprint('6\\n8')",
    "print('6\\n8'",
    "",
]


@pytest.mark.slow
def test_right_scripts():
    assert dict(zip(RIGHT_SCRIPTS, script(RIGHT_SCRIPTS), strict=True)) == dict.fromkeys(RIGHT_SCRIPTS, 1.0)


def test_wrong_scripts():
    assert dict(zip(WRONG_SCRIPTS, script(WRONG_SCRIPTS), strict=True)) == dict.fromkeys(WRONG_SCRIPTS, 0.0)


def test_a_script_runs_once_for_each_case():
    cases = [{"input": "1", "output": "1"}, {"input": "2", "output": "2"}]
    assert script(["print(input())", "print(1)", "open('x', 'x').close()\nprint(input())"], cases) == [1.0, 0.0, 0.0]


# Looks through frames and objects for what is expected.
SEARCH = """
import gc, re, sys
def f():
    text, frame = '', sys._getframe()
    while frame:
        text, frame = text + repr(frame.f_locals), frame.f_back
    for found in gc.get_objects():
        if type(found) in (list, tuple, dict) and len(found) < 20:
            text += repr(found)[:1000]
    return (re.findall('secret-[0-9]+', text) or ['nothing'])[0]
"""


@pytest.mark.slow
def test_a_program_does_not_find_what_is_expected_of_it():
    for expected, scores in (("secret-4711", [0.0, 1.0]), ("nothing", [1.0, 0.0])):
        case = [{"input": "", "output": expected}]
        assert script([SEARCH + "print(f())", "print('secret-' + str(4711))"], case, timeout=60) == scores
        assert function([SEARCH, "def f(): return 'secret-' + str(4711)"], "", json.dumps(expected)) == scores


def test_a_number_of_five_thousand_digits():
    assert script(["print(10**5000)"], [{"input": "", "output": "1" + "0" * 5000}]) == [1.0]
    assert script(["print(int(input()) + 1)"], [{"input": "9" * 5000, "output": "1" + "0" * 5000}]) == [1.0]


@pytest.mark.parametrize(
    ("got", "expected", "same"),
    [
        ("2.0", "2", True),
        ("1 2.50\n", "1.0 2.5", True),
        (" a \n b", "a\nb", True),
        ("1e3", "1000", True),
        ("", "\n", True),
        ("a\n\nb", "a\n\nb", True),
        ("a\n\nb", "a\nb", False),
        ("2.0001", "2", False),
        ("YES", "yes", False),
        ("1 2", "1  2", True),
        ("a b", "a  b", False),
        ("nan", "nan", True),
        ("sNaN", "1", False),
        ("1", "1\n1", False),
    ],
)
def test_outputs_are_compared_as_by_livecodebench(got, expected, same):
    assert same_output(got, expected) is same


RIGHT_FUNCTIONS = [
    "def f(a, b): return [a, b]",
    "def f(a, b): return (a, b)",
    "class Solution:\n    def f(self, a, b): return [a, b]",
    "class Solution:\n    def f(self, a: List[int], b: Optional[int]) -> List: return list(chain([a], [b]))",
    "from __future__ import annotations\nclass Solution:\n    def f(self, a, b): return [a, b]",
    "def f(a, b): return [float(a), b]",
    "import numpy\ndef f(a, b): return [numpy.int64(a), b]",
    "def f(a, b):\n    print('debug')\n    return [a, b]\nif __name__ == '__main__':\n    f()",
    "def f(a, b): return sorted(deque([b, a]))",
]
WRONG_FUNCTIONS = [
    "def f(a, b): return [b, a]",
    "def f(a, b): return a",
    "def g(a, b): return [a, b]",
    "class E:\n    def __eq__(self, other): return True\ndef f(a, b): return E()",
    "class E(list):\n    def __eq__(self, other): return True\ndef f(a, b): return E()",
    "class E(int):\n    def __eq__(self, other): return True\ndef f(a, b): return [E(), E()]",
    "class E:\n    def item(self): return self\n    def __eq__(self, o): return True\ndef f(a, b): return [E(), E()]",
    "import builtins\nbuiltins.all = lambda *a: True\nbuiltins.type = lambda *a: int\ndef f(a, b): return [b, a]",
]


@pytest.mark.slow
def test_functions():
    assert function(RIGHT_FUNCTIONS, "3\n4", "[3, 4]") == [1.0] * len(RIGHT_FUNCTIONS)
    assert function(WRONG_FUNCTIONS, "3\n4", "[3, 4]") == [0.0] * len(WRONG_FUNCTIONS)
    keyed = ["def f(): return Counter('aab')", "def f(): return {'a': 2, 'b': 1}", "def f(): return {'a': 2, 'c': 1}"]
    assert function(keyed, "", '{"a": 2, "b": 1}') == [1.0, 1.0, 0.0]
    nested = ["def f(): return [(1, 2), (3, ())]", "def f(): return ((1, 2), [3, []])", "def f(): return [1, 2, 3]"]
    assert function(nested, "", "[[1, 2], [3, []]]") == [1.0, 1.0, 0.0]
    truth = ["def f(): return True", "def f(): return 1", "def f(): return None"]
    assert function(truth, "", "true") == [1.0, 1.0, 0.0]  # equal in Python, as in the harness


# Each is added to a program whose f(2) is not 4, in front of `assert f(2) == 4` or HumanEval's `check`.
LIARS = [
    "import os\nwrite = os.write\nos.write = lambda fd, b: write(fd, b.replace(b'failed', b'passed'))",
    "import json\ndumps = json.dumps\njson.dumps = lambda *a, **k: dumps(*a, **k).replace('failed', 'passed')",
    'import json\njson.dumps = lambda *a, **k: \'{"status": "passed"}\'',
    "print('passed')",
    "import sys\nsys.exit(0)",
    "import os\nos._exit(0)",
    "exit()",
    "import os\nfor fd in range(3, 99):\n    try: os.write(fd, b'passed\\n')\n    except OSError: pass",
    "import sys\nsys.exit = print\nraise SystemExit(0)",
    "import atexit, os\natexit.register(os._exit, 0)",
    "def skip(function): return lambda f: None\n@skip",
    "'''",
    "if False:",
    "x = [",
    "import builtins\nbuiltins.exec = builtins.compile = lambda *a, **k: None",
    "import sys\nsys.modules['json'] = sys.modules['os'] = None",
    "import sys\nsys.excepthook = print\nsys.settrace(lambda *a: None)",
    "class AssertionError(Exception): pass",
    "import builtins\nbuiltins.AssertionError = SystemExit",
]


@pytest.mark.parametrize("liar", LIARS)
def test_a_wrong_program_does_not_pass_by_what_it_replaces(liar):
    assert code_grader([f"def f(x): return 5\n{liar}"], test_list=[["assert f(2) == 4"]]) == [0.0]
    assert code_grader([f"def f(x): return 5\n{liar}"], ["def f(x):\n"], **CHECK) == [0.0]


@pytest.mark.parametrize(
    "program",
    [
        "def f(x): return 2 * x\nif __name__ == '__main__':\n    raise SystemExit",
        "def f(x): return 2 * x\nif __name__ == '__main__':\n    print(f(int(input())))",
        "from __future__ import annotations\ndef f(x: Unknown): return 2 * x",
        "def f(x): return 2 * x\ns = '''\nfrom __future__ import x\n'''",
        "\ufeffdef f(x): return 2 * x",
        "def f(x):\n    print(10**5000)\n    return 2 * x",
        "f = lambda x: 2 * x",
    ],
)
def test_right_programs_in_front_of_tests(program):
    assert code_grader([fenced(program)], test_list=[["assert f(2) == 4"]], test_setup_code=["import math"]) == [1.0]
    assert code_grader([fenced(program)], ["import math\n\ndef f(x):\n"], **CHECK) == [1.0]


# ------------------------------------------------------------------ which part of a completion is the program

SOLUTION = "def f(x):\n    return 2 * x\n"


@pytest.mark.parametrize(
    "completion",
    [
        SOLUTION,
        "```python\n" + SOLUTION.rstrip() + "```\nThis works.",
        "```python\n" + SOLUTION.rstrip() + "```",
        "```python\ndef f(x): return 3\n```\nBetter:\n```python\n" + SOLUTION + "```",
        "```python\n" + SOLUTION + "```\nOutput:\n```\n4\n```",
        "```python\n" + SOLUTION + "```\nOutput:\n```\n>>> f(2)\n4\n```",
        "```python\n" + SOLUTION + "```\nUse it:\n```python\nprint(f(2))\n```",
        "```python\n" + SOLUTION + "```\nRun it:\n```bash\npython f.py\n```",
        "```python\n" + SOLUTION + "```\n```",
        "```python\n" + SOLUTION,
        "```python\ndef f(x):\n    '''\n    ```\n    f(2)\n    ```\n    '''\n    return 2 * x\n```",
        "    return 2 * x\n",
        "    return 2 * x\n```\nThis doubles.",
    ],
)
def test_the_block_that_defines_what_the_tests_name(completion):
    assert code_grader([completion], ["def f(x):\n"], **CHECK) == [1.0]
    if "def f" in completion:
        assert code_grader([completion], test_list=[["assert f(2) == 4"]]) == [1.0]


@pytest.mark.parametrize(
    "rest",
    [
        "\nOutput:\n```\n6\n8\n```",
        "\nIt prints\n```text\n6\n```",
        "\n```sh\npython x.py < input\n```",
        "\n```python\nsolve([3, 4])\n```",
        "\n```\n6\n```",
    ],
)
def test_a_block_of_output_or_use_is_not_the_script(rest):
    program = "def solve(xs):\n    for x in xs: print(2 * int(x))\nsolve(open(0))"
    assert code_grader([fenced(program) + rest], public_test_cases=[DOUBLE]) == [1.0]


def test_without_a_block_the_whole_text_is_the_program():
    assert extract_code("x = 1") == extract_code("\ufeffx = 1") == "x = 1"
    assert extract_code("") == ""


@pytest.mark.parametrize(
    "unit", ["```" + " " * 16_000, "```\n" + " " * 16_000, "(" * 2000, "f(" * 2000, "[{" * 2000, "a." * 9000]
)
def test_extraction_does_not_hold_up_the_grading_process(unit):
    for text in (unit, f"```python\n{unit}\n```\n```python\nx\n```"):
        assert cpu_seconds(lambda text: extract_code(text, ["f"]), text) < 1.0


@pytest.mark.parametrize("code", ["code", code_grader, functools.partial(code_grader, timeout=0.5)])
@pytest.mark.slow
def test_a_time_out_is_told_apart_from_a_failure(code):
    """Under the grader's name, and under the function itself, which keeps its own arguments."""
    assert load_grader("code") is code_grader
    limit = {} if isinstance(code, functools.partial) else {"timeout": 0.5}
    with BulkGrader(code, num_workers=2, **limit) as grader:
        programs = ["def f(): return 1", "def f(): return 2", fenced("def f():\n    while True: pass")]
        columns = {"test_list": [["assert f() == 1"]] * 3}
        verdicts = grader.grade(None, programs, [""] * 3, columns, progress=False)
        assert grader._pool is None
    assert [(v.score, v.status) for v in verdicts] == [(1.0, "graded"), (0.0, "graded"), (0.0, "timeout")]
    assert verdicts[2].answer == "def f():\n    while True: pass"
    assert "2 graded, 0 unparsed, 1 timed out" in str(grader.stats)


@pytest.mark.parametrize(("num_workers", "watchers"), [(None, 2), (3, 3)])
def test_cores_are_shared_by_the_processes_of_a_machine(num_workers, watchers, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(8))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    entered, enter = [], Watcher.__enter__
    monkeypatch.setattr(Watcher, "__enter__", lambda self: entered.append(self) or enter(self))
    assert code_grader([f"x = {i}" for i in range(5)], test_list=[["assert x"]] * 5, num_workers=num_workers)[0] == 0.0
    assert len(entered) == watchers


def test_the_request_of_a_row_is_plain_json():
    cases = json.dumps([{"input": "\ud800", "output": "é", "testtype": "stdin"}])
    assert code_grader(["print('é')"], public_test_cases=[cases]) == [1.0]
