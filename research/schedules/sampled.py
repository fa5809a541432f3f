"""Right answers and problems solved along a schedule: sampled, and expected by exact probabilities.

    python -m research.schedules.sampled --run sampled --schedule schedule.yaml --exact test.parquet \\
        --dataset test.jsonl

`--run` is what `dco-trl eval --schedule` drew, `--exact` what `dco-trl coverage` measured of the schedule's adapters
on the same problems. A sample is right if it is the column `completion` to the letter: what `--exact` is of.
`docs/results/schedule.md` has the commands.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from dco_trl.runs.schedule_file import read_schedule
from dco_trl.runs.store import RunStore
from dco_trl.statistics import scheduled_pass_at_k

BLOCK = 64
KS = (1, 4, 16, 64, 128, 256)


def read_samples(run: Path, exact: Path, dataset: Path) -> pd.DataFrame:
    """A row for each sample: `problem_id`, `sample_index`, `arm`, `right` and the exact `p` of being right."""
    store = RunStore(run)
    table = pa.concat_tables([store.read_samples(part) for part in store.sample_parts()]).to_pandas()
    references = pd.read_json(dataset, lines=True, dtype=False).set_index("id")["completion"]
    log_p = pq.read_table(exact).to_pandas().set_index(["arm", "problem_id"])["log_p"]
    table["right"] = table["text"] == references.loc[table["problem_id"]].to_numpy()
    table["p"] = np.exp(log_p.loc[list(zip(table["arm"], table["problem_id"], strict=True))].to_numpy())
    return table


def in_errors(samples: pd.DataFrame) -> str:
    """A row of the table: samples, right, expected, and their distance in standard errors."""
    p, right = samples["p"], samples["right"].sum()
    distance = (right - p.sum()) / np.sqrt((p * (1 - p)).sum())
    return f"{len(samples):,} | {right} | {p.sum():.1f} | {distance:+.1f} |"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="Run folder.")
    parser.add_argument("--schedule", type=Path, required=True, help="The schedule it was drawn along.")
    parser.add_argument("--exact", type=Path, required=True, help="Parquet file of `dco-trl coverage`.")
    parser.add_argument("--dataset", type=Path, required=True, help="The problems, JSON lines.")
    args = parser.parse_args(argv)
    samples = read_samples(args.run, args.exact, args.dataset)
    print("| | samples | right | expected | standard errors apart |\n|---|---|---|---|---|")
    for arm, of_arm in samples.groupby("arm"):
        print(f"| {arm} | {in_errors(of_arm)}")
    for block, of_block in samples.groupby(samples["sample_index"] // BLOCK):
        print(f"| attempts {BLOCK * block + 1} to {BLOCK * (block + 1)} | {in_errors(of_block)}")
    print(f"| all | {in_errors(samples)}")

    schedule = read_schedule(args.schedule)
    log_p = pq.read_table(args.exact).to_pandas().pivot(index="arm", columns="problem_id", values="log_p")
    ks = [k for k in KS if k <= samples["sample_index"].max() + 1]
    of_arms = log_p.loc[[arm.name for arm in schedule.arms]].to_numpy()
    expected = scheduled_pass_at_k(schedule.schedule, ks, log_p=of_arms)
    print("\n| k | solved | expected | standard error |\n|---|---|---|---|")
    for k, p in zip(ks, expected.T, strict=True):
        first = samples[samples["sample_index"] < k]
        solved = first.groupby("problem_id")["right"].any().mean()
        error = np.sqrt((p * (1 - p)).sum()) / len(p)
        print(f"| {k} | {100 * solved:.1f} | {100 * p.mean():.1f} | {100 * error:.1f} |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
