"""Arguments of samplers, checked before anything is loaded or drawn."""

import difflib
import operator
from collections.abc import Collection, Iterable
from typing import Any


def check_count(name: str, value: Any, minimum: int = 1) -> int:
    """A whole number, NumPy's included, or an error that names it."""
    try:
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}={value!r} must be a whole number.") from None
    if count < minimum:
        raise ValueError(f"{name}={count} must be at least {minimum}.")
    return count


def check_names(what: str, given: Iterable[str], known: Collection[str]) -> None:
    """Refuse options that `what` does not have, with the nearest one it has."""
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise TypeError(
                f"{what} has no option {name!r}. "
                + (f"Did you mean {near[0]!r}?" if near else f"It has: {', '.join(sorted(known))}.")
            )
