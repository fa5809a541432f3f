"""Histogram of success rates and the share never solved, against scipy's binomial."""

import numpy as np
import pytest
from scipy import stats

from dco_trl.evaluation.pass_at_k import pass_at_k
from dco_trl.evaluation.success_rates import never_solved, success_histogram


def test_a_rate_on_an_edge_falls_in_the_upper_bin():
    # In floating point 3/20 lies below linspace's 0.15.
    histogram = success_histogram(20, np.arange(21), num_bins=20)
    assert histogram.counts.tolist() == [1] * 19 + [2]
    assert histogram.edges[0] == 0.0 and histogram.edges[-1] == 1.0 and len(histogram.edges) == 21
    assert (histogram.num_never, histogram.num_always) == (1, 1)


def test_histogram_agrees_with_numpy_away_from_edges():
    rng = np.random.default_rng(0)
    correct = rng.integers(0, 102, size=400)
    histogram = success_histogram(101, correct, num_bins=7)
    np.testing.assert_array_equal(histogram.counts, np.histogram(correct / 101, bins=7, range=(0, 1))[0])
    assert success_histogram([], []).counts.sum() == 0


def test_never_solved_agrees_with_scipy():
    correct = np.array([0] * 30 + [5] * 70)
    result = never_solved(64, correct)
    interval = stats.binomtest(30, 100).proportion_ci(0.95, method="exact")
    assert (result.count, result.share, result.min_samples, result.max_samples) == (30, 0.3, 64, 64)
    assert result.low == pytest.approx(interval.low) and result.high == pytest.approx(interval.high)
    # At the bound, 64 failures have a probability of 5 %, and it is near the rule of three.
    assert stats.binom.pmf(0, 64, result.rate_bound) == pytest.approx(0.05)
    assert result.rate_bound == pytest.approx(3 / 64, rel=0.03)
    assert result.share == pytest.approx(1 - pass_at_k(64, correct, 64).mean())


def test_never_solved_at_the_ends():
    nothing = never_solved([10, 20], [0, 0])
    assert (nothing.share, nothing.high, nothing.min_samples, nothing.max_samples) == (1.0, 1.0, 10, 20)
    assert nothing.low == pytest.approx(stats.binomtest(2, 2).proportion_ci(0.95, method="exact").low)
    assert nothing.rate_bound == pytest.approx(1 - 0.05 ** (1 / 10))
    everything = never_solved(10, [3, 4])
    assert (everything.count, everything.low, everything.min_samples) == (0, 0.0, 0)
    assert np.isnan(everything.rate_bound)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: never_solved(4, []), "num_correct is empty"),
        (lambda: never_solved(4, [1], confidence=95), "confidence must be between 0 and 1, got 95"),
        (lambda: never_solved(4, [5]), "num_correct=5 is more than num_samples=4"),
        (lambda: success_histogram(4, [1], num_bins=0), "num_bins must be at least 1, got 0"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()
