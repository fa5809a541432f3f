"""Call a function with the signature of TRL's reward functions, and check what comes back."""

import asyncio
import inspect
import math
import os
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from .extract import completion_text
from .verdict import GraderError

Grader = Callable[..., list[float | None]]

_loops: dict[int, asyncio.AbstractEventLoop] = {}
_loops_lock = threading.Lock()


def call_grader(
    grader: Grader,
    prompts: Sequence | None,
    completions: Sequence,
    answers: Sequence,
    columns: Mapping[str, Sequence] | None = None,
    name: str | None = None,
) -> list[float | None]:
    """Call a reward function as TRL's GRPOTrainer does, and check what comes back.

    The function gets lists by keyword: `prompts`, `completions`, `answer`, `solution` (the same list), and every
    further column; without `**kwargs`, only those that it names. Coroutine functions are awaited in one event loop,
    which stays for the next call, so they may hold a client open. TRL's own reward functions read only messages, so
    they get messages even if the prompt is plain.

    Args:
        grader: The function.
        prompts: One per completion, or None.
        completions: Strings or lists of messages.
        answers: The references.
        columns: Further columns; a `solution` here replaces the copy of `answers`.
        name: What to call the grader in errors.

    Returns:
        A score or None for each completion.

    Raises:
        GraderError: The function raises, or does not return one finite number or None per completion.

    Examples:
        >>> def shares_first_letter(completions, answer, **columns):
        ...     return [float(text[:1] == reference[:1]) for text, reference in zip(completions, answer, strict=True)]
        >>> call_grader(shares_first_letter, None, ["blue", "red"], ["black", "green"])
        [1.0, 0.0]

    Relations:
        Prefer `BulkGrader`, which calls it in batches or in workers, and is much faster with "math" and "exact".
    """
    name = name or getattr(grader, "__qualname__", None) or type(grader).__qualname__
    if (getattr(grader, "__module__", None) or "").startswith("trl.rewards"):
        completions = [[{"role": "assistant", "content": completion_text(c)}] for c in completions]
    arguments: dict[str, Any] = {"solution": answers} | dict(columns or {})
    arguments |= {"completions": completions, "answer": answers}
    if prompts is not None:
        arguments["prompts"] = prompts
    parameters = _parameters(grader)
    if parameters and not any(p.kind is p.VAR_KEYWORD for p in parameters):
        arguments = {p.name: arguments[p.name] for p in parameters if p.name in arguments}
    try:
        result: Any = grader(**arguments)
        if inspect.isawaitable(result):
            result = asyncio.run_coroutine_threadsafe(_awaited(result), _event_loop()).result()
    except Exception as error:
        raise GraderError(
            f"grader {name!r} raised {type(error).__name__}: {error}. It was called with "
            f"{len(completions)} completions and the keyword arguments {sorted(arguments)}"
        ) from error
    return _check_scores(name, result, len(completions))


def check_signature(grader: Grader, columns: Sequence[str], name: str) -> None:
    """Raise a `GraderError` for a function that `call_grader` could not call with these columns."""
    given = ["completions", "prompts", "answer", "solution", *columns]
    missing = [
        p.name
        for p in _parameters(grader)
        if p.kind is p.POSITIONAL_ONLY
        or (p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.name not in given)
    ]
    if missing:
        raise GraderError(
            f"grader {name!r} needs the argument {missing[0]!r}, which it is not given: it gets lists by name, which "
            f"are {', '.join(dict.fromkeys(given))}. Write def {name.rpartition(':')[2]}(completions, answer, "
            "**kwargs), which returns one score for each completion."
        )


def _parameters(function: Callable) -> list[inspect.Parameter]:
    """A function's parameters; empty if Python does not know them."""
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return []


async def _awaited(result: Awaitable) -> Any:
    return await result


def _event_loop() -> asyncio.AbstractEventLoop:
    """This process's loop, in a thread of its own: the caller (a notebook) may run one already."""
    with _loops_lock:
        loop = _loops.get(os.getpid())
        if loop is None:
            loop = _loops[os.getpid()] = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, daemon=True, name="dco_trl-graders").start()
    return loop


def reference_column(name: str, completions: Sequence, **columns: Sequence | None) -> Sequence:
    """The first of these columns that is not None: the references of grader `name`."""
    references = next((column for column in columns.values() if column is not None), None)
    if references is None:
        names = " or ".join(f"`{column}`" for column in columns)
        raise GraderError(f"grader {name!r} needs the reference answers: give the data set a column named {names}")
    if len(references) != len(completions):
        raise GraderError(
            f"grader {name!r}: one reference per completion is needed, got {len(references)} references for "
            f"{len(completions)} completions"
        )
    return references


def _check_scores(name: str, result: Any, expected: int) -> list[float | None]:
    if hasattr(result, "tolist"):  # an array or a tensor
        result = result.tolist()
    if not isinstance(result, (list, tuple)):
        raise GraderError(
            f"grader {name!r} must return a list of scores, one per completion, got {type(result).__name__}: "
            f"{str(result)[:80]!r}"
        )
    if len(result) != expected:
        raise GraderError(
            f"grader {name!r} must return one score per completion: {expected} expected, got {len(result)}"
        )
    return [None if score is None else _check_score(name, i, score) for i, score in enumerate(result)]


def _check_score(name: str, i: int, score: Any) -> float:
    try:
        if isinstance(score, str):  # which `float` might read
            raise TypeError
        value = float(score)
    except (TypeError, ValueError):
        raise GraderError(
            f"grader {name!r} must return numbers or None: score {i} is {type(score).__name__} {str(score)[:80]!r}"
        ) from None
    except OverflowError:  # an integer
        value = math.inf
    if not math.isfinite(value):
        raise GraderError(
            f"grader {name!r} returned {value} as score {i}: return a finite number (above 0.5 is correct), or None "
            "for a completion that cannot be graded"
        )
    return value
