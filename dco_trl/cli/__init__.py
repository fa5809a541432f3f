"""The `dco-trl` command. Each command is a module with a `main(argv)`, which is imported when it is called."""

import sys
from importlib import import_module

COMMANDS = {
    "demo": "reproduce the paper's Table 1 at small scale, on this machine, in minutes",
    "train": "fine-tune with DCO: every argument of `trl sft`, and DCO's own",
    "train-cot": "fine-tune chains of thought with DCO, on success rates of sampled rationales",
    "estimate": "count right and wrong samples of a training data set, for CoTDCOTrainer with sampler='none'",
    "coverage": "exact pass@k of short reference answers, from teacher-forced probabilities, no sampling",
    "schedule": "which model, adapter and temperature to sample for attempt 1, 2, 3, …",
    "solve": "answer problems within a budget of attempts, verifying each; resumable",
    "eval": "sample, grade and report in one go",
    "sample": "draw samples into a run folder; resumable",
    "import": "make a run of samples that another program drew",
    "merge": "merge runs that machines without a shared disk have drawn",
    "grade": "grade a run's samples, with as many graders as wanted, without sampling again",
    "report": "pass@k with intervals, plots and one HTML page for one or more runs",
}


def main(argv: list[str] | None = None) -> int:
    """Run `dco-trl COMMAND …` and return the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        print("usage: dco-trl COMMAND [ARGUMENTS]\n\ncommands:")
        for name, text in COMMANDS.items():
            print(f"  {name:{width}}  {text}")
        print("\n`dco-trl COMMAND --help` lists a command's arguments.")
        return 0
    if argv[0] == "--version":
        from .. import __version__

        print(f"dco-trl {__version__}")
        return 0
    if argv[0] not in COMMANDS:
        print(f"dco-trl: no command {argv[0]!r}; choose from {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    module = {"import": "import_samples"}.get(argv[0], argv[0].replace("-", "_"))
    return import_module(f".{module}", __name__).main(argv[1:]) or 0
