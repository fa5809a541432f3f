"""Tree search over steps with a real checker: `unit="turn"`, N_eff of 1, 4 and 16, and their budgets together.

The puzzle is to get from one number to another by steps such as `*3` and `-2`: all of `+`, `-`, `*` with 2 to 5, and
no number below 1 or above 999. A row is a shortest solution, `17>54:*3=51+3=54`, whose labels are the steps alone;
what follows `=` is the checker's. With `unit="turn"` each step has its own p, weighed with N_eff attempts; N_eff = 1
is cross-entropy.

At test time a best-first search expands the node with the largest product of probabilities. Expanding asks the model
for the probabilities of all steps there; the checker applies them, drops impossible ones and numbers seen before, and
ends the search at the target. Reported is the share of held-out puzzles that is solved, against nodes expanded, by the
length of the shortest solution. `together` gives each of the three models a third of the nodes. `schedule` shares them
out as was best on validation puzzles of all lengths, for each number of nodes; `best` is the one model that was best
there. `uniform` is a search without a model.

    python -m research.options.tree_search --work_dir runs/tree-search --workers 2 \\
        --output research/options/results/tree-search.json

3 runs per seed, of about 6 minutes on one core each.
"""

import argparse
import heapq
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PrinterCallback

from dco_trl import DCOConfig, DCOTrainer
from dco_trl.demo import task as demo
from dco_trl.demo.training import be_quiet
from research.common.differences import interval, told
from research.common.processes import environment, run_all, write

N_EFF = [1, 4, 16]
STEPS = [f"{operation}{a}" for operation in "+-*" for a in range(2, 6)]
LARGEST, DEPTH, NODES = 999, 8, 48
LENGTHS = [2, 3, 4, 5]
NUM_TRAIN, NUM_TEST = 1000, 100  # of each length; as many to choose on as to report
VOCABULARY = ["<pad>", *"+-*=>:0123456789"]
SETTINGS: dict[str, Any] = dict(
    per_device_train_batch_size=64, learning_rate=2e-3, lr_scheduler_type="cosine", adam_beta2=0.99, weight_decay=0.1
)

Puzzle = tuple[int, int]
Puzzles = dict[int, list[Puzzle]]


def apply(number: int, step: str) -> int | None:
    """The checker: what a step makes of a number, None if it is not allowed."""
    a = int(step[1:])
    result = {"+": number + a, "-": number - a, "*": number * a}[step[0]]
    return result if 1 <= result <= LARGEST else None


def distances_from(start: int) -> dict[int, int]:
    """Steps of the shortest solution to every number."""
    found, frontier = {start: 0}, [start]
    while frontier:
        following = {apply(number, step) for number in frontier for step in STEPS}
        frontier = [number for number in following if number is not None and number not in found]
        found |= dict.fromkeys(frontier, found[start] + max(found.values()) + 1)
    return found


def shortest(puzzle: Puzzle, distance: dict[int, int], rng: np.random.Generator) -> list[str]:
    """One of the shortest solutions, at random; `distance` is from the start."""
    number, steps = puzzle[1], []
    while number != puzzle[0]:
        before = [
            (n, step)
            for step in STEPS
            for n in _before(number, step)
            if distance.get(n) == distance[number] - 1
        ]  # fmt: skip
        number, step = before[rng.integers(len(before))]
        steps.append(step)
    return steps[::-1]


def _before(number: int, step: str) -> list[int]:
    """The numbers that a step makes this one of."""
    a = int(step[1:])
    n = {"+": number - a, "-": number + a, "*": number // a}[step[0]]
    return [n] if n >= 1 and apply(n, step) == number else []


def make_puzzles(seed: int) -> tuple[list[tuple[Puzzle, list[str]]], Puzzles, Puzzles]:
    """Puzzles with a solution to train on; others to choose on and to report, by the length of their solution."""
    rng = np.random.default_rng(seed)
    by_length: dict[int, list[Puzzle]] = {length: [] for length in LENGTHS}
    distances = {start: distances_from(start) for start in range(1, 200)}
    for start, distance in distances.items():
        for target, length in distance.items():
            if length in by_length:
                by_length[length].append((start, target))
    train, validation, test = [], {}, {}
    for length, puzzles in by_length.items():
        drawn = [puzzles[i] for i in rng.permutation(len(puzzles))[: NUM_TRAIN + 2 * NUM_TEST]]
        test[length], validation[length] = drawn[:NUM_TEST], drawn[NUM_TEST : 2 * NUM_TEST]
        train += [(puzzle, shortest(puzzle, distances[puzzle[0]], rng)) for puzzle in drawn[2 * NUM_TEST :]]
    return [train[i] for i in rng.permutation(len(train))], validation, test


def encode(text: str) -> list[int]:
    return [VOCABULARY.index(character) for character in text]


def row_of(puzzle: Puzzle, steps: list[str]) -> dict[str, list[int]]:
    """Tokens of a solution; its steps have labels, the rest has none."""
    ids = encode(f"{puzzle[0]}>{puzzle[1]}:")
    labels, number = [-100] * len(ids), puzzle[0]
    for step in steps:
        number = apply(number, step)
        told = encode(f"={number}")
        ids += encode(step) + told
        labels += encode(step) + [-100] * len(told)
    return {"input_ids": ids, "labels": labels}


def make_model(seed: int) -> Any:
    return demo.make_model(
        seed, len(VOCABULARY), hidden_size=128, intermediate_size=256, max_position_embeddings=64, eos_token_id=None
    )


@torch.no_grad()
def next_log_p(model: Any, rows: list[list[int]]) -> np.ndarray:
    """Log-probabilities of the token after each row, (rows, vocabulary)."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    found = np.empty((len(rows), len(VOCABULARY)))
    for first in range(0, len(order), 256):
        some = order[first : first + 256]
        width = len(rows[some[-1]])
        padded = torch.tensor([rows[i] + [0] * (width - len(rows[i])) for i in some])
        mask = torch.tensor([[1] * len(rows[i]) + [0] * (width - len(rows[i])) for i in some])
        last = torch.tensor([len(rows[i]) - 1 for i in some])
        logits = model(input_ids=padded, attention_mask=mask).logits[torch.arange(len(some)), last]
        found[some] = logits.double().log_softmax(-1).numpy()
    return found


def log_p_of_steps(model: Any, texts: list[str]) -> np.ndarray:
    """Log-probabilities of `STEPS` after each text, (texts, steps)."""
    rows = [encode(text) for text in texts]
    signs = list(dict.fromkeys(step[0] for step in STEPS))
    of_sign = next_log_p(model, rows)
    of_digit = next_log_p(model, [row + encode(sign) for row in rows for sign in signs])
    of_digit = of_digit.reshape(len(rows), len(signs), -1)
    return np.stack(
        [of_sign[:, encode(s[0])[0]] + of_digit[:, signs.index(s[0]), encode(s[1:])[0]] for s in STEPS], axis=1
    )


class Search:
    """Best-first search of one puzzle."""

    def __init__(self, puzzle: Puzzle):
        self.target, self.num_expanded, self.solved_at = puzzle[1], 0, 0
        self.seen = {puzzle[0]}
        # Minus the log-probability, the order of arrival, the number, depth, and all that the model has seen.
        self.open = [(0.0, 0, puzzle[0], 0, f"{puzzle[0]}>{puzzle[1]}:")]

    @property
    def is_over(self) -> bool:
        return bool(self.solved_at) or not self.open or self.num_expanded == NODES

    def expand(self, log_p: np.ndarray) -> None:
        """Expand the best open node, given the log-probabilities of the steps there."""
        cost, _, number, depth, text = heapq.heappop(self.open)
        self.num_expanded += 1
        for step, x in zip(STEPS, log_p.tolist(), strict=True):
            result = apply(number, step)
            if result == self.target:
                self.solved_at = self.num_expanded
            if result is None or result in self.seen or depth + 1 == DEPTH:
                continue
            self.seen.add(result)
            heapq.heappush(self.open, (cost - x, len(self.seen), result, depth + 1, f"{text}{step}={result}"))


def solve(model: Any, puzzles: list[Puzzle]) -> list[int]:
    """Nodes expanded until each puzzle was solved; 0 where it was not. Without a model, all steps are equal."""
    searches = [Search(puzzle) for puzzle in puzzles]
    while going := [search for search in searches if not search.is_over]:
        if model is None:
            log_p = np.full((len(going), len(STEPS)), -math.log(len(STEPS)))
        else:
            log_p = log_p_of_steps(model, [search.open[0][-1] for search in going])
        for search, of_search in zip(going, log_p, strict=True):
            search.expand(of_search)
    return [search.solved_at for search in searches]


def train(n_eff: int, seed: int, num_epochs: int) -> dict[str, Any]:
    be_quiet()
    solutions, validation, test = make_puzzles(seed)
    model = make_model(seed)
    with TemporaryDirectory(prefix="tree-search-") as folder:
        args = DCOConfig(
            output_dir=folder,
            num_attempts=n_eff,
            unit="turn",
            num_train_epochs=num_epochs,
            seed=seed,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            logging_strategy="epoch",
            save_strategy="no",
            disable_tqdm=True,
            **SETTINGS,
        )
        trainer = DCOTrainer(
            model,
            args=args,
            train_dataset=Dataset.from_list([row_of(*solution) for solution in solutions]),
            processing_class=demo.make_tokenizer(),  # for padding alone: rows are tokens already
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    model.eval()
    logged = [entry for entry in trainer.state.log_history if "coverage_weight" in entry]
    return {
        "solved_at": {str(length): solve(model, puzzles) for length, puzzles in test.items()},
        "validation": {str(length): solve(model, puzzles) for length, puzzles in validation.items()},
        "coverage_weight": [round(entry["coverage_weight"], 4) for entry in logged],
        "log_p": [round(entry["log_p"], 4) for entry in logged],
    }


def solved(solved_at: np.ndarray, split: Sequence[int]) -> np.ndarray:
    """Which puzzles one of the models solves with its share of the nodes; `solved_at` is (models, puzzles)."""
    return ((solved_at > 0) & (solved_at <= np.array(split)[:, None])).any(axis=0)


def best_split(solved_at: np.ndarray, nodes: int) -> list[int]:
    """How to share the nodes out among the models, for the most puzzles."""
    splits = [
        split for split in itertools.product(range(nodes + 1), repeat=len(N_EFF)) if sum(split) == nodes
    ]  # fmt: skip
    return list(max(splits, key=lambda split: solved(solved_at, split).sum()))


def summarise(runs: list[dict[str, Any]], seeds: list[int], budgets: list[int]) -> dict[str, Any]:
    """Solved shares of the test puzzles by way and length ("all" of them), of shape (seeds, budgets)."""
    alone = {f"N_eff={n}": np.eye(len(N_EFF), dtype=int)[i] for i, n in enumerate(N_EFF)}
    ways = [*alone, "best", "together", "schedule", "uniform"]
    lengths = list(map(str, LENGTHS))
    shares = {way: {length: np.zeros((len(seeds), len(budgets))) for length in [*lengths, "all"]} for way in ways}
    chosen = []
    for row, seed in enumerate(seeds):
        of = {run["n_eff"]: run for run in runs if run["seed"] == seed}
        validation, test = (
            {length: np.array([of[n][part][length] for n in N_EFF]) for length in lengths}
            for part in ("validation", "solved_at")
        )
        to_choose_on = np.concatenate(list(validation.values()), axis=1)
        unguided = {length: np.array([solve(None, make_puzzles(seed)[2][int(length)])]) for length in lengths}
        for column, nodes in enumerate(budgets):
            splits = {way: nodes * one for way, one in alone.items()}
            splits["best"] = max(splits.values(), key=lambda split: solved(to_choose_on, split).sum())
            splits["together"] = [nodes // len(N_EFF)] * len(N_EFF)
            splits["schedule"] = best_split(to_choose_on, nodes)
            chosen.append(
                {"seed": seed, "nodes": nodes, **{way: list(map(int, splits[way])) for way in ("best", "schedule")}}
            )
            for length in lengths:
                for way, split in splits.items():
                    shares[way][length][row, column] = solved(test[length], split).mean()
                shares["uniform"][length][row, column] = solved(unguided[length], [nodes]).mean()
    for of_way in shares.values():
        of_way["all"] = np.mean([of_way[length] for length in lengths], axis=0)
    return {
        "solved": {way: {length: v.round(4).tolist() for length, v in of.items()} for way, of in shares.items()},
        "splits": chosen,
    }


def compare(solved: dict[str, dict[str, list]]) -> dict[str, Any]:
    """With the most nodes, paired by seed: N_eff = 16 less 1 by length of solution; sharing out less the rest."""
    at_end = {way: {length: np.array(v)[:, -1] for length, v in of.items()} for way, of in solved.items()}
    gain = {length: at_end["N_eff=16"][length] - at_end["N_eff=1"][length] for length in map(str, LENGTHS)}
    short, long = ((gain[a] + gain[b]) / 2 for a, b in (("2", "3"), ("4", "5")))
    found = {"N_eff=16 less N_eff=1, 2 and 3 steps": short, "N_eff=16 less N_eff=1, 4 and 5 steps": long}
    found["the first less the second"] = short - long
    for rival in ("best", "together", "N_eff=1", "N_eff=4", "N_eff=16", "uniform"):
        found[f"schedule less {rival}, all"] = at_end["schedule"]["all"] - at_end[rival]["all"]
    return {name: interval(values.tolist()) for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work_dir", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--num_epochs", type=int, default=40)
    args = parser.parse_args()
    seeds, budgets = list(range(args.seeds)), [3, 6, 12, 24, 48]
    jobs = [{"n_eff": n, "seed": seed, "num_epochs": args.num_epochs} for seed in seeds for n in N_EFF]
    runs = run_all(train, jobs, args.work_dir, args.workers)
    results = {"settings": {**SETTINGS, "num_train_epochs": args.num_epochs}, "nodes": budgets}
    results |= {**environment(args.workers), "seconds_of_runs": sum(run["seconds"] for run in runs)}
    results |= {"summary": summarise(runs, seeds, budgets), "runs": runs}
    results["comparisons"] = compare(results["summary"]["solved"])
    write(results, args.output)
    for length in results["summary"]["solved"]["uniform"]:
        print(f"shortest solution of {length} steps; nodes {budgets}")
        for way, shares in results["summary"]["solved"].items():
            print(f"  {way:>9}  " + "  ".join(f"{100 * value:5.1f}" for value in np.mean(shares[length], axis=0)))
    for name, value in results["comparisons"].items():
        print(f"{name}: {told(value)}")
    few, many = (results["summary"]["solved"][f"N_eff={n}"] for n in (1, 16))
    for length in few:
        gains = np.subtract(many[length], few[length]).T
        told_gains = ", ".join(f"{n}: {told(interval(gain.tolist()))}" for n, gain in zip(budgets, gains, strict=True))
        print(f"N_eff=16 less N_eff=1, {length} steps, by nodes: {told_gains}")


if __name__ == "__main__":
    main()
