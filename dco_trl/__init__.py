"""Direct Coverage Optimization for TRL: fine-tune a language model for pass@N.

The public names are imported on first use, so `import dco_trl` is quick and a leaf such as `dco_trl.coverage` loads
neither TRL nor vLLM.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .callbacks import PassAtKCallback
    from .coverage import coverage_loss, coverage_weight, log_coverage
    from .trainer import CoTDCOConfig, CoTDCOTrainer, DCOConfig, DCOTrainer

__version__ = "0.1.0"

_HOME = {
    "CoTDCOConfig": "trainer",
    "CoTDCOTrainer": "trainer",
    "DCOConfig": "trainer",
    "DCOTrainer": "trainer",
    "PassAtKCallback": "callbacks",
    "coverage_loss": "coverage",
    "coverage_weight": "coverage",
    "log_coverage": "coverage",
}

__all__ = [
    "CoTDCOConfig",
    "CoTDCOTrainer",
    "DCOConfig",
    "DCOTrainer",
    "PassAtKCallback",
    "coverage_loss",
    "coverage_weight",
    "log_coverage",
]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'dco_trl' has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
