r"""The best bookie: which answers to bet on when a bet may be placed \(N\) times and one winner is enough.

A bookie bets on horse \(i\) with probability \(q_i\), and \(N\) independent copies of the bookie each place one bet.
Horse \(i\) wins with probability \(p_i\). A model that is sampled \(N\) times and graded by a checker is such a
bookie: the horses are the answers it may give. Everything here is exact and knows \(p\), unlike a real model; it shows
what good training should aim at.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .checks import check_integer, check_whole_numbers
from .coverage_numpy import coverage

# A distribution that came out of a float32 softmax sums to 1 within about this.
_SUM_TOLERANCE = 1e-4


def win_probability(bet_probability: ArrayLike, num_attempts: ArrayLike) -> Any:
    r"""Probability that at least one of `num_attempts` independent bets is on the winning horse.

    $$C_N(q) = 1 - (1 - q)^N$$

    Args:
        bet_probability: Probability q of betting on that horse, in [0, 1]; any shape.
        num_attempts: Number of bets N, integers of at least 1; any shape that broadcasts with `bet_probability`.

    Returns:
        The probability, float64, with the broadcast shape; a scalar for scalars. Relative error below 1e-12, even
        where N q is tiny.

    Raises:
        ValueError: A bet probability outside [0, 1], or a number of bets that is no integer of at least 1.

    Examples:
        >>> from dco_trl.theory import win_probability
        >>> win_probability([0.5, 0.05], 16).round(3)
        array([1.  , 0.56])

    References:
        Chen et al., "Rethinking Fine-Tuning when Scaling Test-Time Compute", arXiv 2502.07154: coverage, or pass@N.

    Relations:
        Prefer [`log_coverage`][dco_trl.coverage.log_coverage] for a model's answers, whose probabilities underflow.
    """
    q = _probabilities("bet_probability", bet_probability)
    with np.errstate(divide="ignore"):
        return coverage(np.log(q), check_whole_numbers("num_attempts", num_attempts, at_least=1))


def value_of_offer(p: ArrayLike, before: ArrayLike, after: ArrayLike, num_attempts: ArrayLike) -> Any:
    r"""Change in the probability of winning when the bets move from `before` to `after`.

    $$V_N = \sum_i p_i \left(C_N(q_i^\text{after}) - C_N(q_i^\text{before})\right), \qquad C_N(q) = 1 - (1-q)^N$$

    Horses whose bet does not change add nothing and may be left out, so none of the three vectors has to sum to 1.

    Args:
        p: Probability that each horse wins, in [0, 1], sum at most 1, shape (horses,).
        before: Probability of betting on each horse now, in [0, 1], sum at most 1, shape (horses,).
        after: The same once the offer is taken, shape (horses,).
        num_attempts: Number of bets N, integers of at least 1; any shape, which is that of the result.

    Raises:
        ValueError: As for `win_probability`; or a vector sums to more than 1 or differs in length from `p`.

    Examples:
        >>> from dco_trl.theory import value_of_offer
        >>> value_of_offer(p=[0.4, 0.2], before=[0.2, 0.1], after=[0.5, 0.05], num_attempts=[1, 16]).round(3)
        array([ 0.11, -0.04])

    References:
        The analogy of the authors' post on arXiv 2502.07154: more confidence in the likeliest answer pays with one
        attempt and costs with many.

    Relations:
        [`optimal_policy`][dco_trl.theory.optimal_policy] is the bet from which no offer has value.
    """
    p, before, after = _vector("p", p), _vector("before", before), _vector("after", after)
    for name, bets in (("before", before), ("after", after)):
        if bets.shape != p.shape:
            raise ValueError(
                f"`{name}` must have one entry per horse, as `p` has: got {bets.size} entries for {p.size} horses."
            )
    n = np.asarray(num_attempts)[..., None]
    return (win_probability(after, n) - win_probability(before, n)) @ p


def optimal_policy(p: ArrayLike, num_attempts: int) -> NDArray[np.float64]:
    r"""The best bets for `num_attempts` copies of a bookie who knows the true probabilities `p`.

    $$q^\star = \mathrm{arg\,max}_{q \in \Delta} \sum_i p_i \left(1 - (1 - q_i)^N\right)$$

    Each term is concave in \(q_i\), so the Karush-Kuhn-Tucker conditions decide: for some \(\lambda\),
    \(p_i (1-q_i)^{N-1} = \lambda\) where \(q_i > 0\) and \(p_i \le \lambda\) where \(q_i = 0\). Sort
    \(p_1 \ge p_2 \ge \dots\), write \(a = 1/(N-1)\) and let \(m\) horses be bet on. Then
    \(1 - q_i = (\lambda/p_i)^a\), and \(\sum_i q_i = 1\) gives \(\lambda^a = (m-1) / \sum_{j \le m} p_j^{-a}\):

    $$q_i = 1 - (m-1) \frac{p_i^{-a}}{\sum_{j \le m} p_j^{-a}} \quad (i \le m), \qquad q_i = 0 \quad (i > m)$$

    with \(m\) the largest number for which \(q_m > 0\).

    - One attempt: everything on the likeliest horse.
    - Two horses: \(q_1 = p_1^a / (p_1^a + p_2^a)\), so two attempts give \(q = p\).
    - Many attempts: uniform over the horses that can win.

    Args:
        p: Probability that each horse wins, shape (horses,), non-negative, sum 1. Zeros are allowed.
        num_attempts: Number of bets N, an integer of at least 1.

    Returns:
        The bets, float64, in the order of `p`; equal for horses with equal `p`. At one attempt any split among tied
        favourites is optimal: they share equally, the limit of the formula.

    Raises:
        ValueError: `p` is not a distribution, or `num_attempts` is not an integer of at least 1.

    Examples:
        >>> from dco_trl.theory import optimal_policy
        >>> [optimal_policy([0.6, 0.3, 0.1], n).round(3).tolist() for n in (1, 2, 16, 4096)]
        [[1.0, 0.0, 0.0], [0.667, 0.333, 0.0], [0.37, 0.34, 0.29], [0.333, 0.333, 0.333]]

    References:
        Chen et al., arXiv 2502.07154, on the optimal policy for pass@N. The closed form is derived above.

    Relations:
        [`confidence_bounds`][dco_trl.theory.confidence_bounds] bounds its largest entry.
        [`coverage_loss`][dco_trl.coverage.coverage_loss] minimises the mean of -log C, not of -C. Where the answer is
        random, the optima differ: little with many attempts, most with one (cross-entropy gives q = p).
    """
    p = _distribution(p)
    n = check_integer("num_attempts", num_attempts)
    q = np.zeros_like(p)
    if n == 1:
        favourites = p == p.max()
        q[favourites] = 1 / favourites.sum()
        return q
    order = np.argsort(-p, kind="stable")[: np.count_nonzero(p)]
    log_p = np.log(p[order])
    a = 1 / (n - 1)

    def bets_at_level(m: int) -> NDArray[np.float64]:
        # The bets on horses 1 to m at lambda = p_m, where horse m is about to join: 1 - (p_m/p_i)^a, no overflow.
        return -np.expm1(a * (log_p[m - 1] - log_p[:m]))

    # Horse m joins if the horses above it leave some of the bet at its level. The larger m, the less is left.
    low, high = 1, len(order)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if bets_at_level(middle).sum() < 1 else (low, middle - 1)
    m, level = low, bets_at_level(low)
    # The formula above in units of p_m^-a: neither of the two terms is negative, so nothing cancels.
    q[order[:m]] = ((1 - level.sum()) + (m - 1) * level) / (m - level.sum())
    return q


def confidence_bounds(p: ArrayLike, num_attempts: int, num_compared: int = 2) -> tuple[float, float]:
    r"""Bounds on how sure the best bookie is of the likeliest horse, both falling in `num_attempts`.

    $$1 - \left(\frac{p_2}{p_1}\right)^a \;\le\; q_1^\star \;\le\; 1 - \frac{k-1}{\sum_{i \le k} (p_1/p_i)^a},
    \qquad a = \frac{1}{N-1}$$

    Both follow from \(1 - q_i^\star \le (\lambda/p_i)^a\), which the Karush-Kuhn-Tucker conditions make an equality
    for every horse that is bet on (see [`optimal_policy`][dco_trl.theory.optimal_policy]).

    - Lower: if the second horse is bet on, \(\lambda \le p_2\), so \(1 - q_1 = (\lambda/p_1)^a \le (p_2/p_1)^a\).
    - Upper: the k likeliest get at most 1 in all, so \(k - 1 \le \sum_{i \le k} (1 - q_i) \le
      \lambda^a \sum_{i \le k} p_i^{-a}\), and \(1 - q_1 = (\lambda/p_1)^a\) is at least the share above.

    The lower bound needs only the favourite's lead over the second; the upper one tends to \(1/k\) as N grows. It is
    exact where k is the number of horses that the best bookie bets on.

    Args:
        p: As for `optimal_policy`.
        num_attempts: As for `optimal_policy`.
        num_compared: How many of the likeliest horses the upper bound looks at, k, from 2 to the number of horses.

    Returns:
        The lower and the upper bound on `optimal_policy(p, num_attempts).max()`. (1.0, 1.0) for one horse.

    Raises:
        ValueError: As for `optimal_policy`, or `num_compared` is out of range.

    Examples:
        >>> from dco_trl.theory import confidence_bounds, optimal_policy
        >>> low, high = confidence_bounds([0.6, 0.3, 0.1], num_attempts=16)
        >>> round(low, 3), round(float(optimal_policy([0.6, 0.3, 0.1], 16).max()), 3), round(high, 3)
        (0.045, 0.37, 0.512)

    References:
        Chen et al., arXiv 2502.07154, bounds it from both sides too; these bounds are derived above.

    Relations:
        Prefer [`optimal_policy`][dco_trl.theory.optimal_policy]; the bounds need only the k largest entries of `p`.
    """
    p = _distribution(p)
    n = check_integer("num_attempts", num_attempts)
    k = check_integer("num_compared", num_compared, at_least=2)
    if p.size == 1:
        return 1.0, 1.0
    if k > p.size:
        raise ValueError(f"`num_compared` must be at most the number of horses, {p.size}, got {k}.")
    top = -np.sort(-p)[:k]
    with np.errstate(divide="ignore"):
        lead = np.log(top[0]) - np.log(top)  # log(p_1/p_i), infinite for a horse that cannot win
    if n == 1:  # a is infinite: any lead at all decides
        return float(lead[1] > 0), 1.0 if lead[-1] > 0 else 1 / k
    a = 1 / (n - 1)
    lower = -math.expm1(-a * lead[1])
    if lead[-1] == math.inf:
        return lower, 1.0
    # 1 - (k-1) w_1 / sum(w) with w_i = p_i^-a, in units of the largest of them: (p_1/p_i)^a may overflow.
    weight = np.exp(a * (lead - lead[-1]))
    return lower, float(1 - (k - 1) * weight[0] / weight.sum())


def _probabilities(name: str, values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    bad = ~((array >= 0) & (array <= 1))  # a NaN fails both
    if bad.any():
        raise ValueError(f"`{name}` must hold probabilities in [0, 1], got {array[bad][0]:g}.")
    return array


def _vector(name: str, values: ArrayLike) -> NDArray[np.float64]:
    array = _probabilities(name, values)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"`{name}` must be a vector with one entry per horse, got shape {array.shape}.")
    if array.sum() > 1 + _SUM_TOLERANCE:
        raise ValueError(f"`{name}` must sum to at most 1 (shares of one whole), got a sum of {array.sum():g}.")
    return array


def _distribution(p: ArrayLike) -> NDArray[np.float64]:
    array = _vector("p", p)
    if array.sum() < 1 - _SUM_TOLERANCE:
        raise ValueError(f"`p` must sum to 1, got {array.sum():g}. Divide it by its sum, or add a horse for the rest.")
    return array
