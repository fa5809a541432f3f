r"""The mathematics of coverage, in log space.

A model that gives the right answer with probability \(p\) and is sampled \(N\) times finds it at least once with
probability \(C_N(p) = 1 - (1-p)^N\). Direct Coverage Optimization minimises \(-\log C_N(p)\), whose gradient is that
of cross-entropy times \(F(N, p)\). Everything here takes \(x = \log p\), since the probability of a real answer
underflows float64.
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .checks import LOG_P_ROUNDING, check_num_attempts, check_num_required

# Below this, 1 - (1-p)^N is N p to the last bit: e^-37 is under float64's epsilon.
_LOG_NEGLIGIBLE = -37.0
# Terms of binomial distributions held at a time: 32 MB an array.
_MAX_TERMS = 2**22


def coverage_loss(
    log_p: Float[Tensor, "*shape"], num_attempts: int, *, num_required: int = 1, validate: bool = True
) -> Float[Tensor, "*shape"]:
    r"""Negative log-probability that at least one of `num_attempts` independent samples is the answer.

    $$\ell(x) = -\log\left(1 - (1 - e^x)^N\right), \qquad \frac{d\ell}{d(-x)} = F(N, e^x)$$

    With `num_attempts=1` it is cross-entropy.

    Args:
        log_p: As for [`log_coverage`][dco_trl.coverage.log_coverage], in nats.
        num_attempts: As for `log_coverage`.
        num_required: As for `log_coverage`.
        validate: As for `log_coverage`.

    Returns:
        The loss in nats, at least 0, with the shape and dtype of `log_p`; infinite where `log_p` is -inf.

    Raises:
        ValueError: As for `log_coverage`.
        TypeError: As for `log_coverage`.

    Examples:
        >>> from dco_trl import coverage_loss
        >>> log_p = torch.tensor([0.5], dtype=torch.float64).log()
        >>> coverage_loss(log_p, num_attempts=2)  # -log(3/4)
        tensor([0.2877], dtype=torch.float64)

    References:
        Chen et al., "Rethinking Fine-Tuning when Scaling Test-Time Compute", arXiv 2502.07154, section 4.

    Relations:
        Use it in a training loop of your own. [`DCOTrainer`][dco_trl.trainer.DCOTrainer] gets the same gradient by
        weighing per-token log-probabilities with the detached [`coverage_weight`][dco_trl.coverage.coverage_weight].
    """
    return -log_coverage(log_p, num_attempts, num_required=num_required, validate=validate)


def log_coverage(
    log_p: Float[Tensor, "*shape"], num_attempts: int, *, num_required: int = 1, validate: bool = True
) -> Float[Tensor, "*shape"]:
    r"""Log-probability that at least one of `num_attempts` independent samples is the answer.

    $$\log C_N(x) = \log\left(1 - (1 - e^x)^N\right), \qquad \frac{d \log C_N}{dx} = F(N, e^x)$$

    If `num_required` = m samples must be the answer, as for a vote, it is the log-probability of a binomial tail:

    $$\log B = \log \mathrm{P}[\mathrm{Binomial}(N, p) \ge m], \qquad
      \frac{d \log B}{dx} = \frac{m \binom{N}{m} p^m (1-p)^{N-m}}{B}$$

    Args:
        log_p: Log-probability of each whole answer, in nats, at most 0; any shape, any floating dtype.
        num_attempts: Number of attempts N, at least 1.
        num_required: Number of attempts m that must be the answer, from 1 (coverage) to N. Above 1, time and memory
            grow with N; errors stay below 1e-9 for N up to 10,000.
        validate: Check the values of `log_p`. On an accelerator the check waits for the device.

    Returns:
        Log-coverage in nats, at most 0, with the shape and dtype of `log_p`; -inf where `log_p` is -inf. Computed in
        float64 where the device has it. Twice differentiable; the gradient is finite for every `log_p` in [-inf, 0].

    Raises:
        ValueError: `num_attempts` is not an integer of at least 1, `num_required` is not one from 1 to `num_attempts`,
            or `log_p` has a NaN or a positive value.
        TypeError: `log_p` is not a floating-point tensor.

    Examples:
        >>> from dco_trl import log_coverage
        >>> log_p = torch.tensor([0.5], dtype=torch.float64).log()
        >>> log_coverage(log_p, num_attempts=2).exp()
        tensor([0.7500], dtype=torch.float64)

    References:
        Chen et al., arXiv 2502.07154, section 4. For `num_required`: Ousherovitch and Tewari, "Compute Aligned
        Training", arXiv 2604.24957.

    Relations:
        Prefer `dco_trl.statistics.pass_at_k`, from graded samples, where many answers are right or a chain of thought
        comes first.
    """
    counts = _check(log_p, num_attempts, num_required, validate)
    return _LogCoverage.apply(log_p.to(_working_dtype(log_p)), *counts).to(log_p.dtype)


def coverage_weight(
    log_p: Float[Tensor, "*shape"], num_attempts: int, *, num_required: int = 1, validate: bool = True
) -> Float[Tensor, "*shape"]:
    r"""What Direct Coverage Optimization multiplies an answer's cross-entropy gradient by.

    $$F(N, p) = \frac{N p (1-p)^{N-1}}{1 - (1-p)^N}$$

    It is 1 at \(p = 0\), falls in \(p\), and is 0 at \(p = 1\) for every \(N \ge 2\): the model is not pushed to be
    surer than \(N\) attempts need. `num_attempts=1` gives exactly 1, plain cross-entropy. For \(N = 256\),
    \(F = 0.5\) at \(p = 0.0049\). With `num_required` = m it is m at \(p = 0\), and falls from there.

    Args:
        log_p: As for [`log_coverage`][dco_trl.coverage.log_coverage], in nats.
        num_attempts: As for `log_coverage`.
        num_required: As for `log_coverage`.
        validate: As for `log_coverage`.

    Returns:
        The weight, in [0, m], with the shape and dtype of `log_p`. Computed in float64 where the device has it:
        relative error under 1e-10 for weights above 1e-280 and `num_attempts` up to 1e9. Once differentiable.

    Raises:
        ValueError: As for `log_coverage`.
        TypeError: As for `log_coverage`.

    Examples:
        >>> from dco_trl import coverage_weight
        >>> coverage_weight(torch.tensor([-1e4, -5.3, -0.1]), num_attempts=256)
        tensor([1.0000, 0.4939, 0.0000])

    References:
        Chen et al., arXiv 2502.07154, section 4.

    Relations:
        The derivative of [`log_coverage`][dco_trl.coverage.log_coverage]. Prefer it, detached, where a host library
        sums log-probabilities token by token.
    """
    counts = _check(log_p, num_attempts, num_required, validate)
    return _CoverageWeight.apply(log_p.to(_working_dtype(log_p)), *counts).to(log_p.dtype)


class _LogCoverage(torch.autograd.Function):
    # Autograd through the `where` branches below is NaN at both ends; the closed form is not.
    @staticmethod
    def forward(ctx: Any, log_p: Tensor, num_attempts: int, num_required: int) -> Tensor:
        ctx.save_for_backward(log_p)
        ctx.counts = num_attempts, num_required
        return _log_coverage(log_p, num_attempts) if num_required == 1 else _log_tail(log_p, *ctx.counts)[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (log_p,) = ctx.saved_tensors
        return grad * _CoverageWeight.apply(log_p, *ctx.counts), None, None


class _CoverageWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, log_p: Tensor, num_attempts: int, num_required: int) -> Tensor:
        ctx.counts = num_attempts, num_required
        weight = _weight(log_p, num_attempts) if num_required == 1 else _log_tail(log_p, *ctx.counts)[1]
        ctx.save_for_backward(log_p, weight)
        return weight

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        # From log W = log m C(N,m) + m x + (N-m) log(1-p) - log B:  dW/dx = m W - W^2 - W (N-m) p / (1-p), the last
        # term in log space because W and 1 - p vanish together.
        log_p, weight = ctx.saved_tensors
        log_p = log_p.clamp(max=0.0)
        n, m = ctx.counts
        if m == n:
            return torch.zeros_like(grad), None, None
        curvature = torch.exp(weight.log() + math.log(n - m) + log_p - _log1mexp(log_p))
        curvature = torch.where((log_p == -math.inf) | (weight == 0), 0.0, curvature)
        return grad * (m * weight - weight**2 - curvature), None, None


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - e^x) for x <= 0, to full precision at both ends."""
    return torch.where(x > -math.log(2), torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))


def _log_coverage(log_p: Tensor, num_attempts: int) -> Tensor:
    log_p = log_p.clamp(max=0.0)  # a sum of log-softmax terms may round to just above zero
    if num_attempts == 1:
        return log_p
    log_expected = math.log(num_attempts) + log_p  # the expected number of right attempts, N p
    return torch.where(log_expected < _LOG_NEGLIGIBLE, log_expected, _log1mexp(num_attempts * _log1mexp(log_p)))


def _weight(log_p: Tensor, num_attempts: int) -> Tensor:
    if num_attempts == 1:
        return torch.where(torch.isnan(log_p), log_p, 1.0)
    log_p = log_p.clamp(max=0.0)
    log_one_right = math.log(num_attempts) + log_p + (num_attempts - 1) * _log1mexp(log_p)
    weight = torch.exp(log_one_right - _log_coverage(log_p, num_attempts)).clamp(max=1.0)
    return torch.where(log_p == -math.inf, 1.0, weight)


def _log_tail(log_p: Tensor, num_attempts: int, num_required: int) -> tuple[Tensor, Tensor]:
    """log P[Binomial(N, p) >= m] and its derivative, from the N + 1 terms of the distribution."""
    x = log_p.clamp(max=0.0).flatten()
    j = torch.arange(num_attempts + 1, dtype=x.dtype, device=x.device)
    log_ways = math.lgamma(num_attempts + 1) - torch.lgamma(j + 1) - torch.lgamma(num_attempts - j + 1)
    tails, weights = [], []
    for part in x.split(max(1, _MAX_TERMS // (num_attempts + 1))):
        log_q = _log1mexp(part)[:, None]
        # 0 times log 0 is 0, at p = 0 and p = 1.
        terms = log_ways + torch.where(j > 0, j * part[:, None], 0.0)
        terms = terms + torch.where(j < num_attempts, (num_attempts - j) * log_q, 0.0)
        # The smaller of B and 1 - B is summed, so that nothing cancels. B is its first term times `following`.
        odds = torch.where(part[:, None] < 0, part[:, None] - log_q, math.inf)
        ratios = (log_ways - log_ways[num_required])[num_required:]
        ratios = ratios + torch.where(j > 0, j * odds, 0.0)[:, : num_attempts - num_required + 1]
        following = ratios.logsumexp(1)
        log_hit, log_miss = terms[:, num_required] + following, terms[:, :num_required].logsumexp(1)
        log_hit = torch.where(following == math.inf, 0.0, log_hit)
        tails.append(torch.where(log_miss < log_hit, _log1mexp(log_miss), log_hit))
        weights.append(num_required * torch.exp(-following))
    return torch.cat(tails).view_as(log_p), torch.cat(weights).view_as(log_p)


def _working_dtype(log_p: Tensor) -> torch.dtype:
    return torch.float32 if log_p.device.type == "mps" else torch.float64  # Apple's GPU has no float64


def _check(log_p: Tensor, num_attempts: int, num_required: int, validate: bool) -> tuple[int, int]:
    counts = check_num_attempts(num_attempts), check_num_required(num_required, num_attempts)
    if not isinstance(log_p, Tensor) or not log_p.is_floating_point():
        got = f"a tensor of {log_p.dtype}" if isinstance(log_p, Tensor) else f"{type(log_p).__name__}"
        raise TypeError(f"`log_p` must be a floating-point tensor of log-probabilities, got {got}.")
    if not validate or log_p.numel() == 0:
        return counts
    largest = log_p.detach().max()  # a NaN wins the maximum
    if torch.isnan(largest):
        raise ValueError("`log_p` holds a NaN. The model's logits were NaN or infinite where it was computed.")
    if largest > max(LOG_P_ROUNDING, torch.finfo(log_p.dtype).eps):
        raise ValueError(
            f"`log_p` must be at most 0, got {largest.item():g}: it is a natural log-probability, not a probability "
            "or a negative log-likelihood."
        )
    return counts
