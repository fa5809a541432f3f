"""What the demonstration prints: the table, and the sentences under it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from .run import CE_FALLS_BY, COMPARED_AT, DCO_ABOVE_BEST_BY, DCO_ABOVE_END_BY, coverage_at, run_name

TABLE_K = (1, 16, 256, 4096)
# Wide enough for "@4096", and for "12.3*"; three runs fit into 80 columns.
_WIDTHS = (4, 4, 5, 5)


def coverage_table(runs: Sequence[dict[str, Any]]) -> Table:
    """Rows are epochs, about ten and each run's best; columns are each run's pass@1/16/256/4096, in per cent.

    Args:
        runs: Records of `train_run`. Over several seeds, values are means.

    Returns:
        A table for rich to print. `*` marks each run's best pass@256.
    """
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold")
    table.add_column("\nepoch", justify="right")
    names = sorted({run["num_attempts"] for run in runs})
    epochs = runs[0]["epochs"]
    step = max(1, len(epochs) // 10)
    shown = {0, len(epochs) - 1, *range(step - 1, len(epochs), step)}
    columns = []
    for n in names:
        same = [run for run in runs if run["num_attempts"] == n]
        means = {k: np.mean([coverage_at(run, k) for run in same], axis=0) for k in TABLE_K}
        best = int(np.argmax(means[COMPARED_AT]))
        heads = " ".join(f"@{k}".rjust(width) for k, width in zip(TABLE_K, _WIDTHS, strict=True))
        table.add_column(Text(f"{run_name(n)}\n{heads}", no_wrap=True), no_wrap=True)
        columns.append([_row(means, i, i == best) for i in range(len(means[1]))])
        shown.add(best)
    for i in sorted(shown):
        table.add_row(str(epochs[i]), *(column[i] for column in columns))
    return table


def _row(means: dict[int, np.ndarray], index: int, is_best: bool) -> Text:
    row = Text(no_wrap=True)
    for k, width in zip(TABLE_K, _WIDTHS, strict=True):
        star = k == COMPARED_AT
        value = percent(means[k][index]).rjust(width - star) + ("*" if star and is_best else " " if star else "")
        row.append(value, style="bold" if star and is_best else "")
        row.append(" ")
    return row


def percent(share: float) -> str:
    """Per cent with one decimal, in at most four characters."""
    return "100" if share >= 0.9995 else f"{100 * share:.1f}"


def sentences(results: dict[str, Any]) -> list[str]:
    """Say what the runs show, or fail to show, in words and numbers.

    Args:
        results: What `run_demo` returned.

    Returns:
        One sentence a finding.
    """
    seeds = results["summary"]
    lines = [_one_seed(seeds[0])] if len(seeds) == 1 else [_all_seeds(seeds)]
    runs = [run for run in results["runs"] if run["seed"] == seeds[0]["seed"]]
    run = next(run for run in runs if run["num_attempts"] == seeds[0]["dco_num_attempts"])
    check = run["check"]
    lines.append(
        f"Check by real sampling ({run_name(run['num_attempts'])}, {check['samples']:,} samples): pass@{check['k']} = "
        f"{check['sampled']:.2%} ± {check['standard_error']:.2%}; exact: {check['exact']:.2%}."
    )
    return lines


def _one_seed(seed: dict[str, Any]) -> str:
    fall, rises = seed["ce_falls_by"], seed["ce_pass@1_end"] > seed["ce_pass@1_at_best"]
    ce = (
        f"Cross-entropy: pass@256 is best at epoch {seed['ce_best_epoch']} ({seed['ce_pass@256_best']:.1%}) and ends "
        f"at {seed['ce_pass@256_end']:.1%}, {fall:.0%} lower"
        f"{', while' if rises else '.'}"
    )
    if rises:
        ce += f" pass@1 rises from {seed['ce_pass@1_at_best']:.1%} to {seed['ce_pass@1_end']:.1%}."
    dco = (
        f"{run_name(seed['dco_num_attempts'])}: pass@256 ends at {seed['dco_pass@256_end']:.1%}: "
        f"{_relative(seed['dco_above_ce_best_by'])} cross-entropy's best epoch, "
        f"{_relative(seed['dco_above_ce_end_by'])} its end."
    )
    shown = "This is the shape of the paper's Table 1." if all(seed["shown"].values()) else _not_shown(seed)
    return f"{ce}\n{dco}\n{shown}"


def _relative(change: float) -> str:
    return f"{abs(change):.0%} {'above' if change >= 0 else 'below'}"


def _not_shown(seed: dict[str, Any]) -> str:
    wanted = {
        "ce_falls_while_pass@1_rises": f"cross-entropy's pass@256 falls by {CE_FALLS_BY:.0%} while its pass@1 rises",
        "dco_above_ce_best": f"DCO ends {DCO_ABOVE_BEST_BY:.0%} above cross-entropy's best epoch",
        "dco_above_ce_end": f"DCO ends {DCO_ABOVE_END_BY:.0%} above cross-entropy's end",
    }
    missing = "; ".join(wanted[name] for name, shown in seed["shown"].items() if not shown)
    return f"Short of what this demonstration aims for: {missing}."


def _all_seeds(seeds: Sequence[dict[str, Any]]) -> str:
    shown = sum(all(seed["shown"].values()) for seed in seeds)
    return (
        f"The shape of the paper's Table 1 is there for {shown} of {len(seeds)} seeds. The table above is their mean."
    )


def seeds_table(seeds: Sequence[dict[str, Any]]) -> Table:
    """One row a seed: pass@256 of cross-entropy at its best epoch and at its end, and of DCO at its end.

    Args:
        seeds: The `summary` of `run_demo`.

    Returns:
        A table for rich to print.
    """
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold", title="pass@256, %, seed by seed")
    dco = run_name(seeds[0]["dco_num_attempts"])
    for head in ("seed", "CE best\n(epoch)", "CE end", "fall", f"{dco}\nend", "above\nCE best", "above\nCE end"):
        table.add_column(head, justify="right")
    table.add_column("CE pass@1\nbest to end", justify="right")
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
