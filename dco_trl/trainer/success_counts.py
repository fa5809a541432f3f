r"""The counts of sampled and correct rationales of every prompt of a training run, and the prior fitted to them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..statistics.beta_binomial import JEFFREYS, fit_prior
from ..statistics.posterior_weight import plugin_weight, posterior_weight


class SuccessCounts:
    r"""The counts (n, c) of every prompt of a data set, and the prior fitted to them.

    Counts of a policy that has moved on are stale. Multiplying them by a factor \(\gamma < 1\) once a window gives a
    sample that is w windows old the weight \(\gamma^w\): exponential forgetting. Prompts that were settled become
    uncertain again, and are sampled again.

    The posterior uses the discounted counts. A prior fitted to them would be wrong: a success rate of samples with
    weights \(w_j\) has the noise of \(n^* = (\sum_j w_j)^2 / \sum_j w_j^2\) plain ones (Kish), which is more than
    their sum n, so the rates of the data set would look more alike than they are. The prior is fitted to counts scaled
    to \(n^*\), with each prompt counted \(n / n^*\) times, so that stale ones fade.

    Args:
        num_examples: Prompts in the data set; example ids are 0 ... num_examples - 1.

    Attributes:
        num_sampled: Rationales drawn, discounted by forgetting, float64, shape (num_examples,).
        num_correct: Those that led to the answer, discounted likewise, float64, shape (num_examples,).
        sum_squares: Sum of the squared discounts of the rationales, float64, shape (num_examples,).
        prior: Parameters (a, b) of the Beta prior; Jeffreys' until the first `refit`.

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
        It calls [`posterior_weight`][dco_trl.statistics.posterior_weight] and
        [`fit_prior`][dco_trl.statistics.fit_prior].
    """

    def __init__(self, num_examples: int) -> None:
        self.num_sampled, self.num_correct, self.sum_squares = np.zeros((3, num_examples))
        self.prior: tuple[float, float] = JEFFREYS

    def add(self, example_ids: Any, num_sampled: ArrayLike, num_correct: ArrayLike) -> None:
        """Add new samples to the counts. An id that comes twice is added twice."""
        np.add.at(self.num_sampled, example_ids, num_sampled)
        np.add.at(self.num_correct, example_ids, num_correct)
        np.add.at(self.sum_squares, example_ids, num_sampled)

    def forget(self, factor: float, example_ids: Any = slice(None)) -> None:
        """Multiply counts of distinct prompts by `factor`: 0 forgets them, 1 says that the policy has not moved."""
        self.num_sampled[example_ids] *= factor
        self.num_correct[example_ids] *= factor
        self.sum_squares[example_ids] *= factor**2

    def updated(
        self, example_ids: Any, factor: float, num_sampled: ArrayLike = 0, num_correct: ArrayLike = 0
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Counts (n, c) of prompts as `forget(factor)` and `add` would leave them; nothing is changed."""
        n, c = factor * self.num_sampled[example_ids], factor * self.num_correct[example_ids]
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
        self, example_ids: Any, num_attempts: int, estimator: str = "posterior"
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Weight of each prompt, and its posterior standard deviation; NaN with "plugin", which has no posterior.

        Raises:
            ValueError: "plugin" for a prompt without samples, or `num_attempts` is no integer of at least 1.
        """
        n, c = self.num_sampled[example_ids], self.num_correct[example_ids]
        if estimator == "plugin":
            return plugin_weight(n, c, num_attempts), np.full(n.shape, np.nan)
        return posterior_weight(n, c, num_attempts, self.prior)

    def state_dict(self) -> dict[str, Any]:
        """Counts and prior as lists, which JSON can hold."""
        return {name: np.asarray(value).tolist() for name, value in vars(self).items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on exactly where `state_dict` was taken, on the same data set."""
        if len(state["num_sampled"]) != len(self.num_sampled):
            raise ValueError(
                f"state holds the counts of {len(state['num_sampled'])} prompts, the data set has "
                f"{len(self.num_sampled)}. Resume with the data set that the checkpoint was made with."
            )
        for name in ("num_sampled", "num_correct", "sum_squares"):
            setattr(self, name, np.array(state[name], dtype=np.float64))
        self.prior = tuple(state["prior"])


def needs_sampling(
    deviation: ArrayLike, num_sampled: ArrayLike, *, weight_tolerance: float, num_rationales: int
) -> NDArray[np.bool_]:
    r"""Which prompts to draw a further batch of rationales for.

    Sampling of a prompt stops when the standard deviation of its weight is at most `weight_tolerance`, or when its
    counts, after forgetting, are worth `num_rationales` samples. A prompt whose counts are worth less than one sample
    is always drawn: the prior alone settles nothing, least of all before it is fitted.

    Looking at the posterior after each batch does not bias it: the likelihood of the counts does not depend on why the
    sampling stopped.

    Args:
        deviation: Posterior standard deviation of each weight. NaN, as `estimator="plugin"` gives, never stops early:
            with forgetting by a factor of 0, every prompt is drawn `num_rationales` times, as the paper's authors do.
        num_sampled: Samples that the counts of each prompt are worth, n >= 0. The two broadcast.
        weight_tolerance: Standard deviation to stop at; 0 turns early stopping off.
        num_rationales: Most samples for the counts of a prompt to be worth.

    Returns:
        True where a further batch is needed, bool, of the broadcast shape.

    Examples:
        ```python
        >>> from dco_trl.trainer.success_counts import needs_sampling
        >>> needs_sampling([0.3, 0.01, 0.3, 0.01], [8, 8, 64, 0], weight_tolerance=0.1, num_rationales=64).tolist()
        [True, False, False, True]

        ```
    """
    n = np.asarray(num_sampled, dtype=np.float64)
    settled = (np.asarray(deviation) <= weight_tolerance) & (weight_tolerance > 0.0)
    return (n < 1.0) | (~settled & (n < num_rationales))
