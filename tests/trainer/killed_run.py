"""Train in a folder, from its last complete checkpoint on, saving at every step.

Started, and killed, by `test_checkpoints.py`.
"""

import sys
from pathlib import Path

import torch
from cot import make_cot_trainer
from training import make_trainer
from transformers import TrainerCallback


class Tell(TrainerCallback):
    """Tell when the first step starts."""

    def on_train_begin(self, args, state, control, **_):
        print(f"training, resumed at step {state.global_step}", flush=True)


def long_run(kind: str, folder: Path):
    """A trainer that saves at each of its many steps."""
    options = {
        "output_dir": str(folder),
        "save_strategy": "steps",
        "save_steps": 1,
        "save_total_limit": 1,
        "max_steps": 60,
        "trainer_kwargs": {"callbacks": [Tell()]},
    }
    return make_trainer(**options) if kind == "direct" else make_cot_trainer(**options, sampling_interval=3)


if __name__ == "__main__":
    kind, folder = sys.argv[1], Path(sys.argv[2])
    trainer = long_run(kind, folder)
    trainer.train(resume_from_checkpoint=True if list(folder.glob("checkpoint-*")) else None)
    torch.save(trainer.model.state_dict(), folder / "weights.pt")
