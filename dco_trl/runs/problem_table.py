"""The problems of a run, in its file `problems.parquet`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..problem import Problem
from .files import StoreError, parquet, sha256
from .manifest import to_json
from .problems import fingerprint

PROBLEM_SCHEMA = pa.schema(
    [
        ("problem_id", pa.string()),
        ("prompt", pa.string()),  # JSON where conversational
        ("conversational", pa.bool_()),
        ("answer", pa.string()),
        ("columns", pa.string()),  # JSON
    ]
)


def problem_table(problems: Sequence[Problem]) -> bytes:
    """The file's content."""
    rows = [
        {
            "problem_id": problem.problem_id,
            "prompt": problem.prompt if isinstance(problem.prompt, str) else json.dumps(problem.prompt),
            "conversational": not isinstance(problem.prompt, str),
            "answer": problem.answer,
            "columns": to_json(problem.columns),
        }
        for problem in problems
    ]
    return parquet(pa.Table.from_pylist(rows, schema=PROBLEM_SCHEMA))


def read_problem_table(path: Path, manifest: Mapping[str, Any]) -> list[Problem]:
    """The problems in the file, which must be the one that the manifest knows.

    Raises:
        StoreError: The file is missing, damaged, or another run's.
    """
    try:
        data = path.read_bytes()
        if sha256(data) != manifest["problems_sha256"]:
            raise OSError("its SHA-256 is not the one in manifest.json: it was changed after sampling")
        problems = [_problem(row) for row in pq.read_table(pa.BufferReader(data)).to_pylist()]
        if fingerprint(problems) != manifest["dataset_fingerprint"]:
            raise OSError("it does not have the fingerprint in manifest.json: one of the two was changed")
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise StoreError(f"{path} is damaged or missing ({error}); restore it, or sample into a new folder") from error
    return problems


def _problem(row: Mapping[str, Any]) -> Problem:
    prompt = json.loads(row["prompt"]) if row["conversational"] else row["prompt"]
    return Problem(row["problem_id"], prompt, row["answer"], json.loads(row["columns"]))
