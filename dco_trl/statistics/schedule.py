r"""Which arm to sample for attempt 1, 2, 3, …: one order of attempts that is good at every budget.

Let arm j (a model with an adapter, a checkpoint and a temperature) answer problem i with probability \(p_{ij}\), and
get \(n_j\) attempts. Coverage is

$$C(n) = \frac1P \sum_i 1 - \prod_j (1 - p_{ij})^{n_j}$$

A miss is the exponential of a linear function of n, so C is concave. Taking the arm that adds most, attempt by
attempt, is therefore near the optimum, and every prefix of that one order is a good split.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize

from ..checks import check_integer, check_whole_numbers
from ..errors import UserError
from .arm_coverage import Arms, check_arms
from .intervals import default_ks

# A block has at most this share of the attempts planned before it.
_BLOCK_SHARE = 16
# How close to the relaxation's optimum the search gets, in coverage, and how often it restarts where it ended.
_TOLERANCE, _MOST_RESTARTS = 5e-4, 4


@dataclass(frozen=True, eq=False)
class AttemptOrder:
    """One order of attempts over several arms.

    Attributes:
        arm: Which arm each block of attempts samples, int64, shape (blocks,).
        attempts: Number of attempts of each block, at least 1, int64, shape (blocks,).
        num_arms: Number of arms planned over, whether they got an attempt or not.
        k: Numbers of attempts of the next two: powers of two, and the number planned, int64, shape (K,).
        coverage: Mean coverage of the first k attempts on the problems planned on, float64, shape (K,).
            [`cross_fit_schedule`][dco_trl.statistics.cross_fit_schedule] gives what to expect on others.
        optimum: Upper bound on the coverage of any split of k attempts on those problems, chosen for that k alone (the
            optimum over real numbers of attempts), float64, shape (K,).
    """

    arm: NDArray[np.int64]
    attempts: NDArray[np.int64]
    num_arms: int
    k: NDArray[np.int64]
    coverage: NDArray[np.float64]
    optimum: NDArray[np.float64]

    @property
    def num_attempts(self) -> int:
        """Number of attempts planned."""
        return int(self.attempts.sum())

    @property
    def gap(self) -> NDArray[np.float64]:
        """Upper bound on what this order loses in coverage against the best split for each k, shape (K,)."""
        return self.optimum - self.coverage

    def counts(self, k: ArrayLike) -> NDArray[np.int64]:
        """Attempts of each arm among the first k, int64, shape (*k.shape, arms); the last block never ends."""
        ks = check_whole_numbers("k", k)[..., None]
        starts = np.cumsum(self.attempts) - self.attempts
        longest = np.append(self.attempts[:-1], ks.max(initial=0))
        taken = np.clip(ks - starts, 0, longest)
        return taken @ (self.arm[:, None] == np.arange(self.num_arms)).astype(np.int64)

    def to_dict(self) -> dict[str, Any]:
        """The schedule as plain numbers and lists, for YAML or JSON."""
        return {
            "num_arms": self.num_arms,
            "blocks": [[int(a), int(n)] for a, n in zip(self.arm, self.attempts, strict=True)],
            "k": self.k.tolist(),
            "coverage": self.coverage.tolist(),
            "optimum": self.optimum.tolist(),
        }

    @classmethod
    def from_dict(cls, entries: Mapping[str, Any]) -> "AttemptOrder":
        """The schedule that `to_dict` wrote; a `ValueError` if an entry is missing or wrong."""
        names = ("num_arms", "blocks", "k", "coverage", "optimum")
        if missing := [name for name in names if not isinstance(entries, Mapping) or name not in entries]:
            raise UserError(f"the schedule has no {', '.join(missing)}: it needs {', '.join(names)}, as in to_dict.")
        num_arms = check_integer("num_arms", entries["num_arms"])
        blocks = np.asarray(entries["blocks"], dtype=object)
        if blocks.ndim != 2 or blocks.shape[1] != 2:
            raise UserError("blocks must be a list of pairs of an arm and its number of attempts, at least one.")
        arm = np.array([check_integer("arm of a block", a, at_least=0) for a in blocks[:, 0]])
        attempts = np.array([check_integer("attempts of a block", n) for n in blocks[:, 1]])
        if arm.max() >= num_arms:
            raise UserError(f"blocks name arm {arm.max()} of {num_arms} arms (counted from 0).")
        ks = check_whole_numbers("k", entries["k"], at_least=1)
        rows = [np.asarray(entries[name], dtype=np.float64) for name in ("coverage", "optimum")]
        if ks.ndim != 1 or any(row.shape != ks.shape for row in rows):
            raise UserError("k, coverage and optimum must be lists of one length.")
        return cls(arm, attempts, num_arms, ks, *rows)


def plan_attempts(
    num_attempts: int,
    *,
    log_p: ArrayLike | None = None,
    num_sampled: ArrayLike | None = None,
    num_correct: ArrayLike | None = None,
    max_arms: int | None = None,
) -> AttemptOrder:
    r"""Plan which arm to sample for each of `num_attempts` attempts, so that every prefix is good.

    Each block of attempts goes to the arm that adds most to mean coverage. A block is one attempt at first, later the
    largest power of two that is at most a sixteenth of the attempts planned so far. The result has the optimum of the
    relaxation too: the best real numbers of attempts for each k alone bound what any order could give. The bound is
    loose for small k, where parts of an attempt help.

    From counts, the probability that m attempts miss is its mean over the posterior under a Beta prior fitted to each
    arm's own counts, \(B(a+c, b+n-c+m) / B(a+c, b+n-c)\). Its logarithm is convex in m, so coverage stays concave.

    Args:
        num_attempts: Number of attempts to plan, at least 1.
        log_p: Natural log-probability that an arm answers a problem, at most 0, shape (arms, problems). NaN where an
            arm has counts instead.
        num_sampled: Samples of each problem by each arm, whole numbers, shape (arms, problems). Used where `log_p` is
            NaN or absent. With 0 samples of a problem, the arm's prior is used.
        num_correct: Correct ones among them, same shape.
        max_arms: At most this many arms get attempts; None: any number. They are chosen one after another, each the
            one that adds most to the coverage of the schedule over those chosen, averaged over powers of four.

    Returns:
        The schedule, with its coverage and the optimum for powers of two, both over the arms that were chosen.

    Raises:
        ValueError: Nothing to plan from, an arm that was not measured, shapes that differ, a NaN without counts,
            impossible counts, or a positive log-probability.

    Examples:
        >>> import numpy as np
        >>> from dco_trl.statistics import plan_attempts
        >>> sure, broad = [0.9, 0.9, 0.0, 0.0], [0.2, 0.2, 0.2, 0.2]
        >>> with np.errstate(divide="ignore"):
        ...     schedule = plan_attempts(64, log_p=np.log([sure, broad]))
        >>> schedule.counts([1, 2, 16, 64]).tolist()
        [[1, 0], [1, 1], [1, 15], [1, 63]]

    References:
        Nemhauser, Wolsey and Fisher, "An analysis of approximations for maximizing submodular set functions",
        Mathematical Programming 14 (1978), on greedy choice. Chen et al., arXiv 2502.07154, on models for several N.

    Relations:
        [`cross_fit_schedule`][dco_trl.statistics.cross_fit_schedule] says what a schedule gives on problems that it
        was not planned on; [`scheduled_pass_at_k`][dco_trl.statistics.scheduled_pass_at_k] measures one.
    """
    num_attempts = check_integer("num_attempts", num_attempts)
    arms = check_arms(log_p, num_sampled, num_correct)
    chosen = choose_arms(num_attempts, arms, max_arms)
    few = arms.only(chosen)
    order = plan(num_attempts, few)
    splits = order.counts(order.k)
    return replace(
        order,
        arm=chosen[order.arm],
        num_arms=len(arms.log_p),
        coverage=np.array([few.planned_coverage(split).mean() for split in splits]),
        optimum=np.array([_largest_coverage(few, split) for split in splits]),
    )


def choose_arms(num_attempts: int, arms: Arms, max_arms: int | None) -> NDArray[np.int64]:
    """The arms that `plan_attempts` plans over, ascending: all, or `max_arms` of those that a schedule samples."""
    if max_arms is None or check_integer("max_arms", max_arms) >= len(arms.log_p):
        return np.arange(len(arms.log_p))
    left = np.unique(plan(num_attempts, arms).arm).tolist()
    if len(left) <= max_arms:
        return np.array(left)
    ks = np.unique(np.append(4 ** np.arange(1 + (num_attempts.bit_length() - 1) // 2), num_attempts))

    def value(chosen: list[int]) -> float:
        few = arms.only(chosen)
        return float(np.mean([few.planned_coverage(split).mean() for split in plan(num_attempts, few).counts(ks)]))

    chosen: list[int] = []
    for _ in range(max_arms):
        chosen.append(max(left, key=lambda arm: value([*chosen, arm])))
        left.remove(chosen[-1])
    return np.array(sorted(chosen))


def plan(num_attempts: int, arms: Arms) -> AttemptOrder:
    """The order of `plan_attempts` over all of these arms, without its coverage and its optimum."""
    num_arms, num_problems = arms.shape
    split, log_miss, hit = np.zeros(num_arms, dtype=np.int64), np.zeros(num_problems), np.empty(arms.shape)
    blocks: list[tuple[int, int]] = []
    planned = size = 0
    while planned < num_attempts:
        wanted = min(1 << max((planned // _BLOCK_SHARE).bit_length() - 1, 0), num_attempts - planned)
        if wanted != size:
            size = wanted
            for arm in range(num_arms):
                hit[arm] = -np.expm1(arms.log_miss(arm, size, after=split[arm]))
        best = int(np.argmax(hit @ np.exp(log_miss)))
        log_miss += arms.log_miss(best, size, after=split[best])
        split[best] += size
        planned += size
        hit[best] = -np.expm1(arms.log_miss(best, size, after=split[best]))
        blocks.append((best, size))
    runs = [(arm, sum(size for _, size in run)) for arm, run in groupby(blocks, key=itemgetter(0))]
    arm_of, attempts = np.array(runs, dtype=np.int64).T
    ks = default_ks(num_attempts)
    nothing = np.full(ks.size, np.nan)
    return AttemptOrder(arm_of, attempts, num_arms, ks, nothing, nothing)


def _largest_coverage(arms: Arms, start: NDArray) -> float:
    r"""Upper bound on the coverage of any split, over real numbers, of as many attempts as `start` has.

    By concavity, \(C(m) \le C(n) + g \cdot (m - n) \le C(n) + k \max_j g_j - g \cdot n\) with the gradient g at any n.
    """
    total, split, bound = float(start.sum()), start.astype(np.float64), 1.0

    def log_mean_miss(share: NDArray) -> tuple[float, NDArray]:
        coverage, gradient = arms.coverage_and_gradient(np.maximum(share, 0.0) * total)
        miss = max(1.0 - coverage, 1e-300)
        return float(np.log(miss)), -gradient * total / miss

    for _ in range(_MOST_RESTARTS):
        coverage, gradient = arms.coverage_and_gradient(split)
        bound = min(bound, coverage + total * gradient.max() - gradient @ split)
        if bound - coverage < _TOLERANCE:
            break
        fit = minimize(
            log_mean_miss,
            split / total,
            jac=True,
            bounds=[(0.0, 1.0)] * split.size,
            constraints={"type": "eq", "fun": lambda x: x.sum() - 1.0, "jac": lambda x: np.ones_like(x)},
            method="SLSQP",
            options={"maxiter": 100, "ftol": 1e-6},
        )
        share = np.maximum(fit.x, 0.0)
        split = total * share / share.sum()
    return float(bound)
