"""The metrics of units, and the warning that DCO does nothing."""

import math

import torch
from accelerate.logging import get_logger
from jaxtyping import Float
from torch import Tensor

from ..coverage import coverage_loss, log_coverage
from .dco_config import DCOConfig
from .segments import Segments

logger = get_logger(__name__)

# DCO is cross-entropy while all weights are 1; reported once, after this many optimizer steps.
IDLE_AFTER_STEPS = 20
IDLE_WEIGHT = 0.99
# Below this mean weight hardly anything is trained.
_STARVED_WEIGHT = 0.02
# The metrics of a unit, in the order in which they are summed, after a 1 that counts it.
METRICS = ("coverage_loss", "coverage_weight", "weight_below_0.1", "log_p")


def metrics_of_units(
    log_p: Float[Tensor, " unit"], weights: Float[Tensor, " unit"], segments: Segments, args: DCOConfig, mode: str
) -> Float[Tensor, "unit column"]:
    """A table of 1, the `METRICS` and, for mode "eval", the coverage metrics of each unit; 0 if it is not valid."""
    m = args.num_required
    loss = coverage_loss(log_p, args.num_attempts, num_required=m, validate=False)
    columns = [torch.ones_like(log_p), loss, weights, (weights < 0.1 * m).to(log_p.dtype), log_p]
    if mode == "eval":
        columns += [
            log_coverage(log_p, k, num_required=required, validate=False).exp()
            for k, required in args.coverage_metrics.values()
        ]
    return torch.where(segments.valid[:, None], torch.stack(columns, dim=1), 0.0)


def means_of(sums: Float[Tensor, " column"], step: int, may_be_nan: bool) -> list[float]:
    """Means of the metrics from their sums, whose first is the number of units; NaN without units.

    Raises:
        FloatingPointError: A metric is NaN, and may not be.
    """
    count, *totals = sums.tolist()
    if any(math.isnan(total) for total in totals) and not may_be_nan:
        raise FloatingPointError(
            f"The log-probability of an answer became NaN by step {step}: the model's logits are NaN or infinite. "
            "Usual causes are a learning rate that is too high, float16, or a damaged checkpoint."
        )
    return [total / count if count else math.nan for total in totals]


def warn_if_idle(count: float, weight: float, log_p: float, num_steps: int, args: DCOConfig) -> None:
    """Warn if the mean weight, from sums over units, is close to its maximum or to 0."""
    if count and weight / count < _STARVED_WEIGHT:
        logger.warning(
            f"`num_attempts={args.num_attempts}` leaves next to nothing to train: over the first {num_steps} steps "
            f"the mean weight is {weight / count:.2g}. The mean log p of an answer is {log_p / count:.1f} nats: "
            "so many attempts would find these answers already. Use a smaller `num_attempts`, the budget that you "
            "will have at test time, or harder examples."
        )
    if not count or weight / count <= IDLE_WEIGHT * args.num_required:
        return
    # For small p, a weight W falls short of its maximum m by 1 - W / m = N p / (m + 1).
    threshold = math.log(0.1 * (args.num_required + 1) / args.num_attempts)
    logger.warning(
        f"DCO is cross-entropy so far: over the first {num_steps} steps the mean weight is {weight / count:.3f}. The "
        f"mean log p of an answer is {log_p / count:.1f} nats, and with `num_attempts={args.num_attempts}` weights "
        f"only fall by a tenth where log p is above {threshold:.1f}. On short answers this passes as the model "
        "learns. On long completions, a chain of thought for example, it does not: use `CoTDCOTrainer`, which "
        "estimates p from sampled rationales, or train the final answer alone."
    )
