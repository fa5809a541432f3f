"""What a schedule gives: measured along it, and estimated for problems that it was not planned on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..checks import check_confidence, check_integer, check_ks
from ..errors import UserError
from .arm_coverage import check_arms
from .intervals import PairedDifference, PassAtKCurve, difference_of_means, mean_curve
from .schedule import AttemptOrder, choose_arms, plan


@dataclass(frozen=True, eq=False)
class CrossFittedSchedule:
    """What a schedule is expected to give on new problems, and what it gains. It is `second` in each difference.

    Attributes:
        curve: Mean coverage along schedules planned on the other half, with intervals over problems.
        best_arm: Against the best single arm for each k, chosen on the other half.
        equal_split: Against the same attempts split equally over all arms.
        given_arms: Against each arm of the argument `given_arms`, alone.
    """

    curve: PassAtKCurve
    best_arm: PairedDifference
    equal_split: PairedDifference
    given_arms: tuple[PairedDifference, ...]


def scheduled_pass_at_k(
    schedule: AttemptOrder,
    k: ArrayLike,
    *,
    log_p: ArrayLike | None = None,
    num_sampled: ArrayLike | None = None,
    num_correct: ArrayLike | None = None,
) -> NDArray[np.float64]:
    r"""pass@k of each problem along a schedule: exact, or unbiased from graded samples.

    With \(m_j\) of the first k attempts going to arm j, and c_j of its n_j samples correct,

    $$\widehat{\mathrm{pass@}k} = 1 - \prod_j \binom{n_j - c_j}{m_j} \Big/ \binom{n_j}{m_j}$$

    Its expectation is \(1 - \prod_j (1-p_j)^{m_j}\), because the arms are sampled independently. For one arm it is
    pass@k. Where `log_p` is given, the factor of the arm is \((1-p_j)^{m_j}\) itself.

    Args:
        schedule: Says how many of the first k attempts each arm gets.
        k: Numbers of attempts, shape (K,).
        log_p: As for [`plan_attempts`][dco_trl.statistics.plan_attempts].
        num_sampled: As for `plan_attempts`.
        num_correct: As for `plan_attempts`.

    Returns:
        Estimates in [0, 1], float64, shape (problems, K).

    Raises:
        ValueError: More attempts of an arm than it has samples of a problem, a schedule for another number of arms, or
            what `plan_attempts` refuses.

    Examples:
        >>> from dco_trl.statistics import plan_attempts, scheduled_pass_at_k
        >>> counts = {"num_sampled": [[8, 8, 8], [8, 8, 8]], "num_correct": [[8, 0, 1], [3, 2, 2]]}
        >>> schedule = plan_attempts(8, **counts)
        >>> scheduled_pass_at_k(schedule, [1, 4], **counts).round(2).tolist()
        [[1.0, 1.0], [0.0, 0.64], [0.12, 0.69]]

    Relations:
        [`pass_at_k`][dco_trl.statistics.pass_at_k] is the same for one arm, with its source.
        [`mean_curve`][dco_trl.statistics.mean_curve] gives the mean over problems and its interval.
    """
    arms, ks = check_arms(log_p, num_sampled, num_correct), check_ks(k)
    if schedule.num_arms != len(arms.log_p):
        raise UserError(
            f"the schedule is for {schedule.num_arms} arms, but the measurements have {len(arms.log_p)}. Give a row "
            "for each arm of the schedule, in the same order."
        )
    return np.stack([arms.measured_coverage(split) for split in schedule.counts(ks)], axis=1)


def cross_fit_schedule(
    k: ArrayLike,
    *,
    log_p: ArrayLike | None = None,
    num_sampled: ArrayLike | None = None,
    num_correct: ArrayLike | None = None,
    given_arms: Sequence[int] = (),
    max_arms: int | None = None,
    confidence: float = 0.95,
) -> CrossFittedSchedule:
    r"""Estimate what a schedule gives on problems that it was not planned on, and what it gains over rivals.

    Problems are dealt into two halves. For each half, the schedule is planned on the other one, and the best single
    arm for each k is chosen there too. Both are then measured on this half: exactly where p is known, elsewhere by the
    unbiased estimator. Intervals are over problems, as for `mean_curve` and `paired_difference`. Where the schedule
    and a rival make the same attempts in both halves, as for the best arm at k = 1, the difference is exactly 0.

    Args:
        k: Numbers of attempts, shape (K,). From counts, none above the smallest number of samples.
        log_p: As for [`plan_attempts`][dco_trl.statistics.plan_attempts].
        num_sampled: As for `plan_attempts`.
        num_correct: As for `plan_attempts`.
        given_arms: Arms to compare with, each alone, such as the last epoch of each run; counted from 0.
        max_arms: At most this many arms get attempts, chosen on the other half as `plan_attempts` chooses them.
        confidence: Confidence of the intervals, 0.5 to 0.999.

    Raises:
        ValueError: What `plan_attempts` refuses, too few samples for a k, or an arm that does not exist.

    Examples:
        >>> import numpy as np
        >>> from dco_trl.statistics import cross_fit_schedule
        >>> rng = np.random.default_rng(0)
        >>> p = rng.beta(0.3, 2, size=(3, 400))  # three arms that are good at different problems
        >>> expected = cross_fit_schedule([1, 16], log_p=np.log(p))
        >>> expected.best_arm.difference.round(2).tolist(), bool(expected.best_arm.low[1] > 0.1)
        ([0.0, 0.19], True)

    References:
        Chernozhukov et al., "Double/debiased machine learning", The Econometrics Journal 21 (2018), on cross-fitting.
        Miller, "Adding Error Bars to Evals", arXiv 2411.00640, on paired differences.

    Relations:
        [`plan_attempts`][dco_trl.statistics.plan_attempts] plans on all problems; plan with it, and report this.
    """
    arms, ks = check_arms(log_p, num_sampled, num_correct), check_ks(k)
    num_arms, num_problems = arms.shape
    given = [check_integer("given_arms", arm, at_least=0) for arm in given_arms]
    check_confidence(confidence)
    if num_problems < 2:
        raise UserError("there is one problem, but one half is planned on and the other measured. Give at least two.")
    if given and max(given) >= num_arms:
        raise UserError(f"given_arms names arm {max(given)}, but there are {num_arms} arms (counted from 0).")
    fewest = arms.num_sampled[arms.counted].min(initial=ks.max())
    if ks.max() > fewest:
        raise UserError(
            f"k={ks.max()} is more than the {fewest} samples that some arm has of some problem: single arms cannot be "
            "measured there. Draw more samples, ask for a smaller k, or leave out what was not measured."
        )

    alone = ks[:, None, None] * np.eye(num_arms, dtype=np.int64)
    rivals: dict[object, NDArray] = {
        "equal_split": ks[:, None] // num_arms + (np.arange(num_arms) < ks[:, None] % num_arms),
        **{arm: alone[:, arm] for arm in given},
    }
    names = ["schedule", "best_arm", *rivals]
    values: dict[object, NDArray] = {name: np.empty((num_problems, ks.size)) for name in names}
    is_same: dict[object, NDArray] = {name: np.ones(ks.size, dtype=bool) for name in names}
    halves = np.array_split(np.random.default_rng(0).permutation(num_problems), 2)
    for half, other in (halves, halves[::-1]):
        rest, held_out = arms.on(np.sort(other)), arms.on(half)
        best = np.array([[rest.planned_coverage(split).mean() for split in splits] for splits in alone]).argmax(axis=1)
        chosen = choose_arms(int(ks.max()), rest, max_arms)
        along = np.zeros((ks.size, num_arms), dtype=np.int64)
        along[:, chosen] = plan(int(ks.max()), rest.only(chosen)).counts(ks)
        for name, splits in {"schedule": along, "best_arm": alone[np.arange(ks.size), best], **rivals}.items():
            values[name][half] = np.stack([held_out.measured_coverage(split) for split in splits], axis=1)
            is_same[name] &= (splits == along).all(axis=1)

    def against(name: object) -> PairedDifference:
        found = difference_of_means(values[name], values["schedule"], ks, confidence)
        # The same attempts in both halves differ by 0 on every problem, which zeros on these problems cannot show.
        low, high = (np.where(is_same[name], 0.0, end) for end in (found.low, found.high))
        return replace(found, low=low, high=high, reliable=found.reliable | is_same[name])

    curve = mean_curve(values["schedule"], ks, confidence=confidence)
    return CrossFittedSchedule(
        curve, against("best_arm"), against("equal_split"), tuple(against(arm) for arm in given)
    )
