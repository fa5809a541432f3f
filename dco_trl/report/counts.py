"""The counts of a run as arrays, and pass@k from them: of one arm, or along a schedule."""

import numpy as np
from numpy.typing import NDArray

from ..runs.results import RunResult
from ..statistics import pass_at_k, scheduled_pass_at_k


class Counts:
    """Counts of a graded run.

    Args:
        result: The run.

    Attributes:
        ids: The problems.
        num_samples: Samples of each, int64, shape (problems,).
        num_correct: Correct ones among them, same shape.
        schedule: The order of attempts, and `arms`; None and empty for a run of one arm.
        by_arm: Samples and correct ones, int64, shape (arms, 2, problems).
        reach: The largest k for which a problem has the samples, int64, shape (problems,).
    """

    def __init__(self, result: RunResult) -> None:
        self.ids = [problem.problem_id for problem in result.problems]
        self.num_samples = np.array([problem.num_samples for problem in result.problems])
        self.num_correct = np.array([problem.num_correct for problem in result.problems])
        self.schedule = None if result.schedule is None else result.schedule.schedule
        self.arms = () if result.schedule is None else result.schedule.arms
        by_arm = np.array([problem.by_arm for problem in result.problems], dtype=np.int64)
        self.by_arm = by_arm.reshape(len(self.ids), len(self.arms), 2).transpose(1, 2, 0)
        self.reach = self._reach()

    def pass_at_k(self, ks: list[int]) -> NDArray[np.float64]:
        """Unbiased estimates, shape (problems, K): along the schedule, if there is one."""
        if self.schedule is None:
            return pass_at_k(self.num_samples[:, None], self.num_correct[:, None], ks, self.ids)
        return scheduled_pass_at_k(self.schedule, ks, num_sampled=self.by_arm[:, 0], num_correct=self.by_arm[:, 1])

    def _reach(self) -> NDArray[np.int64]:
        if self.schedule is None:
            return self.num_samples
        # Attempts of each arm among the first k never fall with k, so the first arm that runs out decides.
        needed = self.schedule.counts(np.arange(self.num_samples.max() + 1))
        return np.min(
            [np.searchsorted(needed[:, arm], n, side="right") - 1 for arm, n in enumerate(self.by_arm[:, 0])], axis=0
        )
