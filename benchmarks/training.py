"""Whole training steps of DCOTrainer against SFTTrainer: wall time, and peak memory.

    python benchmarks/training.py --output training.json

Time: one trainer of each kind on the same model and batches, steps taken in turn (forward, backward, optimizer), the
order alternating; the ratio of each pair, its median and quartiles. Memory: each kind trains in a process of its own;
on a CPU the ratio of the peaks of resident memory, on a GPU that of the allocator's peaks.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

import numpy as np
import torch
from datasets import Dataset
from measure import environment, peak_resident_bytes, quiet, ratio_summary
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, PrinterCallback
from trl import SFTConfig, SFTTrainer

from dco_trl import DCOConfig, DCOTrainer

# name: batch size, tokens a row, labelled tokens at its end, trainer settings
SHAPES = {
    "short answers, 32 x 24": (32, 24, 6, {}),
    "long answers, 4 x 256": (4, 256, 192, {}),
    "padding-free, 16 x 64": (16, 64, 32, {"padding_free": True, "max_length": None}),
    "checkpointed, 8 x 128": (8, 128, 64, {"gradient_checkpointing": True}),
}
VOCABULARY = 8_000


def make_trainer(kind: str, shape: str):
    batch_size, length, labelled, settings = SHAPES[shape]
    generator = np.random.default_rng(0)
    rows = []
    for _ in range(batch_size * 4):
        ids = generator.integers(3, VOCABULARY, length).tolist()
        rows.append({"input_ids": ids, "labels": [-100] * (length - labelled) + ids[-labelled:]})
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=4,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    trainer_class, config_class, extra = {
        "sft": (SFTTrainer, SFTConfig, {}),
        "dco": (DCOTrainer, DCOConfig, {"num_attempts": 256}),
    }[kind]
    cuda = torch.cuda.is_available()
    arguments = dict(
        output_dir=tempfile.mkdtemp(),
        use_cpu=not cuda,
        bf16=cuda,
        report_to="none",
        disable_tqdm=True,
        per_device_train_batch_size=batch_size,
        max_steps=2,
        save_strategy="no",
        gradient_checkpointing=False,
        max_length=length,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    trainer = trainer_class(
        LlamaForCausalLM(config),
        args=config_class(**{**arguments, **settings, **extra}),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models

    vocabulary = {"<pad>": 0, "<eos>": 1, "<unk>": 2}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>")),
        pad_token="<pad>",
        eos_token="<eos>",
    )


def step(trainer, batch) -> float:
    """One optimizer step, in seconds."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    window = [dict(batch)]
    num_items = trainer._get_num_items_in_batch(window, trainer.args.device)
    trainer.training_step(trainer.model_wrapped, window[0], num_items)
    trainer.optimizer.step()
    trainer.model.zero_grad()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def time_ratio(shape: str, num_pairs: int) -> dict:
    trainers = {kind: make_trainer(kind, shape) for kind in ("sft", "dco")}
    for trainer in trainers.values():
        trainer.train()  # builds optimizer and accelerator, and warms up
        trainer.model.train()
    batches = list(trainers["dco"].get_train_dataloader())
    seconds = {"sft": [], "dco": []}
    for i in range(num_pairs + 2):
        for kind in ("sft", "dco") if i % 2 else ("dco", "sft"):
            batch = {name: value for name, value in batches[i % len(batches)].items()}
            if kind == "sft":
                batch.pop("dco", None)
            seconds[kind].append(step(trainers[kind], batch))
    return ratio_summary(seconds["dco"][2:], seconds["sft"][2:])


def peak_memory(kind: str, shape: str) -> int:
    """Peak memory of three training steps in this process, in bytes."""
    trainer = make_trainer(kind, shape)
    trainer.train()
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return peak_resident_bytes()


def memory_ratio(shape: str, num_pairs: int) -> dict:
    peaks = {"sft": [], "dco": []}
    # glibc keeps freed blocks below a threshold that moves with use; fixed, every tensor goes back to the system at
    # once, and the peak of resident memory is that of the tensors.
    allocator = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    for _ in range(num_pairs):
        for kind, values in peaks.items():
            command = [sys.executable, __file__, "--peak-memory", kind, shape]
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=allocator)
            values.append(int(done.stdout.split()[-1]))
    return ratio_summary(peaks["dco"], peaks["sft"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", help="JSON file to write")
    parser.add_argument("--pairs", type=int, default=20, help="pairs of training steps for each shape")
    parser.add_argument("--memory-pairs", type=int, default=2, help="pairs of processes for each shape")
    parser.add_argument("--peak-memory", nargs=2, metavar=("KIND", "SHAPE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    quiet()
    if args.peak_memory:
        print(peak_memory(*args.peak_memory))
        return
    rows = []
    for shape in SHAPES:
        time_row = time_ratio(shape, args.pairs)
        memory_row = memory_ratio(shape, args.memory_pairs)
        rows.append({"shape": shape, "time": time_row, "memory": memory_row})
        print(
            f"{shape:24} time DCO/SFT {time_row['median']:.3f} [{time_row['q25']:.3f}, {time_row['q75']:.3f}]   "
            f"peak memory DCO/SFT {memory_row['median']:.3f} [{memory_row['q25']:.3f}, {memory_row['q75']:.3f}]",
            flush=True,
        )
    if args.output:
        with open(args.output, "w") as file:
            json.dump(
                {"benchmark": "training step, DCOTrainer / SFTTrainer", **environment(), "rows": rows}, file, indent=2
            )


if __name__ == "__main__":
    main()
