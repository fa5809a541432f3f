"""How many processes may run at a time."""

import os


def available_cores() -> int:
    """Processors that this process may use: fewer than the machine has where it was given a share."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
