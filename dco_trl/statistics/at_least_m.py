"""The probability that at least m of k samples are correct, from the counts of graded samples."""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import hypergeom

from ..checks import check_graded_counts, check_whole_numbers


def at_least_m_of_k(
    num_samples: ArrayLike, num_correct: ArrayLike, k: ArrayLike, num_required: ArrayLike
) -> NDArray[np.float64]:
    r"""Unbiased estimate of the probability that at least m of k samples are correct.

    With n samples of a problem, c of them correct, it is the share of the k-subsets that hold m correct ones or more,
    a hypergeometric tail:

    $$\sum_{j=m}^{\min(c,k)} \binom{c}{j} \binom{n-c}{k-j} \Big/ \binom{n}{k}$$

    Its expectation is \(\mathrm{P}[\mathrm{Binomial}(k, p) \ge m]\) for every \(k \le n\). m = 1 is pass@k; more than
    half of k cannot lose a majority vote.

    Args:
        num_samples: Number n of samples drawn of each problem, whole numbers >= 1.
        num_correct: Number c of those graded correct, 0 <= c <= n.
        k: Number of samples allowed, 1 <= k <= n.
        num_required: Number m of them that must be correct, 1 <= m <= k. All four broadcast.

    Returns:
        Estimates in [0, 1], float64, of the broadcast shape.

    Raises:
        ValueError: k exceeds the samples of a problem, m exceeds k, or the counts are impossible.

    Examples:
        ```python
        >>> from dco_trl.statistics import at_least_m_of_k
        >>> at_least_m_of_k(num_samples=4, num_correct=[1, 2, 4], k=3, num_required=2).tolist()
        [0.0, 0.5, 1.0]

        ```

    References:
        The loss for it: Ousherovitch and Tewari, "Compute Aligned Training", arXiv 2604.24957.

    Relations:
        `pass_at_k` for m = 1; `majority_at_k` for what a vote without a verifier gives. The loss is `num_required` of
        [`DCOConfig`][dco_trl.trainer.DCOConfig].
    """
    samples, correct, _ = check_graded_counts(num_samples, num_correct, None)
    ks = check_whole_numbers("k", k, at_least=1)
    ms = check_whole_numbers("num_required", num_required, at_least=1)
    n, c, ks, ms = np.broadcast_arrays(samples, correct, ks, ms)
    if (ks > n).any():
        raise ValueError(
            f"k={ks[ks > n][0]} is more than the {n[ks > n][0]} samples of a problem: at least m of k needs k samples "
            "of every problem. Draw more samples, or ask for a smaller k."
        )
    if (ms > ks).any():
        raise ValueError(
            f"num_required={ms[ms > ks][0]} is more than k={ks[ms > ks][0]}: so many samples cannot be right. Ask for "
            "fewer."
        )
    return np.clip(np.asarray(hypergeom.sf(ms - 1, n, c, ks), dtype=np.float64), 0.0, 1.0)
