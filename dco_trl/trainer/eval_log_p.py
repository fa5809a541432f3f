"""Every evaluation row's log p, kept beside the checkpoint that was evaluated."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import PartialState
from datasets import Dataset

from ..problem import EVAL_LOG_P_NAME, EVAL_ROWS_KEY
from .collator import ROW

# What tells one problem from another.
_CONTENT = ("prompt", "completion", "messages", "text", "input_ids", "tools", "chat_template_kwargs")


class EvalLogP:
    """Writes `eval_log_p.parquet` into each checkpoint of a step that was evaluated.

    Columns: `arm` (the checkpoint), `dataset` (name of the evaluation set; empty if there is one), `row` (row of that
    set as it was given, int64) and `log_p` (nats, float64), sorted by row. Packed evaluation has no rows, and no file.
    The file's metadata hold each set's `rows_fingerprint` by its name: row numbers of another set mean other problems.
    """

    def __init__(self) -> None:
        self.fingerprints: dict[str, str] = {}
        self._step = -1
        self._of_dataset: dict[str, tuple[torch.Tensor, str | None]] = {}

    def keep(self, step: int, dataset: str, rows_and_log_p: torch.Tensor) -> None:
        """Keep the rows and log p of an evaluation, `(rows, 2)`, until the checkpoint of this step is saved."""
        if step != self._step:
            self._step, self._of_dataset = step, {}
        self._of_dataset[dataset] = rows_and_log_p, self.fingerprints.get(dataset)

    def write(self, checkpoint: Path, step: int) -> None:
        """Write, if this very step was evaluated."""
        if self._step != step or not self._of_dataset:
            return
        tables, known = [], dict[str, str]()
        for dataset, (found, fingerprint) in self._of_dataset.items():
            row, log_p = found[found[:, 0].argsort()].T.numpy()
            names = {"arm": [checkpoint.name] * len(row), "dataset": [dataset] * len(row)}
            tables.append(pa.table({**names, "row": row.astype(np.int64), "log_p": log_p}))
            known |= {} if fingerprint is None else {dataset: fingerprint}
        table = pa.concat_tables(tables).replace_schema_metadata({EVAL_ROWS_KEY: json.dumps(known)})
        unfinished = checkpoint / f".{EVAL_LOG_P_NAME}.tmp"
        pq.write_table(table, unfinished)
        unfinished.replace(checkpoint / EVAL_LOG_P_NAME)


def numbered(dataset: Any, name: str, log: EvalLogP) -> Any:
    """Number the rows of an evaluation set. The main process, which writes, notes the set's fingerprint."""
    if not isinstance(dataset, Dataset) or ROW in dataset.column_names:
        return dataset
    if PartialState().is_main_process:
        log.fingerprints[name] = rows_fingerprint(dataset)
    return dataset.add_column(ROW, np.arange(len(dataset)))


def rows_fingerprint(dataset: Dataset) -> str:
    """Hash of a data set's texts, conversations or tokens: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    columns = dataset.select_columns([name for name in _CONTENT if name in dataset.column_names])
    for batch in columns.with_format("arrow").iter(1000):
        for row in batch.to_pylist():
            digest.update(json.dumps(row, sort_keys=True, default=lambda _: None).encode())  # an image has no text
    return digest.hexdigest()[:16]
