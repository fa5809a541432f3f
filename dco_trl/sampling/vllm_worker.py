"""What runs inside vLLM's workers. vLLM imports it by name, in processes of its own."""

import numpy as np
import torch


class SeedingWorker:
    """One more method for vLLM's worker, called through `collective_rpc`."""

    def seed_draws(self, seed: int) -> None:
        """Seed what requests without a seed draw from: torch's generators, NumPy's in vLLM's newer model runner."""
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
