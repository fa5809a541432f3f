"""What every benchmark needs: ratios of paired measurements, and a description of the machine."""

import os
import platform
from collections.abc import Sequence
from importlib.metadata import version

import numpy as np


def ratio_summary(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Median and quartiles of the ratios of paired measurements, and how many there were."""
    ratios = np.asarray(ours, dtype=float) / np.asarray(theirs, dtype=float)
    q25, median, q75 = np.quantile(ratios, [0.25, 0.5, 0.75])
    return {"median": float(median), "q25": float(q25), "q75": float(q75), "pairs": len(ratios)}


def peak_resident_bytes() -> int:
    """Peak resident memory of this process (Linux). `getrusage` would give the parent's where that was larger."""
    with open("/proc/self/status") as file:
        (line,) = [line for line in file if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def environment() -> dict:
    """Versions and hardware, for the record beside a number."""
    import torch

    names = ("torch", "trl", "transformers")
    accelerator = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in names}},
        "hardware": {"cpu_cores": os.cpu_count(), "machine": platform.machine(), "accelerator": accelerator},
    }


def quiet() -> None:
    """Leave the output to the benchmark."""
    import logging
    import warnings

    import datasets
    import transformers

    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
