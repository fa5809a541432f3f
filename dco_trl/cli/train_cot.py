"""`dco-trl train-cot`: fine-tune on chains of thought, with success rates from sampled rationales."""

from ..trainer import CoTDCOConfig
from . import train


def main(argv: list[str]) -> int:
    """Train, save, and push to the hub if asked to; return the exit status."""
    return train.main(argv, CoTDCOConfig)
