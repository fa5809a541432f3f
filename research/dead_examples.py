"""Is training faster when it leaves out the examples that it has learnt? DCO's weight of a learnt answer is next to 0.

    python research/dead_examples.py --work_dir dead-runs --output docs/results/dead-examples.json --workers 2

Each example's weight is remembered from its last visit. One that was below a threshold is left out until some epochs'
worth of steps have passed; then it is looked at again. Three trainings on the demonstration's task, alike in all else:

- all: every example each epoch, which is what `DCOTrainer` does;
- refill: the next examples of the stream take the places of those left out, so that batches keep their size;
- drop: nothing takes their place, so that a step costs less.

The settings of "refill" are chosen on two seeds, and everything is reported on five others. The three trainings of a
seed follow each other in one process of one thread, so that their times can be compared. Finished ones are kept in
--work_dir and are not run again.
"""

import argparse
import json
import math
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from importlib.metadata import version
from itertools import count, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read by the libraries as the processes start
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
from numpy.typing import NDArray
from rival_selection import interval
from torch.utils.data import Sampler
from transformers import PrinterCallback, TrainerCallback

from dco_trl import DCOConfig, DCOTrainer
from dco_trl.demo import task
from dco_trl.demo.training import CURVE_K, NUM_EPOCHS, SETTINGS, be_quiet, training_arguments
from dco_trl.sampling import exact_coverage
from dco_trl.trainer.eval_log_p import EVAL_ROW

NUM_ATTEMPTS = (256, 4096)
TUNING_SEEDS, SEEDS = (100, 101), (0, 1, 2, 3, 4)
# Weight below which an example is left out, and epochs until it is looked at again.
CANDIDATES = ((0.01, 3), (0.1, 3))
# Of "drop": so small a weight that leaving it out changes next to nothing.
DROP_SETTING = (0.01, 3)
METHODS = ("all", "refill", "drop")
# The learning rate is constant until here, so that a curve does not know how long the training will be.
STABLE_SHARE = 0.85
# What has to be reached, as a share of the best that "all" has while the learning rate is constant.
LEVEL = 0.95


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        num_attempts: N.
        method: One of `METHODS`.
        dead_below: Weight below which an example is left out.
        recheck_epochs: Epochs' worth of steps until it is looked at again.
    """

    num_attempts: int
    method: str
    dead_below: float = 0.0
    recheck_epochs: int = 1


class Memory:
    """Each example's weight at its last visit, and when that was.

    Args:
        num_examples: Examples, with the numbers 0, 1, …
        dead_below: An example whose weight was below is dead; at 0, none ever is.
        recheck_steps: Steps after which a dead one is due again.
    """

    def __init__(self, num_examples: int, dead_below: float, recheck_steps: int):
        self.dead_below, self.recheck_steps = dead_below, recheck_steps
        self.weight = np.ones(num_examples)
        self.visited_at = np.zeros(num_examples, dtype=int)
        self.steps = 0

    def remember(self, rows: NDArray, weights: NDArray) -> None:
        """Note one step's weights."""
        self.steps += 1
        self.weight[rows], self.visited_at[rows] = weights, self.steps

    def is_due(self, rows: NDArray) -> NDArray[np.bool_]:
        """Whether examples are to be trained on: alive when last seen, or not looked at for long."""
        alive = self.weight[rows] >= self.dead_below
        return alive | (self.steps - self.visited_at[rows] >= self.recheck_steps)


class Stream(Sampler[int]):
    """All examples in random order, again and again, an epoch being as many as there are; knows its place.

    Args:
        memory: Says which examples are due.
        seed: Seed of the orders.
        refill: Whether those that are not due are passed over. A pass without one that is due is served whole.
    """

    def __init__(self, memory: Memory, seed: int, refill: bool):
        self.memory, self.seed, self.refill = memory, seed, refill
        self._rows = self._endless()

    def __len__(self) -> int:
        return len(self.memory.weight)

    def __iter__(self) -> Iterator[int]:
        return islice(self._rows, len(self))

    def _endless(self) -> Iterator[int]:
        for number in count():
            order = np.random.default_rng([self.seed, number]).permutation(len(self))
            # Once for a pass: an example's weight changes by its own visit only, and that comes once in a pass.
            due = order[self.memory.is_due(order)] if self.refill else order
            yield from map(int, due if len(due) else order)


class DropDead:
    """A collator that leaves dead examples out of a batch; the first stays if all are dead."""

    def __init__(self, collator: Callable[[list[dict[str, Any]]], dict[str, Any]], memory: Memory):
        self.collator, self.memory = collator, memory

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        due = self.memory.is_due(np.array([example[EVAL_ROW] for example in examples]))
        kept = [example for example, is_due in zip(examples, due, strict=True) if is_due]
        return self.collator(kept or examples[:1])


class RememberingTrainer(DCOTrainer):
    """`DCOTrainer` that takes its batches from a stream, and notes the weights in the stream's memory."""

    def __init__(self, *args: Any, stream: Stream, drop: bool, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.stream = stream
        self.examples_seen = self.tokens_seen = 0
        if drop:
            self.data_collator = DropDead(self.data_collator, stream.memory)

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Stream:
        return self.stream

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if self.model.training:
            self.examples_seen += len(inputs["input_ids"])
            self.tokens_seen += int(inputs["attention_mask"].sum())
        return super().compute_loss(model, inputs, *args, **kwargs)

    def _record(self, log_p: Any, weights: Any, segments: Any, documents: Any, rows: Any = None) -> None:
        super()._record(log_p, weights, segments, documents, rows)
        if self.model.training:
            self.stream.memory.remember(rows.numpy(), weights.numpy())


class Recorder(TrainerCallback):
    """Measures coverage of the held-out problems after each epoch, and what was spent; measuring is not timed."""

    def __init__(self, trainer: RememberingTrainer, tokenizer: Any, held_out: Any):
        self.trainer, self.tokenizer, self.problems = trainer, tokenizer, task.as_problems(held_out)
        self.seconds = 0.0
        self.record: dict[str, list] = {
            name: [] for name in ("step", "examples", "tokens", "seconds", "coverage", "dead")
        }

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.resumed = time.perf_counter()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds += time.perf_counter() - self.resumed
        exact = exact_coverage(kwargs["model"], self.tokenizer, self.problems, batch_size=4096, progress=False)
        row = {
            "step": state.global_step,
            "examples": self.trainer.examples_seen,
            "tokens": self.trainer.tokens_seen,
            "seconds": round(self.seconds, 3),
            "coverage": [round(value, 6) for value in exact.pass_at_k(CURVE_K).tolist()],
            "dead": round(float((self.trainer.stream.memory.weight < 0.1).mean()), 4),
        }
        for name, value in row.items():
            self.record[name].append(value)
        self.resumed = time.perf_counter()


def train(run: Run, seed: int, num_epochs: int = NUM_EPOCHS) -> dict[str, Any]:
    """Train and measure one run.

    Returns:
        A JSON-serialisable record: the run, and lists with an entry an epoch: `step`, `examples`, `tokens` and
        `seconds` of training until then, `coverage` of the held-out problems for each of `CURVE_K`, and `dead`, the
        share of training examples whose weight was below .1 at their last visit.
    """
    be_quiet()
    rows, held_out = task.make_problems(seed)
    tokenizer, model = task.make_tokenizer(), task.make_model(seed)
    steps_per_epoch = math.ceil(len(rows) / SETTINGS["per_device_train_batch_size"])
    memory = Memory(len(rows), run.dead_below, run.recheck_epochs * steps_per_epoch)
    with TemporaryDirectory(prefix="dead-examples-") as folder:
        trainer = RememberingTrainer(
            model,
            args=DCOConfig(num_attempts=run.num_attempts, **training_arguments(folder, len(rows), num_epochs, seed)),
            train_dataset=rows.add_column(EVAL_ROW, np.arange(len(rows))),
            processing_class=tokenizer,
            stream=Stream(memory, seed, refill=run.method == "refill"),
            drop=run.method == "drop",
        )
        recorder = Recorder(trainer, tokenizer, held_out)
        trainer.add_callback(recorder)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return {**vars(run), "seed": seed, "num_epochs": num_epochs, **recorder.record}


# ------------------------------------------------------------------ what the runs say


def at_k(record: dict[str, Any], k: int) -> NDArray[np.float64]:
    """Coverage after each epoch."""
    return np.array(record["coverage"])[:, CURVE_K.index(k)]


def level_of(record: dict[str, Any], k: int) -> float:
    """What has to be reached: `LEVEL` times the best coverage while the learning rate is constant."""
    stable = max(1, math.floor(STABLE_SHARE * record["num_epochs"]))
    return float(LEVEL * at_k(record, k)[:stable].max())


def spent_until(record: dict[str, Any], k: int, level: float, unit: str) -> float:
    """Steps, examples, tokens or seconds until coverage first is at `level`, between epochs on a straight line.

    Training starts at coverage 0. A run that never gets there has spent all of its own: no less would have done.
    """
    coverage, spent = np.append(0.0, at_k(record, k)), np.append(0.0, record[unit])
    reached = np.flatnonzero(coverage >= level)
    if not len(reached):
        return float(spent[-1])
    after = reached[0]
    if after == 0:
        return 0.0
    before = after - 1
    share = (level - coverage[before]) / (coverage[after] - coverage[before])
    return float(spent[before] + share * (spent[after] - spent[before]))


def best_setting(records: Sequence[dict[str, Any]], num_attempts: int) -> tuple[float, int]:
    """The candidate with the largest mean coverage at k = N after the last epoch; the first of equals."""
    scores = {
        setting: np.mean(
            [
                at_k(record, num_attempts)[-1]
                for record in records
                if record["num_attempts"] == num_attempts
                and (record["dead_below"], record["recheck_epochs"]) == setting
            ]
        )
        for setting in CANDIDATES
    }
    return max(CANDIDATES, key=lambda setting: scores[setting])


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """Geometric mean over seeds of theirs / ours, with Student's t interval of the logarithm."""
    logs = interval(np.log(np.divide(theirs, ours)).tolist())
    return {name: None if value is None else round(math.exp(value), 4) for name, value in logs.items()}


def summarise(records: Sequence[dict[str, Any]], num_attempts: int) -> dict[str, Any]:
    """Each method against "all", over the seeds: how much sooner at the level, and how far ahead at the end."""
    of = {
        method: sorted(
            (r for r in records if (r["num_attempts"], r["method"]) == (num_attempts, method)),
            key=lambda record: record["seed"],
        )
        for method in METHODS
    }
    levels = [level_of(record, num_attempts) for record in of["all"]]
    summary: dict[str, Any] = {"level": interval(levels)}
    for method, runs in of.items():
        ends = {k: [float(at_k(run, k)[-1]) for run in runs] for k in CURVE_K}
        summary[method] = {"end": {str(k): interval(values) for k, values in ends.items()}}
        summary[method]["not_reached"] = sum(
            bool(at_k(run, num_attempts).max() < level) for run, level in zip(runs, levels, strict=True)
        )
        summary[method]["dead"] = np.mean([run["dead"] for run in runs], axis=0).round(3).tolist()
        summary[method]["by_epoch"] = np.mean([run["coverage"] for run in runs], axis=0).round(4).tolist()
        if method == "all":
            continue
        summary[method]["ahead"] = {
            str(k): interval(np.subtract(values, [at_k(run, k)[-1] for run in of["all"]]).tolist())
            for k, values in ends.items()
        }
        summary[method]["sooner"] = {
            unit: ratio(
                *[
                    [spent_until(run, num_attempts, level, unit) for run, level in zip(side, levels, strict=True)]
                    for side in (runs, of["all"])
                ]
            )
            for unit in ("step", "examples", "tokens", "seconds")
        }
        for unit in ("tokens", "seconds"):
            summary[method][f"{unit}_of_all"] = ratio(
                *[[run[unit][-1] / run["step"][-1] for run in side] for side in (of["all"], runs)]
            )
    return summary


# ------------------------------------------------------------------ running them


def job_name(runs: Sequence[Run], seed: int) -> str:
    first = runs[0]
    setting = f"_{first.dead_below}_{first.recheck_epochs}" if len(runs) == 1 else ""
    return f"{'tune' if len(runs) == 1 else 'report'}_N-{first.num_attempts}{setting}_seed-{seed}"


def run_and_keep(runs: Sequence[Run], seed: int, num_epochs: int, path: Path) -> None:
    """The runs one after the other in this process; the file appears whole or not at all."""
    records = [train(run, seed, num_epochs) for run in runs]
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(records, separators=(",", ":")))
    unfinished.replace(path)


def run_all(
    jobs: Sequence[tuple[Sequence[Run], int]], num_epochs: int, workers: int, work_dir: Path
) -> list[dict[str, Any]]:
    """Run the jobs that are not finished, each in a process, and return the records of all.

    Raises:
        ValueError: A file holds other runs than those asked for.
    """
    paths = [work_dir / f"{job_name(*job)}.json" for job in jobs]
    waiting = [(job, path) for job, path in zip(jobs, paths, strict=True) if not path.exists()]
    context = multiprocessing.get_context("spawn")  # forked threads of torch can hang
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        futures = {pool.submit(run_and_keep, *job, num_epochs, path): path for job, path in waiting}
        for number, future in enumerate(as_completed(futures), start=1):
            future.result()
            print(f"[{len(jobs) - len(waiting) + number}/{len(jobs)}] {futures[future].stem}", flush=True)
    records = []
    for (runs, _), path in zip(jobs, paths, strict=True):
        found = json.loads(path.read_text())
        same = [
            {name: record[name] for name in vars(run)} == vars(run) for run, record in zip(runs, found, strict=True)
        ]
        if not all(same) or any(record["num_epochs"] != num_epochs for record in found):
            raise ValueError(f"{path} holds runs of other settings or of another length: give another --work_dir")
        records += found
    return records


def reported(num_attempts: int, setting: tuple[float, int], seed: int) -> list[Run]:
    """The three runs of a seed; which comes first changes from seed to seed."""
    runs = [
        Run(num_attempts, "all"),
        Run(num_attempts, "refill", *setting),
        Run(num_attempts, "drop", *DROP_SETTING),
    ]
    return runs[seed % 3 :] + runs[: seed % 3]


def print_summary(summary: dict[str, Any]) -> None:
    def show(value: dict[str, Any], scale: float = 1.0) -> str:
        low, high = (math.nan if value[name] is None else scale * value[name] for name in ("low", "high"))
        return f"{scale * value['mean']:7.2f} [{low:.2f}, {high:.2f}]"

    for n, of_n in summary.items():
        print(f"N = {n}; level {show(of_n['level'], 100)}")
        for method in METHODS:
            of_method = of_n[method]
            ends = ", ".join(f"@{k} {show(of_method['end'][str(k)], 100)}" for k in (1, 256, 4096))
            print(f"  {method:7} at the end {ends}; level not reached: {of_method['not_reached']}")
            if method == "all":
                continue
            ahead = ", ".join(f"@{k} {show(of_method['ahead'][str(k)], 100)}" for k in (1, 256, 4096))
            print(f"          ahead {ahead}")
            print("          sooner " + ", ".join(f"{u} {show(v)}" for u, v in of_method["sooner"].items()))
            print(
                f"          a step costs, of one of all: tokens {show(of_method['tokens_of_all'])}, "
                f"seconds {show(of_method['seconds_of_all'])}"
            )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work_dir", type=Path, required=True, help="Folder of the finished runs.")
    parser.add_argument("--output", type=Path, required=True, help="JSON file of the results.")
    parser.add_argument("--workers", type=int, default=2, help="Processes at a time, a thread each.")
    parser.add_argument("--epochs", type=int, default=NUM_EPOCHS, help="Epochs a run.")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="Seeds to report.")
    parser.add_argument("--num_attempts", type=int, nargs="+", default=NUM_ATTEMPTS, choices=CURVE_K[1:], help="N's.")
    args = parser.parse_args(argv)
    for name in ("workers", "epochs"):
        if getattr(args, name) < 1:
            parser.error(f"--{name}: got {getattr(args, name)}; at least 1 is needed")
    args.work_dir.mkdir(parents=True, exist_ok=True)
    tuning = [
        ([Run(n, "refill", *setting)], seed)
        for n in args.num_attempts
        for setting in CANDIDATES
        for seed in TUNING_SEEDS
    ]
    try:
        tuned = run_all(tuning, args.epochs, args.workers, args.work_dir)
        chosen = {n: best_setting(tuned, n) for n in args.num_attempts}
        jobs = [(reported(n, chosen[n], seed), seed) for seed in args.seeds for n in args.num_attempts]
        records = run_all(jobs, args.epochs, args.workers, args.work_dir)
    except ValueError as error:
        parser.error(str(error))
    summary = {str(n): {"chosen": chosen[n], **summarise(records, n)} for n in args.num_attempts}
    results = {
        "task": "two-digit multiplication, 1,500 problems to train on and 500 held out",
        "settings": {**SETTINGS, "num_train_epochs": args.epochs, "candidates": CANDIDATES, "drop": DROP_SETTING},
        "k": CURVE_K,
        "summary": summary,
        "tuning": tuned,
        "runs": records,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "trl")},
        },
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(results, separators=(",", ":")) + "\n")
    print_summary(summary)
    return 0


if __name__ == "__main__":
    sys.exit(main())
