"""The grader `code`: a completion is right if its program, run in confinement, passes the tests of its row."""

import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

from .code_blocks import extract_code, names_in
from .code_sandbox import Outcome, Program, Watcher, check_confinement
from .extract import completion_text
from .pool import default_workers
from .thoughts import THOUGHT_TAGS, strip_thoughts
from .verdict import GraderError, Verdict

_FORMATS = (
    "`test` and `entry_point` (HumanEval), `test_list` (MBPP), or `public_test_cases` (LiveCodeBench), whose cases "
    "have `input`, `output` and `testtype`"
)
# The most tests of a row; more are a mistake in the data set.
_MOST_CASES = 10_000
# What LiveCodeBench's harness puts in front of each program.
_MODULES = (
    "string re datetime collections heapq bisect copy math random statistics itertools functools operator io sys json"
).split()
_CUSTOMARY = "".join(f"from {name} import *\n" for name in (*_MODULES, "builtins", "typing"))
_CUSTOMARY += "".join(f"import {name}\n" for name in _MODULES) + "sys.setrecursionlimit(50000)\n"


def code_grader(
    completions: Sequence,
    prompts: Sequence | None = None,
    *,
    timeout: float = 10.0,
    memory_limit: int = 1 << 30,
    num_workers: int | None = None,
    unsafe: bool = False,
    thought_tags: Sequence[tuple[str, str]] = THOUGHT_TAGS,
    **columns: Any,
) -> list[float | None]:
    r"""Score 1 where the completion's program passes its row's tests, each program in a confined process of its own.

    Rows have their published columns. HumanEval: `test` defines `check`, which is called with `entry_point`; a
    completion may be the rest of the prompt's function or a whole program in a code block. MBPP: `test_list` holds
    assertions, run after `test_setup_code` or `test_imports`. LiveCodeBench: `public_test_cases` is a list, or its
    JSON, of cases with standard input and expected output, or of a function's arguments and result (`functional`, with
    `starter_code` or `metadata` naming the function).

    A completion's program is its last code block that defines what the tests name. If the row has inputs, it runs as a
    script, with `__name__ == "__main__"`, and outputs are compared as in the published harness. Otherwise it runs as a
    module, and the tests run after it.

    On Linux the kernel confines each program (Landlock and seccomp): it can read only the Python installation and
    write only a scratch folder, has no network, and cannot signal other processes. The tests of HumanEval and MBPP
    share the interpreter with their program, which can fake their result, as in any harness.

    Args:
        completions: Strings, or lists of messages. Without a code block, the whole text is the program.
        prompts: One per completion; needed by HumanEval rows, whose completions may be the rest of the prompt.
        timeout: Seconds of wall-clock time per program, all of its tests together.
        memory_limit: Bytes of address space of each process, and of memory of a program and its children together.
        num_workers: Programs at a time; None: one per CPU, divided by the processes of `LOCAL_WORLD_SIZE`.
        unsafe: Run the programs unconfined, with your rights and only the time limit: where nothing is of value.
        thought_tags: Pairs of the tags around a thought, as in `strip_thoughts`.
        columns: The columns of the rows, one value per completion.

    Returns:
        1.0 or 0.0 for each completion; None if the row's tests cannot be used.

    Raises:
        GraderError: No column holds tests, a column has another length, or this platform cannot confine programs.

    Examples:
        ```python
        >>> from dco_trl.grading import code_grader
        >>> right, wrong = "```python\ndef f(x):\n    return 2 * x\n```", "def f(x): return x"
        >>> code_grader([right, wrong], test_list=[["assert f(2) == 4"]] * 2)
        [1.0, 0.0]

        ```

    References:
        Chen et al., "Evaluating Large Language Models Trained on Code", arXiv 2107.03374 (HumanEval). Austin et al.,
        arXiv 2108.07732 (MBPP). Jain et al., arXiv 2403.07974 (LiveCodeBench).

    Relations:
        Prefer it to `exact_grader` and `math_grader` where the answer is a program. `trl.rewards` has no such grader.
    """
    limits: dict[str, Any] = {"timeout": timeout, "memory_limit": memory_limit, "num_workers": num_workers}
    verdicts = run_programs(completions, prompts, columns, **limits, unsafe=unsafe, thought_tags=thought_tags)
    return [verdict.score for verdict in verdicts]


def run_programs(
    completions: Sequence,
    prompts: Sequence | None,
    columns: Mapping[str, Any],
    *,
    timeout: float,
    memory_limit: int,
    num_workers: int | None,
    unsafe: bool = False,
    thought_tags: Sequence[tuple[str, str]] = THOUGHT_TAGS,
) -> list[Verdict]:
    """`code_grader` with the reasons: a program that ran out of time is wrong, with status "timeout"."""
    check_confinement(unsafe)
    limits = {"timeout": timeout, "memory_limit": memory_limit, "num_workers": num_workers or 0, "unsafe": unsafe}
    for name, value in limits.items():
        if not isinstance(value, int | float):  # a column of the data set, handed over by a trainer
            raise GraderError(
                f"grader 'code': {name} must be one value for all programs, got {type(value).__name__}. If the data "
                "set has a column of that name, rename it: its rows must not set the limits of their own programs"
            )
    for name, values in [("prompts", prompts), *columns.items()]:
        if values is not None and len(values) != len(completions):
            raise GraderError(
                f"grader 'code': column {name!r} has {len(values)} values for {len(completions)} completions. Give "
                "one per completion"
            )
    if not {"test", "test_list", "public_test_cases"} & columns.keys():
        raise GraderError(f"grader 'code' found no tests among the columns {sorted(columns)}: it needs {_FORMATS}")
    programs = []
    for i, completion in enumerate(completions):
        text = strip_thoughts(completion_text(completion), thought_tags)
        row = {name: values[i] for name, values in columns.items()}
        programs.append(_program(text, None if prompts is None else prompts[i], row))
    distinct = list(dict.fromkeys(program for program in programs if program is not None))
    num_threads = min(num_workers or default_workers(), len(distinct))
    remaining = iter(distinct)  # threads may share a list's iterator

    def serve(_: int) -> list[tuple[Program | None, Verdict]]:
        with Watcher(timeout, memory_limit, unsafe) as watcher:
            return [(program, _verdict(watcher.run(program))) for program in remaining]

    verdicts: dict[Program | None, Verdict] = {None: Verdict(None, "", "unparsed")}
    with ThreadPoolExecutor(num_threads or 1) as executor:
        try:
            verdicts.update(chain.from_iterable(executor.map(serve, range(num_threads))))
        finally:  # after an error no further program is begun
            list(remaining)
    return [verdicts[program] for program in programs]


def _verdict(outcome: Outcome) -> Verdict:
    return Verdict(float(outcome.status == "passed"), "", "timeout" if outcome.status == "timeout" else "graded")


def _program(completion: str, prompt: Any, row: dict[str, Any]) -> Program | None:
    """Program and tests of a completion; None if the row's tests cannot be used."""
    if row.get("test") and row.get("entry_point"):
        name = row["entry_point"]
        setup, source = _continued(completion, _published_prompt(prompt, row), name)
        return Program(source, setup, f"{row['test']}\ncheck({name})\n")
    if row.get("test_list"):
        setup = row.get("test_setup_code") or "\n".join(row.get("test_imports") or [])
        tests = "\n".join(row["test_list"]) + "\n"
        of_tests, of_setup = names_in(tests), names_in(setup)
        wanted = of_tests.missing - of_setup.defined if of_tests and of_setup else ()
        return Program(extract_code(completion, wanted), setup, tests)
    return _with_cases(completion, row) if row.get("public_test_cases") else None


def _published_prompt(prompt: Any, row: dict[str, Any]) -> str:
    """The beginning of the program: the row's own `prompt`, even if the model was asked something else."""
    given = row.get("prompt", prompt)
    if isinstance(given, list):
        given = given[-1].get("content") if given and isinstance(given[-1], dict) else None
    return given if isinstance(given, str) else ""


def _continued(completion: str, prompt: str, name: str) -> tuple[str, str]:
    """Setup and program: the completion continues the prompt, unless it defines the function itself."""
    source = extract_code(completion, [name])
    found = names_in(source)
    if found and name in found.defined:
        return _before_function(prompt, name), source
    before_fence = re.split(r"^[ \t]*(?:```|~~~)", completion, maxsplit=1, flags=re.MULTILINE)[0]
    for rest in (source, before_fence, completion):
        found = names_in(prompt + rest)
        if rest.strip() and found and name in found.defined:
            return "", prompt + rest
    return "", prompt + source


def _before_function(prompt: str, name: str) -> str:
    """The imports and helpers in front of a prompt's function."""
    function = re.search(rf"^(?:@.*\n)*(?:async )?def {re.escape(str(name))}\b", prompt, re.MULTILINE)
    before = prompt[: function.start()] if function else ""
    return before if names_in(before) else ""  # a prompt for a model may begin with prose


def _with_cases(completion: str, row: dict[str, Any]) -> Program | None:
    try:
        cases = row["public_test_cases"]
        cases = json.loads(cases) if isinstance(cases, str) else cases
        if not 0 < len(cases) <= _MOST_CASES:
            return None
        if any(case.get("testtype", "stdin") != "functional" for case in cases):
            pairs = tuple((str(case["input"]), str(case["output"])) for case in cases)
            return Program(extract_code(completion), _CUSTOMARY, cases=pairs)
        name = _function_name(row)
        # One line per argument, each of them JSON, as the data set has them.
        calls = [([json.loads(x) for x in c["input"].split("\n") if x], json.loads(c["output"])) for c in cases]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    if name is None:
        return None
    starter = names_in(f"{row['starter_code']}\n        pass") if row.get("starter_code") else None
    wanted = ["Solution"] if starter and "Solution" in starter.defined else [name] if starter else [name, "Solution"]
    source = extract_code(completion, wanted)
    return Program(source, _CUSTOMARY, calls=json.dumps(calls), function=name)


def _function_name(row: dict[str, Any]) -> str | None:
    metadata = row.get("metadata")
    metadata = json.loads(metadata) if isinstance(metadata, str) and metadata else metadata
    if isinstance(metadata, dict) and metadata.get("func_name"):
        return str(metadata["func_name"]).removeprefix("Solution.")
    found = re.search(r"^\s*def (\w+)\(", str(row.get("starter_code") or ""), re.MULTILINE)
    return found[1] if found else None
