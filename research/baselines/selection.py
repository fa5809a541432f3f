"""What each method reaches when its settings are chosen on the validation problems, and by how much DCO leads.

For each seed and each k, a selection takes from its candidates (settings, epochs, temperatures) the one with the
greatest validation coverage, the earliest of equals, and reports the test coverage of that one. Means over seeds come
with Student's t intervals of 95 %; differences are paired by seed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from research.common.differences import LEVEL, interval

TABLE_K = (1, 16, 256, 4096)
TUNED = ", temperature tuned"
DCO_FAMILY = ("DCO", "DCO mixture")


@dataclass(frozen=True)
class Selection:
    """A row of the table: whose runs, which epochs and which temperatures there are to choose from."""

    name: str
    methods: tuple[str, ...]
    any_epoch: bool = True
    any_temperature: bool = False


def selections(methods: Sequence[str]) -> list[Selection]:
    """The rows that the methods at hand allow."""
    rows = []
    for method in methods:
        if method == "cross-entropy":
            rows += [
                Selection("cross-entropy, last epoch", (method,), any_epoch=False),
                Selection("cross-entropy, best epoch", (method,)),
                Selection("cross-entropy" + TUNED, (method,), any_temperature=True),
                Selection("weight averaging", ("weight averaging",)),
                Selection("weight averaging" + TUNED, ("weight averaging",), any_temperature=True),
            ]
        else:
            rows += [Selection(method, (method,)), Selection(method + TUNED, (method,), any_temperature=True)]
    if set(DCO_FAMILY) <= set(methods):
        rows += [
            Selection("DCO family", DCO_FAMILY),
            Selection("DCO family" + TUNED, DCO_FAMILY, any_temperature=True),
        ]
    return rows


def with_averages(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs, and the averages of cross-entropy's weights as runs of one epoch."""
    derived = [
        {
            **{name: run[name] for name in ("seed", "k", "temperatures")},
            "method": "weight averaging",
            "setting": average["setting"],
            "coverage": [average["coverage"]],
        }
        for run in runs
        for average in run.get("averages", ())
    ]
    return [*runs, *derived]


def choose(runs: Sequence[dict[str, Any]], selection: Selection, k: int) -> dict[str, Any]:
    """Choose on validation among the runs of one seed, and report test.

    Args:
        runs: Records of `training.train`, of one seed, `with_averages`.
        selection: What there is to choose from.
        k: Attempts.

    Returns:
        `method`, `setting`, `epoch`, `temperature`, `validation` and `test`.
    """
    best: dict[str, Any] | None = None
    for run in runs:
        if run["method"] not in selection.methods:
            continue
        at_k = np.array(run["coverage"])[..., run["k"].index(k)]  # epoch, temperature, split
        epochs = range(len(at_k)) if selection.any_epoch else [len(at_k) - 1]
        temperatures = (
            range(len(run["temperatures"])) if selection.any_temperature else [run["temperatures"].index(1.0)]
        )
        for epoch in epochs:
            for temperature in temperatures:
                validation, test = at_k[epoch, temperature]
                if best is None or validation > best["validation"]:
                    best = {
                        "method": run["method"],
                        "setting": run["setting"],
                        "epoch": epoch + 1 if run["method"] != "weight averaging" else None,
                        "temperature": run["temperatures"][temperature],
                        "validation": float(validation),
                        "test": float(test),
                    }
    if best is None:
        raise ValueError(f"selection {selection.name!r}: no run of {selection.methods}; run these methods first")
    return best


def compare(runs: Sequence[dict[str, Any]], methods: Sequence[str]) -> dict[str, Any]:
    """The table, the paired differences and the curves, from the complete runs of some seeds.

    Returns:
        `selections`: for each name and k, the mean test coverage with its interval, and the values and choices by
        seed. `differences`: DCO less rival, for each of DCO's selections, each rival's and each k. `settings`: for
        each single setting of each method, test coverage at temperature 1 against k, last epoch and best epoch (chosen
        for each k on validation), with the intervals, and `by_epoch`, the mean over seeds, shape (epochs, k).
    """
    runs = with_averages(runs)
    seeds = sorted({run["seed"] for run in runs})
    by_seed = {seed: [run for run in runs if run["seed"] == seed] for seed in seeds}
    rows = selections(methods)
    table: dict[str, dict[str, Any]] = {}
    for row in rows:
        table[row.name] = {}
        for k in TABLE_K:
            chosen = [choose(by_seed[seed], row, k) for seed in seeds]
            test = [choice.pop("test") for choice in chosen]
            table[row.name][str(k)] = {**interval(test), "test": test, "chosen": chosen}
    ours = [row.name for row in rows if set(row.methods) <= set(DCO_FAMILY)]
    differences = {
        name: {
            rival: {
                str(k): interval(np.subtract(table[name][str(k)]["test"], table[rival][str(k)]["test"]).tolist())
                for k in TABLE_K
            }
            for rival in table
            if rival not in ours
        }
        for name in ours
    }
    return {
        "seeds": seeds,
        "level": LEVEL,
        "selections": table,
        "differences": differences,
        "settings": _curves(by_seed),
    }


def _curves(by_seed: dict[int, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    curves = []
    first = next(iter(by_seed.values()))
    for method, setting in [(run["method"], run["setting"]) for run in first]:
        same = {
            seed: [run for run in runs if (run["method"], run["setting"]) == (method, setting)]
            for seed, runs in by_seed.items()
        }
        curve: dict[str, Any] = {"method": method, "setting": setting, "k": first[0]["k"]}
        for name, any_epoch in (("last_epoch", False), ("best_epoch", True)):
            row = Selection(method, (method,), any_epoch=any_epoch)
            points = [interval([choose(runs, row, k)["test"] for runs in same.values()]) for k in curve["k"]]
            curve[name] = {key: [point[key] for point in points] for key in ("mean", "low", "high")}
        at_one, test = first[0]["temperatures"].index(1.0), 1
        of_seeds = [np.array(run["coverage"])[:, at_one, test] for runs in same.values() for run in runs]
        curve["by_epoch"] = np.mean(of_seeds, 0).round(5).tolist()
        curves.append(curve)
    return curves
