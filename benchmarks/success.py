"""Error of the weight estimated from sampled rationales, and the samples it takes, against the authors' way.

    python benchmarks/success.py --output success.json

The authors draw 64 rationales for every prompt and take F(N, c/n). Here: the mean of F under the Beta posterior,
with the prior fitted to the counts, and rounds of rationales until its standard deviation is small. Five parts, all
simulated on success rates that are known:

- window: one window from nothing, over distributions of rates and N;
- tuning: the same for other values of `rationale_batch` and `weight_tolerance`;
- drift: twelve windows of a policy that drifts, with counts remembered and forgotten exponentially;
- held-out: both again on rates that the defaults were not chosen on;
- conditional: averaging the probability of the answer after each rationale, in place of its 0 or 1.

`--log-p FILE` adds the rates of a file that `dco-trl coverage --output FILE` wrote; `--run DIR` those of a graded run
(its c/n taken for the truth). By default the two coverage files of benchmarks/results are added.
"""

import argparse
import json
import platform
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

from dco_trl import __version__
from dco_trl.statistics import fit_prior, plugin_weight, posterior_weight
from dco_trl.trainer.success_counts import SuccessCounts, needs_sampling

RESULTS = Path(__file__).parent / "results"
REAL = tuple(RESULTS / f"success-rates-smollm2-{when}.json" for when in ("before", "after"))
NUM_ATTEMPTS = (16, 64, 256)
PROMPTS = 1000
NUM_RATIONALES = 64
# What the package recommends, and what else was tried.
BATCH, TOLERANCE, FORGETTING = 8, 0.15, 0.5
BATCHES, TOLERANCES, FORGETTINGS = (4, 8, 16), (0.05, 0.075, 0.1, 0.125, 0.15, 0.2), (0.0, 0.25, 0.5, 0.75, 0.9)
WINDOWS = 12
# Mean and standard deviation of the change of log-odds from one window to the next.
DRIFTS = {"none": (0.0, 0.0), "slow": (0.05, 0.1), "moderate": (0.15, 0.3), "fast": (0.4, 0.6)}
CONCENTRATIONS = (0.1, 0.3, 1.0, 3.0, 10.0)


def bimodal(rng, size):
    return np.where(rng.random(size) < 0.6, rng.beta(0.5, 60, size), rng.beta(20, 5, size))


SHAPES = {
    "steep, Beta(.2, 3)": lambda rng, size: rng.beta(0.2, 3, size),
    "steep, Beta(.3, 1)": lambda rng, size: rng.beta(0.3, 1, size),
    "flat, Beta(1, 1)": lambda rng, size: rng.random(size),
    "U, Beta(.3, .3)": lambda rng, size: rng.beta(0.3, 0.3, size),
    "bimodal, .6 Beta(.5, 60) + .4 Beta(20, 5)": bimodal,
    "log-uniform, 1e-5 to 1": lambda rng, size: np.exp(rng.uniform(np.log(1e-5), 0, size)),
}

# Looked at once, after the defaults were chosen on the shapes above.
HELD_OUT = {
    "Beta(.1, 1)": lambda rng, size: rng.beta(0.1, 1, size),
    "Beta(1, 20)": lambda rng, size: rng.beta(1, 20, size),
    "Beta(3, 3)": lambda rng, size: rng.beta(3, 3, size),
    "30 % at 0, else Beta(.5, 5)": lambda rng, size: np.where(rng.random(size) < 0.3, 0.0, rng.beta(0.5, 5, size)),
    "log-normal, median .003": lambda rng, size: np.minimum(np.exp(rng.normal(np.log(0.003), 1.5, size)), 1.0),
}


def rates_of(shape, seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, 0])
    return shape(rng, PROMPTS) if callable(shape) else rng.choice(shape, PROMPTS)


def true_weight(rates: np.ndarray, num_attempts: int) -> np.ndarray:
    return plugin_weight(np.ones_like(rates), rates, num_attempts)  # exact: real-valued counts are allowed


def summary(estimate: np.ndarray, truth: np.ndarray, samples: float) -> dict[str, float]:
    error = estimate - truth
    return {"rms": float(np.sqrt(np.mean(error**2))), "bias": float(error.mean()), "samples": float(samples)}


def sample_window(
    counts: SuccessCounts, rates, num_attempts: int, batch: int, tolerance: float, rng, cap_new: bool = False
) -> np.ndarray:
    """Draw in rounds, one for every prompt and more where they are needed; returns how many for each prompt.

    At most 64, remembered ones included at their discount; with `cap_new`, 64 new ones.
    """
    everyone = np.arange(rates.size)
    counts.add(everyone, batch, rng.binomial(batch, rates))
    counts.refit()
    drawn = np.full(rates.size, batch)
    while True:
        _, deviation = counts.weights(everyone, num_attempts)
        ids = np.flatnonzero(
            needs_sampling(
                deviation,
                drawn if cap_new else counts.num_sampled,
                weight_tolerance=tolerance,
                num_rationales=NUM_RATIONALES,
            )
        )
        if not ids.size:
            return drawn
        counts.add(ids, batch, rng.binomial(batch, rates[ids]))
        drawn[ids] += batch
        counts.refit()


def one_window(rates, num_attempts: int, batch: int, tolerance: float, seed: int) -> dict[str, float]:
    counts = SuccessCounts(rates.size)
    drawn = sample_window(counts, rates, num_attempts, batch, tolerance, np.random.default_rng([seed, 1]))
    weight, _ = counts.weights(np.arange(rates.size), num_attempts)
    return summary(weight, true_weight(rates, num_attempts), drawn.mean())


def fixed(rates, num_attempts: int, seed: int) -> tuple[dict, dict]:
    """All 64 rationales: the authors' weight, and the posterior mean of the same counts."""
    correct = np.random.default_rng([seed, 2]).binomial(NUM_RATIONALES, rates)
    truth = true_weight(rates, num_attempts)
    posterior, _ = posterior_weight(NUM_RATIONALES, correct, num_attempts, fit_prior(NUM_RATIONALES, correct))
    plugin = plugin_weight(NUM_RATIONALES, correct, num_attempts)
    return tuple(summary(weight, truth, NUM_RATIONALES) for weight in (plugin, posterior))


def pooled(summaries: list[dict]) -> dict[str, float]:
    """Of repetitions of one cell."""
    return {
        "rms": float(np.sqrt(np.mean([s["rms"] ** 2 for s in summaries]))),
        "bias": float(np.mean([s["bias"] for s in summaries])),
        "samples": float(np.mean([s["samples"] for s in summaries])),
    }


def over_grid(rows: list[dict]) -> dict[str, float]:
    """Mean over the cells of a grid, each compared with the authors' in the same cell."""
    return {
        "rms": float(np.mean([row["ours"]["rms"] for row in rows])),
        "authors_rms": float(np.mean([row["authors"]["rms"] for row in rows])),
        "worst_rms_ratio": float(max(row["ours"]["rms"] / row["authors"]["rms"] for row in rows)),
        "worst_bias": float(max((row["ours"]["bias"] for row in rows), key=abs)),
        "authors_worst_bias": float(max((row["authors"]["bias"] for row in rows), key=abs)),
        "samples": float(np.mean([row["ours"]["samples"] for row in rows])),
        "cells_no_worse": sum(row["ours"]["rms"] <= row["authors"]["rms"] for row in rows),
        "cells_biased": sum(abs(row["ours"]["bias"]) >= 0.01 for row in rows),
        "cells": len(rows),
    }


def window_study(shapes, batch: int, tolerance: float, repeats: int) -> list[dict]:
    rows = []
    for name, shape in shapes.items():
        for num_attempts in NUM_ATTEMPTS:
            cell = {"authors": [], "posterior_64": [], "ours": []}
            for seed in range(repeats):
                rates = rates_of(shape, seed)
                authors, posterior = fixed(rates, num_attempts, seed)
                cell["authors"].append(authors)
                cell["posterior_64"].append(posterior)
                cell["ours"].append(one_window(rates, num_attempts, batch, tolerance, seed))
            rows.append({"rates": name, "num_attempts": num_attempts, **{k: pooled(v) for k, v in cell.items()}})
    return rows


def drifting_rates(shape, drift: tuple[float, float], seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng([seed, 3])
    start = np.clip(rates_of(shape, seed), 1e-12, 1 - 1e-12)
    log_odds = np.log(start / (1 - start))
    changes = rng.normal(*drift, size=(WINDOWS - 1, PROMPTS))
    path = log_odds + np.concatenate([np.zeros((1, PROMPTS)), np.cumsum(changes, axis=0)])
    return list(1 / (1 + np.exp(-path)))


def drift_study(
    shapes, drift: tuple[float, float], forgetting: float, tolerance: float, cap_new: bool = False
) -> list[dict]:
    """Windows after the first, which has nothing to remember."""
    rows = []
    for name, shape in shapes.items():
        for num_attempts in NUM_ATTEMPTS:
            rng = np.random.default_rng(4)
            counts = SuccessCounts(PROMPTS)
            ours, authors = [], []
            for i, rates in enumerate(drifting_rates(shape, drift, seed=0)):
                counts.forget(forgetting)
                drawn = sample_window(counts, rates, num_attempts, BATCH, tolerance, rng, cap_new)
                if i:
                    weight, _ = counts.weights(np.arange(PROMPTS), num_attempts)
                    ours.append(summary(weight, true_weight(rates, num_attempts), drawn.mean()))
                    authors.append(fixed(rates, num_attempts, seed=i)[0])
            rows.append(
                {"rates": name, "num_attempts": num_attempts, "ours": pooled(ours), "authors": pooled(authors)}
            )
    return rows


def conditional_study(shapes, repeats: int) -> list[dict]:
    """After each of n rationales the answer has probability q ~ Beta(k p, k (1 - p)): averaged, against a draw of it.

    `counted` is the posterior from the draws, `averaged` from sum(q) as if it were a count, `scaled` from n and sum(q)
    times k + 1, the number of draws that an average of q is worth (here k is known; in training it is not).
    """
    rows = []
    for concentration in CONCENTRATIONS:
        for n in (16, NUM_RATIONALES):
            cells = {"counted": [], "averaged": [], "scaled": []}
            for shape in shapes.values():
                for num_attempts in NUM_ATTEMPTS:
                    for seed in range(repeats):
                        rates = rates_of(shape, seed)
                        rng = np.random.default_rng([seed, 5])
                        # Gamma shapes below 1e-300 would be 0 / 0.
                        p = np.clip(rates, 1e-9, 1 - 1e-9)[:, None]
                        q = rng.beta(concentration * p, concentration * (1 - p), size=(rates.size, n))
                        q = np.where(np.isfinite(q), q, rng.random(q.shape) < p)
                        total = np.minimum(q.sum(axis=1), n)
                        factor = concentration + 1
                        pairs = {
                            "counted": (n, (rng.random(q.shape) < q).sum(axis=1)),
                            "averaged": (n, total),
                            "scaled": (n * factor, total * factor),
                        }
                        truth = true_weight(rates, num_attempts)
                        for name, (sampled, correct) in pairs.items():
                            prior = fit_prior(sampled, correct)
                            # On a grid of 1/100 of a count, so that equal counts are computed once.
                            weight, _ = posterior_weight(sampled, np.round(correct, 2), num_attempts, prior)
                            cells[name].append(summary(weight, truth, n))
            rows.append(
                {"concentration": concentration, "samples": n}
                | {f"{name}_rms": float(np.mean([s["rms"] for s in cell])) for name, cell in cells.items()}
            )
    return rows


def real_shapes(log_p_files, runs) -> dict[str, np.ndarray]:
    shapes = {}
    for path in map(Path, log_p_files):
        record = json.loads(path.read_text())
        log_p = [problem["log_p"] for problem in record["problems"]]
        shapes[f"real, {path.stem.removeprefix('success-rates-')}"] = np.exp(
            np.array([-np.inf if x is None else x for x in log_p])
        )
    for folder in runs:
        from dco_trl.runs import load_results

        result = load_results(folder)
        shapes[f"real, {Path(folder).name}"] = np.array([p.num_correct / p.num_samples for p in result.problems])
    return shapes


def environment() -> dict:
    versions = {"python": platform.python_version(), "dco-trl": __version__}
    return {"versions": versions | {name: version(name) for name in ("numpy", "scipy")}}


def show(label: str, grid: dict) -> None:
    print(
        f"{label:42} rms {grid['rms']:.4f} (authors {grid['authors_rms']:.4f})  samples {grid['samples']:5.1f}  "
        f"rms no worse in {grid['cells_no_worse']}, at worst {grid['worst_rms_ratio']:.2f} times  "
        f"worst bias {grid['worst_bias']:+.4f}  |bias| >= .01 in {grid['cells_biased']} of {grid['cells']} cells",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", help="JSON file to write")
    parser.add_argument("--repeats", type=int, default=4, help="repetitions of each cell of the first part")
    parser.add_argument("--log-p", nargs="*", default=[path for path in REAL if path.exists()], metavar="FILE")
    parser.add_argument("--run", action="append", default=[], metavar="DIR", help="a graded run; may be repeated")
    parser.add_argument(
        "--parts",
        nargs="*",
        default=["window", "tuning", "drift", "held-out", "conditional"],
        help="which; unless given, all",
    )
    args = parser.parse_args()
    shapes = SHAPES | real_shapes(args.log_p, args.run)
    record: dict = {"benchmark": "weight from sampled rationales, simulated", "prompts": PROMPTS, **environment()}
    record["defaults"] = {"rationale_batch": BATCH, "weight_tolerance": TOLERANCE, "forgetting": FORGETTING}
    start = time.perf_counter()

    if "window" in args.parts:
        print(
            f"{'rates':42} {'N':>4}   authors 64: rms    bias   posterior 64: rms    bias   ours: rms    bias samples"
        )
        rows = window_study(shapes, BATCH, TOLERANCE, args.repeats)
        for row in rows:
            a, p, o = row["authors"], row["posterior_64"], row["ours"]
            print(
                f"{row['rates']:42} {row['num_attempts']:4}        {a['rms']:8.4f} {a['bias']:+.4f}      "
                f"{p['rms']:10.4f} {p['bias']:+.4f}  {o['rms']:8.4f} {o['bias']:+.4f} {o['samples']:7.1f}",
                flush=True,
            )
        record["window"] = {"rows": rows, "grid": over_grid(rows)}
        show("mean over the grid", record["window"]["grid"])
    if "tuning" in args.parts:
        record["tuning"] = []
        for batch in BATCHES:
            for tolerance in TOLERANCES:
                grid = over_grid(window_study(shapes, batch, tolerance, repeats=1))
                record["tuning"].append({"rationale_batch": batch, "weight_tolerance": tolerance, **grid})
                show(f"rationale_batch {batch}, weight_tolerance {tolerance}", grid)
    if "drift" in args.parts:
        record["drift"] = []
        settings = [("moderate", f, False) for f in FORGETTINGS]
        settings += [(drift, FORGETTING, False) for drift in DRIFTS if drift != "moderate"]
        settings += [("moderate", FORGETTING, True)]
        for drift, forgetting, cap_new in settings:
            rows = drift_study(shapes, DRIFTS[drift], forgetting, TOLERANCE, cap_new)
            grid = over_grid(rows)
            setting = {"drift": drift, "forgetting": forgetting, "cap_new": cap_new}
            record["drift"].append({**setting, "grid": grid, "rows": rows})
            show(f"drift {drift}, forgetting {forgetting}{', 64 new' if cap_new else ''}", grid)
    if "held-out" in args.parts:
        rows = window_study(HELD_OUT, BATCH, TOLERANCE, args.repeats)
        moving = drift_study(HELD_OUT, DRIFTS["moderate"], FORGETTING, TOLERANCE)
        record["held-out"] = {
            "window": {"rows": rows, "grid": over_grid(rows)},
            "drift": {"rows": moving, "grid": over_grid(moving)},
        }
        show("held-out rates, one window", over_grid(rows))
        show("held-out rates, moderate drift", over_grid(moving))
    if "conditional" in args.parts:
        record["conditional"] = conditional_study(SHAPES, repeats=1)
        for row in record["conditional"]:
            print(
                f"answer's concentration {row['concentration']:4}, {row['samples']} rationales: rms counted "
                f"{row['counted_rms']:.4f}, averaged {row['averaged_rms']:.4f}, scaled {row['scaled_rms']:.4f}",
                flush=True,
            )
    print(f"{time.perf_counter() - start:.0f} s")
    if args.output:
        Path(args.output).write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
