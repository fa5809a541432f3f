r"""What each arm does on each problem: exactly, or as counts tell.

An arm is a model with an adapter, a checkpoint and a temperature. The probability that m attempts of an arm all miss
is \((1-p)^m\) where p is known. From n samples, c of them correct, it is the mean over the posterior under the arm's
own prior \(\mathrm{Beta}(a, b)\): \(B(a+c, b+n-c+m) / B(a+c, b+n-c)\). Its logarithm is convex in m, so that coverage
is concave in the attempts of all arms together.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaln, digamma

from ..checks import check_discounted_counts, check_log_p, check_whole_numbers
from ..coverage_numpy import log1mexp
from ..errors import UserError
from .beta_binomial import fit_prior
from .pass_at_k import pass_at_k

# Of one arm: the problems with counts, parameters of the distinct posteriors, and which of those each problem has.
Posteriors = tuple[NDArray | slice, NDArray, NDArray, NDArray]

# The logarithm of the smallest float64: a miss this unlikely does not happen.
_NEVER = -745.0


class Arms:
    """Measurements of several arms on the same problems, each of shape (arms, problems)."""

    def __init__(
        self,
        log_p: ArrayLike | None,
        num_sampled: ArrayLike | None,
        num_correct: ArrayLike | None,
        is_part: bool = False,
    ) -> None:
        if (num_sampled is None) != (num_correct is None) or (log_p is None and num_sampled is None):
            raise UserError("give log_p, or num_sampled and num_correct, or all three: there is nothing to plan from.")
        if num_sampled is not None and num_correct is not None:
            check_discounted_counts(num_sampled, num_correct)
            n, c = np.broadcast_arrays(
                check_whole_numbers("num_sampled", num_sampled), check_whole_numbers("num_correct", num_correct)
            )
        if log_p is None:
            x = np.full(n.shape, np.nan)
        else:
            x = np.asarray(log_p, dtype=np.float64)
            x = np.where(np.isnan(x), np.nan, check_log_p(np.where(np.isnan(x), 0.0, x)))
        if num_sampled is None:
            n = c = np.zeros(x.shape, dtype=np.int64)
        if x.ndim != 2 or x.size == 0 or x.shape != n.shape:
            raise UserError(
                "log_p, num_sampled and num_correct must each have one row per arm and one column per problem, got "
                f"shapes {x.shape} and {n.shape}."
            )
        self.log_p: NDArray[np.float64] = x
        self.num_sampled, self.num_correct = n, c
        self.counted = np.isnan(x)
        # An arm of which nothing was counted was measured by log p: its NaN is no absence but a broken model.
        broken = self.counted & (n.max(axis=1, keepdims=True) == 0)
        if log_p is not None and broken.any() and not is_part:
            arm, problem = np.argwhere(broken)[0]
            raise UserError(
                f"log_p is NaN for arm {arm} and problem {problem} (counted from 0; {broken.sum()} in all), and there "
                "are no counts of that arm. Leave the arm or the problem out: a model that has diverged gives NaN."
            )
        self._log_miss = np.where(self.counted, 0.0, np.maximum(log1mexp(np.where(self.counted, -1.0, x)), _NEVER))

    @cached_property
    def _posteriors(self) -> list[Posteriors | None]:
        nothing = np.flatnonzero((self.counted & (self.num_sampled == 0)).all(axis=1))
        if nothing.size:
            raise UserError(
                f"arm {nothing[0]} (counted from 0; {nothing.size} such arms) has neither a log_p nor a sample of any "
                "problem. Measure it, or leave it out."
            )
        return [self._fit(arm) for arm in range(len(self.log_p))]

    def _fit(self, arm: int) -> Posteriors | None:
        counted = self.counted[arm]
        if not counted.any():
            return None
        where = slice(None) if counted.all() else np.flatnonzero(counted)  # a view is quicker
        n, c = self.num_sampled[arm, where], self.num_correct[arm, where]
        a, b = fit_prior(n, c)
        (n, c), kind = np.unique(np.stack([n, c]), axis=1, return_inverse=True)
        return where, a + c, b + (n - c), kind.ravel()

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.log_p), self.log_p[0].size

    def on(self, problems: NDArray) -> "Arms":
        """The same arms on some of the problems; priors are fitted to those alone."""
        return Arms(
            self.log_p[:, problems], self.num_sampled[:, problems], self.num_correct[:, problems], is_part=True
        )

    def only(self, arms: Sequence[int] | NDArray) -> "Arms":
        """Some of the arms on the same problems, with the priors that they have."""
        index = np.asarray(arms)
        part = Arms(self.log_p[index], self.num_sampled[index], self.num_correct[index], is_part=True)
        part._posteriors = [self._posteriors[arm] for arm in arms]
        return part

    def log_miss(self, arm: int, attempts: float, after: float = 0.0) -> NDArray[np.float64]:
        """Log-probability that so many attempts miss, after so many that missed, shape (problems,)."""
        result = attempts * self._log_miss[arm]
        if (posterior := self._posteriors[arm]) is not None:
            where, alpha, beta, kind = posterior
            result[where] = (betaln(alpha, beta + after + attempts) - betaln(alpha, beta + after))[kind]
        return result

    def coverage_and_gradient(self, split: NDArray) -> tuple[float, NDArray[np.float64]]:
        """Mean coverage with so many attempts of each arm, not all of them whole, and its derivative in each."""
        log_miss, attempted = split @ self._log_miss, np.flatnonzero(split)
        for arm in attempted:
            if (posterior := self._posteriors[arm]) is not None:
                where, alpha, beta, kind = posterior
                log_miss[where] += (betaln(alpha, beta + split[arm]) - betaln(alpha, beta))[kind]
        miss = np.exp(log_miss) / log_miss.size
        gradient = -self._log_miss @ miss
        for arm, posterior in enumerate(self._posteriors):
            if posterior is not None:
                where, alpha, beta, kind = posterior
                slope = digamma(beta + split[arm]) - digamma(alpha + beta + split[arm])
                gradient[arm] -= np.bincount(kind, weights=miss[where], minlength=slope.size) @ slope
        return 1.0 - float(miss.sum()), gradient

    def planned_coverage(self, split: NDArray) -> NDArray[np.float64]:
        """Coverage of each problem with so many attempts of each arm, under the posteriors, shape (problems,)."""
        log_miss = np.zeros(self.shape[1])
        for arm in np.flatnonzero(split):
            log_miss += self.log_miss(arm, split[arm])
        return -np.expm1(log_miss) + 0.0

    def measured_coverage(self, split: NDArray) -> NDArray[np.float64]:
        """The same without a prior: exact where p is known, elsewhere the unbiased estimate from the counts."""
        log_miss = np.zeros(self.shape[1])
        for arm in np.flatnonzero(split):
            log_miss += split[arm] * self._log_miss[arm]
            where = np.flatnonzero(self.counted[arm])
            if where.size:
                n, c = self.num_sampled[arm, where], self.num_correct[arm, where]
                if n.min() < split[arm]:
                    raise UserError(
                        f"{split[arm]} attempts of arm {arm} are more than its {n.min()} samples of problem "
                        f"{where[n.argmin()]} (both counted from 0). Draw more samples, or ask for a smaller k."
                    )
                with np.errstate(divide="ignore"):
                    log_miss[where] += np.log1p(-pass_at_k(n, c, split[arm]))
        return -np.expm1(log_miss) + 0.0
