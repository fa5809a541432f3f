"""`dco-trl coverage`: exact pass@k of short reference answers, from teacher-forced probabilities, without sampling."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..extras import require
from ._common import DatasetConfig, ModelConfig, load_problems, naming, parse, status, unescape

NOTE = (
    "Exact coverage counts the reference's exact string only, in its usual tokens and followed by the end of "
    "sequence. An answer written otherwise, or reached by way of an explanation, is not counted: where a grader "
    "accepts more, it is a lower bound."
)


@dataclass
class CoverageConfig:
    """What to compute."""

    k: list[int] = field(
        default_factory=lambda: [1, 4, 16, 64, 256, 1024, 4096], metadata={"help": "Numbers of attempts, of any size."}
    )
    completion_template: str = field(
        default="{answer}",
        metadata={"help": r"What the model is to write, from columns: for example ' {answer}'. \n is a line break."},
    )
    temperature: float = field(default=1.0, metadata={"help": "Divides the logits, as in sampling."})
    run: str | None = field(default=None, metadata={"help": "A graded run on the same problems, to be shown beside."})
    grader: str | None = field(default=None, metadata={"help": "Which grader of --run, if there are several."})
    output: str | None = field(
        default=None, metadata={"help": "A .json file for the numbers and every problem's log-probability."}
    )


def main(argv: list[str]) -> int:
    """Run the command."""
    configs = parse(
        "coverage",
        argv,
        DatasetConfig,
        ModelConfig,
        CoverageConfig,
        description="Exact pass@k of short reference answers, without sampling. The answer is the column `completion` "
        "if there is one, else `answer`, unless --answer-column names another. " + NOTE,
    )
    return status("coverage", lambda: coverage(*configs), *configs)


def coverage(data: DatasetConfig, model: ModelConfig, config: CoverageConfig) -> None:
    """Do what the command does.

    Args:
        data: The problems.
        model: The model.
        config: What to compute.
    """
    require("dco-trl coverage", "eval", "rich", "scipy")
    from rich.console import Console
    from rich.table import Table

    from ..runs import DataError
    from ..sampling import exact_coverage

    if any(k < 1 for k in config.k):
        raise ValueError(f"`k` must be at least 1, got {config.k}")
    ks = sorted(set(config.k))
    column = data.answer_column
    if column is None:
        try:
            problems = load_problems(data, column := "completion")
        except DataError as error:
            if "no column 'completion'" not in str(error):
                raise
            problems = load_problems(data, column := "answer")
    else:
        problems = load_problems(data, column)
    sampled = _sampled(config, problems, ks) if config.run else None

    from ..sampling import TransformersSampler

    sampler_kwargs: dict[str, Any] = {"dtype": model.dtype} if model.dtype else {}
    with naming(model.model):
        loaded = TransformersSampler(model.model, adapter=model.adapter, revision=model.revision, **sampler_kwargs)
    exact = exact_coverage(
        loaded.model,
        loaded.tokenizer,
        problems,
        completion_template=unescape(config.completion_template),
        temperature=config.temperature,
        batch_size=model.batch_size,
    )
    values = exact.pass_at_k(ks)

    table = Table()
    for name in ("k", "exact pass@k") + ((sampled["title"],) if sampled else ()):
        table.add_column(name, justify="right")
    for row, k in enumerate(ks):
        table.add_row(f"{k:,}", f"{values[row]:.2%}", *([sampled["cells"].get(k, "")] if sampled else []))
    console = Console(highlight=False, emoji=False)
    console.print(
        f"{len(problems):,} problems, reference from column {column!r}, temperature {config.temperature:g}",
        soft_wrap=True,
    )
    console.print(table)
    for line in [NOTE, *(sampled["notes"] if sampled else [])]:
        console.print(line)
    if config.output:
        numbers = {
            "model": loaded.identity(),
            "dataset": data.dataset,
            "answer_column": column,
            "completion_template": config.completion_template,
            "temperature": config.temperature,
            "pass_at_k": [{"k": k, "exact": float(values[row])} for row, k in enumerate(ks)],
            "problems": [
                # JSON has no infinity: a probability of 0 is null.
                {"problem_id": i, "log_p": float(x) if x > -float("inf") else None, "num_tokens": int(n)}
                for i, x, n in zip(exact.problem_ids, exact.log_p, exact.num_tokens, strict=True)
            ],
            "note": NOTE,
        }
        if sampled:
            numbers["sampled"] = sampled["numbers"]
        path = Path(config.output)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(numbers, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        console.print(f"written: {path}", soft_wrap=True)


def _sampled(config: CoverageConfig, problems: list, ks: list[int]) -> dict[str, Any]:
    """The run's estimates beside the exact values."""
    from ..runs import RunStore, load_results
    from ..statistics import pass_at_k_curve

    assert config.run is not None
    store = RunStore(config.run)
    if {p.problem_id: p.prompt for p in store.problems} != {p.problem_id: p.prompt for p in problems}:
        raise ValueError(
            f"{config.run} was sampled on other problems ({len(store.problems)} there, {len(problems)} here; ids and "
            "prompts must agree). Give the same --dataset, --prompt-template and --num-problems as for sampling."
        )
    results = load_results(config.run, config.grader)
    counts = [p.num_samples for p in results.problems]
    possible = [k for k in ks if k <= min(counts)]
    notes = []
    if len(possible) < len(ks):
        notes.append(f"The run has {min(counts):,} samples per problem: larger k are not estimated.")
    sampling = results.manifest.get("sampling", {})
    differs = {"temperature": config.temperature, "top_p": 1.0, "top_k": 0}
    differs = {name: value for name, value in differs.items() if sampling.get(name, value) != value}
    if differs:
        notes.append(
            "The run was sampled with "
            + ", ".join(f"{name} {sampling[name]:g}" for name in differs)
            + ", the exact values are for "
            + ", ".join(f"{name} {value:g}" for name, value in differs.items())
            + ": they are not the same quantity."
        )
    cells, numbers = {}, []
    if possible:
        curve = pass_at_k_curve(counts, [p.num_correct for p in results.problems], possible)
        for k, estimate, low, high in zip(possible, curve.estimate, curve.low, curve.high, strict=True):
            cells[k] = f"{estimate:.2%} [{low:.2%}, {high:.2%}]"
            numbers.append({"k": k, "estimate": float(estimate), "low": float(low), "high": float(high)})
        notes.append("Brackets are 95 % intervals over problems.")
    title = f"sampled, grader {results.grader}"
    return {"title": title, "cells": cells, "notes": notes, "numbers": {"run": config.run, "pass_at_k": numbers}}
