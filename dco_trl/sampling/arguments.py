"""Options of samplers, checked before anything is loaded."""

import difflib
from collections.abc import Collection, Iterable

from ..errors import UserError


def check_names(what: str, given: Iterable[str], known: Collection[str]) -> None:
    """Refuse options that `what` does not have, with the nearest one it has."""
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise UserError(
                f"{what} does not know the option {name!r}. "
                + (f"Did you mean {near[0]!r}?" if near else f"It has: {', '.join(sorted(known))}.")
            )
