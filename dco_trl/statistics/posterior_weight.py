r"""The weight of a prompt from its counts.

The probability of an answer after a chain of thought has no closed form: only the counts are known, \(c\) of \(n\)
sampled rationales that led to it. The weight \(F(N, p)\) of [`coverage_weight`][dco_trl.coverage.coverage_weight] is
far from linear in \(p\), so \(F(N, c/n)\) is biased. Here the rate has a Beta prior, fitted to the counts of the whole
data set, and the weight is the mean of \(F\) over the Beta posterior. Its standard deviation tells when a prompt has
been sampled enough.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaln

from ..checks import check_discounted_counts, check_num_attempts
from ..coverage_numpy import coverage_weight
from .beta_binomial import JEFFREYS, check_prior

# Quadrature: widest step in log-odds, and the nats below the peak where a density is negligible.
_STEP = 0.33
_NEGLIGIBLE = 40.0
# Posteriors worked on at a time: at most 8 MB an array.
_CHUNK = 4096


def plugin_weight(num_sampled: ArrayLike, num_correct: ArrayLike, num_attempts: int) -> NDArray[np.float64]:
    r"""The weight at the observed success rate, \(F(N, c/n)\).

    $$F(N, p) = \frac{N p (1-p)^{N-1}}{1 - (1-p)^N}$$

    It is what the paper's authors compute. \(F\) is convex where most rates are, so the estimate is biased: with
    N = 256 and n = 64, c = 0 gives 1 and c = 1 gives .073, with nothing in between.

    Args:
        num_sampled: Rationales drawn for each prompt, n > 0. Real numbers are fine: old counts may be discounted.
        num_correct: Those that led to the answer, 0 <= c <= n. The two broadcast.
        num_attempts: Number of attempts N, at least 1.

    Returns:
        Weights in [0, 1], float64, of the broadcast shape.

    Raises:
        ValueError: Impossible counts, a prompt without samples, or `num_attempts` is no integer of at least 1.

    Examples:
        >>> from dco_trl.statistics import plugin_weight
        >>> plugin_weight(num_sampled=64, num_correct=[0, 1, 2], num_attempts=256).round(3).tolist()
        [1.0, 0.073, 0.002]

    References:
        Chen et al., "Rethinking Fine-Tuning when Scaling Test-Time Compute", arXiv 2502.07154, and its released code.

    Relations:
        [`posterior_weight`][dco_trl.statistics.posterior_weight] has less error and says how much; prefer it unless
        you reproduce the paper. `dco_trl.coverage.coverage_weight` is the weight at a known log-probability.
    """
    n, c = check_discounted_counts(num_sampled, num_correct)
    num_attempts = check_num_attempts(num_attempts)
    if (n == 0).any():
        raise ValueError(
            f"num_sampled is 0 for {(n == 0).sum()} of {n.size} prompts: no rate can be observed there. Sample them "
            "first, or use estimator='posterior', which falls back on the prior."
        )
    with np.errstate(divide="ignore"):
        return coverage_weight(np.log(c / n), num_attempts)


def posterior_weight(
    num_sampled: ArrayLike, num_correct: ArrayLike, num_attempts: int, prior: tuple[float, float] = JEFFREYS
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    r"""Posterior mean and standard deviation of the weight, given the counts.

    $$\mathrm{E}[F(N, p)], \quad \sqrt{\mathrm{Var}[F(N, p)]}, \qquad
      p \sim \mathrm{Beta}(\alpha, \beta), \quad \alpha = a + c, \quad \beta = b + n - c$$

    With \(t = \log\frac{p}{1-p}\) the density is \(p^\alpha (1-p)^\beta / B(\alpha, \beta)\), and everything is
    analytic within a distance of \(\pi/2\) of the real axis, where the trapezoid rule converges like
    \(e^{-\pi^2/h}\) in its step h. The tails that make small \(\alpha\) or \(\beta\) hard are removed with
    \(S = (1-p)^k\), \(k = \max(\frac{N-1}{2}, 1)\), which has \(F\)'s limits at both ends and a mean in closed form:

    $$\mathrm{E}[F^m] = \frac{B(\alpha, \beta + mk)}{B(\alpha, \beta)} + \mathrm{E}[F^m - S^m], \qquad m = 1, 2$$

    Args:
        num_sampled: As for [`plugin_weight`][dco_trl.statistics.plugin_weight], but n >= 0.
        num_correct: As for `plugin_weight`.
        num_attempts: Number of attempts N, at least 1. With N = 1 the weight is 1 and the deviation 0.
        prior: Parameters (a, b) of the Beta prior, positive.

    Returns:
        Mean and standard deviation, each float64 of the broadcast shape. Absolute errors below 1e-8 for the mean and
        1e-6 for the deviation, for a and b from 0.01 to 1000, n up to 10,000, N up to 1e6.

    Raises:
        ValueError: Impossible counts, N or prior.

    Examples:
        >>> from dco_trl.statistics import posterior_weight
        >>> weight, deviation = posterior_weight(num_sampled=64, num_correct=[0, 1, 2], num_attempts=256)
        >>> weight.round(3).tolist(), deviation.round(3).tolist()
        ([0.555, 0.159, 0.042], [0.355, 0.227, 0.104])

    References:
        Trefethen and Weideman, "The Exponentially Convergent Trapezoidal Rule", SIAM Review 56 (2014).

    Relations:
        [`fit_prior`][dco_trl.statistics.fit_prior] gives the prior. `dco_trl.trainer.success_counts.SuccessCounts`
        keeps the counts of a data set and calls both.
    """
    n, c = check_discounted_counts(num_sampled, num_correct)
    num_attempts = check_num_attempts(num_attempts)
    a, b = check_prior(prior)
    if num_attempts == 1:
        return np.ones(n.shape), np.zeros(n.shape)
    parameters = np.stack([(a + c).ravel(), (b + (n - c)).ravel()])
    kinds, kind = np.unique(parameters, axis=1, return_inverse=True)
    pieces = np.array_split(kinds, range(_CHUNK, kinds.shape[1], _CHUNK), axis=1)
    mean, second = np.concatenate([_moments(alpha, beta, num_attempts) for alpha, beta in pieces], axis=1)
    mean = np.clip(mean, 0.0, 1.0)
    deviation = np.sqrt(np.maximum(second - mean**2, 0.0))
    kind = kind.reshape(n.shape)
    return mean[kind], deviation[kind]


def _moments(alpha: NDArray, beta: NDArray, num_attempts: int) -> NDArray:
    """E[F] and E[F^2] under Beta(alpha, beta), shape (2, posteriors)."""
    k = max((num_attempts - 1) / 2, 1.0)
    log_norm = betaln(alpha, beta)
    # F equals S to rounding left of `first` and right of `last`.
    first, last = -math.log(num_attempts) - 37.0, math.log(math.expm1(37.0 / k))
    # The log density has curvature c = alpha beta / (alpha + beta) at its mode, and at least c e^-d at a distance d.
    # So it is lower there by at least c (d - 1 + e^-d), which is at least _NEGLIGIBLE for d = sqrt(3 y) + y.
    y = _NEGLIGIBLE * (alpha + beta) / (alpha * beta)
    mode, reach = np.log(alpha / beta), np.sqrt(3 * y) + y
    left, right = np.clip(mode - reach, first, last), np.clip(mode + reach, first, last)
    num_nodes = math.ceil((last - first) / _STEP)
    step = (right - left) / num_nodes
    t = left[:, None] + step[:, None] * (np.arange(num_nodes) + 0.5)
    log_p, log_q = -np.logaddexp(0.0, -t), -np.logaddexp(0.0, t)
    mass = step[:, None] * np.exp(alpha[:, None] * log_p + beta[:, None] * log_q - log_norm[:, None])
    weight, control = coverage_weight(log_p, num_attempts), np.exp(k * log_q)
    return np.stack(
        [
            np.exp(betaln(alpha, beta + m * k) - log_norm) + (mass * (weight**m - control**m)).sum(axis=1)
            for m in (1, 2)
        ]
    )
