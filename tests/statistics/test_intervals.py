"""Intervals over problems: against scipy where it has the same method, and by their simulated coverage."""

import numpy as np
import pytest
from lengths import NUM_TRIALS
from scipy import stats
from scipy.special import betaln

from dco_trl.statistics import default_ks, mean_curve, paired_difference, pass_at_k, pass_at_k_curve
from dco_trl.statistics.intervals import difference_of_means


def beta_counts(rng, a, b, num_problems, num_samples):
    return rng.binomial(num_samples, rng.beta(a, b, size=num_problems))


def beta_pass_at_k(a, b, k):
    """Mean of 1-(1-p)^k over p ~ Beta(a, b)."""
    return -np.expm1(betaln(a, b + np.asarray(k)) - betaln(a, b))


def as_run(num_samples, num_correct):
    return {f"p{i}": (num_samples, int(c)) for i, c in enumerate(num_correct)}


def test_estimate_is_the_mean_over_problems():
    n, c = np.array([8, 16, 32]), np.array([0, 4, 32])
    curve = pass_at_k_curve(n, c, [1, 2, 8])
    np.testing.assert_allclose(curve.estimate, pass_at_k(n[:, None], c[:, None], [1, 2, 8]).mean(axis=0), rtol=1e-15)
    assert curve.k.tolist() == [1, 2, 8] and curve.num_problems == 3 and curve.confidence == 0.95
    assert pass_at_k_curve(n, c).k.tolist() == [1, 2, 4, 8]


def test_default_ks_end_at_the_number_of_samples():
    assert [default_ks(n).tolist() for n in (1, 4, 5, 12)] == [[1], [1, 2, 4], [1, 2, 4, 5], [1, 2, 4, 8, 12]]


def test_bootstrap_agrees_with_scipys_bca():
    rng = np.random.default_rng(3)
    counts = beta_counts(rng, 0.2, 3, 120, 64)
    k = [1, 8, 64]
    values = pass_at_k(64, counts[:, None], k)
    curve = mean_curve(values, k, num_resamples=20_000)
    for j in range(len(k)):
        other = stats.bootstrap((values[:, j],), np.mean, n_resamples=20_000, method="BCa", rng=rng)
        low, high = other.confidence_interval
        assert [curve.low[j], curve.high[j]] == pytest.approx([low, high], abs=0.03 * (high - low))


def test_same_seed_same_interval_and_every_seed_its_own(monkeypatch):
    values = pass_at_k(16, beta_counts(np.random.default_rng(0), 0.3, 1, 50, 16)[:, None], [1, 4, 16])
    whole, other = (mean_curve(values, [1, 4, 16], seed=seed) for seed in (0, 1))
    assert (whole.low < whole.estimate).all() and (whole.estimate < whole.high).all()
    assert (whole.low != other.low).any()
    monkeypatch.setattr("dco_trl.statistics.intervals._PIECE", 1000)  # the same again, in pieces
    pieces = mean_curve(values, [1, 4, 16])
    np.testing.assert_allclose([pieces.low, pieces.high], [whole.low, whole.high], rtol=1e-12)


def test_problems_that_are_all_alike_get_the_distribution_free_bound():
    num = 100
    bound = 1 - 0.05 ** (1 / num)
    zero = pass_at_k_curve(8, [0] * num, 1)
    assert (zero.low[0], zero.estimate[0]) == (0.0, 0.0) and zero.high[0] == pytest.approx(bound)
    one = pass_at_k_curve(8, [8] * num, 8)
    assert (one.high[0], one.estimate[0]) == (1.0, 1.0) and one.low[0] == pytest.approx(1 - bound)
    half = pass_at_k_curve(8, [4] * num, 1)
    assert half.low[0] == pytest.approx(0.5 - bound / 2) and half.high[0] == pytest.approx(0.5 + bound / 2)
    same = paired_difference(as_run(8, [2] * num), as_run(8, [2] * num), 1)
    assert same.low[0] == pytest.approx(-bound) and same.high[0] == pytest.approx(bound)
    assert zero.reliable.all() and half.reliable.all()


def test_the_paired_interval_is_students():
    rng = np.random.default_rng(4)
    first, second = beta_counts(rng, 0.3, 1, 30, 64), beta_counts(rng, 0.3, 1, 30, 64)
    result = paired_difference(as_run(64, first), as_run(64, second), [1, 8], confidence=0.9)
    values = pass_at_k(64, second[:, None], [1, 8]) - pass_at_k(64, first[:, None], [1, 8])
    ends = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    np.testing.assert_allclose([result.low, result.high], ends, rtol=1e-10)


def test_one_problem_tells_next_to_nothing():
    curve = pass_at_k_curve(4, [2], [1, 4])
    assert (curve.high - curve.low > 0.9).all()
    pair = paired_difference(as_run(4, [2]), as_run(4, [1]), 1)
    assert pair.high[0] - pair.low[0] > 1.8


def test_reliable_is_false_near_the_ends_and_where_few_problems_make_the_difference():
    curves = [pass_at_k_curve(4, [0] * (100 - n) + [4] * n, 1) for n in (3, 50, 97)]
    assert [bool(curve.reliable[0]) for curve in curves] == [False, True, False]
    pairs = [paired_difference(as_run(4, [0] * 40), as_run(4, [4] * n + [0] * (40 - n)), 1) for n in (0, 5, 6, 40)]
    assert [bool(pair.reliable[0]) for pair in pairs] == [True, False, True, True]


def test_pairs_are_matched_by_id_and_runs_may_differ_in_samples():
    first = {"a": (8, 4), "b": (8, 0), "c": (8, 1)}
    second = {"c": (64, 8), "a": (64, 32), "b": (64, 32)}
    result = paired_difference(first, second, 1)
    assert result.difference[0] == pytest.approx(0.5 / 3)
    assert result.first[0] == pytest.approx(5 / 24) and result.second[0] == pytest.approx(72 / 192)
    assert result.num_problems == 3
    assert paired_difference(first, second).k.tolist() == [1, 2, 4, 8]
    assert paired_difference(second, first, 1).difference[0] == -result.difference[0]


def test_different_problems_are_listed():
    first, second = as_run(4, [1] * 20), {"p0": (4, 1), "extra": (4, 1)}
    with pytest.raises(ValueError) as error:
        paired_difference(first, second)
    message = str(error.value)
    assert "missing from first but in second: 1 ('extra')" in message
    assert "missing from second but in first: 19 ('p1', 'p2', 'p3'" in message and ", ...)" in message
    assert "'p15'" not in message and "keep the ids that both have" in message


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: default_ks(0), "`num_samples` must be an integer of at least 1, got 0"),
        (lambda: default_ks(2.5), "`num_samples` must be an integer of at least 1, got 2.5"),
        (lambda: pass_at_k_curve(4, []), "num_correct is empty: there is no problem to take the mean of"),
        (lambda: pass_at_k_curve([4, 2], [1, 1], 4), r"k=4 is more than num_samples=2 \(entry \(1, 0\), counted"),
        (lambda: pass_at_k_curve(4, [1, 2], k=[]), r"k is empty: there is no pass@k to compute. .* such as k=\[1\]"),
        (lambda: paired_difference({"a": (8, 1)}, {"a": (4, 1)}, []), "k is empty"),
        (lambda: mean_curve(np.ones((3, 0)), []), "k is empty"),
        (
            lambda: pass_at_k_curve(4, [1, 2], confidence=95),
            "between 0.5 and 0.999, got 95. Write 0.95 for 95 %; more than 0.999 needs more than a bootstrap",
        ),
        (lambda: mean_curve([[0.5]], [1], num_resamples=10), "num_resamples must be at least 100 for quantiles to"),
        (lambda: mean_curve([0.5], [1]), r"values must have shape \(problems, 1\).*got \(1,\)"),
        (lambda: mean_curve(np.zeros((0, 1)), [1]), "values has no row"),
        (lambda: mean_curve([[0.5], [np.nan]], [1]), r"values must lie in \[0, 1\] and not be NaN"),
        (lambda: mean_curve([[1.5]], [1]), r"values must lie in \[0, 1\]"),
        (lambda: paired_difference({}, {}), "first and second are empty"),
        (lambda: paired_difference({"a": (8, 1)}, {"a": (4, 1)}, 8), "second run: k=8 is more than num_samples=4"),
        (lambda: paired_difference({"a": (8, 9)}, {"a": (8, 1)}), "first run: num_correct=9 is more than"),
        (lambda: paired_difference({"a": (8, 1)}, {"a": (0, 0)}), "second run: num_samples must .* at least 1, got 0"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# Simulated coverage of the 95 % interval. (a, b, problems): rates ~ Beta(a, b), 64 samples, k such that the mean is at
# least five problems' worth away from 0 and 1. Trials are columns.


def covers(found, truth):
    return (found.low - 1e-12 <= truth) & (truth <= found.high + 1e-12)


@pytest.mark.parametrize(("a", "b", "k"), [(0.3, 1.0, [1, 8, 64]), (0.2, 3.0, [1, 8, 64]), (1.0, 1.0, [1, 8])])
@pytest.mark.parametrize("num_problems", [100, 300])
@pytest.mark.slow
def test_coverage_of_the_95_percent_interval(a, b, num_problems, k):
    rng = np.random.default_rng(11)
    counts = rng.binomial(64, rng.beta(a, b, size=(num_problems, NUM_TRIALS)))
    for each in k:
        values = pass_at_k(64, counts, each)
        found = mean_curve(values, np.arange(1, NUM_TRIALS + 1), num_resamples=600)
        assert 0.925 <= covers(found, beta_pass_at_k(a, b, each)).mean() <= 0.97


@pytest.mark.parametrize("num_problems", [20, 50, 100])
@pytest.mark.parametrize(
    "power", [pytest.param(1.0, id="equal"), pytest.param(0.95, id="slight"), pytest.param(0.4, id="much")]
)
@pytest.mark.parametrize(("a", "b"), [(0.3, 1.0), (0.2, 3.0)])
def test_coverage_of_the_paired_interval(a, b, power, num_problems):
    # The second run's rates are the first's, moved: p -> p^power, so the runs are correlated as real ones are.
    rng = np.random.default_rng(12)
    many = rng.beta(a, b, size=1_000_000)
    rates = rng.beta(a, b, size=(num_problems, NUM_TRIALS))
    counts = rng.binomial(64, rates), rng.binomial(64, rates**power)
    for k in (1, 8, 64):
        found = difference_of_means(*(pass_at_k(64, c, k) for c in counts), np.arange(NUM_TRIALS))
        covered = covers(found, ((1 - many) ** k - (1 - many**power) ** k).mean())
        if found.reliable.mean() > 0.1:  # of fewer it says little
            assert 0.925 <= covered[found.reliable].mean() <= (0.975 if found.reliable.mean() > 0.9 else 1), k


def test_where_the_interval_does_not_hold_it_says_so():
    rng = np.random.default_rng(13)
    counts = rng.binomial(64, rng.beta(3.0, 1.0, size=(100, 300)))
    found = mean_curve(pass_at_k(64, counts, 32), np.arange(1, 301), num_resamples=200)
    assert not found.reliable[found.estimate < 1].any()
    assert covers(found, beta_pass_at_k(3.0, 1.0, 32)).mean() < 0.5  # .9998: nearly all problems are solved
    # The runs differ on one problem in fifty; with 20 problems, most samples of problems show no difference.
    better = rng.random((20, 2000)) < 0.02
    pairs = difference_of_means(np.zeros(better.shape), better * 0.5, np.arange(2000))
    differ = better.any(axis=0)
    assert covers(pairs, 0.01)[differ].mean() > 0.9 and not pairs.reliable[differ].any()
    assert pairs.reliable[~differ].all() and covers(pairs, 0.01)[~differ].all()
