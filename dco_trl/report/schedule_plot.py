"""The picture of a schedule: its coverage against k, and the share of attempts of each arm."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from ..statistics import AttemptOrder, CrossFittedSchedule, default_ks
from .styles import PALETTE, SCHEDULE, coverage_axes, plain_text


def plot_schedule(
    schedule: AttemptOrder, names: Sequence[str], expected: CrossFittedSchedule, given_arms: Sequence[int] = ()
) -> Figure:
    """Plot coverage against k, with the best single arm and an equal split, and each arm's share of k attempts.

    Args:
        schedule: The schedule planned on all problems.
        names: The names of its arms.
        expected: The coverage of such a schedule on problems that the plan did not use.
        given_arms: The arms that `expected` compares with, each alone; counted from 0.
    """
    attempts = default_ks(schedule.num_attempts)
    shares = schedule.counts(attempts) / attempts[:, None]
    sampled = np.flatnonzero(shares.any(axis=0))
    # GitHub would shrink a wider picture, letters included. The legends lie below, one line per entry.
    lines = max(3 + len(given_arms), len(sampled))
    figure = Figure(figsize=(8.8, 3.8 + 0.22 * lines), layout="constrained")
    left, right = figure.subplots(1, 2)
    ks = expected.curve.k
    left.fill_between(ks, expected.curve.low, expected.curve.high, color=SCHEDULE, alpha=0.15, linewidth=0)
    curves = (
        ("schedule", expected.curve.estimate, SCHEDULE, "-"),
        ("best single arm, chosen for each k", expected.best_arm.first, "0.45", "--"),
        ("equal split over all arms", expected.equal_split.first, "0.45", ":"),
    )
    for label, values, colour, line in curves:
        left.plot(ks, values, color=colour, linestyle=line, linewidth=1.8, label=label)
    for arm, rival in zip(given_arms, expected.given_arms, strict=True):
        left.plot(ks, rival.first, color=PALETTE[arm % len(PALETTE)], linewidth=0.9, label=plain_text(names[arm]))
    coverage_axes(left, int(ks.max()), "coverage of held-out problems")

    layers = right.stackplot(attempts, *shares[:, sampled].T, labels=[plain_text(names[arm]) for arm in sampled])
    for arm, layer in zip(sampled, layers, strict=True):
        layer.set_facecolor(PALETTE[arm % len(PALETTE)])
        layer.set_edgecolor("white")
        layer.set_hatch(("", "///", "...", "xx")[arm // len(PALETTE) % 4])
    coverage_axes(right, schedule.num_attempts, "share of the first k attempts")
    for axes in (left, right):
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, -0.14), borderaxespad=0)
    return figure
