"""Train with each of several settings, with the model sharded or not. The main process writes the results.

Started by `test_sharded.py`, once for each strategy: starting is what takes long.
"""

import functools
import json
import os
import sys
from pathlib import Path

import pyarrow.parquet as pq
import torch
from cot import make_cot_trainer
from peft import LoraConfig
from safetensors.torch import load_file
from sharding import let_accelerate_shard_on_a_cpu
from training import MANY, ROWS, make_trainer, steps_of


def train(settings: dict, folder: Path) -> dict:
    lora = LoraConfig(r=4, target_modules=["q_proj", "up_proj"]) if settings.pop("lora", False) else None
    is_cot, rows = settings.pop("cot", False), settings.pop("rows", range(len(ROWS)))
    # A larger epsilon keeps rounding small: Adam divides the smallest gradients by their own size.
    settings |= {
        "adam_epsilon": 1e-2,
        "output_dir": str(folder),
        "use_cpu": "ACCELERATE_USE_DEEPSPEED" not in os.environ,
    }
    if is_cot:
        make = functools.partial(make_cot_trainer, peft_config=lora, **settings)
    else:
        data = {"eval_dataset": ROWS[:11], "train_dataset": [ROWS[row] for row in rows]}
        make = functools.partial(make_trainer, num_attempts=MANY, peft_config=lora, **data, **settings)
    trainer = make()
    trainer.train()
    result = {"steps": steps_of(trainer)}
    result["distributed_type"] = str(trainer.accelerator.distributed_type.value)
    if is_cot:
        counts, policy = trainer._windows.counts, trainer._windows._policy
        result["counts"] = (counts.num_sampled, counts.num_correct, trainer._windows.next_index)
        # A server would be given these.
        state = policy._gather() if policy._is_sharded else None
        if trainer.accelerator.is_main_process:
            policy._save(folder / "served", state)
        trainer.accelerator.wait_for_everyone()
        result["served"] = read_weights(folder / "served")
    else:
        result["metrics"] = trainer.evaluate()
        if trainer.accelerator.is_main_process:  # as if a checkpoint were saved after this evaluation
            trainer._eval_log_p.write(folder, trainer.state.global_step)
            files = sorted(folder.glob("**/eval_log_p.parquet"))
            result["eval_log_p"] = [pq.read_table(file).to_pydict() for file in files]
    trainer.save_model(str(folder / "final"))
    trainer.accelerator.wait_for_everyone()
    result["weights"] = read_weights(folder / "final")
    # PyTorch does not know "cpu:0", the device that processes of DDP load an optimizer's state to.
    if settings.get("save_strategy") == "steps" and result["distributed_type"] != "MULTI_CPU":
        again = make()
        again.train(resume_from_checkpoint=str(folder / f"checkpoint-{settings['save_steps']}"))
        again.save_model(str(folder / "resumed"))
        again.accelerator.wait_for_everyone()
        result["resumed"] = read_weights(folder / "resumed")
    return result


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    [path] = folder.glob("*model.safetensors")
    return load_file(path)


if __name__ == "__main__":
    let_accelerate_shard_on_a_cpu()
    results = {name: train(run, Path(sys.argv[2], name)) for name, run in json.loads(sys.argv[1]).items()}
    if int(os.environ.get("RANK", 0)) == 0:
        torch.save(results, Path(sys.argv[2], "results.pt"))
