"""Folders and options in a sampler's identity, so that a run's manifest notices when they change."""

import hashlib
import json
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

_WHOLE = 64 * 2**20  # bytes: smaller files are read in full
_PROBES = 64
_PROBE_SIZE = 64 * 2**10
_SUFFIXES = {".safetensors", ".bin", ".gguf", ".json", ".jinja", ".model", ".txt"}
_OF_TRAINING = {"training_args.bin", "trainer_state.json"}  # these name folders, and no sample depends on them


def folder_fingerprint(folder: str | Path) -> str:
    """Hash of a folder's weights, configuration and tokenizer files, 16 hexadecimal digits.

    Files under 64 MiB are hashed in full, larger ones by their size and 64 evenly spaced probes of 64 KiB: training
    moves every weight, so two checkpoints differ at the probes, and an 8B model takes milliseconds instead of minutes.
    The hash stays the same when a folder is moved, and when an adapter's base model is moved.
    """
    digest = hashlib.sha256()
    for path in sorted(Path(folder).resolve().iterdir()):
        if path.suffix not in _SUFFIXES or path.name in _OF_TRAINING or not path.is_file():
            continue
        size = path.stat().st_size
        if size <= _WHOLE:
            content = _content(path)
            digest.update(f"{path.name}\0{len(content)}\0".encode() + content)
            continue
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            for probe in range(_PROBES):
                file.seek((size - _PROBE_SIZE) * probe // (_PROBES - 1))
                digest.update(file.read(_PROBE_SIZE))
    return digest.hexdigest()[:16]


def _content(path: Path) -> bytes:
    """A file's bytes; an adapter's configuration without the folder of its base model, which has its own hash."""
    content = path.read_bytes()
    if path.name == "adapter_config.json":
        with suppress(ValueError, RecursionError):  # a damaged file is reported when it is loaded
            config = json.loads(content)
            if isinstance(config, dict):
                config.pop("base_model_name_or_path", None)
                content = json.dumps(config, sort_keys=True).encode()
    return content


def describe(name: str, path: str | None) -> dict[str, str]:
    """Identity entries of a model or adapter: its name, and its fingerprint if it is a local folder."""
    entries = {name: path or ""}
    if path and Path(path).is_dir():
        entries[f"{name}_fingerprint"] = folder_fingerprint(path)
    return entries


def describe_options(name: str, options: Mapping[str, Any], harmless: Collection[str] = ()) -> dict[str, Any]:
    """Identity entry of options that may change the distribution: all but the harmless ones; empty if none is left.

    Only options known to be harmless are left out, so that no option of a later version of the library is missed.
    """

    def plain(value: Any) -> Any:
        return value.to_dict() if hasattr(value, "to_dict") else str(value)

    counted = {key: value for key, value in options.items() if key not in harmless and value is not None}
    return {name: json.loads(json.dumps(counted, default=plain))} if counted else {}
