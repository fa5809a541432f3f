"""Train the CoT trainer under each of some settings, and let the main process write what came out.

Started by `test_cot_distributed.py`, once for each number of processes.
"""

import json
import sys

import torch
from cot import make_cot_trainer, steps_of

results = []
for settings in json.loads(sys.argv[1]):
    trainer = make_cot_trainer(**settings)
    trainer.train()
    counts = trainer._windows.counts
    results.append(
        {
            "steps": steps_of(trainer),
            "counts": (counts.num_sampled, counts.num_correct, trainer._windows.next_index),
            "prior": counts.prior,
            "weights": trainer.accelerator.unwrap_model(trainer.model).state_dict(),
        }
    )
    trainer.accelerator.wait_for_everyone()
if trainer.accelerator.is_main_process:
    torch.save(results, sys.argv[2])
