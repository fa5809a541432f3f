"""What the demonstration prints: coverage by epoch, and pass@256 by seed."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from .findings import COMPARED_AT, by_num_attempts, coverage_at, run_name

TABLE_K = (1, 16, 256, 4096)
# Wide enough for "@4096", and for "12.3*"; three runs fit into 80 columns.
_WIDTHS = (4, 4, 5, 5)


def coverage_table(runs: Sequence[dict[str, Any]]) -> Table:
    """Rows are epochs, about ten and each run's best; columns are pass@k in per cent. Seeds are averaged."""
    epochs = runs[0]["epochs"]
    step = max(1, len(epochs) // 10)
    shown = {0, len(epochs) - 1, *range(step - 1, len(epochs), step)}
    heads = " ".join(f"@{k}".rjust(width) for k, width in zip(TABLE_K, _WIDTHS, strict=True))
    table = _plain_table("\nepoch")
    columns = []
    for n, same in by_num_attempts(runs).items():
        means = np.mean([[coverage_at(run, k) for k in TABLE_K] for run in same], axis=0)  # (k, epochs)
        best = int(np.argmax(means[TABLE_K.index(COMPARED_AT)]))
        shown.add(best)
        table.add_column(Text(f"{run_name(n)}\n{heads}", no_wrap=True), no_wrap=True)
        columns.append([_row(values, i == best) for i, values in enumerate(means.T)])
    for i in sorted(shown):
        table.add_row(str(epochs[i]), *(column[i] for column in columns))
    return table


def _row(values: np.ndarray, is_best: bool) -> Text:
    row = Text(no_wrap=True)
    for k, width, value in zip(TABLE_K, _WIDTHS, values, strict=True):
        is_starred = k == COMPARED_AT
        star = ("*" if is_best else " ") if is_starred else ""
        row.append(f"{percent(value).rjust(width - is_starred)}{star} ", "bold" if is_starred and is_best else "")
    return row


def percent(share: float) -> str:
    """Per cent with one decimal, in at most four characters."""
    return "100" if share >= 0.9995 else f"{100 * share:.1f}"


def seeds_table(seeds: Sequence[dict[str, Any]]) -> Table:
    """One row per seed: pass@256 of cross-entropy at its best and its last epoch, and of DCO at its last."""
    dco = run_name(seeds[0]["dco_num_attempts"])
    heads = ("CE best\n(epoch)", "CE last", "fall", f"{dco}\nlast", "above\nCE best", "above\nCE last")
    table = _plain_table("seed", *heads, "CE pass@1\nbest to last", title="pass@256, %, seed by seed")
    for seed in seeds:
        table.add_row(
            str(seed["seed"]),
            f"{percent(seed['ce_pass@256_best'])} ({seed['ce_best_epoch']})",
            percent(seed["ce_pass@256_end"]),
            f"{seed['ce_falls_by']:.0%}",
            percent(seed["dco_pass@256_end"]),
            f"{seed['dco_above_ce_best_by']:+.0%}",
            f"{seed['dco_above_ce_end_by']:+.0%}",
            f"{percent(seed['ce_pass@1_at_best'])} to {percent(seed['ce_pass@1_end'])}",
        )
    return table


def schedule_table(seeds: Sequence[dict[str, Any]]) -> Table:
    """Two rows, means over seeds: coverage of the best epoch of all runs for each k, and of one schedule over all."""
    rows = [seed["schedule"] for seed in seeds]
    table = _plain_table("pass@k, %, epochs of all runs", *(f"@{k}" for k in rows[0]["k"]))
    table.columns[0].justify = "left"
    for name, key in (("the best one, for each k", "best_epoch"), ("one schedule over all", "coverage")):
        table.add_row(name, *map(percent, np.mean([row[key] for row in rows], axis=0)))
    return table


def _plain_table(*heads: str, title: str | None = None) -> Table:
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold", title=title)
    for head in heads:
        table.add_column(head, justify="right")
    return table
