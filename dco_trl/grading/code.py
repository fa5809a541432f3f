"""The grader `code`: a completion is right if its program passes the tests of its row, run in confinement."""

import ast
import json
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .code_sandbox import Outcome, run_program, unconfinable
from .errors import GraderError
from .extract import completion_text
from .thoughts import THOUGHT_TAGS, strip_thoughts

_FENCE = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)[ \t]*\r?\n(.*?)^[ \t]*```[ \t]*$", re.MULTILINE | re.DOTALL)
_PYTHON = ("", "python", "python3", "py")
_FORMATS = (
    "`test` and `entry_point` (HumanEval), `test_list` (MBPP), or `public_test_cases` (LiveCodeBench), whose cases "
    "have `input`, `output` and `testtype`"
)
# What bounds a program: arguments of `code_grader`, which no column of a data set may set.
_LIMITS = ("timeout", "memory_limit", "num_workers", "unsafe")
_FUTURE = re.compile(r"^from __future__ import [^\n]*\n?", re.MULTILINE)
# Numbers of tests that a row may bring; more are a mistake of the data set.
_MOST_CASES = 10_000


def code_grader(
    completions: Sequence,
    prompts: Sequence | None = None,
    *,
    timeout: float = 10.0,
    memory_limit: int = 1 << 29,
    num_workers: int | None = None,
    unsafe: bool = False,
    thought_tags: Sequence[tuple[str, str]] = THOUGHT_TAGS,
    **columns: Any,
) -> list[float | None]:
    r"""Score 1 where the completion's program passes its row's tests, each program in a confined process of its own.

    Rows are taken as they are published. HumanEval: `test` defines `check`, which is called with `entry_point`; a
    completion may be the rest of the prompt's function or a whole program in a code block. MBPP: `test_list` holds
    assertions, run after `test_setup_code` or `test_imports`. LiveCodeBench: `public_test_cases` is a list, or its
    JSON, of cases with standard input and expected output, or of a function's arguments and result (`functional`, with
    `starter_code` or `metadata` naming the function).

    On Linux the kernel confines each program (Landlock and seccomp): it reads nothing but the Python installation,
    writes nothing but a scratch folder, has no network, and cannot signal other processes. A program that inspects the
    interpreter it shares with its tests can still fake their result, as in any harness that runs both together.

    Args:
        completions: Strings, or lists of messages. The last Python code block counts, or the whole text without one.
        prompts: One per completion; needed by HumanEval rows, whose completions may be the rest of the prompt.
        timeout: Seconds of wall-clock time per program, all of its tests together.
        memory_limit: Bytes of memory per program.
        num_workers: Programs at a time; one per CPU unless given.
        unsafe: Run the programs unconfined, as you, with the time limit alone: where nothing of value can be reached.
        thought_tags: Pairs of the tags around a thought, as in `strip_thoughts`.
        columns: The columns of the rows, one value per completion.

    Returns:
        1.0 or 0.0 for each completion; None where the row's own tests cannot be used.

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
        Prefer it to an exact or mathematical grader wherever the answer is a program. `trl.rewards` has none.
    """
    if not unsafe and (reason := unconfinable()):
        raise GraderError(f"grader 'code' runs the model's programs, and {reason}.")
    for name, value in (("timeout", timeout), ("memory_limit", memory_limit), ("unsafe", unsafe)):
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
    rows = [{name: values[i] for name, values in columns.items()} for i in range(len(completions))]
    jobs = [
        _job(strip_thoughts(completion_text(completion), thought_tags), None if prompts is None else prompts[i], row)
        for i, (completion, row) in enumerate(zip(completions, rows, strict=True))
    ]
    # The same program is run once.
    distinct = list(dict.fromkeys(job for job in jobs if job is not None))

    def run(job: tuple) -> Outcome:
        return run_program(job[0], job[1], timeout=timeout, memory_limit=memory_limit, unsafe=unsafe)

    with ThreadPoolExecutor(num_workers or os.cpu_count() or 1) as executor:
        outcomes = dict(zip(distinct, executor.map(run, distinct), strict=True))
    return [None if job is None else float(outcomes[job].status == "passed") for job in jobs]


def limited_code_grader(num_workers: int, timeout: float, memory_limit: int) -> Callable[..., list[float | None]]:
    """`code_grader` with these limits, whatever columns the data set has."""

    def grade(completions: Sequence, prompts: Sequence | None = None, **columns: Any) -> list[float | None]:
        columns = {name: values for name, values in columns.items() if name not in _LIMITS}
        return code_grader(
            completions, prompts, timeout=timeout, memory_limit=memory_limit, num_workers=num_workers, **columns
        )

    return grade


def extract_code(text: str) -> str:
    r"""The program in a completion: its last Python code block, or the whole text where there is no block.

    A block that is not closed, because the completion was cut off, ends with the text.

    Args:
        text: The completion.

    Returns:
        Source code, possibly empty.

    Examples:
        >>> extract_code("Here:\n```python\nx = 1\n```\nand a shell:\n```sh\nls\n```")
        'x = 1\n'

    Relations:
        [`extract_answer`][dco_trl.grading.extract_answer] finds the final answer of a mathematical completion.
    """
    blocks = [code for language, code in _FENCE.findall(text) if language.lower() in _PYTHON]
    if blocks:
        return blocks[-1]
    opening = re.search(r"^[ \t]*```[ \t]*(?:python3?|py)?[ \t]*\r?\n", text, re.MULTILINE | re.IGNORECASE)
    return text[opening.end() :] if opening else text


def _job(completion: str, prompt: Any, row: dict[str, Any]) -> tuple[str, tuple[tuple[str, str], ...]] | None:
    """Program and cases of a completion; None where the row's tests cannot be used."""
    code = extract_code(completion)
    if row.get("test") and row.get("entry_point"):
        program = _continued(completion, code, _published_prompt(prompt, row), row["entry_point"])
        return _future_first(f"{program}\n{row['test']}\ncheck({row['entry_point']})\n"), ()
    if row.get("test_list"):
        setup = row.get("test_setup_code") or "\n".join(row.get("test_imports") or [])
        return _future_first("\n".join([setup, code, *row["test_list"]]) + "\n"), ()
    return _cases_job(code, row) if row.get("public_test_cases") else None


def _published_prompt(prompt: Any, row: dict[str, Any]) -> str:
    """The beginning of the program: the row's own `prompt`, whatever was made of it for the model."""
    given = row.get("prompt", prompt)
    if isinstance(given, list):
        given = given[-1].get("content") if given and isinstance(given[-1], dict) else None
    return given if isinstance(given, str) else ""


def _future_first(program: str) -> str:
    """The program with its imports from `__future__` at its beginning, where Python wants them."""
    return "".join(line.rstrip("\n") + "\n" for line in _FUTURE.findall(program)) + _FUTURE.sub("", program)


def _continued(completion: str, code: str, prompt: str, entry_point: str) -> str:
    """The whole program: the completion goes on where the prompt stops, unless it defines the function itself."""
    if _defines(code, entry_point):
        # The prompt's imports and helpers stand before its function.
        header = re.split(rf"^(?:async )?def {re.escape(entry_point)}\b", prompt, maxsplit=1, flags=re.MULTILINE)[0]
        return f"{header}\n{code}" if _defines(prompt + "\n    pass", entry_point) else code
    return prompt + (code if "```" in completion else completion)


def _defines(code: str, name: str) -> bool:
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return any(getattr(node, "name", None) == name for node in tree.body)


def _cases_job(code: str, row: dict[str, Any]) -> tuple[str, tuple[tuple[str, str], ...]] | None:
    try:
        cases = row["public_test_cases"]
        cases = json.loads(cases) if isinstance(cases, str) else cases
        if not 0 < len(cases) <= _MOST_CASES:
            return None
        if any(case.get("testtype", "stdin") != "functional" for case in cases):
            return code, tuple((str(case["input"]), str(case["output"])) for case in cases)
        name = _function_name(row)
        # One line per argument, each of them JSON, as the data set has them.
        calls = [([json.loads(x) for x in c["input"].split("\n") if x], json.loads(c["output"])) for c in cases]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    if name is None:
        return None
    target = f"Solution().{name}" if _defines(code, "Solution") else name
    checks = "".join(f"assert {target}(*{arguments!r}) == {result!r}\n" for arguments, result in calls)
    return _future_first(f"from typing import *\n{code}\n{checks}"), ()


def _function_name(row: dict[str, Any]) -> str | None:
    metadata = row.get("metadata")
    metadata = json.loads(metadata) if isinstance(metadata, str) and metadata else metadata
    if isinstance(metadata, dict) and metadata.get("func_name"):
        return str(metadata["func_name"]).removeprefix("Solution.")
    found = re.search(r"^\s*def (\w+)\(", str(row.get("starter_code") or ""), re.MULTILINE)
    return found[1] if found else None
