"""Trainers: `DCOTrainer` and its configuration."""

from .dco_config import DCOConfig
from .dco_trainer import DCOTrainer

__all__ = ["DCOConfig", "DCOTrainer"]
