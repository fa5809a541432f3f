"""maj@k against enumeration of all subsets, and against subsampling where there are too many."""

from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dco_trl.statistics.majority_vote import majority_at_k


def enumerate_votes(counts, correct, k, num_abstained=0):
    """The definition: mean over all k-subsets, ties shared evenly, abstentions without a vote."""
    samples = [i for i, count in enumerate(counts) for _ in range(count)] + [None] * num_abstained
    total, subsets = Fraction(0), list(combinations(samples, k))
    for subset in subsets:
        votes = [subset.count(i) for i in range(len(counts))]
        best = max(votes, default=0)
        if best:
            winners = [i for i, v in enumerate(votes) if v == best]
            total += Fraction(sum(bool(correct[i]) for i in winners), len(winners))
    return float(total / len(subsets))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=6), st.integers(0, 3))
def test_equals_enumeration_of_all_subsets(answers, num_abstained):
    counts, correct = [a for a, _ in answers], [b for _, b in answers]
    num_samples = sum(counts) + num_abstained
    assume(1 <= num_samples <= 11)
    k = np.arange(1, num_samples + 1)
    expected = [enumerate_votes(counts, correct, int(kk), num_abstained) for kk in k]
    np.testing.assert_allclose(majority_at_k(counts, correct, k, num_abstained), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("num_answers", [30, 300])
@pytest.mark.slow
def test_agrees_with_subsampling_of_4096_samples(num_answers):
    rng = np.random.default_rng(7)
    counts = rng.multinomial(4096, rng.dirichlet(np.full(num_answers, 0.3)))
    correct = np.zeros(num_answers, dtype=bool)
    correct[np.argsort(-counts)[[1, 9]]] = True
    k = [4, 32, 200]
    exact = majority_at_k(counts, correct, k)
    for kk, value in zip(k, exact, strict=True):
        draws = rng.multivariate_hypergeometric(counts, kk, size=20_000)
        tied = draws == draws.max(axis=1, keepdims=True)
        wins = (tied & correct).sum(axis=1) / tied.sum(axis=1)
        assert abs(wins.mean() - value) < 4 * wins.std() / np.sqrt(len(wins)) + 1e-9
    assert exact.max() > 0.05  # the comparison is not one of zeros


@pytest.mark.parametrize("k", [16, 256, 1024])
def test_some_answer_wins(k):
    rng = np.random.default_rng(1)
    counts = [1100, 500, *rng.multinomial(2496, rng.dirichlet(np.full(40, 0.3)))]
    # Each answer in turn is the correct one, with few votes and with many.
    shares = [majority_at_k(counts, np.arange(len(counts)) == i, k) for i in range(len(counts))]
    assert sum(shares) == pytest.approx(1.0, abs=1e-12)


def test_ends():
    counts, correct = [5, 3, 2], [False, True, True]
    assert majority_at_k(counts, correct, 1) == pytest.approx(0.5, abs=1e-14)
    assert majority_at_k(counts, correct, 10) == 0.0
    assert majority_at_k([4, 4], [True, False], 8) == 0.5
    assert majority_at_k([4, 4], [False, False], 3) == 0.0
    # An answer accepted in half of its samples wins like any other, and is then right half the time.
    assert majority_at_k([6, 1], [0.5, False], [1, 7]) == pytest.approx([3 / 7, 0.5])
    assert majority_at_k([7, 2], [True, True], 4) == pytest.approx(1.0, abs=1e-14)
    assert majority_at_k([1], [True], 1) == 1.0
    assert majority_at_k([], [], 2, num_abstained=3) == 0.0
    assert majority_at_k([2, 1], [True, False], 103, num_abstained=100) == 1.0  # a silent majority does not outvote
    assert majority_at_k([3, 0], [True, False], [[1, 2]]).shape == (1, 2)


def test_all_different_answers_tie():
    correct = np.arange(4096) < 100
    np.testing.assert_allclose(majority_at_k(np.ones(4096, int), correct, [1, 16, 256, 4000]), 100 / 4096, atol=1e-10)


def test_majority_of_a_million_samples():
    counts, correct = [400_000, 350_000, 250_000], [True, False, False]
    values = majority_at_k(counts, correct, [1, 10_000])
    assert values[0] == pytest.approx(0.4, abs=1e-14)
    assert values[1] > 0.999999


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([2, 1], [True], 1), r"two lists of one length.*got shapes \(2,\) and \(1,\)"),
        (([2, 1], [True, False], 4), r"k=4 is more than the 3 samples counted in answer_counts and .* Draw more"),
        (([2, -1], [True, False], 1), r"answer_counts must be whole numbers of at least 0, got -1"),
        (([2, 1], [1.5, 0], 1), r"answer_correct must be true or false, or shares in \[0, 1\], got \[1.5, 0\]"),
        (([2, 1], [True, False], 0), r"k must be whole numbers of at least 1, got 0"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        majority_at_k(*arguments)
