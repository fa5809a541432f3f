"""What the server imports, once, that `gpu_check.py` forks the steps from."""

import sys
from typing import Any

# peft imports it where it is installed, and it starts CUDA as it is imported, which does not survive a fork.
hidden: Any = None
sys.modules["bitsandbytes"] = hidden

import gpu_steps  # noqa: E402, F401
