r"""The success rate of a prompt from its counts, and the weight that follows from it.

A chain of thought has no closed-form probability of its answer: of \(n\) sampled rationales, \(c\) led to it. The
weight \(F(N, p)\) of [`coverage_weight`][dco_trl.coverage.coverage_weight] is far from linear in \(p\), so that
\(F(N, c/n)\) is biased. Here the rate has a Beta prior, fitted to the counts of the whole data set, and the weight is
the mean of \(F\) over the Beta posterior; its standard deviation says when a prompt has been sampled enough.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import betaln, digamma

# Jeffreys' prior for a success rate.
JEFFREYS = (0.5, 0.5)
ESTIMATORS = ("posterior", "plugin")

# Bounds of log alpha and log beta in a fit. At the lower ones nearly all rates are 0 or 1, at the upper ones all are
# equal.
_LOG_BOUNDS = (-12.0, 14.0)
# The same for a prior: the range over which `posterior_weight` is tested.
_LOG_PRIOR_BOUNDS = (math.log(0.01), math.log(1000.0))
# Standard deviation of the log-normal around Jeffreys' prior that `fit_prior` starts from.
_LOG_PRIOR_SPREAD = 1.5

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
        num_sampled: Rationales drawn for each prompt, n > 0. Real numbers are fine, as forgetting makes them.
        num_correct: Those that led to the answer, 0 <= c <= n. The two broadcast.
        num_attempts: Number of attempts N, at least 1.

    Returns:
        Weights in [0, 1], float64, of the broadcast shape.

    Raises:
        ValueError: Impossible counts, a prompt without samples, or `num_attempts` is no integer of at least 1.

    Examples:
        ```python
        >>> from dco_trl.success import plugin_weight
        >>> plugin_weight(num_sampled=64, num_correct=[0, 1, 2], num_attempts=256).round(3).tolist()
        [1.0, 0.073, 0.002]

        ```

    References:
        Chen et al., "Rethinking Fine-Tuning when Scaling Test-Time Compute", arXiv 2502.07154, and its released code.

    Relations:
        [`posterior_weight`][dco_trl.success.posterior_weight] has less error and says how much; prefer it unless you
        reproduce the paper. `dco_trl.coverage.coverage_weight` is the weight at a known log-probability.
    """
    n, c = _check_counts(num_sampled, num_correct)
    _check_num_attempts(num_attempts)
    if (n == 0).any():
        raise ValueError(
            f"num_sampled is 0 for {(n == 0).sum()} of {n.size} prompts: no rate can be observed there. Sample them "
            "first, or use estimator='posterior', which falls back on the prior."
        )
    rate = c / n
    with np.errstate(divide="ignore"):
        return _weight(np.log(rate), np.log1p(-rate), num_attempts)


def posterior_weight(
    num_sampled: ArrayLike,
    num_correct: ArrayLike,
    num_attempts: int,
    prior: tuple[float, float] = JEFFREYS,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    r"""Posterior mean and standard deviation of the weight, given the counts.

    $$\mathrm{E}[F(N, p)], \quad \sqrt{\mathrm{Var}[F(N, p)]}, \qquad
      p \sim \mathrm{Beta}(\alpha, \beta), \quad \alpha = a + c, \quad \beta = b + n - c$$

    With \(t = \log\frac{p}{1-p}\) the density is \(p^\alpha (1-p)^\beta / B(\alpha, \beta)\), and everything is
    analytic within a distance of \(\pi/2\) of the real axis, where the trapezoid rule converges like
    \(e^{-\pi^2/h}\) in its step h. The tails that make small \(\alpha\) or \(\beta\) hard are taken off with
    \(S = (1-p)^k\), \(k = \max(\frac{N-1}{2}, 1)\), which has \(F\)'s limits at both ends and a mean in closed form:

    $$\mathrm{E}[F^m] = \frac{B(\alpha, \beta + mk)}{B(\alpha, \beta)} + \mathrm{E}[F^m - S^m], \qquad m = 1, 2$$

    Args:
        num_sampled: Rationales drawn for each prompt, n >= 0. Real numbers are fine, as forgetting makes them.
        num_correct: Those that led to the answer, 0 <= c <= n. The two broadcast.
        num_attempts: Number of attempts N, at least 1. With N = 1 the weight is 1 and the deviation 0.
        prior: Parameters (a, b) of the Beta prior, positive.

    Returns:
        Mean and standard deviation, each float64 of the broadcast shape. Absolute errors below 1e-8 for the mean and
        1e-6 for the deviation, for a and b from 0.01 to 1000, n up to 10,000, N up to 1e6. Prompts with equal counts
        are computed once.

    Raises:
        ValueError: Impossible counts or prior, or `num_attempts` is no integer of at least 1.

    Examples:
        ```python
        >>> from dco_trl.success import posterior_weight
        >>> weight, deviation = posterior_weight(num_sampled=64, num_correct=[0, 1, 2], num_attempts=256)
        >>> weight.round(3).tolist(), deviation.round(3).tolist()
        ([0.555, 0.159, 0.042], [0.355, 0.227, 0.104])

        ```

    References:
        Chen et al., arXiv 2502.07154, section 4, for the weight. Trefethen and Weideman, "The Exponentially
        Convergent Trapezoidal Rule", SIAM Review 56 (2014).

    Relations:
        [`fit_prior`][dco_trl.success.fit_prior] gives the prior; [`SuccessCounts`][dco_trl.success.SuccessCounts]
        keeps the counts of a data set and calls both. [`plugin_weight`][dco_trl.success.plugin_weight] is what the
        paper's authors compute.
    """
    n, c = _check_counts(num_sampled, num_correct)
    _check_num_attempts(num_attempts)
    a, b = _check_prior(prior)
    if num_attempts == 1:
        return np.ones(n.shape), np.zeros(n.shape)
    parameters = np.stack([(a + c).ravel(), (b + (n - c)).ravel()])
    kinds, kind = np.unique(parameters, axis=1, return_inverse=True)
    mean, second = np.empty(kinds.shape[1]), np.empty(kinds.shape[1])
    for start in range(0, mean.size, _CHUNK):
        part = slice(start, start + _CHUNK)
        mean[part], second[part] = _moments(kinds[0, part], kinds[1, part], num_attempts)
    mean = np.clip(mean, 0.0, 1.0)
    deviation = np.sqrt(np.maximum(second - mean**2, 0.0))
    kind = kind.reshape(n.shape)
    return mean[kind], deviation[kind]


def needs_sampling(
    deviation: ArrayLike, num_sampled: ArrayLike, *, weight_tolerance: float, num_rationales: int
) -> NDArray[np.bool_]:
    r"""Which prompts to draw a further batch of rationales for.

    A prompt leaves when the standard deviation of its weight is at most `weight_tolerance`, or when its counts are
    worth `num_rationales` samples, remembered ones included at what forgetting left of them. One whose counts are
    worth less than one sample is always drawn: the prior alone settles nothing, least of all before it was fitted.

    Looking at the posterior after each batch does not bias it: the likelihood of the counts is the same whatever made
    the sampling stop.

    Args:
        deviation: Posterior standard deviation of each weight. NaN, as `estimator="plugin"` gives, never leaves early:
            with forgetting by a factor of 0, every prompt is drawn `num_rationales` times, as the paper's authors do.
        num_sampled: Samples that the counts of each prompt are worth, n >= 0. The two broadcast.
        weight_tolerance: Standard deviation to stop at, at least 0; 0 turns early stopping off.
        num_rationales: Most samples for the counts of a prompt to be worth, at least 1.

    Returns:
        True where a further batch is needed, bool, of the broadcast shape.

    Raises:
        ValueError: `weight_tolerance` is negative or NaN, or `num_rationales` is no integer of at least 1.

    Examples:
        ```python
        >>> from dco_trl.success import needs_sampling
        >>> needs_sampling([0.3, 0.01, 0.3, 0.01], [8, 8, 64, 0], weight_tolerance=0.1, num_rationales=64).tolist()
        [True, False, False, True]

        ```

    Relations:
        [`SuccessCounts.weights`][dco_trl.success.SuccessCounts] gives the deviations.
    """
    if not weight_tolerance >= 0.0:
        raise ValueError(
            f"weight_tolerance must be a standard deviation of at least 0, got {weight_tolerance!r}. Weights lie in "
            "[0, 1]; 0 draws num_rationales for every prompt."
        )
    _check_at_least_1("num_rationales", num_rationales, "the most rationales to draw for a prompt")
    n = np.asarray(num_sampled, dtype=np.float64)
    settled = (np.asarray(deviation, dtype=np.float64) <= weight_tolerance) & (weight_tolerance > 0.0)
    return (n < 1.0) | (~settled & (n < num_rationales))


def fit_beta_binomial(
    num_sampled: ArrayLike,
    num_correct: ArrayLike,
    *,
    multiplicity: ArrayLike | None = None,
    start: tuple[float, float] = JEFFREYS,
) -> tuple[float, float]:
    r"""Maximum-likelihood Beta distribution of success rates that counts come from.

    $$\max_{\alpha, \beta} \sum_i \log \frac{B(\alpha + c_i, \beta + n_i - c_i)}{B(\alpha, \beta)}$$

    by L-BFGS on \(\log\alpha\), \(\log\beta\) with the gradient in digammas. Equal counts are one term.

    Args:
        num_sampled: Samples of each prompt, n >= 0, shape (P,) or a scalar. Real numbers are fine.
        num_correct: Correct ones, 0 <= c <= n, shape (P,).
        multiplicity: How often each pair of counts is there, shape (P,); 1, unless given.
        start: Where the search starts.

    Returns:
        \(\alpha\) and \(\beta\), between e^-12 and e^14: counts that are all 0 or all n have no maximum and end at
        those bounds.

    Raises:
        ValueError: Impossible counts, or none.

    Examples:
        ```python
        >>> import numpy as np
        >>> from dco_trl.success import fit_beta_binomial
        >>> rng = np.random.default_rng(0)
        >>> alpha, beta = fit_beta_binomial(64, rng.binomial(64, rng.beta(0.3, 2.0, size=20_000)))
        >>> round(alpha, 1), round(beta, 1)
        (0.3, 2.0)

        ```

    References:
        Griffiths, "Maximum Likelihood Estimation for the Beta-Binomial Distribution", Biometrics 29 (1973).

    Relations:
        [`fit_prior`][dco_trl.success.fit_prior] is the same with a pull to Jeffreys' prior that few counts cannot
        overcome: prefer it for weights. `dco_trl.evaluation.extrapolate_pass_at_k` uses this one.
    """
    return _fit(*_fit_arguments(num_sampled, num_correct, multiplicity), start, _LOG_BOUNDS, spread=math.inf)


def fit_prior(
    num_sampled: ArrayLike, num_correct: ArrayLike, *, multiplicity: ArrayLike | None = None
) -> tuple[float, float]:
    r"""Beta prior of a data set's success rates, from its own counts (empirical Bayes).

    The beta-binomial likelihood, with a \(\mathrm{Normal}(\log\frac12, 1.5^2)\) on each of \(\log a\) and \(\log b\):

    $$\max_{a, b}\ \sum_i \log \frac{B(a + c_i, b + n_i - c_i)}{B(a, b)}
      - \frac{(\log 2a)^2 + (\log 2b)^2}{2 \cdot 1.5^2}$$

    Without counts it is Jeffreys' prior, Beta(1/2, 1/2), and the counts move it as far as they say anything: a term of
    fixed size stands against one that grows with the prompts, so that no threshold has to say when they are enough.
    With some 50 prompts of 8 samples it is the maximum-likelihood fit for all purposes. It has a maximum where
    likelihood alone has none: one sample a prompt (which says nothing about the spread of the rates), counts that are
    all 0, counts that are all n.

    Args:
        num_sampled: Rationales drawn for each prompt, n >= 0, shape (P,) or a scalar. Real numbers are fine. Prompts
            without samples count for nothing.
        num_correct: Those that led to the answer, 0 <= c <= n, shape (P,).
        multiplicity: How much each pair of counts is to count, shape (P,); 1, unless given.

    Returns:
        a and b, each between 0.01 and 1000.

    Raises:
        ValueError: Impossible counts, or none.

    Examples:
        ```python
        >>> from dco_trl.success import fit_prior
        >>> fit_prior(num_sampled=[0, 0], num_correct=[0, 0])
        (0.5, 0.5)
        >>> [round(x, 2) for x in fit_prior(num_sampled=8, num_correct=[0] * 1000)]
        [0.01, 35.36]

        ```

    References:
        Casella, "An Introduction to Empirical Bayes Data Analysis", The American Statistician 39 (1985).

    Relations:
        [`fit_beta_binomial`][dco_trl.success.fit_beta_binomial] is likelihood alone.
    """
    n, c, times = _fit_arguments(num_sampled, num_correct, multiplicity)
    if not n.any():
        return JEFFREYS
    return _fit(n, c, times, JEFFREYS, _LOG_PRIOR_BOUNDS, _LOG_PRIOR_SPREAD)


class SuccessCounts:
    r"""The counts (n, c) of every prompt of a data set, and the prior fitted to them.

    Counts of a policy that has moved on are stale. Multiplying them by a factor \(\gamma < 1\) once a window gives a
    sample that is w windows old the weight \(\gamma^w\): exponential forgetting. Prompts that were settled become
    uncertain again, and are sampled again.

    The discounted counts make the posterior, and would make a wrong prior: a share of samples with weights \(w_j\) has
    the noise of \(n^* = (\sum_j w_j)^2 / \sum_j w_j^2\) plain ones (Kish), which is more than their sum n, so that the
    rates of the data set would look more alike than they are. The prior is fitted to counts scaled to \(n^*\), each
    prompt counted \(n / n^*\) times, so that stale ones fade.

    Args:
        num_examples: Prompts in the data set; example ids are 0 ... num_examples - 1.

    Attributes:
        num_sampled: Rationales drawn, discounted by forgetting, float64, shape (num_examples,).
        num_correct: Those that led to the answer, discounted likewise, float64, shape (num_examples,).
        sum_squares: Sum of the squared discounts of the rationales, float64, shape (num_examples,).
        prior: Parameters (a, b) of the Beta prior; Jeffreys' until the first `refit`.

    Raises:
        ValueError: `num_examples` is no integer of at least 1.

    Examples:
        ```python
        >>> from dco_trl.success import SuccessCounts
        >>> counts = SuccessCounts(num_examples=3)
        >>> counts.add([0, 1], num_sampled=8, num_correct=[0, 5])
        >>> counts.refit()
        >>> weight, deviation = counts.weights([0, 1, 2], num_attempts=16)
        >>> bool(weight[0] > weight[2] > weight[1])  # failed, never sampled, often right
        True

        ```

    Relations:
        [`posterior_weight`][dco_trl.success.posterior_weight] and [`fit_prior`][dco_trl.success.fit_prior] are what
        it calls; [`needs_sampling`][dco_trl.success.needs_sampling] takes its deviations.
    """

    def __init__(self, num_examples: int) -> None:
        _check_at_least_1("num_examples", num_examples, "the number of prompts in the data set")
        self.num_sampled = np.zeros(num_examples)
        self.num_correct = np.zeros(num_examples)
        self.sum_squares = np.zeros(num_examples)
        self.prior: tuple[float, float] = JEFFREYS

    def add(self, example_ids: ArrayLike, num_sampled: ArrayLike, num_correct: ArrayLike) -> None:
        """Add new samples to the counts. An id that comes twice is added twice.

        Args:
            example_ids: Prompts sampled, integers, shape (K,).
            num_sampled: Rationales drawn for each, shape (K,) or a scalar.
            num_correct: Those that led to the answer, shape (K,) or a scalar.

        Raises:
            ValueError: Impossible counts, or ids outside of the data set.
        """
        ids = self._check_ids(example_ids)
        n, c = _check_counts(num_sampled, num_correct)
        if n.size not in (1, ids.size):
            raise ValueError(
                f"num_sampled and num_correct have {n.size} entries for {ids.size} example_ids. Give one for each, or "
                "one for all."
            )
        np.add.at(self.num_sampled, ids, n.ravel())
        np.add.at(self.num_correct, ids, c.ravel())
        np.add.at(self.sum_squares, ids, n.ravel())

    def forget(self, factor: float, example_ids: ArrayLike | None = None) -> None:
        """Multiply counts by `factor`, from 0 (forget everything) to 1 (the policy has not moved).

        Args:
            factor: What old samples are worth from now on.
            example_ids: Prompts, integers, each at most once; all of them, unless given.

        Raises:
            ValueError: `factor` is not between 0 and 1, or ids outside of the data set.
        """
        if not 0.0 <= factor <= 1.0:
            raise ValueError(
                f"factor must be between 0 (forget everything) and 1 (keep everything), got {factor!r}: it is what "
                "old counts are multiplied by."
            )
        ids = slice(None) if example_ids is None else self._check_ids(example_ids)
        self.num_sampled[ids] *= factor
        self.num_correct[ids] *= factor
        self.sum_squares[ids] *= factor**2

    def refit(self) -> None:
        """Fit the prior to the counts at hand."""
        known = self.sum_squares > 0
        if not known.any():
            self.prior = JEFFREYS
            return
        n, c, fading = self.num_sampled[known], self.num_correct[known], self.sum_squares[known]
        # n* = n (n / sum of squares); a sample that was never discounted has n* = n.
        noise = np.maximum(n / fading, 1.0)
        self.prior = fit_prior(n * noise, c * noise, multiplicity=1.0 / noise)

    def weights(
        self, example_ids: ArrayLike, num_attempts: int, estimator: str = "posterior"
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Weight of each prompt, and its posterior standard deviation.

        Args:
            example_ids: Prompts, integers, any shape.
            num_attempts: Number of attempts N, at least 1.
            estimator: "posterior", the mean over the posterior; or "plugin", the weight at c/n.

        Returns:
            Weights and standard deviations, float64, of the shape of `example_ids`. "plugin" has no posterior: its
            deviations are NaN.

        Raises:
            ValueError: Unknown estimator, ids outside of the data set, `num_attempts` is no integer of at least 1, or
                "plugin" for a prompt without samples.
        """
        if estimator not in ESTIMATORS:
            raise ValueError(f"estimator must be one of {', '.join(map(repr, ESTIMATORS))}, got {estimator!r}.")
        ids = self._check_ids(example_ids)
        n, c = self.num_sampled[ids], self.num_correct[ids]
        if estimator == "plugin":
            return plugin_weight(n, c, num_attempts), np.full(ids.shape, np.nan)
        return posterior_weight(n, c, num_attempts, self.prior)

    def state_dict(self) -> dict[str, Any]:
        """Counts and prior as numpy arrays, to be saved with a checkpoint (`numpy.savez`, no pickle needed)."""
        return {
            "num_sampled": self.num_sampled.copy(),
            "num_correct": self.num_correct.copy(),
            "sum_squares": self.sum_squares.copy(),
            "prior": np.array(self.prior),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on exactly where `state_dict` was taken.

        Raises:
            ValueError: An entry is missing, belongs to a data set of another size, or holds impossible values.
        """
        missing = [name for name in self.state_dict() if name not in state]
        if missing:
            raise ValueError(f"state has no {', '.join(missing)}: it is not what SuccessCounts.state_dict returns.")
        n, c = _check_counts(state["num_sampled"], state["num_correct"])
        if n.shape != self.num_sampled.shape:
            raise ValueError(
                f"state holds the counts of {n.size} prompts, the data set has {self.num_sampled.size}. Resume with "
                "the data set that the checkpoint was made with."
            )
        _, squares = _check_counts(n, state["sum_squares"], "sum_squares")
        self.prior = _check_prior(state["prior"])
        self.num_sampled, self.num_correct, self.sum_squares = n.copy(), c.copy(), squares.copy()

    def _check_ids(self, example_ids: ArrayLike) -> NDArray[np.int64]:
        ids = np.asarray(example_ids)
        if ids.size == 0:
            raise ValueError("example_ids is empty: there is no prompt to work on.")
        if ids.dtype.kind not in "iu":
            raise ValueError(f"example_ids must be integers, got an array of {ids.dtype}.")
        outside = (ids < 0) | (ids >= self.num_sampled.size)
        if outside.any():
            raise ValueError(
                f"example_ids has {ids[outside].flat[0]}, the data set has ids 0 to {self.num_sampled.size - 1}. Was "
                "the table made for another data set?"
            )
        return ids.astype(np.int64)


def _weight(log_p: NDArray, log_q: NDArray, num_attempts: int) -> NDArray[np.float64]:
    """F(N, p) from log p and log(1 - p), as `dco_trl.coverage.coverage_weight` has it in torch."""
    if num_attempts == 1:
        return np.ones_like(log_p)
    with np.errstate(divide="ignore", invalid="ignore", under="ignore"):
        log_coverage = np.log(-np.expm1(num_attempts * log_q))
        log_weight = math.log(num_attempts) + log_p + (num_attempts - 1) * log_q - log_coverage
        # N p below rounding is p = 0, where both logarithms are -inf.
        return np.where(log_coverage < -700.0, 1.0, np.exp(np.minimum(log_weight, 0.0)))


def _moments(alpha: NDArray, beta: NDArray, num_attempts: int) -> tuple[NDArray, NDArray]:
    """E[F] and E[F^2] under Beta(alpha, beta), shape (posteriors,)."""
    k = max((num_attempts - 1) / 2, 1.0)
    log_norm = betaln(alpha, beta)

    def log_density(t: NDArray) -> NDArray:
        return alpha * -np.logaddexp(0.0, -t) + beta * -np.logaddexp(0.0, t) - log_norm

    # F = S to rounding at the left of `first` and at the right of `last`.
    first, last = -math.log(num_attempts) - 37.0, math.log(math.expm1(37.0 / k))
    num_nodes = math.ceil((last - first) / _STEP)
    mode = np.log(alpha / beta)
    floor = log_density(mode) - _NEGLIGIBLE
    left = _bisect(np.full_like(mode, first), np.maximum(mode, first), lambda t: log_density(t) < floor)
    right = _bisect(np.full_like(mode, last), np.minimum(mode, last), lambda t: log_density(t) < floor)

    step = np.maximum(right - left, 0.0) / num_nodes
    t = left[:, None] + step[:, None] * (np.arange(num_nodes) + 0.5)
    log_p, log_q = -np.logaddexp(0.0, -t), -np.logaddexp(0.0, t)
    mass = step[:, None] * np.exp(alpha[:, None] * log_p + beta[:, None] * log_q - log_norm[:, None])
    weight, control = _weight(log_p, log_q, num_attempts), np.exp(k * log_q)
    control_mean, control_second = (np.exp(betaln(alpha, beta + m * k) - log_norm) for m in (1, 2))
    mean = control_mean + (mass * (weight - control)).sum(axis=1)
    second = control_second + (mass * (weight**2 - control**2)).sum(axis=1)
    return mean, second


def _bisect(outside: NDArray, inside: NDArray, is_outside: Any) -> NDArray:
    """A point beyond which `is_outside` holds, or `outside` where it holds nowhere."""
    for _ in range(24):
        middle = (outside + inside) / 2
        far = is_outside(middle)
        outside, inside = np.where(far, middle, outside), np.where(far, inside, middle)
    return outside


def _fit_arguments(
    num_sampled: ArrayLike, num_correct: ArrayLike, multiplicity: ArrayLike | None
) -> tuple[NDArray, NDArray, NDArray]:
    """Distinct pairs of counts, and how often each is there."""
    n, c = _check_counts(num_sampled, num_correct)
    if multiplicity is None:
        times = np.ones(n.size)
    else:
        times = np.asarray(multiplicity, dtype=np.float64).ravel()
        if times.size != n.size or not (times >= 0).all() or not times.any():
            raise ValueError(
                f"multiplicity must have a number of at least 0 for each of the {n.size} pairs of counts, not all "
                f"of them 0, got {times.size} entries from {times.min(initial=0.0)} to {times.max(initial=0.0)}."
            )
    (n, c), kind = np.unique(np.stack([n.ravel(), c.ravel()]), axis=1, return_inverse=True)
    return n, c, np.bincount(kind.ravel(), weights=times)


def _fit(
    n: NDArray,
    c: NDArray,
    multiplicity: NDArray,
    start: tuple[float, float],
    log_bounds: tuple[float, float],
    spread: float,
) -> tuple[float, float]:
    """Maximum of the beta-binomial likelihood times a log-normal of that spread around Jeffreys' prior."""
    total = multiplicity.sum()
    centre = np.log(JEFFREYS)

    def objective(log_parameters: NDArray) -> tuple[float, NDArray]:
        a, b = np.exp(log_parameters)
        value = multiplicity @ (betaln(a + c, b + n - c) - betaln(a, b))
        both = digamma(a + b) - digamma(a + b + n)
        slope_a = multiplicity @ (digamma(a + c) - digamma(a) + both)
        slope_b = multiplicity @ (digamma(b + n - c) - digamma(b) + both)
        pull = (log_parameters - centre) / spread
        value -= pull @ pull / 2
        slope = np.array([a * slope_a, b * slope_b]) - pull / spread
        # For each prompt, so that the optimiser's tolerances do not depend on how many there are.
        return -value / total, -slope / total

    options = {"ftol": 1e-13, "gtol": 1e-9}
    fit = minimize(objective, np.log(start), jac=True, method="L-BFGS-B", bounds=[log_bounds] * 2, options=options)
    alpha, beta = np.exp(fit.x)
    return float(alpha), float(beta)


def _check_counts(
    num_sampled: ArrayLike, num_correct: ArrayLike, name_correct: str = "num_correct"
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Counts as two float arrays of one shape; raises where they are impossible."""
    arrays = []
    for name, value in (("num_sampled", num_sampled), (name_correct, num_correct)):
        array = np.asarray(value)
        if array.dtype.kind not in "iuf":
            hint = " An empty entry of a table is often the reason." if array.dtype.kind == "O" else ""
            raise ValueError(f"{name} must hold numbers, got an array of {array.dtype}.{hint}")
        array = array.astype(np.float64)
        if array.size == 0:
            raise ValueError(f"{name} is empty: there is no prompt to work on.")
        wrong = ~np.isfinite(array) | (array < 0)
        if wrong.any():
            raise ValueError(
                f"{name} must hold counts of at least 0, got {array[wrong].flat[0]} (entry "
                f"{np.flatnonzero(wrong)[0]}, counted from 0; {wrong.sum()} such entries). Was a prompt not graded?"
            )
        arrays.append(array)
    try:
        n, c = np.broadcast_arrays(*arrays)
    except ValueError:
        raise ValueError(
            f"num_sampled has shape {arrays[0].shape} and {name_correct} {arrays[1].shape}: they must be "
            "equal, or one a scalar."
        ) from None
    wrong = c > n
    if wrong.any():
        raise ValueError(
            f"{name_correct}={c[wrong].flat[0]:g} is more than num_sampled={n[wrong].flat[0]:g} (entry "
            f"{np.flatnonzero(wrong)[0]}, counted from 0; {wrong.sum()} such entries). Are the two swapped, or some "
            "samples graded twice?"
        )
    return n, c


def _check_prior(prior: Any) -> tuple[float, float]:
    values = np.asarray(prior, dtype=np.float64)
    if values.shape != (2,) or not np.isfinite(values).all() or not (values > 0).all():
        raise ValueError(
            f"prior must be two positive numbers (a, b) of a Beta distribution, got {prior!r}. Jeffreys' is "
            "(0.5, 0.5)."
        )
    return float(values[0]), float(values[1])


def _check_num_attempts(num_attempts: object) -> None:
    _check_at_least_1("num_attempts", num_attempts, "1 is plain cross-entropy")


def _check_at_least_1(name: str, value: object, note: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1 ({note}), got {value!r}.")
