"""The epoch to stop at, chosen for each k."""

import numpy as np
from numpy.typing import NDArray


def at_best_epoch(choose_on: NDArray, values: NDArray) -> NDArray:
    """`values`, (epochs, problems, K), at the epoch with the largest mean of `choose_on`, of other problems or of the
    same: (problems, K). The earliest of equals."""
    best = choose_on.mean(axis=1).argmax(axis=0)
    return np.take_along_axis(values, best[None, None, :], axis=0)[0]
