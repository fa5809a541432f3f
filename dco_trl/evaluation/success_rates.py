"""How success is spread over problems: a histogram of the rates, and the share of problems never solved."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincinv

from .pass_at_k import check_counts


@dataclass(frozen=True, eq=False)
class SuccessHistogram:
    """Number of problems in each bin of the observed success rate c/n.

    Attributes:
        edges: Edges of the bins, from 0 to 1, float64, shape (B + 1,). A bin holds its lower edge, the last one 1 too.
        counts: Problems in each bin, int64, shape (B,).
        num_never: Problems with c = 0. They are in the first bin, too.
        num_always: Problems with c = n. They are in the last bin, too.
    """

    edges: NDArray[np.float64]
    counts: NDArray[np.int64]
    num_never: int
    num_always: int


@dataclass(frozen=True)
class NeverSolved:
    """Problems without a correct sample. It does not say that the model cannot solve them: see `rate_bound`.

    Attributes:
        count: Number of problems unsolved in all of their samples.
        share: count / number of problems.
        low: Lower end of the Clopper-Pearson interval for that share among all problems like these.
        high: Upper end.
        min_samples: Fewest samples that any of the unsolved problems had; 0 if there is none.
        max_samples: Most samples that any of them had; 0 if there is none.
        rate_bound: Upper confidence bound for the success rate of one problem unsolved in `min_samples` samples,
            1 - alpha^(1/n), about 3/n at 95 %. NaN if there is none. A problem whose rate is at the bound would still
            be solved in n further samples with probability `confidence`.
        confidence: Confidence of the interval and of the bound, each.
    """

    count: int
    share: float
    low: float
    high: float
    min_samples: int
    max_samples: int
    rate_bound: float
    confidence: float


def success_histogram(num_samples: ArrayLike, num_correct: ArrayLike, num_bins: int = 20) -> SuccessHistogram:
    """Histogram of the per-problem success rates c/n.

    Bins are found in integers, so a rate on an edge falls in the upper bin on every machine.

    Args:
        num_samples: Number n of samples of each problem, shape (P,) or a scalar.
        num_correct: Number c of correct ones, shape (P,).
        num_bins: Number B of bins of equal width.

    Returns:
        The histogram. With few samples the rates are noisy, and spread wider than the true ones.

    Raises:
        ValueError: The counts are impossible, or `num_bins` is under 1.

    Examples:
        ```python
        >>> from dco_trl.evaluation import success_histogram
        >>> success_histogram(num_samples=4, num_correct=[0, 0, 1, 2, 4], num_bins=4).counts.tolist()
        [2, 1, 1, 1]

        ```

    Relations:
        [`never_solved`][dco_trl.evaluation.never_solved] for the first bar. The Beta of
        [`extrapolate_pass_at_k`][dco_trl.evaluation.extrapolate_pass_at_k] estimates the distribution without the
        noise of the samples.
    """
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1, got {num_bins}.")
    n, c, _ = check_counts(num_samples, np.atleast_1d(num_correct))
    bins = np.minimum(c * num_bins // n, num_bins - 1)
    return SuccessHistogram(
        edges=np.arange(num_bins + 1) / num_bins,
        counts=np.bincount(bins.ravel(), minlength=num_bins),
        num_never=int(np.sum(c == 0)),
        num_always=int(np.sum(c == n)),
    )


def never_solved(num_samples: ArrayLike, num_correct: ArrayLike, confidence: float = 0.95) -> NeverSolved:
    r"""Share of problems without a correct sample, and how well they may still be solvable.

    "Never" means in the n samples drawn: \(1 - \mathrm{pass@}n\) is the expected share. A problem with success rate p
    stays unsolved with probability \((1-p)^n\), so all that n failures show, at confidence \(1-\alpha\), is
    \(p \le 1 - \alpha^{1/n}\) (Clopper-Pearson with c = 0; the "rule of three" \(3/n\) at 95 %).

    Args:
        num_samples: Number n of samples of each problem, shape (P,) or a scalar.
        num_correct: Number c of correct ones, shape (P,).
        confidence: 1 - alpha, between 0 and 1.

    Returns:
        Count, share with its interval over problems, and the bound on the success rate.

    Raises:
        ValueError: There is no problem, or the counts are impossible.

    Examples:
        ```python
        >>> from dco_trl.evaluation import never_solved
        >>> result = never_solved(num_samples=256, num_correct=[0, 3, 0, 120])
        >>> result.share, round(result.rate_bound, 4)
        (0.5, 0.0116)

        ```

    References:
        Clopper and Pearson, Biometrika 26 (1934). Hanley and Lippman-Hand, "If nothing goes wrong, is everything all
        right?", JAMA 249 (1983).

    Relations:
        [`extrapolate_pass_at_k`][dco_trl.evaluation.extrapolate_pass_at_k] guesses how many would be solved with more
        samples.
    """
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}.")
    n, c, _ = check_counts(num_samples, np.atleast_1d(num_correct))
    if c.size == 0:
        raise ValueError("num_correct is empty: there is no problem to count.")
    unsolved = n[c == 0]
    count, num = unsolved.size, c.size
    alpha = 1.0 - confidence
    return NeverSolved(
        count=count,
        share=count / num,
        low=float(betaincinv(count, num - count + 1, alpha / 2)) if count else 0.0,
        high=float(betaincinv(count + 1, num - count, 1 - alpha / 2)) if count < num else 1.0,
        min_samples=int(unsolved.min()) if count else 0,
        max_samples=int(unsolved.max()) if count else 0,
        rate_bound=float(-np.expm1(np.log(alpha) / unsolved.min())) if count else float("nan"),
        confidence=confidence,
    )
