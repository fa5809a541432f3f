"""What only a GPU can tell about training, in one go: equality with SFTTrainer, cost, memory, dtypes, QLoRA.

    python benchmarks/gpu_check.py --output_dir runs/gpu            # what `make gpu-check` runs
    python benchmarks/gpu_check.py --output_dir runs/gpu --steps equivalence qlora
    python benchmarks/gpu_check.py --output_dir /tmp/tiny --tiny    # tiny sizes, on a CPU too

Each step is a process of its own with a time limit. OUTPUT_DIR gets `gpu.json`, `gpu.md` (a page for docs/results) and
`gpu.log`. A step that is done is not run again, so the command can be stopped and repeated; `--again` forgets what was
done. It needs no network, and finds the package without its being installed. `qlora` needs bitsandbytes, `vllm` vLLM:
they are left out, and the reason noted, where these are missing.

`table-1` is run only if asked for, because it needs a model and data: it is the paper's Table 1 on MATH, hours long.

    python benchmarks/gpu_check.py --output_dir runs/gpu --steps table-1 \\
        --table-1 '--model models/SmolLM2 --dataset data/math --seeds 1 --num_train 11000 --num_test 500 --workers 4'
"""

import argparse
import json
import multiprocessing
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
import traceback
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gpu_page import page, summary

HERE = Path(__file__).resolve().parent
# Seconds after which a step is killed.
LIMITS = {
    "equivalence": 120,
    "training-steps": 180,
    "loss-alone": 60,
    "synchronisations": 60,
    "dtypes": 60,
    "qlora": 180,
    "cot-window": 90,
    "vllm": 900,
    "table-1": 24 * 3600,
}
DEFAULT_STEPS = [name for name in LIMITS if name != "table-1"]
# What a step needs beyond the package. It starts CUDA as it is imported, so these steps are not forked.
NEEDS = {"qlora": "bitsandbytes", "vllm": "vllm"}
PACKAGES = ("torch", "triton", "transformers", "trl", "accelerate", "peft", "bitsandbytes", "vllm", "numpy")
TABLE_1 = "The paper's Table 1 on MATH with direct answers (research/baselines/run.py --task math)."


def in_step(name: str, tiny: bool, log: Path, result: Path) -> None:
    """Run one step in this process and write what it found."""
    os.setsid()  # so that what it starts can be killed with it
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    print(f"== {name}", flush=True)
    import torch

    if torch.cuda._is_in_bad_fork():
        result.write_text(json.dumps({"status": "bad fork"}))
        return
    import gpu_steps
    from measure import quiet

    quiet()
    torch.set_num_threads(max(1, min(8, (os.cpu_count() or 2) // 2)))
    try:
        found = {"status": "done", **gpu_steps.STEPS[name](tiny)}
    except Exception:
        traceback.print_exc()
        found = {"status": "failed", "reason": traceback.format_exc()}
    result.write_text(json.dumps(found))


def run_step(name: str, tiny: bool, folder: Path, limit: float, fork: bool = True) -> dict[str, Any]:
    """Run one step in a process of its own; if forked, from a server that has imported what all need, once."""
    log, result = folder / "gpu.log", folder / f".{name}.json"
    result.unlink(missing_ok=True)
    context: Any = multiprocessing.get_context("forkserver" if fork else "spawn")
    context.set_forkserver_preload(["gpu_preload"])
    process = context.Process(target=in_step, args=(name, tiny, log, result))
    process.start()
    started = time.perf_counter()
    process.join(limit)
    timed_out = process.is_alive()
    end(process)
    seconds = time.perf_counter() - started
    if result.exists():
        found = json.loads(result.read_text())
        result.unlink()
        if found["status"] == "bad fork":
            return run_step(name, tiny, folder, limit, fork=False)
    elif timed_out:
        found = {"status": "failed", "reason": f"it was stopped after {limit:.0f} s"}
    else:
        tail = "".join(log.read_text().splitlines(keepends=True)[-20:]) if log.exists() else ""
        found = {"status": "failed", "reason": f"its process ended with code {process.exitcode}\n{tail}"}
    return {**found, "seconds": seconds}


def end(process: Any) -> None:
    """End a step's process, and those that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        process.kill()
    process.join()


def run_table_1(arguments: str, folder: Path, limit: float) -> dict[str, Any]:
    command = [sys.executable, "-m", "research.baselines.run", "--task", "math"]
    command += [
        "--work_dir",
        str(folder.resolve() / "table-1"),
        "--output",
        str(folder.resolve() / "table-1.json"),
        *shlex.split(arguments),
    ]
    started = time.perf_counter()
    done = subprocess.run(command, timeout=limit, cwd=HERE.parent)
    seconds = time.perf_counter() - started
    if done.returncode:
        return {
            "status": "failed",
            "reason": f"research/baselines/run.py ended with code {done.returncode}",
            "seconds": seconds,
        }
    headline = f"see {folder / 'table-1.json'}"
    return {"status": "done", "tables": [], "checks": [], "headline": headline, "seconds": seconds}


def prepare() -> None:
    """Settings of this process that the steps' processes inherit."""
    # The package need not be installed.
    sys.path[:0] = [str(HERE), str(HERE.parent)]
    os.environ["PYTHONPATH"] = os.pathsep.join([*sys.path[:2], *filter(None, [os.environ.get("PYTHONPATH")])])
    # Asking whether there is a GPU must not start CUDA, which would not survive the fork into a step's process.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")


def environment() -> dict[str, Any]:
    """Device, driver and versions, without starting CUDA in this process."""
    import dco_trl

    versions: dict[str, str | None] = {"dco-trl": dco_trl.__version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    device = None
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    try:
        first = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0]
        name, mib, driver = (part.strip() for part in first.split(","))
        device = {"name": name, "memory_gib": float(mib) / 1024, "driver": driver}
    except (OSError, subprocess.CalledProcessError, IndexError, ValueError):
        pass
    return {"device": device, "cpu_cores": os.cpu_count(), "versions": versions}


def write(folder: Path, record: dict[str, Any], descriptions: dict[str, str], command: str) -> None:
    unfinished = folder / ".gpu.json"
    unfinished.write_text(json.dumps(record, indent=1) + "\n")
    unfinished.replace(folder / "gpu.json")
    (folder / "gpu.md").write_text(page(record, descriptions, command))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output_dir", type=Path, default=Path("runs/gpu"), help="folder of what was found")
    parser.add_argument("--steps", nargs="+", choices=list(LIMITS), help="which; unless given, all but table-1")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--again", action="store_true", help="run steps that are done, too")
    parser.add_argument("--limit", type=float, help="seconds for each step; unless given, each has its own")
    parser.add_argument("--table-1", help="arguments of research.baselines.run for the step table-1")
    args = parser.parse_args(arguments)
    names = args.steps or DEFAULT_STEPS
    if "table-1" in names and not args.table_1:
        parser.error("the step table-1 needs --table-1, with arguments such as '--model DIR --dataset DIR'")

    folder: Path = args.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {"tiny": args.tiny, "environment": environment(), "steps": {}}
    try:
        before = json.loads((folder / "gpu.json").read_text())
        if before["tiny"] == args.tiny and continues(before["environment"], record["environment"]):
            record = {**before, "environment": record["environment"]}
        else:
            print("What was found here before is of another size, device or version: every step is run again.")
    except FileNotFoundError:
        pass
    command = "python benchmarks/gpu_check.py --tiny" if args.tiny else "make gpu-check"
    descriptions = step_descriptions()
    for name in names:
        if record["steps"].get(name, {}).get("status") == "done" and not args.again:
            continue
        print(f"{name} …", flush=True)
        if name == "table-1":
            found = run_table_1(args.table_1, folder, args.limit or LIMITS[name])
        elif name in NEEDS and find_spec(NEEDS[name]) is None:
            found = {"status": "skipped", "reason": f"{NEEDS[name]} is not installed", "seconds": 0.0}
        elif name == "vllm" and args.tiny and not args.steps:
            found = {"status": "skipped", "reason": "not part of --tiny unless named by --steps", "seconds": 0.0}
        else:
            found = run_step(name, args.tiny, folder, args.limit or LIMITS[name], fork=name not in NEEDS)
        record["steps"][name] = found
        record["steps"] = {step: record["steps"][step] for step in LIMITS if step in record["steps"]}
        write(folder, record, descriptions, command)
    print(f"\n{summary(record)}\n\n{folder / 'gpu.md'}, gpu.json, gpu.log")
    failed = [
        name
        for name, step in record["steps"].items()
        if step["status"] == "failed" or not all(check["passed"] for check in step.get("checks", []))
    ]
    return 1 if failed else 0


def continues(before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether what was found before holds now: a package that one step waited for may have come since."""
    come = {name for name in NEEDS.values() if before["versions"][name] is None}

    def without(environment: dict[str, Any]) -> dict[str, Any]:
        kept = {name: version for name, version in environment["versions"].items() if name not in come}
        return {**environment, "versions": kept}

    return without(before) == without(now)


def step_descriptions() -> dict[str, str]:
    """What each step measures: its docstring, read without importing what it needs."""
    import ast

    tree = ast.parse((HERE / "gpu_steps.py").read_text())
    documented = {
        node.name.replace("_", "-"): " ".join((ast.get_docstring(node) or "").split())
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
    }
    return {**documented, "table-1": TABLE_1}


if __name__ == "__main__":
    prepare()
    sys.exit(main())
