"""Does leaving out learnt examples also help a real model? SmolLM2 with LoRA on MATH's short problems, direct answers.

    python examples/scripts/prepare_math.py --dataset nlile/hendrycks-MATH-benchmark --split train \
        --tokenizer models/SmolLM2-135M-Instruct --max_tokens 64 --output data/math-short.jsonl
    python research/dead_examples_smollm2.py --model models/SmolLM2-135M-Instruct --dataset data/math-short.jsonl \
        --work_dir dead-smollm2-runs --output docs/results/dead-examples-smollm2.json --workers 2

`dead_examples.py` says what "all" and "drop" are; here "drop" is the trainer's own `leave_out_below`. Each seed draws
its own problems.
"""

import argparse
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from best_epoch import at_best_epoch
from datasets import load_dataset
from dead_examples import DROP_SETTING
from in_processes import environment, run_all, write
from paired import cells, paired
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from dco_trl import DCOConfig, DCOTrainer
from dco_trl.coverage_numpy import coverage
from dco_trl.trainer.eval_log_p import EVAL_LOG_P_NAME

METHODS = ("all", "drop")
NUM_ATTEMPTS = 256
NUM_TRAIN, NUM_HELD_OUT, BATCH_SIZE = 256, 250, 16
KS = (1, 16, 256, 4096)
SETTINGS: dict[str, Any] = dict(
    per_device_train_batch_size=BATCH_SIZE,
    per_device_eval_batch_size=50,
    learning_rate=1e-3,
    lr_scheduler_type="cosine",
    warmup_steps=8,
    adam_beta2=0.99,
)
LORA: dict[str, Any] = dict(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")


def train(
    model: str,
    dataset: str,
    method: str,
    seed: int,
    num_epochs: int,
    num_attempts: int = NUM_ATTEMPTS,
    repeat: int = 0,
) -> dict[str, Any]:
    """One training.

    Args:
        model: Folder or name.
        dataset: JSON lines of prompt and completion.
        method: One of `METHODS`.
        seed: Which problems, and in what order.
        num_epochs: Epochs.
        num_attempts: N.
        repeat: The same problems with another order of batches and other first weights of the adapter.

    Returns:
        A JSON-serialisable record: for each epoch, `tokens` trained on until then, `dead`, the share of what was
        trained on with a weight below .1, `left_out`, the share of examples left out, and `log_p` of each held-out
        answer.
    """
    rows = load_dataset("json", data_files=dataset, split="train").shuffle(seed=seed)
    leave_out_below, recheck_epochs = DROP_SETTING if method == "drop" else (0.0, 1)
    with TemporaryDirectory(prefix="dead-examples-") as folder:
        args = DCOConfig(
            folder,
            num_attempts=num_attempts,
            leave_out_below=leave_out_below,
            recheck_epochs=recheck_epochs,
            num_train_epochs=num_epochs,
            eval_strategy="epoch",
            save_strategy="epoch",
            save_only_model=True,
            logging_steps=math.ceil(NUM_TRAIN / BATCH_SIZE),
            report_to="none",
            disable_tqdm=True,
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            seed=seed + 1000 * repeat,
            **SETTINGS,
        )
        trainer = DCOTrainer(
            AutoModelForCausalLM.from_pretrained(model, dtype="float32"),
            args=args,
            train_dataset=rows.select(range(NUM_TRAIN)),
            eval_dataset=rows.select(range(NUM_TRAIN, NUM_TRAIN + NUM_HELD_OUT)),
            processing_class=AutoTokenizer.from_pretrained(model),
            peft_config=LoraConfig(**LORA),
        )
        log_p = HeldOut()
        trainer.add_callback(log_p)
        trainer.train()
        logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {
        "tokens": [entry["num_tokens"] for entry in logs],
        "dead": [entry["weight_below_0.1"] for entry in logs],
        "left_out": [entry.get("left_out", 0.0) for entry in logs],
        "log_p": log_p.of_epochs,
    }


class HeldOut(TrainerCallback):
    """The held-out answers' log p after each epoch, as the checkpoints have them."""

    def __init__(self) -> None:
        self.of_epochs: list[list[float]] = []

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        found = pq.read_table(Path(args.output_dir, f"checkpoint-{state.global_step}", EVAL_LOG_P_NAME))
        assert found["row"].to_pylist() == list(range(NUM_HELD_OUT))
        self.of_epochs.append([round(value, 5) for value in found["log_p"].to_pylist()])


def summarise(records: Sequence[dict[str, Any]], seeds: Sequence[int]) -> dict[str, Any]:
    """Coverage by method, and the paired difference over the held-out problems of all seeds, at the end and where each
    method is best."""

    found: dict[tuple[str, int], np.ndarray] = {
        (r["method"], r["seed"]): coverage(np.array(r["log_p"])[..., None], KS) for r in records
    }  # epochs, problems, k
    summary: dict[str, Any] = {}
    for name, at in (("last", lambda values: values[-1]), ("best", lambda values: at_best_epoch(values, values))):
        values = {method: np.concatenate([at(found[method, seed]) for seed in seeds]) for method in METHODS}
        summary[name] = {method: of_method.mean(axis=0).round(5).tolist() for method, of_method in values.items()}
        summary[name]["drop less all"] = paired(values["all"], values["drop"], KS)
    for method in METHODS:
        runs = [record for record in records if record["method"] == method]
        summary[method] = {
            unit: np.mean([run[unit] for run in runs], axis=0).tolist() for unit in ("tokens", "dead", "left_out")
        }
    return summary


def make_parser(doc: str) -> argparse.ArgumentParser:
    """The arguments of a script that trains SmolLM2 by `train`; `doc` is its description."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--model", required=True, help="Model folder or name.")
    parser.add_argument("--dataset", required=True, help="JSON lines of prompt and completion.")
    parser.add_argument("--work_dir", type=Path, required=True, help="Folder of the finished runs.")
    parser.add_argument("--output", type=Path, required=True, help="JSON file of the results.")
    parser.add_argument("--workers", type=int, default=2, help="Processes at a time, a thread each.")
    parser.add_argument("--epochs", type=int, default=10, help="Epochs a run.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="Seeds to report.")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = make_parser(__doc__).parse_args(argv)
    jobs = [{"method": m, "seed": seed, "num_epochs": args.epochs} for seed in args.seeds for m in METHODS]
    records = run_all(partial(train, args.model, args.dataset), jobs, args.work_dir, args.workers)
    summary = summarise(records, args.seeds)
    settings = {**SETTINGS, "lora": LORA, "num_attempts": NUM_ATTEMPTS, "drop": DROP_SETTING}
    write(
        {"settings": settings, "k": KS, "summary": summary, "runs": records, **environment(args.workers)}, args.output
    )
    for name in ("last", "best"):
        print(f"{name} epoch; k = {KS}")
        for method in METHODS:
            print(f"  {method:14}" + "".join(f"{100 * value:22.1f}" for value in summary[name][method]))
        print("  drop less all " + "".join(f"{cell:>22}" for cell in cells(summary[name]["drop less all"])))
    ratio = summary["drop"]["tokens"][-1] / summary["all"]["tokens"][-1]
    print(
        f"tokens of drop: {ratio:.2f} of all; share of dead examples by epoch: {np.round(summary['all']['dead'], 2)}"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
