"""Refuses settings of `SFTTrainer` with which p is not that of one whole answer, or weights are ignored."""

from collections.abc import Callable
from typing import Any

from .dco_config import DCOConfig

# Strategies that cut sequences: p would be the probability of a piece.
CUTTING_STRATEGIES = ("wrapped", "bfd_split")


def check_loss_is_trls(args: DCOConfig, compute_loss_func: Callable | None) -> None:
    """Raise a `ValueError` if the loss would not be computed from the log-probabilities."""
    reason = "replaces TRL's loss, so the coverage weights would be ignored."
    if args.label_smoothing_factor > 0:
        raise ValueError(
            f"`label_smoothing_factor={args.label_smoothing_factor}` {reason} Set it to 0: DCO limits confidence "
            "itself."
        )
    if compute_loss_func is not None:
        raise ValueError(f"`compute_loss_func` {reason} Leave it out, or use it with `num_attempts=1`.")
    if args.loss_type != "nll":
        raise ValueError(
            f"`loss_type={args.loss_type!r}` would be computed from log-probabilities that already carry the coverage "
            "weights. Use `loss_type='nll'`, or this one with `num_attempts=1`."
        )


def check_sequences_stay_whole(args: DCOConfig, formatting_func: Callable | None) -> None:
    """Raise a `ValueError` if a sequence would not be exactly one answer."""
    if (args.packing or args.eval_packing) and args.packing_strategy in CUTTING_STRATEGIES:
        raise ValueError(
            f"`packing_strategy={args.packing_strategy!r}` cuts sequences, so p would be the probability of a piece "
            "of an answer. Use `packing_strategy='bfd'`, which keeps them whole."
        )
    if formatting_func is not None:
        raise ValueError(
            "`formatting_func` merges prompt and completion into one text, so p would be the probability of both "
            "together. Give the dataset `prompt` and `completion` columns instead, for example with `dataset.map`."
        )


def why_sequences_are_sharded(parallelism_config: Any) -> str | None:
    """Name what splits a sequence over devices, and what to do about it; None if nothing does."""
    for name, enabled in (("context", "cp_enabled"), ("sequence", "sp_enabled")):
        if getattr(parallelism_config, enabled, False):
            return (
                f"{name.capitalize()} parallelism splits a sequence over devices, so each would see the probability "
                f"of a piece of the answer. Set `{enabled[:2]}_size=1`; data parallelism, FSDP and ZeRO keep "
                "sequences whole."
            )
    return None
