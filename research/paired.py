"""Paired differences of coverage over problems, as JSON and as cells of a table."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dco_trl.statistics.intervals import difference_of_means


def paired(rival: NDArray, values: NDArray, ks: ArrayLike) -> dict[str, list[float]]:
    """`values` less `rival`, both (problems, K): mean `difference`, and `low` and `high` of its interval."""
    found = difference_of_means(rival, values, np.asarray(ks))
    return {part: getattr(found, part).round(5).tolist() for part in ("difference", "low", "high")}


def cells(row: dict[str, Any]) -> list[str]:
    """What `paired` gave, in points."""
    return [
        f"{100 * d:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
        for d, low, high in zip(row["difference"], row["low"], row["high"], strict=True)
    ]
