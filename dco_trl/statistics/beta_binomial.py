r"""Beta distributions of success rates, fitted to counts."""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import betaln, digamma

from ..checks import check_discounted_counts

# Jeffreys' prior for a success rate.
JEFFREYS = (0.5, 0.5)

# Bounds of log a and log b: the range over which `posterior_weight` is tested.
_LOG_BOUNDS = (math.log(0.01), math.log(1000.0))
# Standard deviation of the log-normal around Jeffreys' prior that `fit_prior` starts from.
_LOG_PRIOR_SPREAD = 1.5


def fit_prior(
    num_sampled: ArrayLike, num_correct: ArrayLike, *, multiplicity: ArrayLike | None = None
) -> tuple[float, float]:
    r"""Beta prior of a data set's success rates, from its own counts (empirical Bayes): a and b, from 0.01 to 1000.

    Maximises the beta-binomial likelihood, with a \(\mathrm{Normal}(\log\frac12, 1.5^2)\) on each of \(\log a\) and
    \(\log b\):

    $$\max_{a, b}\ \sum_i \log \frac{B(a + c_i, b + n_i - c_i)}{B(a, b)}
      - \frac{(\log 2a)^2 + (\log 2b)^2}{2 \cdot 1.5^2}$$

    Without counts the result is Jeffreys' prior, Beta(1/2, 1/2). With 50 prompts of 8 samples it is practically the
    maximum-likelihood fit. Unlike the likelihood alone, the objective has a maximum with one sample per prompt, and
    with counts that are all 0 or all n.

    Args:
        num_sampled: Rationales drawn for each prompt, n >= 0, shape (P,) or a scalar. Real numbers are fine. Prompts
            without samples change nothing.
        num_correct: Those that led to the answer, 0 <= c <= n, shape (P,).
        multiplicity: Weight of each pair of counts, shape (P,); None: 1 each.

    Raises:
        ValueError: Impossible counts, or none.

    Examples:
        >>> from dco_trl.statistics import fit_prior
        >>> fit_prior(num_sampled=[0, 0], num_correct=[0, 0])
        (0.5, 0.5)
        >>> [round(x, 2) for x in fit_prior(num_sampled=8, num_correct=[0] * 1000)]
        [0.01, 35.36]

    References:
        Casella, "An Introduction to Empirical Bayes Data Analysis", The American Statistician 39 (1985). Griffiths,
        "Maximum Likelihood Estimation for the Beta-Binomial Distribution", Biometrics 29 (1973).
    """
    n, c = (counts.ravel() for counts in check_discounted_counts(num_sampled, num_correct))
    times: NDArray = np.ones(n.size) if multiplicity is None else np.asarray(multiplicity, dtype=np.float64).ravel()
    if times.size != n.size or not (times >= 0).all() or not times.any():
        raise ValueError(
            f"multiplicity must have a number of at least 0 for each of the {n.size} pairs of counts, not all of them "
            f"0, got {times.size} entries from {times.min(initial=0.0)} to {times.max(initial=0.0)}."
        )
    if not n.any():
        return JEFFREYS
    # Equal counts are one term.
    (n, c), kind = np.unique(np.stack([n, c]), axis=1, return_inverse=True)
    times = np.bincount(kind.ravel(), weights=times)
    total, centre = times.sum(), np.log(JEFFREYS)

    def objective(log_parameters: NDArray) -> tuple[float, NDArray]:
        a, b = np.exp(log_parameters)
        value = times @ (betaln(a + c, b + n - c) - betaln(a, b))
        both = digamma(a + b) - digamma(a + b + n)
        slope_a = times @ (digamma(a + c) - digamma(a) + both)
        slope_b = times @ (digamma(b + n - c) - digamma(b) + both)
        pull = (log_parameters - centre) / _LOG_PRIOR_SPREAD
        value -= pull @ pull / 2
        slope = np.array([a * slope_a, b * slope_b]) - pull / _LOG_PRIOR_SPREAD
        # Per prompt, so that the optimiser's tolerances do not depend on the number of prompts.
        return -value / total, -slope / total

    options = {"ftol": 1e-13, "gtol": 1e-9}
    fit = minimize(objective, centre, jac=True, method="L-BFGS-B", bounds=[_LOG_BOUNDS] * 2, options=options)
    a, b = np.exp(fit.x)
    return float(a), float(b)


def check_prior(prior: Any) -> tuple[float, float]:
    """Check the parameters (a, b) of a Beta distribution."""
    values = np.asarray(prior, dtype=np.float64)
    if values.shape != (2,) or not np.isfinite(values).all() or not (values > 0).all():
        raise ValueError(
            f"prior must be two positive numbers (a, b) of a Beta distribution, got {prior!r}. Jeffreys' is "
            "(0.5, 0.5)."
        )
    return float(values[0]), float(values[1])
