"""A run's manifest: what its samples are draws of. Whoever goes on with the run must draw from the same."""

import datetime
import json
import platform
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..errors import UserError
from ..sampling.protocol import SamplingParams
from .files import StoreError

FORMAT = 3

# Recorded, and not compared: they do not say what the samples are draws of.
_FREE = frozenset({"versions", "num_samples", "dataset", "created", "sessions", "problems_sha256"})
# Characters of a value in a message.
_LONGEST = 200
_NONE = type(None)
_TYPES: dict[str, tuple[type, ...]] = {
    "format": (int,),
    "dataset_fingerprint": (str,),
    "problems_sha256": (str,),
    "num_problems": (int,),
    "num_samples": (int, _NONE),
    "sampling": (dict,),
    "schedule": (dict,),
    "dataset": (dict,),
    "versions": (dict, _NONE),
    "created": (str, _NONE),
    "sessions": (list,),
}
_REQUIRED = ("format", "dataset_fingerprint", "problems_sha256", "num_problems")


def run_manifest(
    identity: Mapping[str, Any], params: SamplingParams, num_samples: int, dataset: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What a run is draws of. Versions are recorded; everything else must be the same for the run to go on.

    Args:
        identity: What the sampler says of itself; entries whose names end in `version` are versions.
        params: How to sample.
        num_samples: Samples wanted per problem; may be raised later.
        dataset: Where the problems come from; recorded only, because their fingerprint says what they are.

    Returns:
        A mapping that JSON can hold, without passwords in addresses.

    Raises:
        ValueError: The sampler describes itself by a name that the manifest uses itself.
    """
    from .. import __version__

    if taken := sorted(identity.keys() & (_TYPES.keys() | _FREE)):
        raise UserError(
            f"the sampler has {taken} in its identity(), names that the manifest of a run uses itself. Name them "
            "otherwise."
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


def read_manifest(path: Path) -> dict[str, Any]:
    """Read and check a manifest.

    Args:
        path: The file.

    Returns:
        Its content.

    Raises:
        StoreError: It is damaged, or of another format.
    """
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["format"]
        if version == FORMAT:
            _check_types(manifest)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise StoreError(f"{path} is damaged ({_words(error)}); restore it, or sample into a new folder") from error
    if version != FORMAT:
        raise StoreError(
            f"{path.parent} has format {version}, but this version of dco-trl reads format {FORMAT}. Use the version "
            "of dco-trl that wrote it, or sample into a new folder."
        )
    return manifest


def resume_manifest(folder: Path, found: Mapping[str, Any] | None, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest after a start: a new run's, or that of a run that goes on, with one more session.

    Args:
        folder: The run's folder, for the message.
        found: The manifest there; None for a new run.
        asked: What is to be drawn now.

    Returns:
        The manifest to write.

    Raises:
        StoreError: The run there is draws of something else; the message lists each key with both values.
    """
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    session = {"started": now, "versions": asked.get("versions"), "num_samples": asked.get("num_samples")}
    if found is None:
        return {**asked, "created": now, "sessions": [session]}
    refuse_changes(folder, found, asked)
    return {
        **asked,
        "problems_sha256": found["problems_sha256"],
        "created": found.get("created"),
        "num_samples": max(found.get("num_samples") or 0, asked.get("num_samples") or 0),
        "sessions": [*found.get("sessions", []), session],
    }


def jsonable(value: Any) -> Any:
    """The value as it comes back from JSON."""
    return json.loads(to_json(value))


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON of a value; what JSON has no form for becomes a number, a list or text."""
    return json.dumps(value, default=_plain, indent=indent)


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else str(value)


def _check_types(manifest: Mapping[str, Any]) -> None:
    missing = [key for key in _REQUIRED if key not in manifest]
    if missing:
        raise ValueError(f"it has no {missing[0]!r}")
    for key, types in _TYPES.items():
        value = manifest.get(key)
        if key in manifest and (not isinstance(value, types) or isinstance(value, bool)):
            raise ValueError(f"{key!r} should be of type {types[0].__name__}, got {value!r}")
    if not all(isinstance(session, dict) for session in manifest.get("sessions", [])):
        raise ValueError(f"'sessions' should be a list of objects, got {manifest['sessions']!r}")
    SamplingParams(**manifest.get("sampling", {}))


def refuse_changes(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Refuse to draw into a run what is drawn of something else; the message lists each key with both values."""
    before, after = (
        _flat({key: value for key, value in manifest.items() if key not in _FREE}) for manifest in (old, new)
    )
    changes = [
        f"  {key}: the run has {_shown(before.get(key, '(nothing)'))}, now {_shown(after.get(key, '(nothing)'))}"
        for key in sorted(before | after)
        if before.get(key) != after.get(key)
    ]
    if changes:
        raise StoreError(
            f"{folder} holds a run of something else, and samples of the two must not be mixed:\n"
            + "\n".join(changes)
            + "\nUse the run's own values to go on with it, or name another folder. Nothing was changed."
        )


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            value = {str(position): item for position, item in enumerate(value)}
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _without_passwords(value: Any) -> Any:
    """`http://user:password@host` becomes `http://host`, at any depth."""
    if isinstance(value, str):
        return re.sub(r"(?<=://)[^/?#\s]*@", "", value)
    if isinstance(value, Mapping):
        return {key: _without_passwords(item) for key, item in value.items()}
    return [_without_passwords(item) for item in value] if isinstance(value, list | tuple) else value


def _words(error: Exception) -> str:
    return f"it has no {error}" if isinstance(error, KeyError) else str(error)
