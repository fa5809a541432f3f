"""How likely attempts of each arm are to solve each problem; `plan_attempts` has the mathematics."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaln, digamma

from ..checks import check_discounted_counts, check_log_p, check_whole_numbers
from ..coverage_numpy import log1mexp
from ..errors import UserError
from .beta_binomial import fit_prior
from .pass_at_k import pass_at_k

# The logarithm of the smallest float64: a miss this unlikely does not happen.
_NEVER = -745.0


@dataclass(eq=False)
class Arms:
    """Measurements of several arms on the same problems, each of shape (arms, problems).

    Where `log_p` is NaN, the counts are used instead; with 0 samples, the arm's prior is.
    """

    log_p: NDArray[np.float64]
    num_sampled: NDArray[np.int64]
    num_correct: NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.log_p.shape

    @cached_property
    def counted(self) -> NDArray[np.bool_]:
        return np.isnan(self.log_p)

    @cached_property
    def _log_miss(self) -> NDArray[np.float64]:
        """Log-probability that one attempt misses; 0 where there are counts."""
        return np.maximum(log1mexp(np.where(self.counted, -np.inf, self.log_p)), _NEVER)

    @cached_property
    def _posteriors(self) -> dict[int, tuple[NDArray, NDArray, NDArray, NDArray]]:
        """For each arm with counts: its problems, alpha and beta of the distinct posteriors, and which each has."""
        nothing = np.flatnonzero((self.counted & (self.num_sampled == 0)).all(axis=1))
        if nothing.size:
            raise UserError(
                f"arm {nothing[0]} (counted from 0; {nothing.size} such arms) has neither a log_p nor a sample of any "
                "problem. Measure it, or leave it out."
            )
        found = {}
        for arm in np.flatnonzero(self.counted.any(axis=1)).tolist():
            where = np.flatnonzero(self.counted[arm])
            counts = np.stack([self.num_sampled[arm, where], self.num_correct[arm, where]])
            a, b = fit_prior(*counts)
            (n, c), kind = np.unique(counts, axis=1, return_inverse=True)
            found[arm] = where, a + c, b + (n - c), kind.ravel()
        return found

    def on(self, problems: NDArray) -> "Arms":
        """The same arms on some of the problems; priors are fitted to these problems alone."""
        return Arms(self.log_p[:, problems], self.num_sampled[:, problems], self.num_correct[:, problems])

    def only(self, arms: Sequence[int] | NDArray) -> "Arms":
        """Some of the arms on the same problems; their priors stay as they are."""
        part = Arms(self.log_p[arms], self.num_sampled[arms], self.num_correct[arms])
        part._posteriors = {i: self._posteriors[arm] for i, arm in enumerate(arms) if arm in self._posteriors}
        return part

    def log_miss(self, arm: int, attempts: float, after: float = 0.0) -> NDArray[np.float64]:
        """Log-probability that `attempts` more attempts miss once `after` have missed, shape (problems,)."""
        result = attempts * self._log_miss[arm]
        if arm in self._posteriors:
            where, alpha, beta, kind = self._posteriors[arm]
            result[where] = (betaln(alpha, beta + after + attempts) - betaln(alpha, beta + after))[kind]
        return result

    def coverage_and_gradient(self, split: NDArray) -> tuple[float, NDArray[np.float64]]:
        """Mean coverage for `split` attempts of each arm (real numbers), and its gradient."""
        log_miss = split @ self._log_miss
        for arm, (where, alpha, beta, kind) in self._posteriors.items():
            if split[arm]:
                log_miss[where] += (betaln(alpha, beta + split[arm]) - betaln(alpha, beta))[kind]
        miss = np.exp(log_miss) / log_miss.size
        gradient = -self._log_miss @ miss
        for arm, (where, alpha, beta, kind) in self._posteriors.items():
            slope = digamma(beta + split[arm]) - digamma(alpha + beta + split[arm])
            gradient[arm] -= np.bincount(kind, weights=miss[where], minlength=slope.size) @ slope
        return 1.0 - float(miss.sum()), gradient

    def planned_coverage(self, split: NDArray) -> NDArray[np.float64]:
        """Coverage of each problem for `split` attempts of each arm, under the posteriors, shape (problems,)."""
        log_miss = np.zeros(self.shape[1])
        for arm in np.flatnonzero(split).tolist():
            log_miss += self.log_miss(arm, split[arm])
        return -np.expm1(log_miss) + 0.0

    def measured_coverage(self, split: NDArray) -> NDArray[np.float64]:
        """The same without a prior: exact where p is known, elsewhere the unbiased estimate from the counts."""
        log_miss = split @ self._log_miss
        for arm in np.flatnonzero(split):
            where = np.flatnonzero(self.counted[arm])
            n, c = self.num_sampled[arm, where], self.num_correct[arm, where]
            if n.min(initial=split[arm]) < split[arm]:
                raise UserError(
                    f"{split[arm]} attempts of arm {arm} are more than its {n.min()} samples of problem "
                    f"{where[n.argmin()]} (both counted from 0). Draw more samples, or ask for a smaller k."
                )
            with np.errstate(divide="ignore"):
                log_miss[where] += np.log1p(-pass_at_k(n, c, split[arm]))
        return -np.expm1(log_miss) + 0.0


def check_arms(log_p: ArrayLike | None, num_sampled: ArrayLike | None, num_correct: ArrayLike | None) -> Arms:
    """Check the measurements that `plan_attempts` takes."""
    if (num_sampled is None) != (num_correct is None) or (log_p is None and num_sampled is None):
        raise UserError("give log_p, or num_sampled and num_correct, or all three: there is nothing to plan from.")
    if num_sampled is None or num_correct is None:
        n = c = np.zeros(np.asarray(log_p).shape, dtype=np.int64)
    else:
        whole = check_whole_numbers("num_sampled", num_sampled), check_whole_numbers("num_correct", num_correct)
        n, c = (counts.astype(np.int64) for counts in check_discounted_counts(*whole))
    x = np.full(n.shape, np.nan) if log_p is None else np.asarray(log_p, dtype=np.float64)
    counted = np.isnan(x)
    if x.ndim != 2 or x.size == 0 or x.shape != n.shape:
        raise UserError(
            "log_p, num_sampled and num_correct must each have one row per arm and one column per problem, got "
            f"shapes {x.shape} and {n.shape}."
        )
    # An arm without any counts was measured by log p: a NaN there comes from a broken model.
    broken = counted & (n.max(axis=1, keepdims=True) == 0)
    if log_p is not None and broken.any():
        arm, problem = np.argwhere(broken)[0]
        raise UserError(
            f"log_p is NaN for arm {arm} and problem {problem} (counted from 0; {broken.sum()} in all), and there "
            "are no counts of that arm. Leave the arm or the problem out: a model that has diverged gives NaN."
        )
    return Arms(np.where(counted, np.nan, check_log_p(np.where(counted, 0.0, x))), n, c)
