"""pass@k, and at least m of k, against counting subsets, exact integer binomials and mpmath."""

from fractions import Fraction
from itertools import combinations
from math import comb

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dco_trl.statistics import at_least_m_of_k, exact_pass_at_k, pass_at_k


@pytest.mark.parametrize("n", range(1, 9))
def test_equals_enumeration_of_all_subsets(n):
    for c in range(n + 1):
        for k in range(1, n + 1):
            right = np.array([sum(subset) for subset in combinations([1] * c + [0] * (n - c), k)])
            assert pass_at_k(n, c, k) == pytest.approx((right >= 1).mean(), rel=1e-14, abs=0)
            for m in range(1, k + 1):
                assert at_least_m_of_k(n, c, k, m) == pytest.approx((right >= m).mean(), abs=1e-12), (c, k, m)


def exact_fraction(n: int, c: int, k: int) -> float:
    """The definition, C(n-c, k) / C(n, k) with the common factors cancelled, rounded once at the end."""
    few, many = min(c, k), max(c, k)
    top, bottom = 1, 1
    for j in range(few):
        top, bottom = top * max(n - many - j, 0), bottom * (n - j)
    return float(1 - Fraction(top, bottom))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_equals_exact_binomials(data):
    n = data.draw(st.integers(1, 4096))
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    assert pass_at_k(n, c, k) == pytest.approx(exact_fraction(n, c, k), rel=1e-13, abs=0)


MILLION = [(0, 10), (1, 1), (1, 999_999), (3, 1000), (1000, 3), (7, 100_000), (500, 500), (100, 20_000), (999_999, 1),
           (1, 10**6), (6000, 3000)]  # fmt: skip


@pytest.mark.parametrize(("c", "k"), MILLION)
def test_stays_exact_at_a_million_samples(c, k):
    assert pass_at_k(10**6, c, k) == pytest.approx(exact_fraction(10**6, c, k), rel=1e-13, abs=0)


def test_a_million_samples_with_many_correct_and_large_k_is_certain():
    # No sum has more than 6324 terms; the failure probability is about e^-40.
    assert pass_at_k(10**6, [500_000, 6324], [500_000, 6324]).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("p", [0.0, 0.03, 0.5, 1.0])
def test_is_unbiased(p):
    n, c = 20, np.arange(21)
    chance = np.array([comb(n, i) * p**i * (1 - p) ** (n - i) for i in c])
    for k, m in [(1, 1), (4, 1), (4, 2), (16, 9), (20, 20)]:
        expected = sum(comb(k, j) * p**j * (1 - p) ** (k - j) for j in range(m, k + 1))
        assert chance @ at_least_m_of_k(n, c, k, m) == pytest.approx(expected, abs=1e-12), (k, m)
        if m == 1:
            assert chance @ pass_at_k(n, c, k) == pytest.approx(expected, abs=1e-14)


def test_at_least_one_is_pass_at_k_also_for_many_samples():
    n, ks = 100_000, np.array([1, 100, 10_000, 100_000])
    for c in (0, 1, 7, 500, 99_999, 100_000):
        np.testing.assert_allclose(at_least_m_of_k(n, c, ks, 1), pass_at_k(n, c, ks), rtol=1e-7, atol=1e-9)


def test_broadcasts_and_accepts_whole_floats():
    n, c, k = np.array([8, 4, 16]), np.array([1.0, 2.0, 0.0]), [1, 2, 4]
    values = pass_at_k(n[:, None], c[:, None], k)
    assert values.shape == (3, 3) and values.dtype == np.float64
    assert all(values[i, j] == pass_at_k(int(n[i]), int(c[i]), k[j]) for i in range(3) for j in range(3))
    assert pass_at_k([], [], 1).shape == (0,) and np.ndim(pass_at_k(5, 2, 3)) == 0
    table = at_least_m_of_k(n[:, None], c[:, None], [2, 4], [1, 3])
    assert table.shape == (3, 2) and table[1, 1] == 0.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: pass_at_k([8, 4, 2], [1, 2, 2], 8),
            r"k=8 is more than num_samples=4 \(entry 1, counted from 0; 2 such entries\).* least k samples: draw more",
        ),
        (lambda: pass_at_k([[8], [4]], [[1], [2]], [1, 8]), r"num_samples=4 \(entry \(1, 1\), counted from 0; 1 such"),
        (lambda: pass_at_k(8, 9, 1), r"num_correct=9 is more than num_samples=8 \(entry 0.* swapped, or some samples"),
        (lambda: pass_at_k([8, 8], [1, 1, 1], 1), r"num_samples has shape \(2,\) and num_correct \(3,\): they must"),
        (lambda: pass_at_k(8, -1, 1), r"num_correct must be whole numbers of at least 0, got -1"),
        (lambda: pass_at_k(0, 0, 1), r"num_samples must be whole numbers of at least 1, got 0"),
        (lambda: pass_at_k(8, 1, 0), r"k must be whole numbers of at least 1, got 0"),
        (lambda: pass_at_k(8, 1.5, 1), r"num_correct must be whole numbers \(counts\), got \[1.5\]"),
        (lambda: pass_at_k(8, float("nan"), 1), r"num_correct must be whole numbers"),
        (lambda: pass_at_k(8, [True], 1), r"num_correct must be whole numbers.*bool"),
        (lambda: pass_at_k(float("inf"), 1, 1), r"num_samples must be whole numbers"),
        (lambda: pass_at_k(8, 1, "4"), r"k must be whole numbers"),
        (lambda: at_least_m_of_k([8, 4], [1, 1], 5, 1), "k=5 is more than num_samples=4"),
        (lambda: at_least_m_of_k(4, 1, 2, [1, 3]), "num_required=3 is more than k=2: .* Ask for fewer"),
        (lambda: at_least_m_of_k(4, 1, 2, 0), "num_required must be whole numbers of at least 1, got 0"),
        (lambda: exact_pass_at_k([-1.0, float("nan")], 1), r"log_p holds 1 NaN of 2 values. Look at the model's loss"),
        (
            lambda: exact_pass_at_k([0.3], 1),
            r"log_p must be a log-probability, at most 0, got 0.3.*Pass natural log-probabilities, not probabilities",
        ),
        (lambda: exact_pass_at_k([-1.0], 0), r"k must be whole numbers of at least 1, got 0"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@settings(max_examples=200, deadline=None)
@given(st.floats(-740, -1e-16), st.integers(1, 10**9))
@pytest.mark.slow
def test_exact_pass_at_k_agrees_with_mpmath(log_p, k):
    with mpmath.workdps(700):
        expected = float(-mpmath.expm1(k * mpmath.log(-mpmath.expm1(mpmath.mpf(log_p)))))
    assert exact_pass_at_k(log_p, k) == pytest.approx(expected, rel=1e-12, abs=1e-310)


def test_exact_pass_at_k_at_the_ends():
    assert exact_pass_at_k(0.0, 1) == 1.0
    assert exact_pass_at_k(1e-7, 5) == 1.0  # the rounding error of a sum of log-probabilities
    assert exact_pass_at_k(-np.inf, 10**9) == 0.0
    # p = e^-720 is subnormal, but the coverage of a billion attempts is not.
    assert exact_pass_at_k(-720.0, 10**9) == pytest.approx(np.exp(-720.0 + np.log(1e9)), rel=1e-12)
    assert exact_pass_at_k(-1e5, 10**9) == 0.0
    assert exact_pass_at_k([[-1.0], [-2.0]], [1, 2, 3]).shape == (2, 3)
    assert exact_pass_at_k([], 4).shape == (0,)
