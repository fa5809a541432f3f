"""Make a run of samples that another program drew: plain rows, NeMo-Skills' outputs, or inspect_ai's logs."""

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..problem import DataError, Problem
from ..sampling.protocol import SamplingParams
from .drawing import MAX_SEQUENCES
from .files import sha256
from .rows import checked_row, read_rows
from .store import GRADE_SCHEMA, KEY, RunStore

# The grader's name for verdicts that the files hold.
GRADER = "imported"
_INSPECT_TYPES = (".eval", "")


def import_samples(
    paths: Sequence[str | os.PathLike[str]],
    problems: Sequence[Problem],
    output: str | os.PathLike[str],
    *,
    model: str | None = None,
    temperature: float = 1.0,
) -> int:
    """Make a run of samples from elsewhere, for `grade_run`, `load_results` and schedules.

    The columns of a file tell its kind:

    * `problem_id` and `text`, in JSON Lines or Parquet, optionally with `correct` (bool), `answer`, `num_tokens` and
      `finish_reason` ("length": cut off);
    * `generation`, as in `output-rs0.jsonl` of NeMo-Skills, with `symbolic_correct`, `predicted_answer` and
      `num_generated_tokens` if it was judged. A row without `id` or `problem_id` belongs to the problem of its number;
    * `.eval` files and folders are logs of inspect_ai, which must be installed.

    Samples are numbered in the order of the files and their rows. Verdicts in the files become those of a grader
    "imported".

    Args:
        paths: The files.
        problems: What was sampled.
        output: The run's folder.
        model: Name of the model, for schedules; None: the folder's name.
        temperature: Temperature of the samples, for schedules.

    Raises:
        DataError: A row lacks a column, or its problem is missing or has another reference answer.
        StoreError: The folder holds something else.
        ImportError: inspect_ai is not installed.

    Examples:
        ```python
        >>> from dco_trl.runs import read_problems
        >>> from dco_trl.runs.import_samples import import_samples
        >>> problems = read_problems("problems.jsonl")  # doctest: +SKIP
        >>> import_samples(["output-rs0.jsonl", "output-rs1.jsonl"], problems, "runs/theirs")  # doctest: +SKIP

        ```
    """
    from ..grading import extract_answer

    by_id = {problem.problem_id: problem for problem in problems}
    count: Counter[str] = Counter()
    rows, verdicts = [], dict[tuple[str, int], tuple[float, str]]()
    for where, sample in (found for path in paths for found in _read(Path(path), problems)):
        problem_id = _checked(sample, where, by_id)
        key = (problem_id, count[problem_id])
        count[problem_id] += 1
        was_cut = sample.get("finish_reason") == "length"
        rows.append((*key, sample["text"], sample.get("num_tokens"), "length" if was_cut else "stop"))
        if sample.get("correct") is not None:
            answer = sample.get("answer")
            answer = extract_answer(sample["text"]) if answer is None else answer
            verdicts[key] = (float(sample["correct"]), str(answer))
    if not rows:
        raise DataError("there are no samples to import: name files with rows")
    manifest = {
        "sampler": "imported",
        "model": model or Path(output).resolve().name,
        "samples_sha256": sha256(json.dumps([rows, list(verdicts.items())]).encode()),
        "sampling": asdict(SamplingParams(temperature=temperature)),
    }
    with RunStore.writing(output, manifest, problems) as store:
        there = store.present()
        new = [row for row in rows if row[1] not in there[row[0]]]
        for start in range(0, len(new), MAX_SEQUENCES):
            store.write_samples(new[start : start + MAX_SEQUENCES])
        if verdicts:
            with store.grading(GRADER, None):
                graded = store.grade_parts(GRADER)
                for part in (part for part in store.sample_parts() if part.stem not in graded):
                    store.write_grades(GRADER, part, _grades(store.read_samples(part, KEY), verdicts))
    return len(rows)


def _grades(keys: pa.Table, verdicts: Mapping[tuple[str, int], tuple[float, str]]) -> pa.Table:
    found = [verdicts.get(key) for key in zip(*(column.to_pylist() for column in keys.columns), strict=True)]
    scores, answers = zip(*(verdict or (None, "") for verdict in found), strict=True)
    statuses = ["unparsed" if verdict is None else "graded" for verdict in found]
    return pa.table([*keys.columns, scores, answers, statuses], schema=GRADE_SCHEMA)


def _checked(sample: Mapping[str, Any], where: str, by_id: Mapping[str, Problem]) -> str:
    """The id of the sample's problem, after checks of the sample."""
    problem_id, text, correct = str(sample["problem_id"]), sample["text"], sample.get("correct")
    if problem_id not in by_id:
        known = ", ".join(map(repr, list(by_id)[:3]))
        raise DataError(
            f"{where} is of problem {problem_id!r}, but the data set has {known} and so on. Give the data set that "
            "was sampled, and its --id-column."
        )
    if not isinstance(text, str):
        raise DataError(f"{where} has no text but {text!r}: leave out rows that were not sampled.")
    if not isinstance(correct, bool | int | float | None):
        raise DataError(f"{where} has the verdict {correct!r}: write true or false, or leave it out.")
    asked, expected = sample.get("expected_answer"), by_id[problem_id].answer
    if asked is not None and expected and str(asked) != expected:
        raise DataError(
            f"{where} has the reference answer {str(asked)!r}, but problem {problem_id!r} has {expected!r}: is it "
            "from another data set, or in another order?"
        )
    return problem_id


def _read(path: Path, problems: Sequence[Problem]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The place of each sample, and its row under the names of plain rows; `expected_answer` if there is one."""
    if path.suffix in _INSPECT_TYPES:
        yield from ((str(path), _of_inspect(row)) for row in _inspect_rows(path))
        return
    for number, row in enumerate(read_rows(path)):
        where = f"{path}: row {number}"
        row = checked_row(row, where)
        if "generation" in row:
            position = problems[number].problem_id if number < len(problems) else None
            yield (
                where,
                {
                    **{name: row.get(name) for name in ("finish_reason", "expected_answer")},
                    "problem_id": row.get("problem_id", row.get("id", position)),
                    "text": row["generation"],
                    "correct": row.get("symbolic_correct"),
                    "answer": row.get("predicted_answer"),
                    "num_tokens": row.get("num_generated_tokens"),
                },
            )
        elif "problem_id" in row and "text" in row:
            yield where, {name: value for name, value in row.items() if name != "expected_answer"}
        elif "epoch" in row and "completion" in row:
            yield where, _of_inspect(row)
        else:
            raise DataError(
                f"{where} has the columns {sorted(row)}. Samples have `problem_id` and `text`, or `generation` as "
                "NeMo-Skills writes it."
            )


def _inspect_rows(path: Path) -> list[dict[str, Any]]:
    try:
        from inspect_ai.analysis import SampleColumn, SampleSummary, samples_df
    except ImportError as error:
        raise ImportError(
            f"{path} is a log of inspect_ai, which must be installed to read it ({error}): `pip install inspect-ai`."
        ) from error
    output = [
        SampleColumn("completion", path="output.completion", full=True),
        SampleColumn("stop_reason", path="output.choices[0].stop_reason", full=True),
    ]
    return samples_df(str(path), [*SampleSummary, *output], quiet=True).to_dict("records")


def _of_inspect(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of `samples_df`, where `score_NAME` is a number, or "C" for correct."""
    score = next((value for name, value in row.items() if name.startswith("score_")), None)
    correct = None if score is None or score != score else score == "C" or score == 1
    reason = "length" if row.get("stop_reason") == "max_tokens" else "stop"
    return {"problem_id": row["id"], "text": row["completion"], "correct": correct, "finish_reason": reason}
