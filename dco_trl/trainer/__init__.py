"""Trainers: `DCOTrainer`, `CoTDCOTrainer` and their configurations."""

from .cot_config import CoTDCOConfig
from .cot_trainer import CoTDCOTrainer
from .dco_config import DCOConfig
from .dco_trainer import DCOTrainer

__all__ = ["CoTDCOConfig", "CoTDCOTrainer", "DCOConfig", "DCOTrainer"]
