"""The share of problems never solved, against scipy's binomial."""

import numpy as np
import pytest
from scipy import stats

from dco_trl.statistics import never_solved, pass_at_k


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
        (lambda: never_solved(4, []), "num_correct is empty: there is no problem to count"),
        (lambda: never_solved(4, [1], confidence=95), "confidence must lie between 0 and 1, got 95. Write 0.95 for"),
        (lambda: never_solved(4, [5]), "num_correct=5 is more than num_samples=4"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()
