"""`dco-trl schedule`: which model, adapter and temperature to sample for attempt 1, 2, 3, …"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..extras import require
from ._common import command, option, print_whole

_MEASURED = "files of `dco-trl coverage`, checkpoints with eval_log_p.parquet, training runs, or graded runs"


@dataclass
class ScheduleConfig:
    """What to plan, and where to write it."""

    num_attempts: int = option("Attempts to plan, for each problem.")
    output: str = option("The .yaml file of the schedule.")
    max_arms: int = option("Sample at most this many arms: each adapter takes memory while it is served.", default=8)
    given_arms: list[str] | None = option(
        "Also compare with each of these arms alone, such as the last checkpoint of each run: the folder of an "
        "adapter or model, with ', T=1.5' for a temperature other than 1.",
        default=None,
    )
    figure: str | None = option("Also draw a picture: .png, .svg or .pdf.", default=None)
    grader: str | None = option("The grader whose verdicts to read, if a run has several.", default=None)


@command("schedule", runs=_MEASURED)
def main(config: ScheduleConfig, paths: list[str]) -> None:
    """Plan which arm (a model with an adapter and a temperature) to sample for attempt 1, 2, 3, …, so that the first k
    attempts are good for every k. The expected values are measured on problems that the plan did not use.
    """
    require("dco-trl schedule", "eval", "matplotlib", "rich", "scipy")
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from ..report.schedule_plot import plot_schedule
    from ..runs.arms import read_arms
    from ..runs.schedule_file import write_schedule
    from ..statistics import cross_fit_schedule, plan_attempts

    measured = read_arms(paths, config.grader)
    counts = {"num_sampled": measured.num_sampled, "num_correct": measured.num_correct}
    data: dict[str, Any] = {"log_p": measured.log_p, **counts}
    names = [arm.name for arm in measured.arms]
    given = [_position(name, names) for name in config.given_arms or []]
    planned = plan_attempts(config.num_attempts, **data, max_arms=config.max_arms)
    ks = _measurable(measured, config.num_attempts)
    expected = cross_fit_schedule(ks, **data, given_arms=given, max_arms=config.max_arms)
    best = _best_arms(measured, ks)

    rows = [_expected_row(i, k, expected, names, best[i], given) for i, k in enumerate(ks)]
    table = Table()
    for title in ("k", "schedule", "best single arm", "which", "difference"):
        table.add_column(title, justify="left" if title == "which" else "right")
    alone = Table(title="The schedule against given arms, each alone", title_justify="left")
    for title in ("k", *(escape(names[arm]) for arm in given)):
        alone.add_column(title, justify="right")
    for row in rows:
        table.add_row(
            f"{row['k']:,}",
            _shown(row["schedule"], row["low"], row["high"]),
            f"{row['best_arm_coverage']:.1%}",
            escape(row["best_arm"]),
            _shown(row["difference"], row["difference_low"], row["difference_high"], "+"),
        )
        rivals = [
            (r["coverage"], _shown(r["difference"], r["low"], r["high"], "+")) for r in row.get("given_arms", [])
        ]
        alone.add_row(f"{row['k']:,}", *(f"{coverage:.1%}, schedule {against}" for coverage, against in rivals))
    console = Console(highlight=False, emoji=False)
    console.print(f"{len(names):,} arms measured on {len(measured.problem_ids):,} problems", soft_wrap=True)
    print_whole(console, table, *[alone] * bool(given))
    for note in _notes(measured, planned, data, ks, config):
        console.print(note, soft_wrap=True)
    written = write_schedule(config.output, planned, measured.arms, rows)
    attempts = written.schedule.counts(planned.num_attempts)
    shares = ", ".join(f"{arm.name}: {n:,}" for arm, n in zip(written.arms, attempts, strict=True))
    console.print(f"attempts of each arm among {planned.num_attempts:,}: {shares}", soft_wrap=True, markup=False)
    console.print(f"written: {config.output}", soft_wrap=True, markup=False)
    if config.figure:
        Path(config.figure).parent.mkdir(parents=True, exist_ok=True)
        plot_schedule(planned, names, expected, given).savefig(config.figure, dpi=150)
        console.print(f"written: {config.figure}", soft_wrap=True, markup=False)


def _position(name: str, names: list[str]) -> int:
    """The arm of that name, with or without a slash at its end."""
    if name.rstrip("/") not in names:
        raise UserError(f"names {name!r}, which is not among the arms: {', '.join(map(repr, names))}", "given_arms")
    return names.index(name.rstrip("/"))


def _expected_row(i: int, k: int, expected: Any, names: list[str], best: int, given: list[int]) -> dict[str, Any]:
    """The expected coverage of k attempts, the i-th of the numbers, for the schedule's file."""
    curve, against = expected.curve, expected.best_arm
    row = {
        "k": k,
        "schedule": float(curve.estimate[i]),
        "low": float(curve.low[i]),
        "high": float(curve.high[i]),
        "best_arm": names[best],
        "best_arm_coverage": float(against.first[i]),
        "difference": float(against.difference[i]),
        "difference_low": float(against.low[i]),
        "difference_high": float(against.high[i]),
    }
    if given:
        row["given_arms"] = [
            {
                "arm": names[arm],
                "coverage": float(rival.first[i]),
                "difference": float(rival.difference[i]),
                "low": float(rival.low[i]),
                "high": float(rival.high[i]),
            }
            for arm, rival in zip(given, expected.given_arms, strict=True)
        ]
    return row


def _shown(value: float, low: float, high: float, sign: str = "") -> str:
    return f"{value:{sign}.1%} [{low:{sign}.1%}, {high:{sign}.1%}]"


def _measurable(measured: Any, num_attempts: int) -> list[int]:
    """Powers of four, and the number of attempts, up to the samples that every arm has."""
    counted = measured.log_p != measured.log_p  # NaN
    most = int(measured.num_sampled[counted].min(initial=num_attempts))
    return sorted({4**i for i in range(most.bit_length()) if 4**i <= most} | {most})


def _best_arms(measured: Any, ks: list[int]) -> list[int]:
    """The arm with the largest coverage on all problems, for each k."""
    import numpy as np

    from ..statistics.arm_coverage import Arms

    arms = Arms(measured.log_p, measured.num_sampled, measured.num_correct)
    alone = np.eye(arms.shape[0], dtype=np.int64)
    return [int(np.argmax([arms.planned_coverage(k * split).mean() for split in alone])) for k in ks]


def _notes(measured: Any, planned: Any, data: dict[str, Any], ks: list[int], config: ScheduleConfig) -> list[str]:
    from ..statistics import plan_attempts

    notes = [
        "Brackets are 95 % intervals over problems. Schedule and best arm were chosen on one half of the problems and "
        'measured on the other, both ways; "which" is the best arm on all problems.'
    ]
    if measured.num_left_out:
        notes.append(f"{measured.num_left_out:,} problems were not measured by every arm and are left out.")
    hopeless = ((measured.log_p == -float("inf")) | ((data["num_sampled"] > 0) & (data["num_correct"] == 0))).all(0)
    if hopeless.any():
        notes.append(f"{hopeless.sum():,} of {hopeless.size:,} problems were solved by no arm; no order helps there.")
    if len({(arm.model, arm.model_fingerprint) for arm in measured.arms}) > 1:
        notes.append(
            "The arms are of several models: `sample`, `eval` and `solve` follow schedules of one model with adapters."
        )
    if ks[-1] < config.num_attempts:
        notes.append(f"Some arm has only {ks[-1]:,} samples of a problem: larger k are planned but not measured.")
    if config.max_arms < len(measured.arms):
        everything = plan_attempts(config.num_attempts, **data)
        num_used, num_useful = (len(set(order.arm.tolist())) for order in (planned, everything))
        if num_used < num_useful:
            loss = everything.coverage - planned.coverage
            notes.append(
                f"{num_used} of {num_useful} useful arms are kept (--max-arms). All of them would cover "
                f"{max(loss.max(), 0):.2%} more at most, at k = {planned.k[loss.argmax()]:,}, on the problems planned "
                "on."
            )
    return notes
