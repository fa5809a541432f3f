r"""`dco_trl.coverage` without torch: the same formulas in NumPy, for arrays of N too, without checks or gradients.

All take \(x = \log p \le 0\) and broadcast it against \(N \ge 1\).
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Below this, 1 - (1-p)^N is N p to the last bit: e^-37 is under float64's epsilon.
_LOG_NEGLIGIBLE = -37.0


def log1mexp(x: ArrayLike) -> NDArray[np.float64]:
    """log(1 - e^x) for x <= 0, to full precision at both ends."""
    x = np.asarray(x, dtype=np.float64)
    with np.errstate(divide="ignore", under="ignore"):
        return np.where(x > -np.log(2.0), np.log(-np.expm1(x)), np.log1p(-np.exp(np.minimum(x, -0.5))))


def log_coverage(log_p: ArrayLike, num_attempts: ArrayLike) -> NDArray[np.float64]:
    """log(1 - (1-p)^N), in nats."""
    log_p, n = np.asarray(log_p, dtype=np.float64), np.asarray(num_attempts, dtype=np.float64)
    log_expected = np.log(n) + log_p  # the expected number of right attempts, N p
    exact = np.where(n == 1, log_p, log1mexp(n * log1mexp(log_p)))
    return np.where(log_expected < _LOG_NEGLIGIBLE, log_expected, exact)


def coverage(log_p: ArrayLike, num_attempts: ArrayLike) -> NDArray[np.float64]:
    """1 - (1-p)^N, with a relative error below 1e-12."""
    with np.errstate(under="ignore"):
        return np.exp(log_coverage(log_p, num_attempts))


def coverage_weight(log_p: ArrayLike, num_attempts: ArrayLike) -> NDArray[np.float64]:
    """F(N, p) = N p (1-p)^(N-1) / (1 - (1-p)^N), in [0, 1]."""
    log_p, n = np.asarray(log_p, dtype=np.float64), np.asarray(num_attempts, dtype=np.float64)
    with np.errstate(invalid="ignore", under="ignore"):
        log_one_right = np.log(n) + log_p + (n - 1) * log1mexp(log_p)
        weight = np.exp(np.minimum(log_one_right - log_coverage(log_p, n), 0.0))
    return np.where((n == 1) | (log_p == -np.inf), 1.0, weight)
