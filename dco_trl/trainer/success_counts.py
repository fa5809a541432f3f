r"""The counts of sampled and correct rationales of every prompt of a training run, and the prior fitted to them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..checks import check_discounted_counts, check_integer
from ..statistics.beta_binomial import JEFFREYS, check_prior, fit_prior
from ..statistics.posterior_weight import plugin_weight, posterior_weight
from .cot_config import ESTIMATORS


class SuccessCounts:
    r"""The counts (n, c) of every prompt of a data set, and the prior fitted to them.

    Counts of a policy that has moved on are stale. Multiplying them by a factor \(\gamma < 1\) once a window gives a
    sample that is w windows old the weight \(\gamma^w\): exponential forgetting. Prompts that were settled become
    uncertain again, and are sampled again.

    The discounted counts make the posterior, and would make a wrong prior: a share of samples with weights \(w_j\) has
    the noise of \(n^* = (\sum_j w_j)^2 / \sum_j w_j^2\) plain ones (Kish), which is more than their sum n, so that the
    rates of the data set would look more alike than they are. The prior is fitted to counts scaled to \(n^*\), each
    prompt counted \(n / n^*\) times, so that stale ones fade.

    Args:
        num_examples: Prompts in the data set; example ids are 0 ... num_examples - 1.

    Attributes:
        num_sampled: Rationales drawn, discounted by forgetting, float64, shape (num_examples,).
        num_correct: Those that led to the answer, discounted likewise, float64, shape (num_examples,).
        sum_squares: Sum of the squared discounts of the rationales, float64, shape (num_examples,).
        prior: Parameters (a, b) of the Beta prior; Jeffreys' until the first `refit`.

    Raises:
        ValueError: `num_examples` is no integer of at least 1.

    Examples:
        ```python
        >>> from dco_trl.trainer.success_counts import SuccessCounts
        >>> counts = SuccessCounts(num_examples=3)
        >>> counts.add([0, 1], num_sampled=8, num_correct=[0, 5])
        >>> counts.refit()
        >>> weight, deviation = counts.weights([0, 1, 2], num_attempts=16)
        >>> bool(weight[0] > weight[2] > weight[1])  # failed, never sampled, often right
        True

        ```

    Relations:
        [`posterior_weight`][dco_trl.statistics.posterior_weight] and [`fit_prior`][dco_trl.statistics.fit_prior] are
        what it calls; [`needs_sampling`][dco_trl.trainer.success_counts.needs_sampling] takes its deviations.
    """

    def __init__(self, num_examples: int) -> None:
        num_examples = check_integer("num_examples", num_examples, note="the number of prompts in the data set")
        self.num_sampled = np.zeros(num_examples)
        self.num_correct = np.zeros(num_examples)
        self.sum_squares = np.zeros(num_examples)
        self.prior: tuple[float, float] = JEFFREYS

    def add(self, example_ids: ArrayLike, num_sampled: ArrayLike, num_correct: ArrayLike) -> None:
        """Add new samples to the counts. An id that comes twice is added twice.

        Args:
            example_ids: Prompts sampled, integers, shape (K,).
            num_sampled: Rationales drawn for each, shape (K,) or a scalar.
            num_correct: Those that led to the answer, shape (K,) or a scalar.

        Raises:
            ValueError: Impossible counts, or ids outside of the data set.
        """
        ids = self._check_ids(example_ids)
        n, c = check_discounted_counts(num_sampled, num_correct)
        if n.size not in (1, ids.size):
            raise ValueError(
                f"num_sampled and num_correct have {n.size} entries for {ids.size} example_ids. Give one for each, or "
                "one for all."
            )
        np.add.at(self.num_sampled, ids, n.ravel())
        np.add.at(self.num_correct, ids, c.ravel())
        np.add.at(self.sum_squares, ids, n.ravel())

    def forget(self, factor: float, example_ids: ArrayLike | None = None) -> None:
        """Multiply counts by `factor`, from 0 (forget everything) to 1 (the policy has not moved).

        Args:
            factor: What old samples are worth from now on.
            example_ids: Prompts, integers, each at most once; all of them, unless given.

        Raises:
            ValueError: `factor` is not between 0 and 1, or ids outside of the data set.
        """
        if not 0.0 <= factor <= 1.0:
            raise ValueError(
                f"factor must be between 0 (forget everything) and 1 (keep everything), got {factor!r}: it is what "
                "old counts are multiplied by."
            )
        ids = slice(None) if example_ids is None else self._check_ids(example_ids)
        self.num_sampled[ids] *= factor
        self.num_correct[ids] *= factor
        self.sum_squares[ids] *= factor**2

    def updated(
        self, example_ids: ArrayLike, factor: float, num_sampled: ArrayLike = 0, num_correct: ArrayLike = 0
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Counts (n, c) of prompts as `forget(factor)` and `add` would leave them; nothing is changed."""
        ids = self._check_ids(example_ids)
        n, c = factor * self.num_sampled[ids], factor * self.num_correct[ids]
        return n + np.asarray(num_sampled), c + np.asarray(num_correct)

    def rate(self, num_sampled: ArrayLike, num_correct: ArrayLike) -> NDArray[np.float64]:
        """Posterior mean of the success rate of prompts with these counts."""
        a, b = self.prior
        return (a + np.asarray(num_correct)) / (a + b + np.asarray(num_sampled))

    def refit(self) -> None:
        """Fit the prior to the counts at hand."""
        known = self.sum_squares > 0
        if not known.any():
            self.prior = JEFFREYS
            return
        n, c, fading = self.num_sampled[known], self.num_correct[known], self.sum_squares[known]
        # n* = n (n / sum of squares); a sample that was never discounted has n* = n.
        noise = np.maximum(n / fading, 1.0)
        self.prior = fit_prior(n * noise, c * noise, multiplicity=1.0 / noise)

    def weights(
        self, example_ids: ArrayLike, num_attempts: int, estimator: str = "posterior"
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Weight of each prompt, and its posterior standard deviation.

        Args:
            example_ids: Prompts, integers, any shape.
            num_attempts: Number of attempts N, at least 1.
            estimator: "posterior", the mean over the posterior; or "plugin", the weight at c/n.

        Returns:
            Weights and standard deviations, float64, of the shape of `example_ids`. "plugin" has no posterior: its
            deviations are NaN.

        Raises:
            ValueError: Unknown estimator, ids outside of the data set, `num_attempts` is no integer of at least 1, or
                "plugin" for a prompt without samples.
        """
        if estimator not in ESTIMATORS:
            raise ValueError(f"estimator must be one of {', '.join(map(repr, ESTIMATORS))}, got {estimator!r}.")
        ids = self._check_ids(example_ids)
        n, c = self.num_sampled[ids], self.num_correct[ids]
        if estimator == "plugin":
            return plugin_weight(n, c, num_attempts), np.full(ids.shape, np.nan)
        return posterior_weight(n, c, num_attempts, self.prior)

    def state_dict(self) -> dict[str, Any]:
        """Counts and prior as numpy arrays, to be saved with a checkpoint (`numpy.savez`, no pickle needed)."""
        return {
            "num_sampled": self.num_sampled.copy(),
            "num_correct": self.num_correct.copy(),
            "sum_squares": self.sum_squares.copy(),
            "prior": np.array(self.prior),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on exactly where `state_dict` was taken.

        Raises:
            ValueError: An entry is missing, belongs to a data set of another size, or holds impossible values.
        """
        missing = [name for name in self.state_dict() if name not in state]
        if missing:
            raise ValueError(f"state has no {', '.join(missing)}: it is not what SuccessCounts.state_dict returns.")
        n, c = check_discounted_counts(state["num_sampled"], state["num_correct"])
        if n.shape != self.num_sampled.shape:
            raise ValueError(
                f"state holds the counts of {n.size} prompts, the data set has {self.num_sampled.size}. Resume with "
                "the data set that the checkpoint was made with."
            )
        _, squares = check_discounted_counts(n, state["sum_squares"], "sum_squares")
        self.prior = check_prior(state["prior"])
        self.num_sampled, self.num_correct, self.sum_squares = n.copy(), c.copy(), squares.copy()

    def _check_ids(self, example_ids: ArrayLike) -> NDArray[np.int64]:
        ids = np.asarray(example_ids)
        if ids.size == 0:
            raise ValueError("example_ids is empty: there is no prompt to work on.")
        if ids.dtype.kind not in "iu":
            raise ValueError(f"example_ids must be integers, got an array of {ids.dtype}.")
        outside = (ids < 0) | (ids >= self.num_sampled.size)
        if outside.any():
            raise ValueError(
                f"example_ids has {ids[outside].flat[0]}, the data set has ids 0 to {self.num_sampled.size - 1}. Was "
                "the table made for another data set?"
            )
        return ids.astype(np.int64)


def needs_sampling(
    deviation: ArrayLike, num_sampled: ArrayLike, *, weight_tolerance: float, num_rationales: int
) -> NDArray[np.bool_]:
    r"""Which prompts to draw a further batch of rationales for.

    A prompt leaves when the standard deviation of its weight is at most `weight_tolerance`, or when its counts are
    worth `num_rationales` samples, remembered ones included at what forgetting left of them. One whose counts are
    worth less than one sample is always drawn: the prior alone settles nothing, least of all before it was fitted.

    Looking at the posterior after each batch does not bias it: the likelihood of the counts is the same whatever made
    the sampling stop.

    Args:
        deviation: Posterior standard deviation of each weight. NaN, as `estimator="plugin"` gives, never leaves early:
            with forgetting by a factor of 0, every prompt is drawn `num_rationales` times, as the paper's authors do.
        num_sampled: Samples that the counts of each prompt are worth, n >= 0. The two broadcast.
        weight_tolerance: Standard deviation to stop at, at least 0; 0 turns early stopping off.
        num_rationales: Most samples for the counts of a prompt to be worth, at least 1.

    Returns:
        True where a further batch is needed, bool, of the broadcast shape.

    Raises:
        ValueError: `weight_tolerance` is negative or NaN, or `num_rationales` is no integer of at least 1.

    Examples:
        ```python
        >>> from dco_trl.trainer.success_counts import needs_sampling
        >>> needs_sampling([0.3, 0.01, 0.3, 0.01], [8, 8, 64, 0], weight_tolerance=0.1, num_rationales=64).tolist()
        [True, False, False, True]

        ```

    Relations:
        [`SuccessCounts.weights`][dco_trl.trainer.success_counts.SuccessCounts] gives the deviations.
    """
    if not weight_tolerance >= 0.0:
        raise ValueError(
            f"weight_tolerance must be a standard deviation of at least 0, got {weight_tolerance!r}. Weights lie in "
            "[0, 1]; 0 draws num_rationales for every prompt."
        )
    check_integer("num_rationales", num_rationales, note="the most rationales to draw for a prompt")
    n = np.asarray(num_sampled, dtype=np.float64)
    settled = (np.asarray(deviation, dtype=np.float64) <= weight_tolerance) & (weight_tolerance > 0.0)
    return (n < 1.0) | (~settled & (n < num_rationales))
