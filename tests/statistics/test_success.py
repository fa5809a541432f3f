"""Weights from counts, and a training run's counts, against mpmath, `dco_trl.coverage`, scipy and simulation."""

import re
from itertools import product

import mpmath
import numpy as np
import pytest
import torch
from scipy import stats

from dco_trl.coverage import coverage_weight
from dco_trl.statistics import fit_prior, plugin_weight, posterior_weight
from dco_trl.statistics.beta_binomial import JEFFREYS
from dco_trl.trainer.success_counts import SuccessCounts, needs_sampling


def exact_moments(alpha: float, beta: float, num_attempts: int) -> tuple[float, float]:
    """E[F] and the standard deviation of F, by mpmath's quadrature of the definition in t = log(p / (1 - p))."""
    with mpmath.workdps(30):
        a, b, n = mpmath.mpf(alpha), mpmath.mpf(beta), num_attempts
        log_norm = mpmath.log(mpmath.beta(a, b))

        def integrand(t, power):
            log_p, log_q = -mpmath.log1p(mpmath.exp(-t)), -mpmath.log1p(mpmath.exp(t))
            tiny = n * mpmath.exp(log_p) < mpmath.mpf(10) ** -25
            weight = 1 if tiny else n * mpmath.exp(log_p + (n - 1) * log_q) / -mpmath.expm1(n * log_q)
            return mpmath.exp(a * log_p + b * log_q - log_norm) * weight**power

        mode, spread = mpmath.log(a / b), mpmath.sqrt((a + b) / (a * b))
        low, high = -80 / a - 50, 80 / min(1, b + n - 1) + 60
        points = [mode + spread * k for k in (-12, -6, -3, 0, 3, 6, 12)]
        points += [-mpmath.log(n) + x for x in (-60, -20, -8, -4, -2, 0, 1, 2, 3, 4, 6)]
        points = [low, *sorted(x for x in points if low < x < high), high]
        first = mpmath.quad(lambda t: integrand(t, 1), points)
        second = mpmath.quad(lambda t: integrand(t, 2), points)
        return float(first), float(mpmath.sqrt(max(second - first**2, 0)))


# plugin_weight


@pytest.mark.parametrize("num_attempts", [1, 2, 3, 16, 256, 10**6])
def test_plugin_weight_is_the_weight_of_the_observed_rate(num_attempts):
    n = np.array([1, 2, 64, 64, 10**4, 10**4, 3])
    c = np.array([0, 1, 1, 63, 1, 10**4 - 1, 3])
    expected = coverage_weight(torch.log(torch.tensor(c / n)), num_attempts).numpy()
    np.testing.assert_allclose(plugin_weight(n, c, num_attempts), expected, rtol=1e-9, atol=1e-300)


# posterior_weight

CASES = [  # a, b, n, c, N: the corners of the range, singular and narrow densities, steep and flat weights
    (0.01, 0.01, 0, 0, 2),
    (0.01, 0.01, 0, 0, 10**6),
    (0.01, 1000.0, 0, 0, 256),
    (1000.0, 0.01, 0, 0, 256),
    (1000.0, 1000.0, 10**4, 5000, 3),
    (0.01, 0.01, 10**4, 0, 10**6),
    (0.01, 0.01, 10**4, 1, 10**4),
    (0.01, 0.01, 10**4, 10**4, 2),
    (0.3, 1.0, 64, 0, 256),
    (0.5, 0.5, 64, 1, 256),
    (0.2, 3.0, 8, 0, 64),
    (0.5, 0.5, 1, 1, 2),
    (5.0, 2.0, 10**4, 37, 300),
    (0.5, 0.5, 3.7, 0.21, 16),  # forgotten counts
]
RANDOM = np.random.default_rng(0)
for a, b, n, num_attempts in 10 ** RANDOM.uniform([-2, -2, 0, 0.31], [3, 3, 4, 6], size=(8, 4)):
    CASES.append((a, b, n, n * RANDOM.random(), round(num_attempts)))


@pytest.mark.parametrize(("a", "b", "n", "c", "num_attempts"), CASES)
@pytest.mark.slow
def test_posterior_weight_matches_mpmath(a, b, n, c, num_attempts):
    mean, deviation = posterior_weight(n, c, num_attempts, prior=(a, b))
    exact_mean, exact_deviation = exact_moments(a + c, b + n - c, num_attempts)
    assert mean == pytest.approx(exact_mean, abs=1e-8)
    assert deviation == pytest.approx(exact_deviation, abs=1e-6)


def test_posterior_weight_with_one_attempt_is_cross_entropy():
    mean, deviation = posterior_weight([0, 64], [0, 3], 1)
    assert mean.tolist() == [1.0, 1.0] and deviation.tolist() == [0.0, 0.0]


def test_posterior_weight_is_the_same_alone_and_among_others():
    rng = np.random.default_rng(0)
    n = rng.integers(0, 200, size=(50, 100))  # more kinds than one chunk holds
    c = rng.binomial(n, rng.random(n.shape))
    mean, deviation = posterior_weight(n, c, 64)
    assert mean.shape == deviation.shape == n.shape
    for i in [(0, 0), (3, 7), (49, 99)]:
        assert (mean[i], deviation[i]) == tuple(float(x) for x in posterior_weight(n[i], c[i], 64))


# needs_sampling


def test_sampling_stops_when_settled_or_at_the_most():
    deviation = np.array([0.3, 0.1, 0.05, 0.3, 0.05, np.nan, np.nan])
    n = np.array([8, 8, 8, 64, 0.9, 8, 64])
    needed = needs_sampling(deviation, n, weight_tolerance=0.1, num_rationales=64)
    assert needed.tolist() == [True, False, False, False, True, True, False]
    # Without a tolerance, everything is drawn.
    assert needs_sampling([0.0, 0.0], [8, 64], weight_tolerance=0, num_rationales=64).tolist() == [True, False]


# fits


def log_posterior(n, c, a, b):
    pull = stats.norm.logpdf(np.log([a, b]), np.log(0.5), 1.5).sum()
    return stats.betabinom.logpmf(c, n, a, b).sum() + pull


def test_fit_is_the_maximum_of_scipys_beta_binomial_for_mixed_counts():
    rng = np.random.default_rng(0)
    n = rng.choice([8, 16, 64], size=400)
    c = rng.binomial(n, rng.beta(0.4, 1.5, size=400))
    a, b = fit_prior(n, c)
    best = log_posterior(n, c, a, b)
    for factor_a, factor_b in product((0.9, 0.99, 1.0, 1.01, 1.1), repeat=2):
        assert log_posterior(n, c, a * factor_a, b * factor_b) <= best + 1e-6


def test_multiplicity_is_repetition():
    n, c, times = np.array([8, 8, 16]), np.array([0, 3, 16]), np.array([5, 2, 3])
    repeated = fit_prior(np.repeat(n, times), np.repeat(c, times))
    assert fit_prior(n, c, multiplicity=times) == pytest.approx(repeated, rel=1e-6)


def test_prior_is_jeffreys_without_counts_and_near_it_with_few():
    assert fit_prior([0, 0], [0, 0]) == JEFFREYS
    a, b = fit_prior([8], [2])
    assert 0.1 < a < 2.5 and 0.1 < b < 2.5
    assert fit_prior([0, 0, 8], [0, 0, 2]) == pytest.approx((a, b), rel=1e-4)  # unsampled prompts say nothing


@pytest.mark.parametrize("size", [1, 30, 100_000])
@pytest.mark.parametrize("n", [1, 8, 64])
def test_prior_is_stable_on_counts_that_are_all_0_or_all_n(n, size):
    a, b = fit_prior(n, np.zeros(size))
    assert fit_prior(n, np.full(size, n)) == pytest.approx((b, a), rel=1e-4)
    assert 0.01 <= a < 0.5 < b <= 1000
    weight, _ = posterior_weight(n, 0, 256, prior=(a, b))
    assert weight > (0.95 if size == 100_000 else 0.1)


# SuccessCounts


def test_counts_add_up_and_the_weights_are_those_of_the_functions():
    counts = SuccessCounts(5)
    counts.add([0, 1, 1, 4], 8, [0, 1, 2, 8])
    assert counts.num_sampled.tolist() == [8, 16, 0, 0, 8] and counts.num_correct.tolist() == [0, 3, 0, 0, 8]
    assert counts.prior == JEFFREYS
    counts.refit()
    assert counts.prior == pytest.approx(fit_prior([8, 16, 8], [0, 3, 8]))
    expected = posterior_weight([16, 0], [3, 0], 64, counts.prior)
    np.testing.assert_array_equal(counts.weights([1, 2], 64), expected)
    weight, deviation = counts.weights([[1], [4]], 64, estimator="plugin")
    np.testing.assert_array_equal(weight, plugin_weight([[16], [8]], [[3], [8]], 64))
    assert np.isnan(deviation).all() and deviation.shape == (2, 1)


def test_forgetting_discounts_all_or_some():
    counts = SuccessCounts(3)
    counts.add([0, 1, 2], 8, [0, 4, 8])
    settled = counts.weights([0, 1, 2], 64)[1]
    counts.forget(0.5)
    counts.forget(0.5, [1])
    assert counts.num_sampled.tolist() == [4, 2, 4] and counts.num_correct.tolist() == [0, 1, 4]
    assert (counts.weights([0, 1, 2], 64)[1] != settled).all()
    for _ in range(1200):  # forever, without a warning
        counts.forget(0.5)
        counts.weights([0, 1, 2], 256)
    counts.refit()
    assert counts.prior == JEFFREYS
    counts.forget(0.0)
    assert not counts.num_sampled.any()


def test_prior_of_forgotten_counts_keeps_the_spread_of_the_rates():
    """Eight windows of one policy: the discounted counts amount to 16 samples, and have the noise of 24."""
    rng = np.random.default_rng(0)
    rates = rng.beta(0.3, 2.0, size=5000)
    counts = SuccessCounts(rates.size)
    for _ in range(8):
        counts.forget(0.5)
        counts.add(np.arange(rates.size), 8, rng.binomial(8, rates))
    counts.refit()
    assert counts.prior == pytest.approx((0.3, 2.0), rel=0.15)
    naive = fit_prior(counts.num_sampled, counts.num_correct)  # what ignoring it would give
    assert naive[0] / 0.3 - 1 > 2 * (counts.prior[0] / 0.3 - 1) and naive[1] / 2 - 1 > 2 * (counts.prior[1] / 2 - 1)


def test_resuming_is_exact(tmp_path):
    def window(counts, rng):
        counts.forget(0.7)
        counts.add(np.arange(40), 8, rng.binomial(8, np.linspace(0, 1, 40)))
        counts.refit()

    whole, rng = SuccessCounts(40), np.random.default_rng(0)
    for _ in range(3):
        window(whole, rng)
    np.savez(tmp_path / "counts.npz", **whole.state_dict())
    resumed = SuccessCounts(40)
    resumed.load_state_dict(np.load(tmp_path / "counts.npz", allow_pickle=False))
    rng_again = np.random.default_rng()
    rng_again.bit_generator.state = rng.bit_generator.state
    window(whole, rng)
    window(resumed, rng_again)
    assert resumed.prior == whole.prior
    np.testing.assert_array_equal(resumed.weights(np.arange(40), 64), whole.weights(np.arange(40), 64))


def test_the_posterior_has_less_error_and_bias_than_the_plugin():
    rng = np.random.default_rng(0)
    rates = rng.beta(0.2, 3.0, size=5000)
    correct = rng.binomial(64, rates)
    truth = plugin_weight(np.ones_like(rates), rates, 256)
    weight, deviation = posterior_weight(64, correct, 256, fit_prior(64, correct))
    plugin, posterior = plugin_weight(64, correct, 256) - truth, weight - truth
    assert abs(posterior.mean()) < 0.01 < 0.06 < plugin.mean()
    assert (posterior**2).mean() < 0.8 * (plugin**2).mean()
    # Its own standard deviation predicts the error.
    assert (posterior**2).mean() == pytest.approx((deviation**2).mean(), rel=0.15)


# bad input


@pytest.mark.parametrize("function", [plugin_weight, posterior_weight])
@pytest.mark.parametrize(
    ("n", "c", "attempts", "message"),
    [
        (8, 9, 4, "num_correct=9 is more than num_sampled=8 (entry 0, counted from 0; 1 such entries)"),
        ([8, -1], 0, 4, "num_sampled must hold counts of at least 0, got -1.0 (entry 1"),
        (8, [1, float("nan")], 4, "num_correct must hold counts of at least 0, got nan (entry 1"),
        (float("inf"), 1, 4, "num_sampled must hold counts of at least 0, got inf"),
        ([], [], 4, "num_sampled is empty: there is no prompt whose samples were counted"),
        (8, ["a"], 4, "num_correct must hold numbers, got an array of <U1"),
        ([8, None], 1, 4, "An empty entry of a table is often the reason"),
        ([8, 8], [1, 1, 1], 4, "num_sampled has shape (2,) and num_correct (3,)"),
        (8, 1, 0, "`num_attempts` must be an integer of at least 1 (1 is plain cross-entropy), got 0"),
        (8, 1, 2.5, "`num_attempts` must be an integer of at least 1 (1 is plain cross-entropy), got 2.5"),
        (8, 1, True, "got True"),
    ],
)
def test_bad_counts_are_refused(function, n, c, attempts, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        function(n, c, attempts)


@pytest.mark.parametrize("prior", [(0.0, 1.0), (1.0, float("nan")), (1.0,), (1.0, float("inf")), (-1.0, 1.0)])
def test_bad_priors_are_refused(prior):
    with pytest.raises(ValueError, match=r"prior must be two positive numbers \(a, b\).*Jeffreys' is \(0.5, 0.5\)"):
        posterior_weight(8, 1, 4, prior)


@pytest.mark.parametrize("times", [[1], [0, 0], [1, -1], [1, float("nan")]])
def test_bad_multiplicities_are_refused(times):
    with pytest.raises(ValueError, match="multiplicity must have a number of at least 0 for each of the 2 pairs"):
        fit_prior([8, 8], [0, 1], multiplicity=times)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda counts: plugin_weight([0, 8], 0, 4),
            "num_sampled is 0 for 1 of 2 prompts: no rate can be observed there. Sample them first, or use "
            "estimator='posterior'",
        ),
        (lambda counts: counts.weights([1], 4, estimator="plugin"), "num_sampled is 0 for 1 of 1 prompts"),
        (
            lambda counts: counts.load_state_dict(SuccessCounts(4).state_dict()),
            "state holds the counts of 4 prompts, the data set has 3",
        ),
    ],
)
def test_the_table_refuses(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call(SuccessCounts(3))
