r"""What counts alone say about pass@k beyond them: an interval that assumes no shape of the distribution of rates.

Success rates are a mixture \(G\) over \([0, 1]\), on a fine grid. The interval for \(\int 1-(1-p)^k\,dG\) holds every
value that some \(G\) gives whose log-likelihood is within \(\chi^2_1/2\) of the largest. Up to the number of samples
the counts determine the integral; beyond it the interval widens by what they leave open. The likelihood is concave in
\(G\): linear programmes with tangents to the logarithms, more of them until none is violated.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.stats import binom, chi2

from ..coverage_numpy import coverage

# More right answers than this out of n are one category: such a problem is as good as solved at k > n.
_MANY_CORRECT = 16
# Ends of the grid of rates, in units of 1/n at the top and of 1/k at the bottom, and its step in log p.
_HIGHEST, _LOWEST, _STEP = 100.0, 1e-3, 0.13
# How far, in nats, the log-likelihood may be from its bound.
_TOLERANCE = 0.01
_MOST_ROUNDS = 60
# No mixture near the largest likelihood gives a kind of problem less than this share of what was seen.
_SMALLEST_TANGENT = 1e-4


def mixture_interval(
    num_samples: NDArray[np.int64], num_correct: NDArray[np.int64], ks: NDArray[np.int64], confidence: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Ends of the profile-likelihood interval for the mean over problems of 1 - (1-p)^k, each of shape (K,)."""
    n, capped = num_samples, np.minimum(num_correct, _MANY_CORRECT)
    (n, capped), times = np.unique(np.stack([n, capped]), axis=1, return_counts=True)
    highest, lowest = min(1.0, _HIGHEST / n.min()), _LOWEST / max(ks.max(), n.max())
    grid = np.geomspace(lowest, highest, int(np.log(highest / lowest) / _STEP) + 2)
    rates = np.unique(np.concatenate([[0.0], grid, [1.0]]))
    likelihood = np.where(
        (capped < _MANY_CORRECT)[:, None],
        binom.pmf(capped[:, None], n[:, None], rates),
        binom.sf(_MANY_CORRECT - 1, n[:, None], rates),
    )
    programme = _Programme(likelihood, times.astype(np.float64))
    tolerance = _TOLERANCE / times.sum()
    fewest = programme.largest(tolerance) - chi2.ppf(confidence, 1) / 2 / times.sum()
    with np.errstate(divide="ignore"):
        solved = coverage(np.log(rates), ks[:, None])
    low = [programme.least(row, fewest, tolerance) for row in solved]
    high = [1.0 - programme.least(1.0 - row, fewest, tolerance) for row in solved]
    return np.clip(low, 0.0, 1.0), np.clip(high, 0.0, 1.0)


class _Programme:
    """Linear programmes over mixture weights w and bounds u on the logarithms of the likelihoods A w.

    Likelihoods are in units of the shares of the kinds, so that the saturated fit has A w = 1 and log-likelihood 0.
    """

    def __init__(self, likelihood: NDArray, times: NDArray) -> None:
        self.shares = times / times.sum()
        self.likelihood = likelihood / self.shares[:, None]
        self.rows: list[NDArray] = []
        self.bounds: list[NDArray] = []
        for start in (1.0, 0.5, 2.0):
            self.add_tangents(np.full(times.size, start))

    def add_tangents(self, at: NDArray) -> None:
        """u_d <= log a_d + ((A w)_d - a_d) / a_d."""
        at = np.maximum(at, _SMALLEST_TANGENT)
        self.rows.append(np.hstack([-self.likelihood / at[:, None], np.eye(len(at))]))
        self.bounds.append(np.log(at) - 1.0)

    def solve(self, cost: NDArray, fewest: float | None = None) -> tuple[float, NDArray]:
        """Smallest cost, and the likelihoods A w there."""
        num_kinds, num_rates = self.likelihood.shape
        rows, bounds = np.vstack(self.rows), np.concatenate(self.bounds)
        if fewest is not None:
            rows = np.vstack([rows, np.append(np.zeros(num_rates), -self.shares)])
            bounds = np.append(bounds, -fewest)
        for method in ("highs-ds", "highs-ipm"):  # the second where the first meets numerical trouble
            result = linprog(
                cost,
                A_ub=rows,
                b_ub=bounds,
                A_eq=np.append(np.ones(num_rates), np.zeros(num_kinds))[None],
                b_eq=[1.0],
                bounds=[(0, None)] * num_rates + [(None, None)] * num_kinds,
                method=method,
            )
            if result.status == 0:
                return float(result.fun), self.likelihood @ result.x[:num_rates]
        raise RuntimeError(
            f"the linear programme of an interval beyond the samples failed: {result.message} "
            "Ask for k within the samples."
        )

    def mean_log_likelihood(self, at: NDArray) -> float:
        return float(self.shares @ np.log(np.maximum(at, 1e-300)))

    def largest(self, tolerance: float) -> float:
        """The largest mean log-likelihood of any mixture."""
        cost = np.append(np.zeros(self.likelihood.shape[1]), -self.shares)
        for _ in range(_MOST_ROUNDS):
            value, at = self.solve(cost)
            if -value - self.mean_log_likelihood(at) < tolerance:
                break
            self.add_tangents(at)
        return self.mean_log_likelihood(at)

    def least(self, values: NDArray, fewest: float, tolerance: float) -> float:
        """The smallest mean of `values` over mixtures with a mean log-likelihood of at least `fewest`."""
        cost = np.append(values, np.zeros(self.shares.size))
        for _ in range(_MOST_ROUNDS):
            value, at = self.solve(cost, fewest)
            if self.mean_log_likelihood(at) > fewest - tolerance:
                break
            self.add_tangents(at)
        return value
