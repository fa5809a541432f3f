"""Does a run of cross-entropy alone tell whether DCO will pay? Three statistics of it against DCO's gain, by task.

    python -m research.schedules.when_it_pays --output research/schedules/results/when-it-pays.json

Reads the runs that are stored, and takes seconds. `docs/results/when-it-pays.md` is the protocol, which was committed
with this script before it was run.
"""

import argparse
import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau

from dco_trl.coverage_numpy import coverage
from dco_trl.statistics import pass_at_k
from research.common.processes import write

RESEARCH = Path(__file__).parents[1]
STATISTICS = ("given up", "fall", "earliness")
# Of three statistics one may be right by chance.
ALPHA = 0.05 / len(STATISTICS)


def logit(p: float) -> float:
    p = min(max(p, 1e-4), 1 - 1e-4)
    return float(np.log(p / (1 - p)))


def of_cross_entropy(pass_1: NDArray, pass_k: NDArray, epochs: Sequence[int]) -> dict[str, float]:
    """The three statistics, of pass@1 and pass@k by epoch.

    `given up`: pass@1 at its best epoch less pass@1 at the best epoch for k, in log-odds. `fall`: pass@k at its best
    epoch less pass@k at the last, in log-odds. `earliness`: log of the best epoch for k = 1 over that for k.
    """
    first, kth = int(np.argmax(pass_1)), int(np.argmax(pass_k))
    return {
        "given up": logit(pass_1[first]) - logit(pass_1[kth]),
        "fall": logit(pass_k[kth]) - logit(pass_k[-1]),
        "earliness": float(np.log(epochs[first] / epochs[kth])),
    }


def row(task: str, source: str, k: int, seeds: Iterable[tuple[dict[str, float], float]]) -> dict[str, Any]:
    """One source: means over seeds of the statistics and of the gain, in points."""
    statistics, gains = zip(*seeds, strict=True)
    mean = {name: round(float(np.mean([of[name] for of in statistics])), 4) for name in STATISTICS}
    return {"task": task, "source": source, "k": k, "gain": round(100 * float(np.mean(gains)), 2), **mean}


def gain(ce: tuple[NDArray, NDArray], dco: tuple[NDArray, NDArray]) -> float:
    """DCO less cross-entropy, each at the epoch that is best in its first array, as its second has it."""
    return float(dco[1][np.argmax(dco[0])] - ce[1][np.argmax(ce[0])])


def read(path: str) -> Any:
    return json.loads((RESEARCH / path).read_text())


# ------------------------------------------------------------------ what is stored


def demo() -> dict[str, Any]:
    runs = read("baselines/results/demo.json")["runs"]
    at = {k: runs[0]["k"].index(k) for k in (1, 256)}
    of = {(run["num_attempts"], run["seed"]): np.array(run["coverage"]) for run in runs}
    seeds = []
    for seed in sorted({seed for _, seed in of}):
        ce, dco = of[1, seed], of[256, seed]
        curves = [values[:, at[256]] for values in (ce, dco)]
        epochs = range(1, len(ce) + 1)
        seeds.append((of_cross_entropy(ce[:, at[1]], curves[0], epochs), gain(*[(c, c) for c in curves])))
    return row("multiplication", "the demo, 5 seeds", 256, seeds)


def baselines(task: str, source: str, path: str) -> dict[str, Any]:
    """Only means over seeds are stored by epoch; the best epoch was chosen for each seed on validation problems."""
    settings = {(s["method"], s["setting"].get("num_attempts")): s for s in read(path)["settings"]}
    ce, dco = settings["cross-entropy", None], settings["DCO", 256]
    at = {k: ce["k"].index(k) for k in (1, 256)}
    by_epoch = np.array(ce["by_epoch"])
    statistics = of_cross_entropy(by_epoch[:, at[1]], by_epoch[:, at[256]], range(1, len(by_epoch) + 1))
    ahead = dco["best_epoch"]["mean"][at[256]] - ce["best_epoch"]["mean"][at[256]]
    return row(task, source, 256, [(statistics, ahead)])


def num_required() -> dict[str, Any]:
    runs = read("options/results/num-required.json")["runs"]
    of = {(r["num_attempts"], r["seed"]): r["measured"] for r in runs if r["num_required"] == 1}
    seeds = []
    for seed in sorted({seed for _, seed in of}):
        curve = {
            (n, split, k): np.array([at[split][f"pass@{k}"] for at in of[n, seed]])
            for n in (1, 256)
            for split in ("validation", "test")
            for k in (1, 256)
        }
        epochs = [at["epoch"] for at in of[1, seed]]
        statistics = of_cross_entropy(curve[1, "validation", 1], curve[1, "validation", 256], epochs)
        pairs = [(curve[n, "validation", 256], curve[n, "test", 256]) for n in (1, 256)]
        seeds.append((statistics, gain(*pairs)))
    return row("multiplication", "at least m of N, m = 1, 5 seeds", 256, seeds)


def factorisation() -> dict[str, Any]:
    stored = read("options/results/references.json")
    at = {k: stored["k"].index(k) for k in (1, 256)}
    of = {(r["num_attempts"], r["seed"]): np.array(r["coverage"]) for r in stored["runs"] if r["way"] == "one"}
    seeds = []
    for seed in sorted({seed for _, seed in of}):  # epoch, validation and test, k
        ce, dco = of[1, seed], of[256, seed]
        statistics = of_cross_entropy(ce[:, 0, at[1]], ce[:, 0, at[256]], range(1, len(ce) + 1))
        pairs = [(values[:, 0, at[256]], values[:, 1, at[256]]) for values in (ce, dco)]
        seeds.append((statistics, gain(*pairs)))
    return row("factorisation", "one reference, 5 seeds", 256, seeds)


def math_full() -> dict[str, Any]:
    folder = RESEARCH / "schedules/results/smollm2-math"

    def curves(name: str) -> dict[tuple[str, int], NDArray]:
        log_p = np.load(folder / f"{name}.npz")["log_p"][:, 0].astype(float)  # epochs, problems at temperature 1
        half = json.loads((folder / f"{name}.json").read_text())["num_validation"]
        parts = {"validation": log_p[:, :half], "test": log_p[:, half:]}
        return {
            (split, k): coverage(np.minimum(part, 0.0), k).mean(axis=1)
            for split, part in parts.items()
            for k in (1, 256)
        }

    dco, seeds = curves("DCO_num_attempts-256_seed-1"), []
    for name in ("cross-entropy_repeat-2_seed-0", "cross-entropy_repeat-3_seed-1"):
        ce = curves(name)
        statistics = of_cross_entropy(ce["validation", 1], ce["validation", 256], range(1, len(ce["test", 1]) + 1))
        seeds.append((statistics, gain(*[(of["validation", 256], of["test", 256]) for of in (ce, dco)])))
    return row("MATH, 3,750 problems", "two runs of cross-entropy, one of DCO", 256, seeds)


def math_lora() -> dict[str, Any]:
    runs = read("schedules/results/smollm2-lora-16.json")["runs"]
    of = {(r["num_attempts"], r["seed"]): np.minimum(np.array(r["log_p"]), 0.0) for r in runs}
    seeds = []
    for seed in sorted({seed for _, seed in of}):
        pass_1 = coverage(of[1, seed], 1).mean(axis=1)
        ce, dco = (coverage(of[n, seed], 256).mean(axis=1) for n in (1, 256))
        seeds.append((of_cross_entropy(pass_1, ce, range(1, len(ce) + 1)), gain((ce, ce), (dco, dco))))
    return row("MATH, 256 problems, LoRA", "2 seeds", 256, seeds)


def chains_first() -> dict[str, Any]:
    stored = read("chain_of_thought/results/first-round.json")
    at = {k: stored["k"].index(k) for k in (1, 64)}
    [course] = [c for c in stored["epochs"] if c["method"] == "cross-entropy"]
    mean = np.array(course["mean"])
    statistics = of_cross_entropy(mean[:, at[1]], mean[:, at[64]], course["epochs"])
    [ahead] = [
        d["mean"][at[64]]
        for d in stored["differences"]
        if (d["of"], d["from"]) == ("DCO, 4 own", "cross-entropy, best epoch")
    ]
    return row("chains of thought, fine-tuned", "first round, 4 seeds", 64, [(statistics, ahead)])


def chains_second() -> dict[str, Any]:
    runs = read("chain_of_thought/results/second-round-runs.json")
    of = {(run["method"], run["setting"]["num_attempts"], run["seed"]): run for run in runs}
    seeds = []
    for seed in (5, 6, 7, 8, 9):
        ce, dco = of["cross-entropy", 1, seed], of["DCO, 4 own", 64, seed]

        def curve(run: dict[str, Any], split: str, k: int) -> NDArray:
            counts = np.array([table[split] for table in run["correct"].values()])
            return pass_at_k(np.full(counts.shape, run["num_samples"]), counts, k).mean(axis=1)

        epochs = [int(epoch) for epoch in ce["correct"]]
        statistics = of_cross_entropy(curve(ce, "validation", 1), curve(ce, "validation", 64), epochs)
        pairs = [(curve(run, "validation", 64), curve(run, "test", 64)) for run in (ce, dco)]
        seeds.append((statistics, gain(*pairs)))
    return row("chains of thought, fine-tuned", "second round, 5 seeds", 64, seeds)


def chains_from_nothing() -> dict[str, Any]:
    runs = read("chain_of_thought/results/tiny.json")["runs"]
    of = {(run["method"], run["seed"]): run["epochs"] for run in runs}
    seeds = []
    for seed in sorted({seed for _, seed in of}):
        ce, dco = of["cross-entropy", seed], of["DCO, sampled rationales", seed]
        curve = {
            (name, k): np.array([at["pass"][at["k"].index(k)] for at in run])
            for name, run in (("ce", ce), ("dco", dco))
            for k in (1, 64)
        }
        statistics = of_cross_entropy(curve["ce", 1], curve["ce", 64], [at["epoch"] for at in ce])
        seeds.append((statistics, gain(*[(curve[name, 64], curve[name, 64]) for name in ("ce", "dco")])))
    return row("chains of thought, from nothing", "3 seeds", 64, seeds)


def gsm8k() -> dict[str, Any]:
    stored = read("chain_of_thought/results/smollm2-gsm8k.json")
    num_samples = stored["settings"]["num_samples"]
    of = {(run["method"], run["seed"]): run["correct"] for run in stored["runs"]}

    def curve(correct: dict[str, list[int]], k: int) -> NDArray:
        counts = np.array(list(correct.values()))
        return pass_at_k(np.full(counts.shape, num_samples), counts, k).mean(axis=1)

    seeds = []
    for seed in sorted({seed for _, seed in of}):
        ce, dco = of["cross-entropy", seed], of["DCO, own", seed]
        epochs = [int(epoch) for epoch in ce]
        pairs = [(curve(run, 16), curve(run, 16)) for run in (ce, dco)]
        seeds.append((of_cross_entropy(curve(ce, 1), curve(ce, 16), epochs), gain(*pairs)))
    return row("GSM8K, SmolLM2", "2 seeds", 16, seeds)


def all_rows() -> list[dict[str, Any]]:
    return [
        demo(),
        baselines("multiplication", "baselines, 5 seeds", "baselines/results/multiplication.json"),
        num_required(),
        factorisation(),
        math_full(),
        baselines("MATH, 1,000 problems", "one seed", "baselines/results/smollm2-math.json"),
        math_lora(),
        chains_first(),
        chains_second(),
        chains_from_nothing(),
        gsm8k(),
    ]


# ------------------------------------------------------------------ what they say


def by_task(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Means over the sources of a task: they share it, and are no evidence of their own."""
    names = ("gain", *STATISTICS)
    return {
        task: {name: float(np.mean([r[name] for r in rows if r["task"] == task])) for name in names}
        for task in dict.fromkeys(r["task"] for r in rows)
    }


def tau(x: Sequence[float], y: Sequence[float]) -> float:
    """Kendall's tau-b; 0 where all are equal."""
    value = float(kendalltau(x, y).statistic)
    return 0.0 if np.isnan(value) else value


def judge(tasks: dict[str, dict[str, float]]) -> dict[str, dict[str, Any]]:
    """For each statistic: tau with the gain, its exact one-sided p over all orders, and tau without each task.

    `ranks`: p is below `ALPHA`, and tau stays at .4 or above whichever task is left out.
    """
    gains = [of["gain"] for of in tasks.values()]
    found = {}
    for name in STATISTICS:
        values = [of[name] for of in tasks.values()]
        of_all = tau(values, gains)
        pairs = list(itertools.combinations(range(len(gains)), 2))
        signs = np.array([np.sign(values[i] - values[j]) for i, j in pairs])
        observed = float(np.dot(signs, [np.sign(gains[i] - gains[j]) for i, j in pairs]))
        orders = np.array(list(itertools.permutations(gains)))
        scores = np.zeros(len(orders))
        for sign, (i, j) in zip(signs, pairs, strict=True):
            scores += sign * np.sign(orders[:, i] - orders[:, j])
        p = float((scores >= observed - 1e-9).mean())
        without = {
            task: tau(
                [of[name] for other, of in tasks.items() if other != task],
                [of["gain"] for other, of in tasks.items() if other != task],
            )
            for task in tasks
        }
        ranks = p < ALPHA and min(without.values()) >= 0.4
        found[name] = {
            "tau": round(of_all, 3),
            "p": round(p, 4),
            "tau_without": {task: round(value, 3) for task, value in without.items()},
            "ranks": ranks,
        }
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="JSON file of the results.")
    args = parser.parse_args(argv)
    rows = all_rows()
    tasks = by_task(rows)
    verdicts = judge(tasks)
    write({"rows": rows, "tasks": tasks, "alpha": ALPHA, "statistics": verdicts}, args.output)
    print("| task | stored runs | k | DCO's gain | " + " | ".join(STATISTICS) + " |\n" + "|---" * 7 + "|")
    for r in rows:
        print(f"| {r['task']} | {r['source']} | {r['k']} | {r['gain']:+.1f} | ", end="")
        print(" | ".join(f"{r[name]:.2f}" for name in STATISTICS) + " |")
    print("\n| statistic | tau | p | tau without a task, least | ranks |\n|---|---|---|---|---|")
    for name, of in verdicts.items():
        least = min(of["tau_without"].values())
        print(f"| {name} | {of['tau']:+.2f} | {of['p']:.3f} | {least:+.2f} | {'yes' if of['ranks'] else 'no'} |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
