"""The grader `math`, and the loader of all graders."""

import importlib
import importlib.util
import operator
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from ..extras import require
from .choice import choice_grader
from .code import code_grader
from .code_sandbox import check_confinement
from .deduplicate import distinct_pairs, math_verdicts
from .pool import WorkerPool, check_limits
from .reward_function import Grader, reference_column
from .string_graders import exact_grader, json_grader, regex_grader
from .thoughts import THOUGHT_TAGS
from .verdict import GraderError

_math_pools: dict[int, WorkerPool] = {}


def math_grader(
    completions: Sequence,
    answer: Sequence | None = None,
    solution: Sequence | None = None,
    *,
    thought_tags: Sequence[tuple[str, str]] = THOUGHT_TAGS,
    **kwargs: Any,
) -> list[float | None]:
    r"""Score 1 where math-verify finds the extracted answer equal to the reference; safe against hostile text.

    The verdict is math-verify's `verify(parse(reference), parse(answer))` on what `extract_reference` and
    `extract_answer` find. It comes from worker processes with limits on time and memory, which stay for the next call.

    Args:
        completions: Strings, or lists of messages.
        answer: The references, one per completion: bare answers or worked solutions.
        solution: The same under the data set's other usual name; used if `answer` is absent.
        thought_tags: Pairs of the tags around a thought, as in `strip_thoughts`.
        kwargs: Further columns; not used.

    Returns:
        1.0, 0.0, or None (a limit was hit, or math-verify cannot read the reference) for each completion.

    Raises:
        GraderError: There is no reference column, or its length differs.

    Examples:
        >>> math_grader(["so $x = \\boxed{0.5}$", "2"], answer=["\\frac{1}{2}", "\\frac{1}{2}"])
        [1.0, 0.0]

    Relations:
        Prefer `BulkGrader("math")` for many samples: it removes duplicates, keeps verdicts on disk and counts what
        failed. `trl.rewards.accuracy_reward` grades in the calling process, without a memory limit, and reads LaTeX
        references only within delimiters.
    """
    references = reference_column("math", completions, answer=answer, solution=solution)
    # A fork must not talk to its parent's workers.
    for process in _math_pools.keys() - {os.getpid()}:
        _math_pools.pop(process, None)
    pool = _math_pools.get(os.getpid())
    if pool is None:  # another thread may be first
        pool = _math_pools.setdefault(os.getpid(), WorkerPool(*check_limits(None, 10.0, 1 << 30)))
    pairs, slots = distinct_pairs(completions, references, thought_tags)
    verdicts = math_verdicts(pairs, pool)
    return [verdicts[slot].score for slot in slots.tolist()]


_BUILTIN: dict[str, Grader] = {
    "math": math_grader,
    "exact": exact_grader,
    "choice": choice_grader,
    "json": json_grader,
    "regex": regex_grader,
    "code": code_grader,
}
_NEEDED = {"math": "math_verify", "code": "markdown_it"}


def load_grader(name: str | Grader) -> Grader:
    """The function of the grader with this name.

    Args:
        name: "math", "exact", "choice", "json", "regex", "code"; or "package.module:function" or "file.py:function",
            a function with the signature of TRL's reward functions. The current folder is searched too. A callable is
            returned unchanged.

    Raises:
        GraderError: No such grader.

    Examples:
        >>> load_grader("exact")(["42"], answer=["42"])
        [1.0]
        >>> load_grader("trl.rewards:accuracy_reward").__name__
        'accuracy_reward'
    """
    if callable(name):
        return name
    if name in _BUILTIN:
        if name in _NEEDED:
            require(f"grader={name!r}", "eval", _NEEDED[name])
        if name == "code":
            check_confinement()  # before anything is sampled for it
        return _BUILTIN[name]
    module_name, colon, attribute = name.partition(":")
    if not (colon and module_name and attribute):
        raise GraderError(
            f"grader {name!r} is not known: give {', '.join(map(repr, _BUILTIN))}, or 'package.module:function' or "
            "'file.py:function' (a colon before the function's name)"
        )
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    try:
        is_file = module_name.endswith(".py")
        module = _module_of(module_name) if is_file else importlib.import_module(module_name)
    except GraderError:  # its message says what is missing
        raise
    except Exception as error:
        raise GraderError(
            f"grader {name!r}: importing {module_name!r} failed: {type(error).__name__}: {error}. Check the name, and "
            "that the module lies in the current folder or is installed"
        ) from error
    try:
        function = operator.attrgetter(attribute)(module)
    except AttributeError as error:
        raise GraderError(
            f"grader {name!r}: the module {module_name!r} has no {attribute!r}. Check the function's name"
        ) from error
    if not callable(function):
        raise GraderError(f"grader {name!r} is of type {type(function).__name__}. Name a function of that module")
    return function


def _module_of(file: str) -> ModuleType:
    """The module in a file, which may import its neighbours."""
    if file not in sys.modules:
        spec = importlib.util.spec_from_file_location(file, file)
        assert spec is not None and spec.loader is not None  # the name ends with .py
        sys.path.append(os.path.dirname(os.path.abspath(file)))
        sys.modules[file] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(sys.modules[file])
        except BaseException:
            del sys.modules[file]
            raise
    return sys.modules[file]


def grader_name(grader: str | Grader) -> str:
    """A grader's name in messages and folder names: the one that loads it, or its module and name.

    Args:
        grader: A built-in one's name, an import path, or a function.

    Examples:
        >>> grader_name("exact"), grader_name("rewards:by_length")
        ('exact', 'rewards:by_length')
    """
    if isinstance(grader, str):
        return grader
    for name, function in _BUILTIN.items():
        if grader is function:
            return name
    qualified = getattr(grader, "__qualname__", None) or type(grader).__qualname__
    return f"{getattr(grader, '__module__', None) or type(grader).__module__}:{qualified}"
