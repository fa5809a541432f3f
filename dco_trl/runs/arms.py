"""Measured arms: what a model with an adapter and a temperature does on each problem, in one Parquet file.

    arm, model, model_fingerprint, adapter, temperature    the arm: a readable name, and what it consists of
    problem_id, log_p                                      natural log-probability of the reference answer

Arms are also read from the `eval_log_p.parquet` of checkpoints, and as counts from graded runs.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from ..problem import EVAL_LOG_P_NAME, EVAL_ROWS_KEY
from ..sampling.fingerprint import describe
from .arm import Arm
from .files import StoreError, parquet, write_atomically
from .results import load_results

_SCHEMA = pa.schema(
    [
        ("arm", pa.string()),
        ("model", pa.string()),
        ("model_fingerprint", pa.string()),
        ("adapter", pa.string()),
        ("temperature", pa.float64()),
        ("problem_id", pa.string()),
        ("log_p", pa.float64()),
    ]
)


@dataclass(frozen=True, eq=False)
class MeasuredArms:
    """What several arms do on the same problems.

    Attributes:
        arms: The arms.
        problem_ids: The problems that every arm was measured on.
        log_p: Natural log-probability of the reference answer, NaN where counts replace it, float64, shape
            (arms, problems).
        num_sampled: Samples drawn, 0 where log p is known, int64, same shape.
        num_correct: Correct samples, int64, same shape.
        num_left_out: Problems that only some of the arms were measured on.
    """

    arms: tuple[Arm, ...]
    problem_ids: tuple[str, ...]
    log_p: NDArray[np.float64]
    num_sampled: NDArray[np.int64]
    num_correct: NDArray[np.int64]
    num_left_out: int


# For each problem of one arm: log p, samples, correct samples.
_Measured = dict[str, tuple[float, int, int]]


def write_arms(
    path: str | os.PathLike[str], arms: Sequence[Arm], problem_ids: Sequence[str], log_p: ArrayLike
) -> None:
    """Write the arms that `dco-trl coverage` measured into one file, whole or not at all.

    Args:
        path: The file.
        arms: The arms.
        problem_ids: The problems.
        log_p: Natural log-probability of each reference answer, shape (arms, problems); NaN is refused.
    """
    log_p = np.asarray(log_p, dtype=np.float64)
    for arm, row in zip(arms, log_p, strict=True):
        refuse_nan(arm.name, problem_ids, row)
    each = [(a.name, a.model, a.model_fingerprint, a.adapter, float(a.temperature)) for a in arms]
    columns: list[Any] = [[value for value in column for _ in problem_ids] for column in zip(*each, strict=True)]
    columns += [list(problem_ids) * len(arms), log_p.ravel()]
    write_atomically(Path(path), parquet(pa.table(columns, schema=_SCHEMA)))


def read_arms(paths: Sequence[str | os.PathLike[str]], grader: str | None = None) -> MeasuredArms:
    """Read measured arms from files and folders of several kinds, on the problems that all arms were measured on.

    Args:
        paths: Each a Parquet file of `dco-trl coverage`; a graded run; a checkpoint with `eval_log_p.parquet`, or that
            file itself; or a training run's folder, which stands for all of its checkpoints that have one. Rows of an
            evaluation set are problems named by their numbers, as `read_problems` names rows without an `id`.
        grader: Which grader's verdicts to read from runs; None takes the only one there is.

    Raises:
        StoreError: A path holds none of these, an arm appears twice or has a NaN, checkpoints were evaluated on
            different rows, or no problem was measured by all arms.

    Examples:
        ```python
        >>> import tempfile, numpy as np
        >>> from dco_trl.runs.arm import Arm
        >>> from dco_trl.runs.arms import read_arms, write_arms
        >>> file = tempfile.mkdtemp() + "/arms.parquet"
        >>> write_arms(file, [Arm("MODEL"), Arm("MODEL", temperature=1.5)], ["a"], np.log([[0.5], [0.4]]))
        >>> [arm.name for arm in read_arms([file]).arms]
        ['MODEL', 'MODEL, T=1.5']

        ```
    """
    found: dict[Arm, _Measured] = {}
    _check_same_rows([file for path in map(Path, paths) for file in _evaluations(path)])
    for path in map(Path, paths):
        for arm, measured in _read(path, grader).items():
            if arm.name in (other.name for other in found):
                raise StoreError(f"{path}: arm {arm.name!r} was read before. Name each arm's file once.")
            found[arm] = measured
            # A run has only problems with samples, so a NaN without samples is what the model gave.
            exact = {problem_id: log_p for problem_id, (log_p, n, _) in measured.items() if not n}
            refuse_nan(arm.name, list(exact), np.array(list(exact.values())))
    if not found:
        raise StoreError("there are no arms: name files of `dco-trl coverage`, checkpoints or graded runs")
    first, *others = found.values()
    common = [problem_id for problem_id in first if all(problem_id in other for other in others)]
    if not common:
        told = "; ".join(f"{arm.name} on {sorted(measured)[:3]}" for arm, measured in list(found.items())[:3])
        raise StoreError(
            f"no problem was measured by all {len(found)} arms, by their ids ({told}). Measure them on one data set, "
            "with one `id` column."
        )
    cells = np.array([[measured[problem_id] for problem_id in common] for measured in found.values()])
    num_sampled, num_correct = cells[..., 1].astype(np.int64), cells[..., 2].astype(np.int64)
    num_left_out = len(set().union(*found.values())) - len(common)
    return MeasuredArms(tuple(found), tuple(common), cells[..., 0], num_sampled, num_correct, num_left_out)


def refuse_nan(arm: str, problem_ids: Sequence[str], log_p: NDArray) -> None:
    """Raise a `StoreError` that names the arm if its model gave NaN."""
    if (nan := np.flatnonzero(np.isnan(log_p))).size:
        raise StoreError(
            f"log p of arm {arm!r} is NaN for {nan.size:,} of {log_p.size:,} problems (first "
            f"{problem_ids[nan[0]]!r}). The model has diverged: look at its training loss, and leave this arm out."
        )


def adapter_base(folder: Path) -> str | None:
    """The model that an adapter in a folder belongs to; None for a folder without an adapter."""
    config = folder / "adapter_config.json"
    try:
        return json.loads(config.read_text(encoding="utf-8"))["base_model_name_or_path"] if config.is_file() else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{config} is damaged ({error!r}). Restore it from the adapter's training run.") from error


def _read(path: Path, grader: str | None) -> Mapping[Arm, _Measured]:
    if (path / "manifest.json").is_file():
        return _read_run(path, grader)
    if evaluations := _evaluations(path):
        return {arm: measured for file in evaluations for arm, measured in _read_eval_log_p(file).items()}
    if path.is_file():
        return _read_file(path)
    raise StoreError(
        f"{path} holds no arms: it is neither a file of `dco-trl coverage` nor a graded run nor a checkpoint with "
        f"{EVAL_LOG_P_NAME}, which DCOTrainer writes when it evaluates and saves at the same step."
    )


def _evaluations(path: Path) -> list[Path]:
    """The files of evaluated checkpoints that a path stands for."""
    if path.name == EVAL_LOG_P_NAME and path.is_file():
        return [path]
    if (path / "manifest.json").is_file():
        return []
    if (path / EVAL_LOG_P_NAME).is_file():
        return [path / EVAL_LOG_P_NAME]
    return sorted(path.glob(f"checkpoint-*/{EVAL_LOG_P_NAME}"), key=lambda file: (len(file.parent.name), file))


def _check_same_rows(evaluations: Sequence[Path]) -> None:
    """Raise a `StoreError` if one row number names different rows: another evaluation set, or another order."""
    known: dict[str, tuple[str, Path]] = {}
    for path in evaluations:
        try:
            metadata = pq.read_schema(path).metadata or {}
        except (OSError, pa.ArrowException):
            continue  # reading it reports the error
        try:
            fingerprints = dict(json.loads(metadata.get(EVAL_ROWS_KEY.encode(), b"{}")))
        except (ValueError, TypeError) as error:
            raise StoreError(f"{path} is damaged ({error!r}). Evaluate that checkpoint again.") from error
        for name, fingerprint in fingerprints.items():
            first, where = known.setdefault(name, (fingerprint, path))
            if first != fingerprint:
                raise StoreError(
                    f"{where.parent} and {path.parent} were evaluated on different rows"
                    + (f" of {name!r}" if name else "")
                    + ", or on the same rows in another order. Rows are known by their numbers, so the arms would be "
                    "compared on different problems. Train with one evaluation set, or measure the checkpoints on one "
                    "with `dco-trl coverage`."
                )


def _read_file(path: Path) -> dict[Arm, _Measured]:
    found: dict[Arm, _Measured] = {}
    for _, model, fingerprint, adapter, temperature, problem_id, log_p in _rows(path, _SCHEMA):
        measured = found.setdefault(Arm(model, adapter, temperature, fingerprint), {})
        if problem_id in measured:
            raise StoreError(
                f"{path}: arm {(adapter or model)!r} has problem {problem_id!r} twice. Measure each problem once."
            )
        measured[problem_id] = (log_p, 0, 0)
    return found


def _read_eval_log_p(path: Path) -> dict[Arm, _Measured]:
    rows = _rows(path, pa.schema([("dataset", pa.string()), ("row", pa.int64()), ("log_p", pa.float64())]))
    measured = {f"{dataset}/{row}" if dataset else str(row): (log_p, 0, 0) for dataset, row, log_p in rows}
    folder, base = str(path.parent), adapter_base(path.parent)
    model, adapter = (folder, "") if base is None else (base, folder)
    return {Arm(model, adapter, 1.0, describe("model", model).get("model_fingerprint", "")): measured}


def _read_run(path: Path, grader: str | None) -> dict[Arm, _Measured]:
    results = load_results(path, grader)
    manifest = results.manifest
    sampling = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, **manifest.get("sampling", {})}
    if (sampling["top_p"], sampling["top_k"]) != (1.0, 0):
        raise StoreError(
            f"{path} was sampled with top_p {sampling['top_p']:g} and top_k {sampling['top_k']}. An arm is a model, "
            "an adapter and a temperature: sample with --top-p 1 and --top-k 0."
        )
    if results.schedule is None:
        model, adapter, fingerprint = (manifest.get(key, "") for key in ("model", "adapter", "model_fingerprint"))
        arms: tuple[Arm, ...] = (Arm(model, adapter, float(sampling["temperature"]), fingerprint),)
        counts = {p.problem_id: [(p.num_samples, p.num_correct)] for p in results.problems}
    else:
        arms, counts = results.schedule.arms, {p.problem_id: list(p.by_arm) for p in results.problems}
    found = {
        arm: {problem_id: (float("nan"), *each[j]) for problem_id, each in counts.items() if each[j][0]}
        for j, arm in enumerate(arms)
    }
    return {arm: measured for arm, measured in found.items() if measured}  # the run may not have reached every arm yet


def _rows(path: Path, schema: pa.Schema) -> Iterator[tuple[Any, ...]]:
    """These columns of a Parquet file, row by row; a missing column and an empty cell are errors."""
    try:
        table = pq.read_table(path, partitioning=None)
        if missing := [name for name in schema.names if name not in table.column_names]:
            raise OSError(f"it lacks the column {missing[0]!r} among {table.column_names}")
        table = table.select(schema.names).cast(schema)
        if empty := [name for name in schema.names if table[name].null_count]:
            raise OSError(f"column {empty[0]!r} has empty cells, and each row needs all of its values")
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"{path} holds no measured arms: {error}. `dco-trl coverage` writes such a file.") from error
    return zip(*(column.to_pylist() for column in table.columns), strict=True)
