"""`dco-trl coverage`: exact pass@k of short reference answers, from teacher-forced probabilities, without sampling."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..extras import require
from ._common import DatasetConfig, ModelConfig, command, load_rows, naming, option, print_whole, unescape

NOTE = (
    "Exact coverage counts the reference's exact string only, in its usual tokens and followed by the end of "
    "sequence. It counts no other way of writing the answer and no explanation before it: where a grader accepts "
    "more, it is a lower bound."
)


@dataclass
class ArmsConfig(ModelConfig):
    """The models, or one model and its adapters."""

    model: list[str] = option(  # type: ignore[assignment]
        "Folder or name of the model; several, without --adapter.", default_factory=list
    )
    adapter: list[str] | None = option(  # type: ignore[assignment]
        "Folders of adapters, each loaded in turn onto the one model.", default=None
    )

    def __post_init__(self) -> None:
        # A YAML file may hold one name in place of a list.
        self.model = [self.model] if isinstance(self.model, str) else self.model
        self.adapter = [self.adapter] if isinstance(self.adapter, str) else self.adapter


@dataclass
class CoverageConfig:
    """What to compute."""

    k: list[int] = option("Numbers of attempts, of any size.", default_factory=lambda: [1, 4, 16, 64, 256, 1024, 4096])
    completion_template: str = option(
        r"What the model should write, from columns, for example ' {answer}'. \n is a line break.", default="{answer}"
    )
    temperature: list[float] = option(
        "Divides the logits, as in sampling. Several temperatures use the same logits.", default_factory=lambda: [1.0]
    )
    run: str | None = option("A graded run on the same problems, to show beside the exact values.", default=None)
    grader: str | None = option("The grader of --run, if there are several.", default=None)
    output: str | None = option(
        "A .json file for the numbers and every problem's log-probability; or a .parquet file with the "
        "log-probabilities alone, of any number of models, adapters and temperatures, for `dco-trl schedule`; it is "
        "rewritten after each adapter.",
        default=None,
    )


@command("coverage")
def main(data: DatasetConfig, model: ArmsConfig, config: CoverageConfig) -> None:
    """Exact pass@k of short reference answers, without sampling. The answer is the column `completion` if there is
    one, else `answer`, unless --answer-column names another. Only its exact string counts, in its usual tokens and
    followed by the end of sequence: where a grader accepts more, exact coverage is a lower bound.
    """
    require("dco-trl coverage", "eval", "rich", "scipy")
    from rich.console import Console
    from rich.table import Table

    from ..runs.arms import write_arms
    from ..runs.files import write_atomically

    if any(k < 1 for k in config.k):
        raise UserError(f"holds a number of attempts below 1: {config.k}", "k")
    ks = sorted(set(config.k))
    _check_arms(model, config)
    _, problems, column = load_rows(data, "completion", "answer")
    sampled = _sampled(config, problems, ks) if config.run else None
    path = Path(config.output or "")
    measured: list[tuple[Any, Any, dict]] = []
    for loaded, adapter in _each_model(model):
        measured += _measure(loaded, adapter, problems, model, config)
        if path.suffix == ".parquet":  # after each, so that an interrupted command keeps what it measured
            arms, exacts, _ = zip(*measured, strict=True)
            write_arms(path, arms, exacts[0].problem_ids, [exact.log_p for exact in exacts])

    table = Table()
    exact_of = [exact.pass_at_k(ks) for _, exact, _ in measured]
    if len(measured) == 1:
        for name in ("k", "exact pass@k") + ((sampled["title"],) if sampled else ()):
            table.add_column(name, justify="right")
        for k, value in zip(ks, exact_of[0], strict=True):
            table.add_row(f"{k:,}", f"{value:.2%}", *([sampled["cells"].get(k, "")] if sampled else []))
    else:
        table.add_column("exact pass@k, k =")
        for k in ks:
            table.add_column(f"{k:,}", justify="right")
        for (arm, _, _), values in zip(measured, exact_of, strict=True):
            table.add_row(arm.name, *(f"{value:.2%}" for value in values))
    console = Console(highlight=False, emoji=False)
    temperatures = " ".join(f"{temperature:g}" for temperature in config.temperature)
    console.print(
        f"{len(problems):,} problems, reference from column {column!r}, temperature {temperatures}", soft_wrap=True
    )
    print_whole(console, table)
    for line in [NOTE, *(sampled["notes"] if sampled else [])]:
        console.print(line)
    if not config.output:
        return
    if path.suffix != ".parquet":
        [(arm, exact, identity)] = measured
        numbers = {
            "model": identity,
            "dataset": data.dataset,
            "answer_column": column,
            "completion_template": config.completion_template,
            "temperature": arm.temperature,
            "pass_at_k": [{"k": k, "exact": float(value)} for k, value in zip(ks, exact_of[0], strict=True)],
            "problems": [
                # JSON has no infinity: a probability of 0 is null.
                {"problem_id": i, "log_p": float(x) if x > -float("inf") else None, "num_tokens": int(n)}
                for i, x, n in zip(exact.problem_ids, exact.log_p, exact.num_tokens, strict=True)
            ],
            "note": NOTE,
        }
        numbers |= {"sampled": sampled["numbers"]} if sampled else {}
        write_atomically(path, (json.dumps(numbers, indent=1, allow_nan=False) + "\n").encode())
    console.print(f"written: {path}", soft_wrap=True)


def _check_arms(model: ArmsConfig, config: CoverageConfig) -> None:
    """Refuse wrong combinations before a model is loaded."""
    adapters = model.adapter or []
    if not model.model or (adapters and len(model.model) > 1):
        raise UserError(
            "must be one model with any number of adapters, or several models without adapters: got "
            f"{len(model.model)} models and {len(adapters)} adapters",
            "model",
        )
    for name, values in (("model", model.model), ("adapter", adapters), ("temperature", config.temperature)):
        if len(set(values)) < len(values):
            raise UserError(f"names an entry twice: {values}", name)
    for adapter in adapters:
        if Path(adapter).is_dir() and not (Path(adapter) / "adapter_config.json").is_file():
            raise UserError(f"{adapter} holds no adapter (no adapter_config.json); give whole models by --model")
    if max(len(model.model), len(adapters)) * len(config.temperature) > 1:
        if config.run:
            raise UserError("goes with one model at one temperature only: name no more of them", "run")
        if config.output and Path(config.output).suffix != ".parquet":
            raise UserError(
                f"must be a .parquet file for several models, adapters or temperatures, got {config.output}", "output"
            )


def _each_model(model: ArmsConfig) -> Iterator[tuple[Any, str]]:
    """Each model, or the one model with each of its adapters; each model is loaded once."""
    from ..sampling import TransformersSampler

    sampler_kwargs: dict[str, Any] = {"dtype": model.dtype} if model.dtype else {}
    for name in model.model:
        with naming(name):
            loaded = TransformersSampler(name, revision=model.revision, **sampler_kwargs)
        if not model.adapter:
            yield loaded, ""
        for adapter in model.adapter or []:
            with naming(adapter, "adapter"):
                loaded.load_adapter(adapter)
            yield loaded, adapter
        loaded.close()  # one model in memory, not two


def _measure(
    loaded: Any, adapter: str, problems: list, model: ArmsConfig, config: CoverageConfig
) -> Iterator[tuple[Any, Any, dict]]:
    """The arm of each temperature, its log-probabilities, and the sampler's identity."""
    from ..runs.arm import Arm
    from ..runs.arms import refuse_nan
    from ..sampling import exact_coverage

    identity = loaded.identity()
    name, fingerprint = identity["model"], identity.get("model_fingerprint", "")
    if model.adapter or len(model.model) > 1:
        print(adapter or name, file=sys.stderr)
    exact = exact_coverage(
        loaded.model,
        loaded.tokenizer,
        problems,
        completion_template=unescape(config.completion_template),
        temperature=config.temperature,
        batch_size=model.batch_size,
    )
    for temperature, log_p in zip(config.temperature, exact.log_p, strict=True):
        arm = Arm(name, adapter, temperature, fingerprint)
        refuse_nan(arm.name, exact.problem_ids, log_p)
        yield arm, replace(exact, log_p=log_p), identity


def _sampled(config: CoverageConfig, problems: list, ks: list[int]) -> dict[str, Any]:
    """The run's estimates beside the exact values."""
    from ..runs import RunStore, load_results
    from ..statistics import pass_at_k_curve

    assert config.run is not None
    store = RunStore(config.run)
    if {p.problem_id: p.prompt for p in store.problems} != {p.problem_id: p.prompt for p in problems}:
        raise UserError(
            f"{config.run} was sampled on other problems ({len(store.problems)} there, {len(problems)} here; ids and "
            "prompts must agree). Give the same --dataset, --prompt-template and --num-problems as for sampling."
        )
    results = load_results(config.run, config.grader)
    if results.schedule is not None:
        raise UserError(
            f"{config.run} was sampled along a schedule of several arms, but is to be compared with one model at one "
            "temperature. Give a run of that model."
        )
    counts = [p.num_samples for p in results.problems]
    possible = [k for k in ks if k <= min(counts)]
    notes = []
    if len(possible) < len(ks):
        notes.append(f"The run has {min(counts):,} samples per problem: larger k are not estimated.")
    sampling = results.manifest.get("sampling", {})
    exact = {"temperature": config.temperature[0], "top_p": 1.0, "top_k": 0}
    if differs := [name for name, value in exact.items() if sampling.get(name, value) != value]:
        told = [", ".join(f"{name} {values[name]:g}" for name in differs) for values in (sampling, exact)]
        notes.append(
            f"The run was sampled with {told[0]}, but the exact values are for {told[1]}: the quantities differ."
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
