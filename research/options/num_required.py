"""At least m of N: does training for it raise majority vote over cross-entropy and DCO, and at what price?

The demonstration's task, model and settings; `num_required` m of `num_attempts` N, m = 1 being DCO and N = 1
cross-entropy. Half of the held-out problems are for choosing the epoch, half are reported. pass@k and "at least m of
k" are exact, from the probability of the right answer. Majority vote is counted from samples of each problem
(`majority_at_k`, unbiased), at four epochs.

    python -m research.options.num_required --work_dir runs/num-required --workers 14 \\
        --output research/options/results/num-required.json

35 runs. One takes about 2 minutes on one core.
"""

import argparse
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from transformers import PrinterCallback, TrainerCallback

from dco_trl import DCOConfig, DCOTrainer
from dco_trl.coverage import log_coverage
from dco_trl.demo import task
from dco_trl.demo.training import NUM_EPOCHS, SETTINGS, be_quiet, training_arguments
from dco_trl.problem import Problem
from dco_trl.sampling import SampleRequest, SamplingParams, TransformersSampler, exact_coverage
from dco_trl.statistics import majority_at_k
from research.common.differences import interval, told
from research.common.processes import environment, run_all, write

# (N, m)
PAIRS = [(1, 1), (16, 1), (256, 1), (16, 2), (16, 8), (64, 32), (256, 128)]
KS = [1, 16, 64, 256]
VOTES = [1, 16, 64]
VOTE = "majority@64"  # what an epoch and a pair are chosen for
NUM_SAMPLES = 128
NUM_MEASURED = 4
_BATCH = 4096


class Recorder(TrainerCallback):
    """Measures the held-out problems, in two halves, after some epochs, the last among them."""

    def __init__(self, tokenizer: Any, rows: Any, num_epochs: int, seed: int):
        self.tokenizer, self.seed = tokenizer, seed
        problems, half = task.as_problems(rows), len(rows) // 2
        self.splits = [problems[:half], problems[half:]]
        self.epochs = sorted({max(1, round(num_epochs * i / NUM_MEASURED)) for i in range(1, NUM_MEASURED + 1)})
        self.measured: list[dict[str, Any]] = []

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        epoch = round(state.epoch)
        if epoch in self.epochs:
            of_splits = [measure(model, self.tokenizer, problems, self.seed) for problems in self.splits]
            self.measured.append({"epoch": epoch, "validation": of_splits[0], "test": of_splits[1]})


def measure(model: Any, tokenizer: Any, problems: list[Problem], seed: int) -> dict[str, float]:
    """Means over problems: `pass@k`, `half of k`, `quarter of k`, exact; `majority@k` from samples."""
    exact = exact_coverage(model, tokenizer, problems, batch_size=_BATCH, progress=False)
    log_p = torch.from_numpy(exact.log_p)
    found = {}
    for k in KS:
        for name, m in ((f"pass@{k}", 1), (f"quarter of {k}", k // 4), (f"half of {k}", k // 2)):
            if m >= 1:
                found[name] = log_coverage(log_p, k, num_required=m).exp().mean().item()
    answers = draw(model, tokenizer, problems, seed)
    votes = [of_problem(problem.answer, texts) for problem, texts in zip(problems, answers, strict=True)]
    found |= {f"majority@{k}": float(vote) for k, vote in zip(VOTES, np.mean(votes, axis=0), strict=True)}
    # Of the same samples, against the exact value: whether sampling and probabilities agree.
    found["sampled pass@1"] = float(
        np.mean([np.mean([text == p.answer for text in some]) for p, some in zip(problems, answers, strict=True)])
    )
    return {name: round(value, 6) for name, value in found.items()}


def draw(model: Any, tokenizer: Any, problems: list[Problem], seed: int) -> list[list[str | None]]:
    """Answers of each problem; None for one that does not end."""
    sampler = TransformersSampler(model, tokenizer=tokenizer, batch_size=_BATCH, progress=False)
    requests = [SampleRequest(problem.prompt, NUM_SAMPLES, stream=i) for i, problem in enumerate(problems)]
    params = SamplingParams(temperature=1.0, max_tokens=task.ANSWER_LENGTH + 1, seed=seed)
    return [
        [tokenizer.decode((s.token_ids or ())[:-1]) if s.finish_reason == "stop" else None for s in samples]
        for samples in sampler.sample(requests, params)
    ]


def of_problem(reference: str, texts: list[str | None]) -> np.ndarray:
    """Majority vote of one problem for each of `VOTES`."""
    counts = Counter(text for text in texts if text is not None)
    correct = [text == reference for text in counts]
    return majority_at_k(list(counts.values()), correct, VOTES, num_abstained=len(texts) - counts.total())


def train(num_attempts: int, num_required: int, seed: int, num_epochs: int) -> dict[str, Any]:
    be_quiet()
    dataset, held_out = task.make_problems(seed)
    tokenizer = task.make_tokenizer()
    recorder = Recorder(tokenizer, held_out, num_epochs, seed)
    with TemporaryDirectory(prefix="num-required-") as folder:
        trainer = DCOTrainer(
            task.make_model(seed),
            args=DCOConfig(
                num_attempts=num_attempts,
                num_required=num_required,
                **training_arguments(folder, len(dataset), num_epochs, seed),
            ),
            train_dataset=dataset,
            processing_class=tokenizer,
            callbacks=[recorder],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return {"measured": recorder.measured}


def summarise(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each (N, m) and metric, seeds' values on the test half.

    At the epoch best on validation for this metric, at the last epoch, and at the epoch best for `VOTE`; `VOTE` on
    the validation half stands beside.
    """
    table = []
    for n, m in PAIRS:
        some = [run["measured"] for run in runs if (run["num_attempts"], run["num_required"]) == (n, m)]
        chosen = {
            name: [max(run, key=lambda at: at["validation"][name])["test"][name] for run in some]  # noqa: B023
            for name in some[0][0]["test"]
        }
        last = {name: [run[-1]["test"][name] for run in some] for name in some[0][0]["test"]}
        at_vote = [max(run, key=lambda at: at["validation"][VOTE])["test"] for run in some]
        entry = {"num_attempts": n, "num_required": m, "chosen": chosen, "last": last}
        entry["at the epoch for the vote"] = {name: [test[name] for test in at_vote] for name in last}
        entry["validation"] = [max(at["validation"][VOTE] for at in run) for run in some]
        table.append(entry)
    return table


def compare(table: list[dict[str, Any]]) -> dict[str, Any]:
    """The pair with m > 1 that is best in `VOTE` on validation, against cross-entropy and the better DCO."""

    def best(entries: list[dict[str, Any]]) -> dict[str, Any]:
        return max(entries, key=lambda entry: np.mean(entry["validation"]))

    required = best([entry for entry in table if entry["num_required"] > 1])
    dco = best([entry for entry in table if entry["num_required"] == 1 and entry["num_attempts"] > 1])
    ce = next(entry for entry in table if entry["num_attempts"] == 1)
    at = "at the epoch for the vote"
    return {
        "chosen": [required["num_attempts"], required["num_required"]],
        "against": {
            name: {
                "pair": [rival["num_attempts"], rival["num_required"]],
                **{m: interval(np.subtract(required[at][m], rival[at][m]).tolist()) for m in required[at]},
            }
            for name, rival in (("cross-entropy", ce), ("DCO", dco))
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work_dir", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--num_epochs", type=int, default=NUM_EPOCHS)
    args = parser.parse_args()
    jobs = [
        {"num_attempts": n, "num_required": m, "seed": seed, "num_epochs": args.num_epochs}
        for seed in range(args.seeds)
        for n, m in PAIRS
    ]
    runs = run_all(train, jobs, args.work_dir, args.workers)
    results = {"settings": {**SETTINGS, "num_train_epochs": args.num_epochs}, "k": KS, **environment(args.workers)}
    results |= {"seconds_of_runs": sum(run["seconds"] for run in runs), "summary": summarise(runs), "runs": runs}
    results["comparison"] = compare(results["summary"])
    write(results, args.output)
    for entry in results["summary"]:
        for when in ("chosen", "last", "at the epoch for the vote"):
            cells = "  ".join(
                f"{name} {100 * np.mean(entry[when][name]):5.1f}"
                for name in (
                    "pass@1",
                    "pass@64",
                    "pass@256",
                    "quarter of 64",
                    "half of 64",
                    "majority@16",
                    "majority@64",
                )
            )
            print(f"N={entry['num_attempts']:<4} m={entry['num_required']:<4} {when:>25}  {cells}")
    chosen = "N={} m={}".format(*results["comparison"]["chosen"])
    for name, difference in results["comparison"]["against"].items():
        cells = "  ".join(f"{metric} {told(difference[metric])}" for metric in (VOTE, "pass@1", "pass@256"))
        print(f"{chosen}, the best at the vote on validation, less {name} {difference['pair']}: {cells}")


if __name__ == "__main__":
    main()
