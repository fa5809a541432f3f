"""Train and evaluate under each of some settings, and let the main process write what came out.

Started by `test_distributed.py`, once for each number of processes: starting is what takes long.
"""

import json
import sys

import torch
from training import MANY, dataset, make_trainer

folder = sys.argv[2].removesuffix(".pt")
results = []
for number, settings in enumerate(json.loads(sys.argv[1])):
    # Evaluated and saved at the last step, so that each row's log p is written.
    each = {"eval_strategy": "steps", "eval_steps": 0.99, "save_strategy": "steps", "save_steps": 0.99}
    settings = {**settings, **each, "output_dir": f"{folder}/{number}"}
    rows = dataset()
    kwargs = {"train_dataset": rows, "eval_dataset": rows.select(range(11))}
    trainer = make_trainer(num_attempts=MANY, trainer_kwargs=kwargs, **settings)
    trainer.train()
    metrics = trainer.evaluate()
    steps = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    model = trainer.accelerator.unwrap_model(trainer.model)
    results.append({"steps": steps, "metrics": metrics, "weights": model.state_dict()})
if trainer.accelerator.is_main_process:
    torch.save(results, sys.argv[2])
