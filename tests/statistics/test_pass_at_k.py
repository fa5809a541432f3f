"""pass@k against exhaustive enumeration, exact integer binomials and mpmath."""

from fractions import Fraction
from itertools import combinations
from math import comb

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dco_trl.statistics.pass_at_k import exact_pass_at_k, pass_at_k


def exact_fraction(n: int, c: int, k: int) -> float:
    """The defining formula in exact rational arithmetic, rounded once at the end."""
    return float(1 - Fraction(comb(n - c, k), comb(n, k)))


def test_equals_enumeration_of_all_subsets():
    for n in range(1, 9):
        for c in range(n + 1):
            samples = [i < c for i in range(n)]
            for k in range(1, n + 1):
                subsets = list(combinations(samples, k))
                share = sum(any(subset) for subset in subsets) / len(subsets)
                assert pass_at_k(n, c, k) == pytest.approx(share, rel=1e-14, abs=0)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_equals_exact_binomials(data):
    n = data.draw(st.integers(1, 4096))
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    assert pass_at_k(n, c, k) == pytest.approx(exact_fraction(n, c, k), rel=1e-13, abs=0)


@pytest.mark.parametrize(
    ("c", "k"),
    [
        (0, 10),
        (1, 1),
        (1, 999_999),
        (3, 1000),
        (1000, 3),
        (7, 100_000),
        (500, 500),
        (100, 20_000),
        (999_999, 1),
        (1, 10**6),
    ],
)
def test_stays_exact_at_a_million_samples(c, k):
    n = 10**6
    # C(n-c, k) / C(n, k) with the common factors cancelled, so that the integers stay printable.
    few, many = min(c, k), max(c, k)
    top, bottom = 1, 1
    for j in range(few):
        top, bottom = top * max(n - many - j, 0), bottom * (n - j)
    assert pass_at_k(n, c, k) == pytest.approx(float(1 - Fraction(top, bottom)), rel=1e-13, abs=0)


def test_a_million_samples_with_many_correct_and_large_k_is_certain():
    assert pass_at_k(10**6, 500_000, 500_000) == 1.0
    # 6324 terms, the most there can be; the failure probability is about e^-40.
    assert pass_at_k(10**6, 6324, 6324) == 1.0
    assert pass_at_k(10**6, 6000, 3000) == pytest.approx(exact_fraction(10**6, 6000, 3000), rel=1e-13)


def test_is_unbiased():
    n, p, k = 10, 0.3, 4
    weights = [comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    assert np.dot(weights, pass_at_k(n, np.arange(n + 1), k)) == pytest.approx(1 - (1 - p) ** k, rel=1e-14)


def test_known_values_at_the_ends():
    n = 16
    k = np.arange(1, n + 1)
    np.testing.assert_array_equal(pass_at_k(n, 0, k), np.zeros(n))
    np.testing.assert_array_equal(pass_at_k(n, n, k), np.ones(n))
    np.testing.assert_allclose(pass_at_k(n, np.arange(n + 1), 1), np.arange(n + 1) / n, rtol=1e-15)
    np.testing.assert_array_equal(pass_at_k(n, np.arange(n + 1), n), np.arange(n + 1) > 0)
    assert pass_at_k(1, 1, 1) == 1.0


def test_grows_with_k_and_with_the_number_correct():
    values = pass_at_k(64, np.arange(65)[:, None], np.arange(1, 65)[None, :])
    assert (np.diff(values, axis=0) >= 0).all() and (np.diff(values, axis=1) >= -1e-15).all()


def test_broadcasts_and_accepts_whole_floats():
    n, c, k = np.array([8, 4, 16]), np.array([1.0, 2.0, 0.0]), [1, 2, 4]
    values = pass_at_k(n[:, None], c[:, None], k)
    assert values.shape == (3, 3) and values.dtype == np.float64
    for i in range(3):
        for j in range(3):
            assert values[i, j] == pass_at_k(int(n[i]), int(c[i]), k[j])
    assert pass_at_k([], [], 1).shape == (0,)
    assert np.ndim(pass_at_k(5, 2, 3)) == 0


def test_refuses_k_beyond_the_samples_and_names_the_problem():
    with pytest.raises(
        ValueError, match=r"k=8 is more than num_samples=4 of problem 'b' \(and of 1 more\).*draw more"
    ):
        pass_at_k([8, 4, 2], [1, 2, 2], 8, problem_ids=["a", "b", "c"])
    # After broadcasting against several k it is still the second problem.
    with pytest.raises(ValueError, match=r"k=8 is more than num_samples=4 of problem 'b'\."):
        pass_at_k(np.array([[8], [4]]), np.array([[1], [2]]), [1, 8], problem_ids=["a", "b"])
    with pytest.raises(ValueError, match=r"of problem number 1 \(counted from 0\)"):
        pass_at_k([8, 4], [1, 2], 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((8, 9, 1), r"num_correct=9 is more than num_samples=8 for problem number 0.*swapped"),
        ((8, -1, 1), r"num_correct must be whole numbers of at least 0, got -1"),
        ((0, 0, 1), r"num_samples must be whole numbers of at least 1, got 0"),
        ((8, 1, 0), r"k must be whole numbers of at least 1, got 0"),
        ((8, 1.5, 1), r"num_correct must be whole numbers \(counts\), got \[1.5\]"),
        ((8, float("nan"), 1), r"num_correct must be whole numbers"),
        ((8, [True], 1), r"num_correct must be whole numbers.*bool"),
        ((float("inf"), 1, 1), r"num_samples must be whole numbers"),
        ((8, 1, "4"), r"k must be whole numbers"),
    ],
)
def test_refuses_impossible_counts(arguments, message):
    with pytest.raises(ValueError, match=message):
        pass_at_k(*arguments)


def test_refuses_a_wrong_number_of_names():
    with pytest.raises(ValueError, match="problem_ids has 1 names for 2 problems"):
        pass_at_k([8, 8], [1, 1], 1, problem_ids=["a"])


@settings(max_examples=200, deadline=None)
@given(st.floats(-740, -1e-16), st.integers(1, 10**9))
def test_exact_pass_at_k_agrees_with_mpmath(log_p, k):
    with mpmath.workdps(700):
        expected = float(-mpmath.expm1(k * mpmath.log(-mpmath.expm1(mpmath.mpf(log_p)))))
    assert exact_pass_at_k(log_p, k) == pytest.approx(expected, rel=1e-12, abs=1e-310)


def test_exact_pass_at_k_at_the_ends():
    assert exact_pass_at_k(0.0, 1) == 1.0
    assert exact_pass_at_k(1e-7, 5) == 1.0  # the rounding error of a sum of log-probabilities
    assert exact_pass_at_k(-np.inf, 10**9) == 0.0
    assert exact_pass_at_k(-1e-17, 1) == 1.0
    # p = e^-720 is subnormal; a billion attempts lift the coverage out of there.
    assert exact_pass_at_k(-720.0, 10**9) == pytest.approx(np.exp(-720.0 + np.log(1e9)), rel=1e-12)
    assert exact_pass_at_k(-1e5, 10**9) == 0.0
    assert exact_pass_at_k(np.log(1e-9), 1e9) == pytest.approx(1 - np.exp(-1), rel=1e-8)
    assert exact_pass_at_k([np.log(0.25)], 1)[0] == pytest.approx(0.25, rel=1e-15)
    assert exact_pass_at_k([[-1.0], [-2.0]], [1, 2, 3]).shape == (2, 3)
    assert exact_pass_at_k([], 4).shape == (0,)


def test_exact_pass_at_k_is_continuous_where_the_formula_changes():
    for edge in (-37.0, -np.log(2.0)):
        below, above = exact_pass_at_k([np.nextafter(edge, -100), np.nextafter(edge, 100)], 1000)
        assert above == pytest.approx(below, rel=1e-13)


@pytest.mark.parametrize(
    ("log_p", "k", "message"),
    [
        ([-1.0, float("nan")], 1, r"log_p holds 1 NaN of 2 values"),
        ([0.3], 1, r"log_p must be a log-probability, at most 0, got 0.3.*not probabilities"),
        ([-1.0], 0, r"k must be whole numbers of at least 1, got 0"),
        ([-1.0], 1.5, r"k must be whole numbers"),
    ],
)
def test_exact_pass_at_k_refuses(log_p, k, message):
    with pytest.raises(ValueError, match=message):
        exact_pass_at_k(log_p, k)
