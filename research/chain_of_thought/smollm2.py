"""Chain of thought with a real model: SmolLM2-135M on short GSM8K problems, rationales and test samples by vLLM.

    python examples/scripts/prepare_smollm2.py --output_dir models/SmolLM2-135M-Instruct
    python examples/scripts/prepare_gsm8k.py --dataset openai/gsm8k --num_validation 0 \\
        --tokenizer models/SmolLM2-135M-Instruct --max_tokens 110 --output_dir data/gsm8k-short
    python -m research.chain_of_thought.smollm2 --model models/SmolLM2-135M-Instruct --data data/gsm8k-short \\
        --work_dir runs/cot-smollm2 --output research/chain_of_thought/results/smollm2-gsm8k.json

Everything is done by the commands of `dco-trl`, which are printed, and whose output is in --work_dir. What is finished
is not run again, so the script can be stopped and repeated; --only makes some runs. A finished run is one small file
there, which is enough to go on elsewhere. With the results as --work_dir nothing is run, and the tables are printed.
All weights are trained: vLLM without a GPU takes four times as long with an adapter.
`docs/results/smollm2-gsm8k-cot.md` is the protocol.
"""

import argparse
import json
import math
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dco_trl.runs import load_results
from dco_trl.statistics import pass_at_k
from research.common.differences import cells, paired
from research.common.processes import environment, write
from research.common.selection import at_best_epoch

NUM_ATTEMPTS, MAX_TOKENS, BATCH_SIZE = 16, 96, 16
KS = (1, 4, 16)
ENGINE = {"dtype": "float32", "max_model_len": 256, "enforce_eager": True}  # bfloat16 is slow without AVX-512
TRAINING: dict[str, Any] = dict(
    dtype="float32",
    per_device_train_batch_size=BATCH_SIZE,
    learning_rate=5e-5,
    lr_scheduler_type="constant_with_warmup",
    warmup_steps=8,
    max_length=256,
    use_cpu=True,
    bf16=False,
    gradient_checkpointing=False,
    save_strategy="steps",
    save_only_model=True,
    report_to="none",
)
# The first epoch is cross-entropy for all. Weight 1 draws as many rationales as DCO may.
OWN: dict[str, Any] = dict(
    grader="math",
    sampler="vllm",
    sampler_kwargs=json.dumps(ENGINE),
    targets="sampled",
    sampling_interval="epoch",
    num_rationales=8,
    rationale_batch=4,
    max_rationale_tokens=MAX_TOKENS,
)
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "cross-entropy": ("train", {"num_attempts": 1}),
    "DCO, own": ("train-cot", {"num_attempts": NUM_ATTEMPTS, **OWN}),
    "weight 1, own": ("train-cot", {"num_attempts": 1, "weight_tolerance": 0, "count_memory": 0, **OWN}),
}
RIVAL = "cross-entropy"  # has a choice of epochs, the others are measured at the end
COMPARED = (("DCO, own", "cross-entropy"), ("DCO, own", "weight 1, own"), ("weight 1, own", "cross-entropy"))


@dataclass(frozen=True)
class Sizes:
    """How much: smaller numbers try the script."""

    num_train: int = 128
    num_test: int = 160
    num_samples: int = 16
    epochs: tuple[int, ...] = (3, 6)

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.num_train / BATCH_SIZE)

    def epochs_of(self, method: str) -> tuple[int, ...]:
        """When a method is measured."""
        return self.epochs if method == RIVAL else self.epochs[-1:]


def folder_of(work_dir: Path, method: str, seed: int) -> Path:
    return work_dir / f"{method.replace(', ', '-').replace(' ', '-')}_seed-{seed}"


def record_of(work_dir: Path, method: str, seed: int) -> Path:
    """What a finished run leaves."""
    return folder_of(work_dir, method, seed).with_suffix(".json")


def training_command(model: str, train_file: Path, method: str, seed: int, folder: Path, sizes: Sizes) -> list[str]:
    name, setting = METHODS[method]
    steps = sizes.steps_per_epoch
    given = {**TRAINING, **setting, "num_train_epochs": max(sizes.epochs), "logging_steps": steps}
    given |= {"save_steps": math.gcd(*sizes.epochs) * steps, "seed": seed, "output_dir": folder / "model"}
    if name == "train-cot":
        given["ce_warmup_steps"] = steps
    options = [text for key, value in given.items() for text in (f"--{key}", str(value))]
    return [name, "--model_name_or_path", model, "--dataset_name", str(train_file), *options]


def eval_command(test_file: Path, epoch: int, seed: int, folder: Path, sizes: Sizes) -> list[str]:
    """The seed of the draws is another for each epoch and seed."""
    return [
        "eval",
        *("--model", str(folder / "model" / f"checkpoint-{epoch * sizes.steps_per_epoch}")),
        *("--dataset", str(test_file), "--num-problems", str(sizes.num_test)),
        *("--sampler", "vllm", "--sampler-kwargs", json.dumps(ENGINE)),
        *("--num-samples", str(sizes.num_samples), "--max-tokens", str(MAX_TOKENS), "--seed", str(100 * seed + epoch)),
        *("--grader", "math", "--output", str(folder / f"epoch-{epoch}")),
    ]


def call(command: Sequence[str], log: Path) -> float:
    """Run `dco-trl`, and return the seconds it took.

    Raises:
        RuntimeError: It failed.
    """
    print("dco-trl " + shlex.join(command), flush=True)
    settings = {"VLLM_CPU_KVCACHE_SPACE": "2", **os.environ}
    settings.pop("OMP_NUM_THREADS", None)  # one run at a time has all cores
    started = time.perf_counter()
    with log.open("a") as file:
        code = subprocess.call(
            [sys.executable, "-m", "dco_trl", *command], stdout=file, stderr=subprocess.STDOUT, env=settings
        )
    if code:
        raise RuntimeError(f"`dco-trl {command[0]}` ended with {code}; its output is in {log}")
    return round(time.perf_counter() - started, 1)


def run(model: str, data: Path, work_dir: Path, method: str, seed: int, sizes: Sizes) -> None:
    """Train and measure, as far as it was not done before."""
    folder = folder_of(work_dir, method, seed)
    done, trained = record_of(work_dir, method, seed), folder / "trained.json"
    if done.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    if not trained.exists():
        train_file = folder / "train.jsonl"
        lines = (data / "train.jsonl").read_text().splitlines()
        chosen = np.random.default_rng(seed).permutation(len(lines))[: sizes.num_train]
        train_file.write_text("".join(lines[i] + "\n" for i in chosen))
        shutil.rmtree(folder / "model", ignore_errors=True)
        command = training_command(model, train_file, method, seed, folder, sizes)
        seconds = call(command, folder / "training.log")
        state = folder / "model" / f"checkpoint-{max(sizes.epochs) * sizes.steps_per_epoch}" / "trainer_state.json"
        log = json.loads(state.read_text())["log_history"]
        trained.write_text(json.dumps({"training_seconds": seconds, "log": log}))
    for epoch in sizes.epochs_of(method):
        call(eval_command(data / "test.jsonl", epoch, seed, folder, sizes), folder / "eval.log")
    correct = counts(folder, sizes.epochs_of(method))
    record = {"method": method, "seed": seed, "correct": correct, **json.loads(trained.read_text()), **environment(1)}
    write(record, done)
    shutil.rmtree(folder / "model")  # half a gigabyte for each checkpoint


def counts(folder: Path, epochs: Sequence[int]) -> dict[str, list[int]]:
    """Right answers of each test problem by epoch."""
    results = {epoch: load_results(folder / f"epoch-{epoch}") for epoch in epochs}
    return {str(epoch): [problem.num_correct for problem in found.problems] for epoch, found in results.items()}


def measured(record: dict[str, Any], num_samples: int, ks: Sequence[int]) -> np.ndarray:
    """Unbiased pass@k of each test problem by epoch, (epochs, problems, K)."""
    correct = np.array(list(record["correct"].values()))
    return np.stack([pass_at_k(np.full(correct.shape, num_samples), correct, k) for k in ks], axis=-1)


def summarise(found: dict[str, dict[int, np.ndarray]], sizes: Sizes, ks: Sequence[int]) -> dict[str, Any]:
    """Means, and paired differences over problems with their BCa intervals.

    Args:
        found: For each method and seed, `measured`.

    Returns:
        `mean`: for each method (its epochs, K), over the seeds that all methods have. `by_seed`: the same for each
        seed. `differences`: for each comparison at the last epoch, and from the rival's best, which is chosen for each
        k on these very problems.
    """
    seeds = sorted(set.intersection(*(set(of_method) for of_method in found.values())))
    values = {method: np.mean([of_method[seed] for seed in seeds], axis=0) for method, of_method in found.items()}
    differences = []
    for method, rival in COMPARED:
        if method not in values or rival not in values:
            continue
        rivals = {"last epoch": values[rival][-1]}
        if rival == RIVAL:
            rivals["best epoch"] = at_best_epoch(values[rival], values[rival])
        for name, of_rival in rivals.items():
            differences.append({"of": method, "from": f"{rival}, {name}", **paired(of_rival, values[method][-1], ks)})
    return {
        "seeds": seeds,
        "k": list(ks),
        "epochs": {method: list(sizes.epochs_of(method)) for method in values},
        "mean": {method: of_method.mean(axis=1).round(5).tolist() for method, of_method in values.items()},
        "by_seed": {
            method: {str(seed): of_method[seed].mean(axis=1).round(5).tolist() for seed in seeds}
            for method, of_method in found.items()
        },
        "differences": differences,
    }


def print_tables(summary: dict[str, Any]) -> None:
    """The tables of the page, in Markdown."""
    columns = [f"pass@{k}" for k in summary["k"]]
    head = " | ".join(columns)
    by_seed = [f"{columns[-1]}, seed {seed}" for seed in summary["seeds"]]
    print(f"\n| | epoch | {' | '.join(columns + by_seed)} |\n|---|---|" + "---|" * len(columns + by_seed))
    for method, table in summary["mean"].items():
        of_seeds = [summary["by_seed"][method][str(seed)] for seed in summary["seeds"]]
        for i, (epoch, row) in enumerate(zip(summary["epochs"][method], table, strict=True)):
            values = [*row, *(of_seed[i][-1] for of_seed in of_seeds)]
            print(f"| {method} | {epoch} | " + " | ".join(f"{100 * value:.1f}" for value in values) + " |")
    print(f"\n| | less | {head} |\n|---|---|" + "---|" * len(summary["k"]))
    for row in summary["differences"]:
        print(f"| {row['of']} | {row['from']} | " + " | ".join(cells(row)) + " |")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="Model folder or name.")
    parser.add_argument("--data", type=Path, required=True, help="Folder of train.jsonl and test.jsonl.")
    parser.add_argument("--work_dir", type=Path, required=True, help="Folder of the runs, or their results.")
    parser.add_argument("--output", type=Path, required=True, help="JSON file of the results.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="Which seeds.")
    parser.add_argument("--only", nargs="+", choices=list(METHODS), default=list(METHODS), help="Which to run.")
    parser.add_argument("--num_train", type=int, default=Sizes.num_train, help="Problems to train on.")
    parser.add_argument("--num_test", type=int, default=Sizes.num_test, help="The first so many test problems.")
    parser.add_argument("--num_samples", type=int, default=Sizes.num_samples, help="Of each test problem.")
    parser.add_argument("--epochs", type=int, nargs="+", default=Sizes.epochs, help="When to measure; the last ends.")
    args = parser.parse_args(argv)
    sizes = Sizes(args.num_train, args.num_test, args.num_samples, tuple(args.epochs))
    ks = [k for k in KS if k <= sizes.num_samples]
    if args.work_dir.is_file():
        records = json.loads(args.work_dir.read_text())["runs"]
    else:
        for seed in args.seeds:
            for method in args.only:
                run(args.model, args.data, args.work_dir, method, seed, sizes)
        paths = [record_of(args.work_dir, method, seed) for method in METHODS for seed in args.seeds]
        records = [json.loads(path.read_text()) for path in paths if path.exists()]
    found: dict[str, dict[int, np.ndarray]] = {}
    for record in records:
        found.setdefault(record["method"], {})[record["seed"]] = measured(record, sizes.num_samples, ks)
    summary = summarise(found, sizes, ks)
    print_tables(summary)
    settings = {**TRAINING, "own": OWN, "engine": ENGINE, **asdict(sizes)}
    write({"settings": settings, **environment(1), **summary, "runs": records}, args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
