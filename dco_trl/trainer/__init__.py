"""Trainers: `DCOTrainer`, `CoTDCOTrainer`, their configurations, and a callback that measures pass@k.

The public names, listed in `__init__.pyi`, are imported on first use: `DCOTrainer` needs TRL alone.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
