"""Majority vote at k (maj@k) of one problem, exactly, from the counts of its distinct answers."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom

from ..checks import check_whole_numbers

# Winning counts, and rivals, of less than this probability are left out.
_NEGLIGIBLE = 1e-14
# Complex numbers held at a time.
_BATCH = 2**14


def majority_at_k(
    answer_counts: Sequence[int] | NDArray,
    answer_correct: Sequence[bool] | Sequence[float] | NDArray,
    k: ArrayLike,
    num_abstained: int = 0,
) -> NDArray[np.float64]:
    r"""Probability that the most frequent answer among k samples is correct.

    The k samples are a random subset of the n at hand, as for pass@k. The result is the exact mean over all
    \(\binom{n}{k}\) subsets, hence unbiased. Answers that tie for the most votes win with equal probability. Two
    different strings are two answers, even if both are correct. An answer that the grader accepted in only some of its
    samples is correct with that share, as if one of these samples, chosen at random, stood for it.

    Method: the counts in a random k-subset are independent \(X_j \sim \mathrm{Binomial}(c_j, k/n)\) given
    \(\sum_j X_j = k\). So, summed over the winning count m and the correct answers i,

    $$\mathrm{maj@}k = \frac{1}{P[\sum_j X_j = k]} \sum_{m, i} \int_0^1 [z^k]\; b_i(m) z^m
      \prod_{j \ne i} \Big(\sum_{r<m} b_j(r) z^r + u\, b_j(m) z^m\Big)\, du$$

    with \(b_j\) the binomial probabilities. The integral over u turns t tied rivals into the share 1/(t+1)
    (Gauss-Legendre, exact for polynomials), and the coefficient of \(z^k\) is a discrete Fourier sum. The absolute
    error is about 1e-13 at n = 4096 and 1e-11 at n = 1e6.

    Args:
        answer_counts: How often each distinct answer occurs, shape (A,), whole numbers.
        answer_correct: Whether that answer is correct, shape (A,), or the share of its samples that are, in [0, 1].
        k: Numbers of votes, whole numbers from 1 to n, any shape.
        num_abstained: Samples without an answer (nothing could be extracted). They count towards n and may be among
            the k, but cast no vote; if all k abstain, the vote is wrong.

    Returns:
        Probabilities in [0, 1], float64, of the shape of `k`.

    Raises:
        ValueError: k exceeds the samples, the two lists differ in length, or a share is not in [0, 1].

    Examples:
        >>> from dco_trl.statistics import majority_at_k
        >>> majority_at_k([5, 3, 2], [True, False, False], k=[1, 3, 10]).round(4).tolist()
        [0.5, 0.5833, 1.0]

    References:
        Wang et al., "Self-Consistency Improves Chain of Thought Reasoning", arXiv 2203.11171. Lewkowycz et al.,
        "Solving Quantitative Reasoning Problems with Language Models" (maj1@k), arXiv 2206.14858, section 3.

    Relations:
        `pass_at_k` is what a perfect verifier would reach with the same samples, and never less. For the mean over
        problems give the rows to [`mean_curve`][dco_trl.statistics.mean_curve].
    """
    counts, ks = check_whole_numbers("answer_counts", answer_counts), check_whole_numbers("k", k, at_least=1)
    correct = np.asarray(answer_correct, dtype=np.float64)
    if counts.ndim != 1 or counts.shape != correct.shape:
        raise ValueError(
            "answer_counts and answer_correct must be two lists of one length, one entry for each distinct answer, "
            f"got shapes {counts.shape} and {correct.shape}."
        )
    if not ((correct >= 0) & (correct <= 1)).all():
        raise ValueError(f"answer_correct must be true or false, or shares in [0, 1], got {answer_correct!r:.80}")
    num_silent = int(check_whole_numbers("num_abstained", num_abstained))
    num_samples = int(counts.sum()) + num_silent
    if ks.size and ks.max() > num_samples:
        raise ValueError(
            f"k={ks.max()} is more than the {num_samples} samples counted in answer_counts and num_abstained. "
            "Draw more samples or ask for a smaller k."
        )
    counts, correct = counts[counts > 0], correct[counts > 0]
    # Answers with the same count behave alike: keep the distinct counts, how many there are, how many are correct.
    values, inverse = np.unique(counts, return_inverse=True)
    multiplicity = np.bincount(inverse, minlength=values.size)
    num_correct = np.bincount(inverse, weights=correct, minlength=values.size)
    found = [_majority(values, multiplicity, num_correct, num_silent, k) for k in ks.ravel().tolist()]
    return np.array(found, dtype=np.float64).reshape(ks.shape)


def _majority(values: NDArray, multiplicity: NDArray, num_correct: NDArray, num_silent: int, k: int) -> float:
    """maj@k from the distinct counts (ascending), how many answers have each, and how many of those are correct."""
    num_samples = int(values @ multiplicity) + num_silent
    if not num_correct.any():
        return 0.0
    if k == num_samples:
        return float(num_correct[-1] / multiplicity[-1])

    share = k / num_samples
    votes = np.arange(min(int(values[-1]), k) + 1)
    b = binom.pmf(votes, values[:, None], share)
    # The chance that a correct answer has m votes and no other has more, without the condition on the sum.
    no_more = np.log(np.clip(np.cumsum(b, axis=1), 1e-300, 1.0))
    chance = num_correct @ (b * np.exp(multiplicity @ no_more - no_more))
    winning = np.flatnonzero((chance > _NEGLIGIBLE) & (votes > 0))
    if winning.size == 0:
        return 0.0

    at_least = np.cumsum(b[:, ::-1], axis=1)[:, ::-1]
    frequencies, weights = _fourier(num_samples, k)
    one_sample = 1.0 - share + share * np.exp(1j * frequencies)
    m, end = int(winning[0]), int(winning[-1]) + 1
    # Leave out answers too rare to have even the fewest winning votes, and negligible numbers of votes.
    first = int(np.argmax(at_least[:, m] > _NEGLIGIBLE))
    lowest = int(np.argmax(b[first:].max(axis=0) > _NEGLIGIBLE**2))
    fewer = np.zeros((values.size, frequencies.size), dtype=np.complex128)
    fewer[first:] = b[first:, lowest:m] @ np.exp(1j * np.outer(votes[lowest:m], frequencies))
    total = 0.0
    while m < end:
        # Answers too rare to have m votes take any number of them, like the abstentions. Counts ascend.
        first = int(np.argmax(at_least[:, m] > _NEGLIGIBLE))
        num_tied = min(int(multiplicity[first:].sum()), k // m)
        # Winning counts that need about equally many nodes, and fit into the processor's cache, are done together.
        last = min(m + max(1, min(m // 2, _BATCH // (_num_nodes(num_tied) * frequencies.size))), end)
        exactly = b[first:, m:last, None] * np.exp(1j * np.outer(votes[m:last], frequencies))
        no_more_than = fewer[first:, None] + np.cumsum(exactly, axis=1)
        votes_below = no_more_than - exactly
        product = _one_correct_wins(votes_below, exactly, multiplicity[first:], num_correct[first:], num_tied)
        num_rest = num_samples - int(values[first:] @ multiplicity[first:])
        total += float((product @ (one_sample**num_rest * weights)).real.sum())
        fewer[first:] = no_more_than[:, -1]
        m = last
    return float(np.clip(total / binom.pmf(k, num_samples, share), 0.0, 1.0))


def _one_correct_wins(
    fewer: NDArray, exactly: NDArray, multiplicity: NDArray, num_correct: NDArray, num_tied: int
) -> NDArray:
    """Transform of "a correct answer has m votes, nobody more, and it wins the draw of lots".

    Shapes: (counts, winning counts m, frequencies) in, (winning counts, frequencies) out.
    """
    nodes, node_weights = _gauss_legendre(num_tied)
    # One factor for each distinct count: (nodes, winning counts, frequencies).
    factors = [less + nodes[:, None, None] * same for less, same in zip(fewer, exactly, strict=True)]
    result = np.zeros(exactly.shape[1:], dtype=np.complex128)
    for i in np.flatnonzero(num_correct):
        term = np.broadcast_to(node_weights[:, None, None] * num_correct[i], factors[i].shape).astype(np.complex128)
        for j, power in enumerate(multiplicity - (np.arange(multiplicity.size) == i)):
            if power:
                term *= factors[j] if power == 1 else factors[j] ** int(power)
        result += exactly[i] * term.sum(axis=0)
    return result


@lru_cache(maxsize=256)
def _gauss_legendre(num_tied: int) -> tuple[NDArray, NDArray]:
    """Nodes on [0, 1] that integrate u^(num_tied - 1) and below: exactly for few, to 1e-13 for many."""
    nodes, weights = np.polynomial.legendre.leggauss(_num_nodes(num_tied))
    return (nodes + 1.0) / 2.0, weights / 2.0


def _num_nodes(num_tied: int) -> int:
    return min((num_tied + 1) // 2, 32 + int(4 * np.sqrt(num_tied)))


def _fourier(num_samples: int, k: int) -> tuple[NDArray, NDArray]:
    """Frequencies, and weights whose dot product with a transform is the probability that the sum is k.

    A sum that is off by a multiple of the number of frequencies would be taken for k. By Bernstein's inequality it
    is off by more than `reach` with a probability under 1e-18.
    """
    variance = k * (1.0 - k / num_samples)
    reach = 14.0 + np.sqrt(14.0**2 + 84.0 * variance)
    num = min(num_samples, int(reach)) + 1
    # Half of the circle is enough: the other half is the complex conjugate.
    frequencies = 2.0 * np.pi * np.arange(num // 2 + 1) / num
    twice = np.where((np.arange(num // 2 + 1) * 2) % num == 0, 1.0, 2.0)
    return frequencies, twice * np.exp(-1j * k * frequencies) / num
