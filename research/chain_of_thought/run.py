"""Chain of thought, fine-tuning: does DCO add to what cross-entropy with a good choice of epochs already gives?

A tiny model that knows the sub-skills is fine-tuned on 300 problems with one rationale each, until cross-entropy
overfits. `docs/results/cot.md` is the protocol and the result.

    python -m research.chain_of_thought.run --work_dir runs/cot --seeds 0 1 2 3 4 --workers 15 --device cuda
    python -m research.chain_of_thought.report --work_dir runs/cot --figure docs/results/cot.png \\
        --output research/chain_of_thought/results/first-round.json

Each run is a process of one thread, which trains on the CPU; `--device` is where held-out problems are sampled and the
model is pre-trained. A finished run is one file in --work_dir and is not run again, so the command can be stopped and
repeated. Methods come in order, each over all seeds, so that what an interruption leaves can be compared.
"""

import argparse
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import dco_trl
from research.chain_of_thought.task import PRETRAINING, pretrained
from research.chain_of_thought.training import EPOCHS, METHODS, SAMPLING, SETTINGS, train
from research.common.processes import run_missing

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


def pretrain(seed: int, work_dir: Path, device: str, num_steps: int) -> dict[str, Any]:
    """A seed's model, which all its runs start from."""
    return {"folder": pretrained(seed, work_dir, device, num_steps).name}


def run_job(job: Job, work_dir: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """One run, with what all have in common."""
    record = train(*job, work_dir, **settings)
    record["settings_of_all_runs"] = {**settings, **SETTINGS, **SAMPLING, "pretraining": PRETRAINING}
    record["versions"] = {
        "python": platform.python_version(),
        "dco-trl": dco_trl.__version__,  # it need not be installed
        **{name: version(name) for name in ("torch", "transformers", "trl")},
    }
    return record


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
    args = parser.parse_args(argv)
    args.work_dir.mkdir(parents=True, exist_ok=True)
    settings = {
        name: getattr(args, name) for name in ("epochs", "num_samples", "pretraining_steps", "device", "rivals")
    }
    steps = args.pretraining_steps
    bases = {
        args.work_dir / f"pretrained-{steps}-seed-{seed}.json": (seed, args.work_dir, args.device, steps)
        for seed in args.seeds
    }
    jobs = plan(args.methods, args.seeds, args.num_attempts)
    errors = run_missing(pretrain, bases, args.workers) or run_missing(
        run_job, {path_of(args.work_dir, job): (job, args.work_dir, settings) for job in jobs}, args.workers
    )
    for error in errors:
        print(error)
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
