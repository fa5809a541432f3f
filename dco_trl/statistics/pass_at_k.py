r"""pass@k of each problem: from graded samples (unbiased), or exactly from a probability.

All take whole arrays and keep their relative accuracy at the ends, where the naive formulas round to 0 or 1.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import hypergeom

from ..checks import check_graded_counts, check_log_p, check_whole_numbers, which_entries
from ..coverage_numpy import coverage

# exp(-40) is below half an ulp of 1, so once the log of the failure probability is under -40, pass@k rounds to 1.
_LOG_ZERO = 40.0


def pass_at_k(num_samples: ArrayLike, num_correct: ArrayLike, k: ArrayLike) -> NDArray[np.float64]:
    r"""Unbiased estimate of pass@k, the probability that at least one of k samples is correct.

    With n samples of a problem, c of them correct, it is the share of k-subsets with at least one correct sample:

    $$\widehat{\mathrm{pass@}k} = 1 - \binom{n-c}{k} \Big/ \binom{n}{k}
      = 1 - \prod_{j=0}^{\min(c,k)-1} \Big(1 - \frac{\max(c,k)}{n-j}\Big)$$

    Its expectation is \(1-(1-p)^k\) for every \(k \le n\). The plug-in \(1-(1-c/n)^k\) is biased downwards. The
    product is summed in log space; all terms have one sign, so the relative error stays near 1e-14, and at most
    \(\sqrt{40 n}\) terms matter.

    Args:
        num_samples: Number n of samples drawn of each problem, whole numbers >= 1.
        num_correct: Number c of those graded correct, 0 <= c <= n.
        k: Number of samples allowed, 1 <= k <= n. The three broadcast: `pass_at_k(n[:, None], c[:, None], ks)` has
            one row per problem and one column per k.

    Returns:
        Estimates in [0, 1], float64, of the broadcast shape.

    Raises:
        ValueError: k exceeds the samples of a problem, or the counts are impossible.

    Examples:
        >>> from dco_trl.statistics import pass_at_k
        >>> pass_at_k(num_samples=4, num_correct=[0, 1, 4], k=2).tolist()
        [0.0, 0.5, 1.0]

    References:
        Chen et al., "Evaluating Large Language Models Trained on Code", arXiv 2107.03374, section 2.1.

    Relations:
        `pass_at_k_curve` adds the mean over problems and its interval; `exact_pass_at_k` needs no samples where the
        probability itself is known.
    """
    n, c, ks = _check(num_samples, num_correct, k)
    log_fail = _log_fail(n.ravel(), np.minimum(c, ks).ravel(), np.maximum(c, ks).ravel())
    estimate = -np.expm1(log_fail).reshape(n.shape)
    # Fewer than k wrong samples: every subset holds a right one.
    return np.where(c + ks > n, 1.0, estimate) + 0.0


def _log_fail(n: NDArray, few: NDArray, many: NDArray) -> NDArray:
    """Sum over j < few of log(1 - many / (n - j)), stopped where its exponential no longer matters."""
    num_terms = np.minimum(few, np.ceil(_LOG_ZERO * n / many).astype(np.int64))
    num_terms = np.where(few + many > n, 0, num_terms)
    # Longest sums first: the entries that still need term j are then a prefix.
    order = np.argsort(-num_terms, kind="stable")
    n, many, num_terms = n[order].astype(np.float64), many[order].astype(np.float64), num_terms[order]
    negative, total = -num_terms, np.zeros(n.size)
    for j in range(num_terms.max(initial=0)):
        active = np.searchsorted(negative, -j)
        total[:active] += np.log1p(-many[:active] / (n[:active] - j))
    result = np.empty_like(total)
    result[order] = total
    return result


def at_least_m_of_k(
    num_samples: ArrayLike, num_correct: ArrayLike, k: ArrayLike, num_required: ArrayLike
) -> NDArray[np.float64]:
    r"""As `pass_at_k`, but the probability that at least m of the k samples are correct.

    It is the share of k-subsets with at least m correct samples, a hypergeometric tail:

    $$\sum_{j=m}^{\min(c,k)} \binom{c}{j} \binom{n-c}{k-j} \Big/ \binom{n}{k}$$

    Its expectation is \(\mathrm{P}[\mathrm{Binomial}(k, p) \ge m]\) for every \(k \le n\). m = 1 is pass@k; more than
    half of k cannot lose a majority vote.

    Args:
        num_samples: As for `pass_at_k`.
        num_correct: As for `pass_at_k`.
        k: As for `pass_at_k`.
        num_required: Number m of the k samples that must be correct, 1 <= m <= k. All four broadcast.

    Returns:
        Estimates in [0, 1], float64, of the broadcast shape.

    Raises:
        ValueError: As for `pass_at_k`, or m exceeds k.

    Examples:
        >>> from dco_trl.statistics import at_least_m_of_k
        >>> at_least_m_of_k(num_samples=4, num_correct=[1, 2, 4], k=3, num_required=2).tolist()
        [0.0, 0.5, 1.0]

    References:
        The loss for it: Ousherovitch and Tewari, "Compute Aligned Training", arXiv 2604.24957.

    Relations:
        `majority_at_k` is what a vote without a verifier gives. The loss is `num_required` of
        [`DCOConfig`][dco_trl.trainer.DCOConfig].
    """
    ms = check_whole_numbers("num_required", num_required, at_least=1)
    n, c, ks, ms = np.broadcast_arrays(*_check(num_samples, num_correct, k), ms)
    if (ms > ks).any():
        raise ValueError(
            f"num_required={ms[ms > ks][0]} is more than k={ks[ms > ks][0]}: no more than k samples can be right. "
            "Ask for fewer."
        )
    return np.clip(np.asarray(hypergeom.sf(ms - 1, n, c, ks), dtype=np.float64), 0.0, 1.0)


def _check(num_samples: ArrayLike, num_correct: ArrayLike, k: ArrayLike) -> tuple[NDArray, NDArray, NDArray]:
    n, c, ks = np.broadcast_arrays(
        *check_graded_counts(num_samples, num_correct), check_whole_numbers("k", k, at_least=1)
    )
    short = ks > n
    if short.any():
        raise ValueError(
            f"k={ks[short][0]} is more than num_samples={n[short][0]} {which_entries(short)}. Every problem needs at "
            "least k samples: draw more samples, or ask for a smaller k."
        )
    return n, c, ks


def exact_pass_at_k(log_p: ArrayLike, k: ArrayLike) -> NDArray[np.float64]:
    r"""pass@k of an answer whose probability is known: the coverage \(1-(1-p)^k\), to full precision for every p.

    Args:
        log_p: Natural log-probability of the whole answer, in nats, <= 0 (`-inf` is p = 0). Values up to 1e-5 above 0
            count as rounding errors of p = 1.
        k: Number of samples allowed, whole numbers >= 1. The two broadcast.

    Returns:
        Probabilities in [0, 1], float64, of the broadcast shape.

    Raises:
        ValueError: a NaN or a positive log-probability, or a k that is not a whole number >= 1.

    Examples:
        >>> import numpy as np
        >>> from dco_trl.statistics import exact_pass_at_k
        >>> exact_pass_at_k(log_p=np.log([0.5, 0.001]), k=[1, 2]).round(6).tolist()
        [0.5, 0.001999]

    References:
        Chen et al., "Rethinking Fine-Tuning when Scaling Test-Time Compute", arXiv 2502.07154.

    Relations:
        For a reference's exact string it is a lower bound on what `pass_at_k` estimates with a grader that accepts
        other forms. `dco_trl.coverage.log_coverage` is differentiable, in torch and in log space.
    """
    return coverage(check_log_p(log_p), check_whole_numbers("k", k, at_least=1))
