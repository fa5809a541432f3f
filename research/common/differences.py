"""Means and differences with intervals: Student's over seeds, BCa over problems; as JSON and as cells of a table."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from dco_trl.statistics.intervals import difference_of_means

LEVEL = 0.95


def interval(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and Student's t interval over seeds; no interval from one seed."""
    mean, error = float(np.mean(values)), float(stats.sem(values)) if len(values) > 1 else None
    if error is None:
        return {"mean": round(mean, 5), "low": None, "high": None}
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1)) * error
    return {"mean": round(mean, 5), "low": round(mean - half, 5), "high": round(mean + half, 5)}


def told(value: dict[str, float | None]) -> str:
    """A difference of `interval` in points, with its ends."""
    low, high = (math.nan if value[name] is None else 100 * value[name] for name in ("low", "high"))
    return f"{100 * value['mean']:+.1f} [{low:+.1f}, {high:+.1f}]"


def paired(rival: NDArray, values: NDArray, ks: ArrayLike) -> dict[str, list[float]]:
    """`values` less `rival`, both (problems, K): mean `difference`, and `low` and `high` of its BCa interval."""
    found = difference_of_means(rival, values, np.asarray(ks))
    return {part: getattr(found, part).round(5).tolist() for part in ("difference", "low", "high")}


def cells(row: dict[str, Any]) -> list[str]:
    """What `paired` gave, in points."""
    return [
        f"{100 * d:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
        for d, low, high in zip(row["difference"], row["low"], row["high"], strict=True)
    ]
