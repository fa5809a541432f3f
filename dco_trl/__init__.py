"""Direct Coverage Optimization for TRL: fine-tune a language model for pass@N.

The public names, listed in `__init__.pyi`, are imported on first use, so `import dco_trl` is quick and a leaf such as
`dco_trl.coverage` loads neither TRL nor vLLM.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

__version__ = "0.1.0"
