"""What every benchmark needs: ratios of paired measurements, and a description of the machine."""

import os
import platform
import warnings
from collections.abc import Callable, Sequence
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


def count_synchronisations(function: Callable[[], object]) -> int:
    """How often a function waits for the device: on a GPU as PyTorch reports it, on a CPU the operators that would."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                function()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchronizing CUDA operation" in str(warning.message) for warning in caught)

    waiting = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "unique_dim"}

    class Counter(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
            name = operator.overloadpacket.__name__
            # The shape of x[mask] is known only once the mask has been counted.
            indices = args[1] if name in ("index", "index_put", "index_put_") else ()
            by_mask = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)
            by_counts = name == "repeat_interleave" and kwargs in (None, {})
            self.count += name in waiting or by_mask or by_counts
            return operator(*args, **(kwargs or {}))

    with Counter() as counter:
        function()
    return counter.count


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
