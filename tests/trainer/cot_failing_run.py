"""Train the CoT trainer on two processes of which one fails.

Started by `test_cot_distributed.py`, with the way to fail and a folder.
"""

import os
import resource
import sys

from cot import last_word, make_cot_trainer
from peft import LoraConfig
from tiny_models import save_checkpoint

scenario, folder = sys.argv[1:]
rank = int(os.environ["RANK"])


def fails_on_rank_1(completions, **columns):
    return [1 / 0] if rank == 1 else last_word(completions, **columns)


if scenario == "grader":
    make_cot_trainer(grader=fails_on_rank_1, output_dir=folder).train()
else:
    checkpoint = f"{folder}/model-{rank}"
    save_checkpoint(checkpoint)
    trainer = make_cot_trainer(
        model=checkpoint,
        output_dir=folder,
        sampler="server",
        sampler_kwargs={"base_url": "http://127.0.0.1:9/v1"},
        peft_config=LoraConfig(r=4, target_modules=["q_proj"]),
    )
    if rank == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (512, 512))  # as on a full disk
    trainer.train()
