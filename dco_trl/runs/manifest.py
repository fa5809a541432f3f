"""What a run's samples are draws of: `manifest.json` and `problems.parquet`, which a resumed run must match."""

import datetime
import json
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import UserError
from ..problem import Problem
from ..sampling.protocol import SamplingParams
from .files import StoreError, parquet, sha256, write_atomically
from .problems import fingerprint
from .rows import short

FORMAT = 3
PROBLEM_SCHEMA = pa.schema(
    [
        ("problem_id", pa.string()),
        ("prompt", pa.string()),  # JSON if conversational
        ("conversational", pa.bool_()),
        ("answer", pa.string()),
        ("columns", pa.string()),  # JSON
    ]
)
# Recorded but not compared: they do not affect what the samples are draws of.
_FREE = frozenset({"versions", "num_samples", "dataset", "created", "sessions", "problems_sha256"})
_REQUIRED = ("format", "dataset_fingerprint", "problems_sha256", "num_problems")
_TYPES: dict[str, Any] = {
    "format": int,
    "dataset_fingerprint": str,
    "problems_sha256": str,
    "num_problems": int,
    "num_samples": int | None,
    "sampling": dict,
    "schedule": dict,
    "dataset": dict,
    "versions": dict | None,
    "created": str | None,
    "sessions": list,
}


def run_manifest(
    identity: Mapping[str, Any], params: SamplingParams, num_samples: int, dataset: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What a run is draws of, as JSON can hold it and without passwords in addresses.

    Entries of the sampler's identity whose names end in `version` are versions. Versions, the number of samples and
    the source of the problems are only recorded; everything else must be the same when the run goes on.

    Raises:
        ValueError: The sampler's identity has a name that the manifest itself uses.
    """
    from .. import __version__

    if taken := sorted(identity.keys() & (_TYPES.keys() | _FREE)):
        raise UserError(
            f"the sampler has {taken} in its identity(), names that the manifest of a run uses itself. Rename them."
        )
    versions = {key: value for key, value in identity.items() if key.endswith("version")}
    versions |= {"dco_trl": __version__, "python": platform.python_version(), "pyarrow": pa.__version__}
    return {
        **_without_passwords({key: value for key, value in identity.items() if key not in versions}),
        "sampling": asdict(params),
        "dataset": _without_passwords(dict(dataset or {})),
        "num_samples": num_samples,
        "versions": versions,
    }


def start_session(
    folder: Path, found: Mapping[str, Any] | None, manifest: Mapping[str, Any], problems: Sequence[Problem]
) -> dict[str, Any]:
    """Write a new run, or add a session to the manifest `found` of the run in the folder; return the new manifest.

    Raises:
        StoreError: The run draws from something else; the message lists each key with both values.
    """
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    asked = {"format": FORMAT, **manifest, "dataset_fingerprint": fingerprint(problems), "num_problems": len(problems)}
    asked = json.loads(_to_json(asked))
    session = {"started": now, "versions": asked.get("versions"), "num_samples": asked.get("num_samples")}
    if found is None:
        table = _problem_table(problems)
        found = {"created": now, "problems_sha256": sha256(table)}
        write_atomically(folder / "problems.parquet", table)
    else:
        refuse_changes(folder, found, asked)
        asked["num_samples"] = max(found.get("num_samples") or 0, asked.get("num_samples") or 0)
    asked |= {key: found.get(key) for key in ("problems_sha256", "created")}
    asked["sessions"] = [*found.get("sessions", []), session]
    # The manifest comes last: a folder with a manifest is a run.
    write_atomically(folder / "manifest.json", (json.dumps(asked, indent=2) + "\n").encode())
    return asked


def read_manifest(path: Path) -> dict[str, Any]:
    """Read and check a manifest.

    Raises:
        StoreError: It is damaged, or of another format.
    """
    try:
        manifest = dict(json.loads(path.read_text(encoding="utf-8")))
        version = manifest.get("format", FORMAT)
        if version == FORMAT:
            _check_types(manifest)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise StoreError(f"{path} is damaged ({error}); restore it, or sample into a new folder") from error
    if version != FORMAT:
        raise StoreError(
            f"{path.parent} has format {version}, but this version of dco-trl reads format {FORMAT}. Use the version "
            "of dco-trl that wrote it, or sample into a new folder."
        )
    return manifest


def _check_types(manifest: Mapping[str, Any]) -> None:
    if missing := [key for key in _REQUIRED if key not in manifest]:
        raise ValueError(f"it has no {missing[0]!r}")
    for key in _TYPES.keys() & manifest.keys():
        value, kind = manifest[key], _TYPES[key]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"{key!r} should be of type {getattr(kind, '__name__', kind)}, got {value!r}")
    SamplingParams(**manifest.get("sampling", {}))


def refuse_changes(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Refuse to mix draws of two different things; the message lists each key with both values."""
    before, after = (
        _flat({key: value for key, value in manifest.items() if key not in _FREE}) for manifest in (old, new)
    )
    nothing = "(nothing)"
    changes = [
        f"  {key}: the run has {short(before.get(key, nothing), 200)}, now {short(after.get(key, nothing), 200)}"
        for key in sorted(before | after)
        if before.get(key) != after.get(key)
    ]
    if changes:
        raise StoreError(
            f"{folder} holds a run of something else, and samples of the two must not be mixed:\n"
            + "\n".join(changes)
            + "\nUse the run's own values to go on with it, or name another folder. Nothing was changed."
        )


def read_problem_table(path: Path, manifest: Mapping[str, Any]) -> list[Problem]:
    """The problems in `problems.parquet`, which must be those of the manifest.

    Raises:
        StoreError: The file is missing, damaged, or another run's.
    """
    try:
        data = path.read_bytes()
        if sha256(data) != manifest["problems_sha256"]:
            raise OSError("its SHA-256 is not the one in manifest.json: it was changed after sampling")
        problems = [
            Problem(
                row["problem_id"],
                json.loads(row["prompt"]) if row["conversational"] else row["prompt"],
                row["answer"],
                json.loads(row["columns"]),
            )
            for row in pq.read_table(pa.BufferReader(data)).to_pylist()
        ]
        if fingerprint(problems) != manifest["dataset_fingerprint"]:
            raise OSError("it does not have the fingerprint in manifest.json: one of the two was changed")
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise StoreError(f"{path} is damaged or missing ({error}); restore it, or sample into a new folder") from error
    return problems


def _problem_table(problems: Sequence[Problem]) -> bytes:
    rows = [
        {
            "problem_id": problem.problem_id,
            "prompt": problem.prompt if isinstance(problem.prompt, str) else json.dumps(problem.prompt),
            "conversational": not isinstance(problem.prompt, str),
            "answer": problem.answer,
            "columns": _to_json(problem.columns),
        }
        for problem in problems
    ]
    return parquet(pa.Table.from_pylist(rows, schema=PROBLEM_SCHEMA))


def _to_json(value: Any) -> str:
    """A value as JSON; NumPy values become numbers and lists, and other objects text."""
    return json.dumps(value, default=lambda x: x.tolist() if isinstance(x, np.generic | np.ndarray) else str(x))


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            value = {str(position): item for position, item in enumerate(value)}
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def _without_passwords(value: Any) -> Any:
    """`http://user:password@host` becomes `http://host`, at any depth."""
    if isinstance(value, str):
        return re.sub(r"(?<=://)[^/?#\s]*@", "", value)
    if isinstance(value, Mapping):
        return {key: _without_passwords(item) for key, item in value.items()}
    return [_without_passwords(item) for item in value] if isinstance(value, list | tuple) else value
