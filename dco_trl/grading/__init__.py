"""Graders: is a sampled completion right? With the signature of TRL's reward functions.

The public names, listed in `__init__.pyi`, are imported on first use: a grading worker loads this package and must
stay small.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
