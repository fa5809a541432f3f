"""`dco_trl.theory` against the optimality conditions, mpmath and counting."""

import math

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dco_trl.theory import confidence_bounds, optimal_policy, value_of_offer, win_probability

ATTEMPTS = [1, 2, 3, 5, 16, 64, 256, 4096, 10**6]


distributions = (
    st.lists(st.one_of(st.just(0.0), st.floats(1e-12, 1.0)), min_size=1, max_size=12)
    .filter(lambda weights: sum(weights) > 0)
    .map(lambda weights: np.array(weights) / sum(weights))
)
attempts = st.one_of(st.sampled_from(ATTEMPTS), st.integers(1, 10**6))


# win_probability


@pytest.mark.parametrize("num_attempts", ATTEMPTS)
@pytest.mark.parametrize("q", [0.0, 1.0, 5e-324, 1e-200, 1e-17, 1e-9, 1e-6, 0.01, 0.5, 1 - 1e-16])
def test_win_probability_matches_mpmath(q, num_attempts):
    with mpmath.workdps(400):
        exact = float(1 - (1 - mpmath.mpf(q)) ** num_attempts)
    assert win_probability(q, num_attempts) == pytest.approx(exact, rel=1e-12, abs=0)


def test_win_probability_broadcasts():
    table = win_probability([[0.1], [0.5]], [1, 2, 16])
    assert table.shape == (2, 3)
    assert table[1, 1] == 0.75
    assert win_probability([], 3).shape == (0,)


# value_of_offer


def test_value_of_offer_of_the_analogy():
    # By hand: .4 (.5 - .2) + .2 (.05 - .1) = .11; unchanged horses may be left out.
    assert value_of_offer([0.4, 0.2], [0.2, 0.1], [0.5, 0.05], 1) == pytest.approx(0.11)
    assert value_of_offer([0.4, 0.2, 0.4], [0.2, 0.1, 0.3], [0.5, 0.05, 0.3], 1) == pytest.approx(0.11)
    values = value_of_offer([0.4, 0.2], [0.2, 0.1], [0.5, 0.05], np.array([[1, 16], [256, 10**6]]))
    assert values.shape == (2, 2)
    assert values[0, 0] > 0 > values[0, 1]
    assert values[1, 1] == 0  # a million copies lose nothing


# optimal_policy


@settings(deadline=None, max_examples=300)
@given(p=distributions, num_attempts=attempts)
@pytest.mark.slow
def test_optimality_conditions(p, num_attempts):
    """The problem is concave, so these conditions are sufficient."""
    q = optimal_policy(p, num_attempts)
    assert q.dtype == np.float64 and q.shape == p.shape
    assert (q >= 0).all()
    assert q.sum() == pytest.approx(1, abs=1e-12)
    assert (q[p == 0] == 0).all()
    # Stationarity, in logs: the gain of one more bet, p_i (1 - q_i)^(N-1), is equal wherever there is a bet, and no
    # larger elsewhere. The rounding error of 1 - q is multiplied by N - 1.
    bet = q > 0
    if bet.sum() > 1:
        gain = np.log(p[bet]) + (num_attempts - 1) * np.log1p(-q[bet])
        slack = 1e-9 + num_attempts * 1e-14 / (1 - q.max())
        assert np.ptp(gain) <= slack
        assert (p[~bet] <= math.exp(gain.max() + slack)).all()
    else:
        assert num_attempts == 1 or np.count_nonzero(p) == 1
        assert p[bet] == p.max()


@settings(deadline=None, max_examples=200)
@given(p=distributions, num_attempts=attempts)
@pytest.mark.slow
def test_policy_follows_the_order_of_the_horses_and_flattens_with_attempts(p, num_attempts):
    q = optimal_policy(p, num_attempts)
    assert (np.diff(q[np.argsort(p, kind="stable")]) >= -1e-15).all()
    np.testing.assert_array_equal(optimal_policy(p[::-1], num_attempts)[np.argsort(p[::-1])], q[np.argsort(p)])
    more = optimal_policy(p, num_attempts + 1)
    assert more.max() <= q.max() + 1e-12
    assert np.count_nonzero(more) >= np.count_nonzero(q)


def test_one_attempt_is_all_on_the_likeliest():
    assert optimal_policy([0.2, 0.5, 0.3], 1).tolist() == [0, 1, 0]
    assert optimal_policy([0.4, 0.4, 0.2], 1).tolist() == [0.5, 0.5, 0]
    assert optimal_policy([0.4, 0.4 - 1e-9, 0.2 + 1e-9], 1).tolist() == [1, 0, 0]


def test_many_attempts_are_uniform_on_the_horses_that_can_win():
    q = optimal_policy([0.9, 0.0, 0.09, 0.01], 10**6)
    np.testing.assert_allclose(q, [1 / 3, 0, 1 / 3, 1 / 3], atol=1e-5)
    assert q[1] == 0
    np.testing.assert_allclose(optimal_policy([0.9, 0.1], 10**18), [0.5, 0.5], atol=1e-16)


@pytest.mark.parametrize("num_attempts", [2, 3, 256, 10**6, 10**9])
@pytest.mark.parametrize(
    "p", [[0.9, 0.1], [0.5, 0.3, 0.2], [0.9, 0.05, 0.05], [1 - 1e-9, 1e-9 - 1e-15, 1e-15], [0.5 + 1e-12, 0.5 - 1e-12]]
)
def test_optimal_policy_is_exact_to_rounding(p, num_attempts):
    with mpmath.workdps(80):
        exact_p = [mpmath.mpf(value) for value in p]
        a = mpmath.mpf(1) / (num_attempts - 1)
        for m in range(len(p), 0, -1):  # the formula, with the largest support that keeps every bet positive
            total = mpmath.fsum(value**-a for value in exact_p[:m])
            exact = [1 - (m - 1) * value**-a / total for value in exact_p[:m]]
            if exact[-1] > 0:
                break
        expected = [float(value) for value in exact] + [0.0] * (len(p) - m)
    np.testing.assert_allclose(optimal_policy(p, num_attempts), expected, rtol=1e-13, atol=1e-16)


def test_ties_zeros_and_extremes():
    q = optimal_policy([0.3, 0.2, 0.3, 0.2, 0.0], 5)
    assert q[0] == q[2] > q[1] == q[3] > q[4] == 0
    for num_attempts in ATTEMPTS:
        assert optimal_policy([1.0], num_attempts).tolist() == [1.0]
        assert optimal_policy([0.0, 1.0, 0.0], num_attempts).tolist() == [0.0, 1.0, 0.0]
        np.testing.assert_allclose(optimal_policy(np.full(7, 1 / 7), num_attempts), 1 / 7, rtol=1e-14)
        tiny = optimal_policy([1.0, 5e-324, 1e-300], num_attempts)
        assert np.isfinite(tiny).all() and tiny.sum() == pytest.approx(1)
    large = optimal_policy(np.full(100_000, 1e-5), 256)
    assert large.sum() == pytest.approx(1)


def test_takes_a_float32_softmax():
    logits = np.random.default_rng(4).normal(size=1000).astype(np.float32)
    p = np.exp(logits) / np.exp(logits).sum(dtype=np.float32)
    assert optimal_policy(p, np.int64(16)).dtype == np.float64


# confidence_bounds


@settings(deadline=None, max_examples=300)
@given(p=distributions.filter(lambda p: p.size > 1), num_attempts=attempts, data=st.data())
@pytest.mark.slow
def test_bounds_hold_the_optimum(p, num_attempts, data):
    k = data.draw(st.integers(2, p.size))
    lower, upper = confidence_bounds(p, num_attempts, k)
    top = optimal_policy(p, num_attempts).max()
    assert 0 <= lower <= top + 1e-12
    assert top - 1e-12 <= upper <= 1
    later_lower, later_upper = confidence_bounds(p, num_attempts + 1, k)
    assert later_lower <= lower + 1e-12 and later_upper <= upper + 1e-12


def test_bounds_match_their_formulas():
    p, n, k = np.array([0.1, 0.5, 0.15, 0.25]), 7, 3
    ordered = [0.5, 0.25, 0.15]
    lower, upper = confidence_bounds(p, n, k)
    assert lower == pytest.approx(1 - (0.25 / 0.5) ** (1 / 6), rel=1e-14)
    assert upper == pytest.approx(1 - 2 / sum((0.5 / value) ** (1 / 6) for value in ordered), rel=1e-14)


def test_upper_bound_is_the_optimum_at_the_size_of_the_support():
    rng = np.random.default_rng(5)
    for num_attempts in (2, 3, 10, 100, 10**6):
        p = rng.dirichlet(np.full(8, 10 ** rng.uniform(-1.0, 1.5)))  # from nearly uniform to nearly certain
        q = optimal_policy(p, num_attempts)
        _, upper = confidence_bounds(p, num_attempts, np.count_nonzero(q))
        assert upper == pytest.approx(q.max(), abs=1e-13)


def test_bounds_at_the_ends():
    assert confidence_bounds([1.0], 5) == (1.0, 1.0)
    assert confidence_bounds([0.6, 0.4], 1) == (1.0, 1.0)
    assert confidence_bounds([0.5, 0.5], 1) == (0.0, 0.5)
    assert confidence_bounds([0.4, 0.4, 0.2], 1, 3) == (0.0, 1.0)
    assert confidence_bounds([1.0, 0.0], 256) == (1.0, 1.0)
    assert confidence_bounds([0.5, 0.5, 0.0], 256, 3) == (0.0, 1.0)
    lower, upper = confidence_bounds([1.0, 5e-324], 2)  # the ratio overflows float64
    assert 0 < lower <= 1 and 0 < upper <= 1
    lower, upper = confidence_bounds([0.5, 0.3, 0.2], 10**6, 3)
    assert lower == pytest.approx(math.log(0.5 / 0.3) * 1e-6, rel=1e-5)
    assert upper == pytest.approx(1 / 3, abs=1e-6)


# errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: win_probability([0.5, 1.1], 2), r"`bet_probability` must hold probabilities in \[0, 1\], got 1.1"),
        (lambda: win_probability(-0.1, 2), "`bet_probability` must hold .*, got -0.1"),
        (lambda: win_probability(math.nan, 2), "`bet_probability` must hold .*, got nan"),
        (lambda: win_probability(0.5, [4, -3]), "num_attempts must be whole numbers of at least 1, got -3"),
        (lambda: win_probability(0.5, 1.5), r"num_attempts must be whole numbers \(counts\), got \[1.5\]"),
        (lambda: win_probability(0.5, True), r"num_attempts must be whole numbers .* of type bool"),
        (lambda: value_of_offer([0.5], [0.2, 0.1], [0.5], 2), "`before` must have one entry per horse.*got 2 "),
        (lambda: value_of_offer([0.5], [0.2], [0.5, 0.1], 2), "`after` must have one entry per horse"),
        (lambda: value_of_offer([0.5, 0.6], [0.2, 0.1], [0.5, 0.1], 2), "`p` must sum to at most 1 .* sum of 1.1"),
        (lambda: value_of_offer([0.5, 0.5], [0.2, 0.1], [0.9, 0.3], 2), "`after` must sum to at most 1 .* sum of 1.2"),
        (lambda: value_of_offer(0.5, 0.2, 0.5, 2), r"`p` must be a vector with one entry per horse, got shape \(\)"),
        (lambda: value_of_offer([0.5], [0.2], [0.5], 0), "num_attempts must be whole numbers of at least 1, got 0"),
        (lambda: optimal_policy([0.5, 0.4], 2), "`p` must sum to 1, got 0.9. Divide it by its sum"),
        (lambda: optimal_policy([1.5, -0.5], 2), "`p` must hold probabilities"),
        (lambda: optimal_policy([0.5, math.nan, 0.5], 2), "`p` must hold probabilities .* got nan"),
        (lambda: optimal_policy([], 2), r"`p` must be a vector with one entry per horse, got shape \(0,\)"),
        (lambda: optimal_policy([[0.5, 0.5]], 2), r"got shape \(1, 2\)"),
        (lambda: optimal_policy([0.0, 0.0], 2), "`p` must sum to 1, got 0"),
        (lambda: optimal_policy([0.5, 0.5], 2.0), "`num_attempts` must be an integer of at least 1, got 2.0"),
        (lambda: confidence_bounds([0.5, 0.4], 2), "`p` must sum to 1"),
        (lambda: confidence_bounds([0.5, 0.5], -1), "`num_attempts` must be an integer of at least 1, got -1"),
        (lambda: confidence_bounds([0.5, 0.5], 2, 3), "`num_compared` must be at most the number of horses, 2, got 3"),
        (lambda: confidence_bounds([0.5, 0.5], 2, 1), "`num_compared` must be an integer of at least 2, got 1"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
