"""Chain of thought, fine-tuning: does DCO add to what cross-entropy with a good choice of epochs already gives?

A tiny model that knows the sub-skills is fine-tuned on 300 problems with one rationale each, until cross-entropy
overfits. `docs/results/cot.md` is the protocol and the result.

    python research/cot_finetune.py --work_dir runs/cot-finetune --seeds 0 1 2 3 4 --workers 15 --device cuda
    python research/cot_finetune_report.py --work_dir runs/cot-finetune --output docs/results/cot.json \\
        --figure docs/results/cot.png

Each run is a process of one thread, which trains on the CPU; `--device` is where held-out problems are sampled and the
model is pre-trained. A finished run is one file in --work_dir and is not run again, so the command can be stopped and
repeated. Methods come in order, each over all seeds, so that what a time limit leaves can be compared.
"""

import argparse
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read by the libraries as the processes start
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from cot_finetune_runs import EPOCHS, METHODS, SAMPLING, SETTINGS, train
from cot_finetune_task import PRETRAINING, pretrained
from in_processes import write

import dco_trl

Job = tuple[str, dict[str, Any], int]


def plan(methods: Sequence[str], seeds: Sequence[int], num_attempts: Sequence[int]) -> list[Job]:
    """All runs: each method's N = 64 first, which is the budget of the main comparison."""
    settings = [(method, setting) for method in methods for setting in METHODS[method]]
    settings.sort(key=lambda entry: entry[1]["num_attempts"] not in (1, 64))
    return [
        (method, setting, seed)
        for method, setting in settings
        if setting["num_attempts"] in (1, *num_attempts)
        for seed in seeds
    ]


def path_of(work_dir: Path, job: Job) -> Path:
    method, setting, seed = job
    return work_dir / f"{method.replace(', ', '-').replace(' ', '-')}_N-{setting['num_attempts']}_seed-{seed}.json"


def run_and_keep(job: Job, work_dir: Path, settings: dict[str, Any], deadline: float) -> float | None:
    """One run, unless it would start after the deadline."""
    if time.time() > deadline:
        return None
    record = train(*job, work_dir, **settings)
    packages = ("torch", "transformers", "trl")
    record["settings_of_all_runs"] = {**settings, **SETTINGS, **SAMPLING, "pretraining": PRETRAINING}
    record["versions"] = {
        "python": platform.python_version(),
        "dco-trl": dco_trl.__version__,  # it need not be installed
        **{name: version(name) for name in packages},
    }
    write(record, path_of(work_dir, job))
    return record["seconds"]["all"]


def run_all(jobs: Sequence[Job], work_dir: Path, settings: dict[str, Any], workers: int, time_limit: float) -> int:
    """Run what is not finished, and return the number of failures. After `time_limit` seconds no run is started."""
    started = time.time()
    waiting = [job for job in jobs if not path_of(work_dir, job).exists()]
    print(f"{len(jobs)} runs, {len(jobs) - len(waiting)} of them finished before", flush=True)
    failures = 0
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        bases = [
            pool.submit(pretrained, seed, work_dir, settings["device"], settings["pretraining_steps"])
            for seed in dict.fromkeys(job[2] for job in waiting)
        ]
        for _ in range(workers):
            pool.submit(len, ())  # so that all processes import while some pre-train
        for base in bases:
            base.result()
        print(f"pre-trained models are there after {time.time() - started:.0f} s", flush=True)
        futures = {pool.submit(run_and_keep, job, work_dir, settings, started + time_limit): job for job in waiting}
        not_started = 0
        for future in as_completed(futures):
            method, setting, seed = futures[future]
            error = future.exception()
            if error is None and future.result() is None:
                not_started += 1
                continue
            failures += error is not None
            took = f"{future.result():.0f} s" if error is None else f"failed: {type(error).__name__}: {error}"
            now = time.time() - started
            print(f"{now:4.0f} s: {method}, N = {setting['num_attempts']}, seed {seed}: {took}", flush=True)
        if not_started:
            print(f"time limit: {not_started} runs were not started; repeat the command to go on", flush=True)
    return failures


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work_dir", type=Path, required=True, help="Folder of models and finished runs.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="Which seeds.")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), help="Which to run.")
    parser.add_argument("--num_attempts", type=int, nargs="+", default=[4, 16, 64], help="Which N of DCO.")
    parser.add_argument("--epochs", type=int, nargs="+", default=list(EPOCHS), help="When to sample; the last ends.")
    parser.add_argument("--num_samples", type=int, default=256, help="Samples of each held-out problem.")
    parser.add_argument("--pretraining_steps", type=int, default=PRETRAINING["num_steps"], help="Fewer to try it.")
    parser.add_argument("--workers", type=int, default=2, help="Runs at a time, a thread each.")
    parser.add_argument("--device", default="cpu", help="Where held-out problems are sampled: cpu or cuda.")
    parser.add_argument(
        "--no_rivals", dest="rivals", action="store_false", help="No temperatures and averages of cross-entropy."
    )
    parser.add_argument("--time_limit", type=float, default=float("inf"), help="Seconds after which no run starts.")
    args = parser.parse_args(argv)
    args.work_dir.mkdir(parents=True, exist_ok=True)
    settings = {
        name: getattr(args, name) for name in ("epochs", "num_samples", "pretraining_steps", "device", "rivals")
    }
    jobs = plan(args.methods, args.seeds, args.num_attempts)
    return 1 if run_all(jobs, args.work_dir, settings, args.workers, args.time_limit) else 0


if __name__ == "__main__":
    sys.exit(main())
