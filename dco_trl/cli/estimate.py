"""`dco-trl estimate`: sample and grade a training data set's prompts, and write it with the counts as columns."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import UserError
from ._common import DatasetConfig, ModelConfig, command, load_rows, option
from ._grading import GradingConfig, grade
from ._sampling import SamplingConfig, sample

OUTPUT_TYPES = (".jsonl", ".parquet")


@dataclass
class TrainingDatasetConfig(DatasetConfig):
    """The training data set."""

    split: str = option("Split of the data set, if it has several.", default="train")


@dataclass
class EstimateConfig(SamplingConfig):
    """How to sample, and where to write."""

    output: str = option("The .jsonl or .parquet file to write.")
    run: str | None = option(
        "Folder for the samples. By default beside the output: OUT.samples for OUT.jsonl.", default=None
    )


@command("estimate")
def main(data: TrainingDatasetConfig, model: ModelConfig, sampling: EstimateConfig, grading: GradingConfig) -> str:
    """Sample the prompts of a training data set, grade, and write the data set again with the columns num_sampled and
    num_correct, for CoTDCOTrainer with sampler='none'. A sample cut off at --max-tokens counts as wrong; one that the
    grader could not judge does not count. Rows with the same prompt share their samples. After an interruption, the
    same command goes on.
    """
    from ..runs import load_results
    from ..runs.grade import check_grader
    from ..runs.problems import what_is_asked

    # Check what can be checked before sampling, which may take hours.
    output = Path(sampling.output)
    _check_output(output, data.dataset)
    rows, problems, _ = load_rows(data, "answer")
    # The trainer has one count for all rows with the same prompt, so one of them is sampled.
    distinct: dict[str, Any] = {}
    for problem in problems:
        distinct.setdefault(what_is_asked(problem), problem)
    check_grader(grading.grader, list(distinct.values()))
    run = sampling.run or str(output.with_suffix(".samples"))
    print(sample(data, model, replace(sampling, output=run), list(distinct.values())))
    summary = grade(run, grading)
    print(summary)

    results = load_results(run, summary.grader).problems
    counts = {r.problem_id: (r.num_samples - r.num_ungraded, r.num_correct - r.num_truncated_correct) for r in results}
    table = []
    for row, problem in zip(rows, problems, strict=True):
        num_sampled, num_correct = counts[distinct[what_is_asked(problem)].problem_id]
        if num_sampled:
            prompt = _as_sampled(row, problem.prompt, data)
            table.append({**row, **prompt, "num_sampled": num_sampled, "num_correct": num_correct})
    if not table:
        raise UserError(
            f"grader {summary.grader!r} could not judge a single sample ({summary}), so there are no success rates "
            f"and {output} was not written. Look at the samples in {run}, or name another grader."
        )
    _write(output, table)

    known = [(n, c) for n, c in counts.values() if n]
    drawn = sum(r.num_samples for r in results)
    truncated, ungraded = sum(r.num_truncated for r in results), sum(r.num_ungraded for r in results)
    accepted = sum(r.num_truncated_correct for r in results)
    unsolved = sum(not c for _, c in known)
    lines = [
        f"\n{output}: {len(table):,} rows with num_sampled and num_correct",
        f"  problems           {len(results):,}",
        f"  samples            {drawn:,}",
        f"  mean success rate  {sum(c / n for n, c in known) / len(known):.2%}",
        f"  never solved       {unsolved:,} problems ({unsolved / len(known):.1%})",
        f"  cut off            {truncated:,} samples ({truncated / drawn:.1%}), counted as wrong"
        + (f", also {accepted:,} that the grader accepted" if accepted else ""),
        f"  not graded         {ungraded:,} samples ({ungraded / drawn:.1%}), not counted",
    ]
    if len(table) < len(rows):
        lines.append(f"  left out           {len(rows) - len(table):,} rows: none of their samples could be graded")
    replaced = [name for name in ("num_sampled", "num_correct") if any(name in row for row in rows)]
    if replaced:
        lines.append(f"  replaced           {' and '.join(replaced)} of the data set given")
    if _has_new_prompts(data):
        lines.append("  prompt             as sampled, so that the model is trained on what was counted")
    own = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}
    if differs := [f"{name} {getattr(sampling, name):g}" for name in own if getattr(sampling, name) != own[name]]:
        lines.append(f"  sampled with       {', '.join(differs)}: not the probabilities that training changes")
    builder = "json" if output.suffix.lower() == ".jsonl" else "parquet"
    lines += [
        "\nTrain on it:",
        "  from datasets import load_dataset",
        "  from dco_trl import CoTDCOConfig, CoTDCOTrainer",
        f'  rows = load_dataset("{builder}", data_files={json.dumps(str(output))}, split="train")',
        '  args = CoTDCOConfig(output_dir="model-dco", num_attempts=64, sampler="none")',
        f"  CoTDCOTrainer({json.dumps(model.model)}, args=args, train_dataset=rows).train()",
    ]
    if model.adapter:
        lines.append(f"The counts are those of the model with the adapter {model.adapter}: train from there.")
    without = sum("completion" not in row for row in table)
    if without:
        lines.append(f"{without:,} rows have no column `completion` (rationale and answer), which training needs.")
    return "\n".join(lines)


def _check_output(output: Path, dataset: str) -> None:
    if output.suffix.lower() not in OUTPUT_TYPES:
        raise UserError(
            f"{str(output)!r}: cannot write a file of type {output.suffix!r}; use one of {', '.join(OUTPUT_TYPES)}",
            "output",
        )
    if output.is_dir():
        raise UserError(f"{str(output)!r} is a folder; name a file", "output")
    if output.resolve() == Path(dataset).resolve():
        raise UserError(
            f"{str(output)!r} is the data set itself, which is not overwritten; name another file", "output"
        )


def _has_new_prompts(data: DatasetConfig) -> bool:
    return bool(data.prompt_template or data.chat or data.prompt_column != "prompt")


def _as_sampled(row: dict[str, Any], prompt: Any, data: DatasetConfig) -> dict[str, Any]:
    """The prompt as it was sampled, and the completion in the same form, because TRL allows no mixture."""
    if not _has_new_prompts(data):
        return {}
    completion = row.get("completion")
    if isinstance(completion, str) and not isinstance(prompt, str):
        return {"prompt": prompt, "completion": [{"role": "assistant", "content": completion}]}
    return {"prompt": prompt}


def _write(output: Path, table: list[dict[str, Any]]) -> None:
    import pyarrow as pa

    from ..runs.files import parquet, write_atomically

    way_out = "and the same command goes on from the samples there are"
    if output.suffix.lower() == ".jsonl":
        try:
            lines = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in table).encode()
        except (TypeError, ValueError) as error:
            raise UserError(
                f"the rows cannot be written as JSON ({error}); name a .parquet file as output, {way_out}"
            ) from error
        write_atomically(output, lines)
        return
    columns = {}
    # Rows of a JSON-lines file may have different columns.
    for name in dict.fromkeys(name for row in table for name in row):
        try:
            columns[name] = pa.array([row.get(name) for row in table])
        except (pa.ArrowException, UnicodeEncodeError) as error:
            raise UserError(
                f"column {name!r} cannot be written as Parquet ({error}); name a .jsonl file as output, {way_out}"
            ) from error
    write_atomically(output, parquet(pa.table(columns)))
