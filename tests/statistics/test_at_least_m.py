"""`at_least_m_of_k` against counting subsets, and against the binomial tail that it estimates."""

from itertools import combinations
from math import comb

import numpy as np
import pytest

from dco_trl.statistics import at_least_m_of_k, pass_at_k


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_is_the_share_of_subsets(n):
    for c in range(n + 1):
        graded = [True] * c + [False] * (n - c)
        for k in range(1, n + 1):
            for m in range(1, k + 1):
                share = np.mean([sum(subset) >= m for subset in combinations(graded, k)])
                assert at_least_m_of_k(n, c, k, m) == pytest.approx(share, abs=1e-12), (c, k, m)


@pytest.mark.parametrize("p", [0.0, 0.03, 0.5, 1.0])
def test_is_unbiased(p):
    n, c = 20, np.arange(21)
    chance = np.array([comb(n, i) * p**i * (1 - p) ** (n - i) for i in c])
    for k, m in [(1, 1), (4, 2), (16, 9), (20, 20)]:
        expected = sum(comb(k, j) * p**j * (1 - p) ** (k - j) for j in range(m, k + 1))
        assert chance @ at_least_m_of_k(n, c, k, m) == pytest.approx(expected, abs=1e-12), (k, m)


def test_one_is_pass_at_k_also_for_many_samples():
    n, ks = 100_000, np.array([1, 100, 10_000, 100_000])
    for c in (0, 1, 7, 500, 99_999, 100_000):
        np.testing.assert_allclose(at_least_m_of_k(n, c, ks, 1), pass_at_k(n, c, ks), rtol=1e-7, atol=1e-9)


def test_arguments_broadcast():
    table = at_least_m_of_k(np.array([8, 16])[:, None], np.array([4, 4])[:, None], [4, 8], [1, 5])
    assert table.shape == (2, 2) and table.dtype == np.float64
    assert table[0, 1] == 0.0


def test_what_cannot_be():
    with pytest.raises(ValueError, match="k=5 is more than the 4 samples of a problem: at least m of k needs k sampl"):
        at_least_m_of_k([8, 4], [1, 1], 5, 1)
    with pytest.raises(ValueError, match="num_required=3 is more than k=2: so many samples cannot be right"):
        at_least_m_of_k(4, 1, 2, [1, 3])
    with pytest.raises(ValueError, match="num_required"):
        at_least_m_of_k(4, 1, 2, 0)
