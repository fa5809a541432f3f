"""The share of problems never solved, and what that says about them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betaincinv

from ..checks import check_graded_counts


@dataclass(frozen=True)
class NeverSolved:
    """Problems without a correct sample. The model may still be able to solve them: see `rate_bound`.

    Attributes:
        count: Number of problems unsolved in all of their samples.
        share: count / number of problems.
        low: Lower end of the Clopper-Pearson interval for that share among all problems like these.
        high: Upper end.
        min_samples: Fewest samples that any of the unsolved problems had; 0 if there is none.
        max_samples: Most samples that any of them had.
        rate_bound: Upper confidence bound for the success rate of one problem unsolved in n = `min_samples` samples;
            NaN if there is none. At the bound, n further samples would solve it with probability `confidence`.
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


def never_solved(num_samples: ArrayLike, num_correct: ArrayLike, confidence: float = 0.95) -> NeverSolved:
    r"""Share of problems without a correct sample, and a bound on their success rate.

    "Never" means in the n samples drawn: the expected share is \(1 - \mathrm{pass@}n\). A problem with success rate p
    stays unsolved with probability \((1-p)^n\). So n failures only show, at confidence \(1-\alpha\), that
    \(p \le 1 - \alpha^{1/n}\) (Clopper-Pearson with c = 0; the "rule of three" \(3/n\) at 95 %).

    Args:
        num_samples: Number n of samples of each problem, shape (P,) or a scalar.
        num_correct: Number c of correct ones, shape (P,).
        confidence: 1 - alpha, between 0 and 1.

    Raises:
        ValueError: There is no problem, or the counts are impossible.

    Examples:
        >>> from dco_trl.statistics import never_solved
        >>> result = never_solved(num_samples=256, num_correct=[0, 3, 0, 120])
        >>> result.share, round(result.rate_bound, 4)
        (0.5, 0.0116)

    References:
        Clopper and Pearson, Biometrika 26 (1934). Hanley and Lippman-Hand, "If nothing goes wrong, is everything all
        right?", JAMA 249 (1983).
    """
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}. Write 0.95 for 95 %.")
    n, c = check_graded_counts(num_samples, np.atleast_1d(num_correct))
    if c.size == 0:
        raise ValueError("num_correct is empty: there is no problem to count.")
    unsolved, num, alpha = n[c == 0], c.size, 1.0 - confidence
    count = unsolved.size
    low = float(betaincinv(count, num - count + 1, alpha / 2)) if count else 0.0
    high = float(betaincinv(count + 1, num - count, 1 - alpha / 2)) if count < num else 1.0
    fewest, most = int(unsolved.min()) if count else 0, int(unsolved.max(initial=0))
    rate_bound = float(-np.expm1(np.log(alpha) / fewest)) if count else float("nan")
    return NeverSolved(count, count / num, low, high, fewest, most, rate_bound, confidence)
