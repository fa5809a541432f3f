"""Statistics of coverage, with NumPy and SciPy alone: pass@k from counts, intervals, fits, and schedules."""

from ..extras import require

require("dco_trl.statistics", "eval", "scipy")

from .beta_binomial import fit_prior
from .expected_schedule import CrossFittedSchedule, cross_fit_schedule, scheduled_pass_at_k
from .intervals import PairedDifference, PassAtKCurve, default_ks, mean_curve, paired_difference, pass_at_k_curve
from .majority_vote import majority_at_k
from .never_solved import NeverSolved, never_solved
from .pass_at_k import at_least_m_of_k, exact_pass_at_k, pass_at_k
from .posterior_weight import plugin_weight, posterior_weight
from .schedule import AttemptOrder, plan_attempts

__all__ = [
    "AttemptOrder",
    "CrossFittedSchedule",
    "NeverSolved",
    "PairedDifference",
    "PassAtKCurve",
    "at_least_m_of_k",
    "cross_fit_schedule",
    "default_ks",
    "exact_pass_at_k",
    "fit_prior",
    "majority_at_k",
    "mean_curve",
    "never_solved",
    "paired_difference",
    "pass_at_k",
    "pass_at_k_curve",
    "plan_attempts",
    "plugin_weight",
    "posterior_weight",
    "scheduled_pass_at_k",
]
