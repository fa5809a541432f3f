"""Graders with the signature of TRL's reward functions: two built in, and the loader for others."""

import asyncio
import importlib
import inspect
import math
import operator
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from .errors import GraderError
from .extract import completion_text, extract_answer, extract_reference, normalize_answer

if TYPE_CHECKING:
    from .bulk import BulkGrader

Grader = Callable[..., list[float | None]]

_shared_math: dict[int, "BulkGrader"] = {}


def exact_grader(
    completions: Sequence, answer: Sequence | None = None, solution: Sequence | None = None, **kwargs: Any
) -> list[float | None]:
    r"""Score 1 where the extracted answer equals the reference as a normalised string.

    `normalize_answer(extract_answer(completion)) == normalize_answer(extract_reference(reference))`, not empty.

    Args:
        completions: strings, or lists of messages.
        answer: the references, one a completion.
        solution: the same, where the data set calls them so; used if `answer` is absent.
        kwargs: further columns; not used.

    Returns:
        1.0 or 0.0 for each completion.

    Raises:
        GraderError: there is no reference column, or its length differs.

    Examples:
        >>> exact_grader(["so it is \\boxed{1{,}000}", "999"], answer=["1000", "1000"])
        [1.0, 0.0]

    Relations:
        `math_grader` also accepts equal values written differently.
    """
    references = _references("exact", completions, answer, solution)
    return [
        exact_score(extract_reference(reference), extract_answer(completion_text(completion)))
        for completion, reference in zip(completions, references, strict=True)
    ]


def exact_score(reference: str, answer: str) -> float:
    """1.0 if an extracted answer and an extracted reference are equal once normalised, and not empty; else 0.0."""
    normalized = normalize_answer(answer)
    return float(bool(normalized) and normalized == normalize_answer(reference))


def math_grader(
    completions: Sequence, answer: Sequence | None = None, solution: Sequence | None = None, **kwargs: Any
) -> list[float | None]:
    r"""Score 1 where math-verify finds the extracted answer equal to the reference; safe against hostile text.

    The verdict is math-verify's `verify(parse(reference), parse(answer))` on what `extract_reference` and
    `extract_answer` find, in worker processes with a time and a memory limit, which stay for the next call.

    Args:
        completions: strings, or lists of messages.
        answer: the references, one a completion: bare answers or worked solutions.
        solution: the same, where the data set calls them so; used if `answer` is absent.
        kwargs: further columns; not used.

    Returns:
        1.0, 0.0, or None (a limit was hit, or math-verify cannot read the reference) for each completion.

    Raises:
        GraderError: there is no reference column, or its length differs.

    Examples:
        >>> math_grader(["so $x = \\boxed{0.5}$", "2"], answer=["\\frac{1}{2}", "\\frac{1}{2}"])
        [1.0, 0.0]

    Relations:
        `BulkGrader("math")` for many samples: it removes duplicates, keeps verdicts on disk, counts what failed.
        `trl.rewards.accuracy_reward` grades in the calling process, without a memory limit, and reads LaTeX
        references only within delimiters.
    """
    from .bulk import BulkGrader

    references = _references("math", completions, answer, solution)
    # A fork must not talk to its parent's workers.
    bulk = _shared_math.get(os.getpid())
    if bulk is None:
        _shared_math.clear()
        bulk = _shared_math[os.getpid()] = BulkGrader("math")
    return [verdict.score for verdict in bulk.grade(None, completions, references, progress=False)]


def load_grader(name: str | Grader) -> Grader:
    """The grader of this name.

    Args:
        name: "math", "exact", or an import path "package.module:function" of a function with the signature of TRL's
            reward functions; the current folder is searched too. A callable is returned as it is.

    Returns:
        The function.

    Raises:
        GraderError: no such grader.

    Examples:
        >>> load_grader("exact")(["42"], answer=["42"])
        [1.0]
        >>> load_grader("trl.rewards:accuracy_reward").__name__
        'accuracy_reward'
    """
    if callable(name):
        return name
    if name == "exact":
        return exact_grader
    if name == "math":
        return math_grader
    if name == "code":
        from .code import code_grader

        return code_grader
    module_name, colon, attribute = name.partition(":")
    if not (colon and module_name and attribute):
        raise GraderError(
            f"grader {name!r} is not known: give 'math', 'exact', or 'package.module:function' (a colon before the "
            "function's name)"
        )
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise GraderError(
            f"grader {name!r}: importing {module_name!r} failed: {type(error).__name__}: {error}. Check the name, and "
            "that the module lies in the current folder or is installed"
        ) from error
    try:
        function = operator.attrgetter(attribute)(module)
    except AttributeError as error:
        raise GraderError(f"grader {name!r}: module {module_name!r} has no {attribute!r}") from error
    if not callable(function):
        raise GraderError(f"grader {name!r} is {type(function).__name__}, not a function")
    return function


def grader_name(grader: str | Grader) -> str:
    """What to call a grader in messages and folder names: the name it was loaded by, or its module and name.

    Args:
        grader: "math", "exact", an import path, or a function.

    Returns:
        The name.

    Examples:
        >>> grader_name("exact"), grader_name("rewards:by_length")
        ('exact', 'rewards:by_length')
    """
    if isinstance(grader, str):
        return grader
    if grader is math_grader:
        return "math"
    if grader is exact_grader:
        return "exact"
    qualified = getattr(grader, "__qualname__", None) or type(grader).__qualname__
    return f"{getattr(grader, '__module__', None) or type(grader).__module__}:{qualified}"


def call_grader(
    grader: Grader,
    prompts: Sequence | None,
    completions: Sequence,
    answers: Sequence,
    columns: Mapping[str, Sequence] | None = None,
    name: str | None = None,
) -> list[float | None]:
    """Call a reward function as TRL's GRPOTrainer does, and check what comes back.

    Keyword lists: `prompts`, `completions`, `answer`, `solution` (the same list), and every further column. A function
    without `**kwargs` gets the ones it names. Coroutine functions are awaited. TRL's own reward functions read
    messages only, so they get messages also where the prompt is plain.

    Args:
        grader: the function.
        prompts: one a completion, or None.
        completions: strings or lists of messages.
        answers: the references.
        columns: further columns; a `solution` here replaces the copy of `answers`.
        name: what to call the grader in errors.

    Returns:
        A score or None for each completion.

    Raises:
        GraderError: the function raises, returns another number of scores, a NaN, or what is no number.

    Examples:
        >>> def shares_first_letter(completions, answer, **columns):
        ...     return [float(text[:1] == reference[:1]) for text, reference in zip(completions, answer, strict=True)]
        >>> call_grader(shares_first_letter, None, ["blue", "red"], ["black", "green"])
        [1.0, 0.0]

    Relations:
        `BulkGrader` calls it in batches, and grades with "math" and "exact" much faster.
    """
    name = name or grader_name(grader)
    if (getattr(grader, "__module__", None) or "").startswith("trl.rewards"):
        completions = [[{"role": "assistant", "content": completion_text(c)}] for c in completions]
    arguments: dict[str, Any] = {"solution": answers} | dict(columns or {})
    arguments |= {"completions": completions, "answer": answers}
    if prompts is not None:
        arguments["prompts"] = prompts
    try:
        parameters = inspect.signature(grader).parameters.values()
    except (TypeError, ValueError):
        parameters = ()  # type: ignore[assignment]
    if parameters and not any(p.kind is p.VAR_KEYWORD for p in parameters):
        arguments = {p.name: arguments[p.name] for p in parameters if p.name in arguments}
    try:
        result: Any = grader(**arguments)
        if inspect.isawaitable(result):
            coroutine = result
            # In a thread of its own: the caller (a notebook) may run an event loop already.
            with ThreadPoolExecutor(1) as executor:
                result = executor.submit(lambda: asyncio.run(_await(coroutine))).result()
    except Exception as error:
        raise GraderError(
            f"grader {name!r} raised {type(error).__name__}: {error}. It was called with "
            f"{len(completions)} completions and the keyword arguments {sorted(arguments)}"
        ) from error
    return _check_scores(name, result, len(completions))


async def _await(awaitable):
    return await awaitable


def _check_scores(name: str, result: Any, expected: int) -> list[float | None]:
    if hasattr(result, "tolist"):  # an array or a tensor
        result = result.tolist()
    if not isinstance(result, (list, tuple)):
        raise GraderError(
            f"grader {name!r} must return a list of scores, one a completion, got {type(result).__name__}: "
            f"{str(result)[:80]!r}"
        )
    if len(result) != expected:
        raise GraderError(
            f"grader {name!r} must return one score a completion: {expected} expected, got {len(result)}"
        )
    scores: list[float | None] = []
    for i, score in enumerate(result):
        if score is not None:
            try:
                value = float(score) if not isinstance(score, str) else None
            except (TypeError, ValueError):
                value = None
            if value is None:
                raise GraderError(
                    f"grader {name!r} must return numbers or None: score {i} is {type(score).__name__} "
                    f"{str(score)[:80]!r}"
                )
            if math.isnan(value):
                raise GraderError(
                    f"grader {name!r} returned NaN as score {i}: return None for a completion that cannot be graded"
                )
            score = value
        scores.append(score)
    return scores


def _references(name: str, completions: Sequence, answer: Sequence | None, solution: Sequence | None) -> Sequence:
    references = answer if answer is not None else solution
    if references is None:
        raise GraderError(
            f"grader {name!r} needs the reference answers: give the data set a column named `answer` or `solution`"
        )
    if len(references) != len(completions):
        raise GraderError(
            f"grader {name!r}: one reference a completion is needed, got {len(references)} references for "
            f"{len(completions)} completions"
        )
    return references
