"""The report of a run along a schedule: pass@k of its first attempts, and each arm alone."""

import dataclasses
import io
import json

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.text import Text
from rich.console import Console
from test_report import problem, run

from dco_trl.report import print_report, summarise, tables, write_report
from dco_trl.report.plots import plot_coverage
from dco_trl.report.schedule_plot import plot_schedule
from dco_trl.report.styles import PALETTE, SCHEDULE
from dco_trl.runs.arm import Arm
from dco_trl.runs.schedule_file import ArmSchedule
from dco_trl.statistics import AttemptOrder, cross_fit_schedule, pass_at_k, plan_attempts, scheduled_pass_at_k

# 8 attempts: one of arm 0, three of arm 1, two of arm 0, two of arm 1.
BLOCKS, ATTEMPTS = [0, 1, 0, 1], [1, 3, 2, 2]


def schedule(blocks=BLOCKS, attempts=ATTEMPTS, names=("runs/ce", "runs/<b>dco</b>")):
    nothing = np.array([])
    order = AttemptOrder(np.array(blocks), np.array(attempts), len(names), nothing, nothing, nothing)
    return ArmSchedule(order, tuple(Arm("m", name) for name in names))


def scheduled_run(correct, num_samples=(3, 5), name="scheduled", **changes):
    """`correct` holds the number of correct samples of each arm for each problem."""
    problems = tuple(
        dataclasses.replace(
            problem(f"p{i}", sum(c), sum(num_samples), **changes),
            by_arm=tuple(zip(num_samples, c, strict=True)),
        )
        for i, c in enumerate(correct)
    )
    return dataclasses.replace(run(name), problems=problems, schedule=schedule())


CORRECT = [(0, 1), (3, 0), (1, 1), (0, 0), (2, 4), (0, 2)] * 2


def test_pass_at_k_is_that_of_the_first_attempts():
    (got,) = summarise([scheduled_run(CORRECT)], k=(1, 4, 8, 16)).runs
    n, c = np.array([[3] * 12, [5] * 12]), np.array(CORRECT).T
    values = scheduled_pass_at_k(schedule().schedule, [1, 4, 8], num_sampled=n, num_correct=c)
    assert [entry.estimate for entry in got.pass_at_k] == pytest.approx(values.mean(axis=0))
    assert all(entry.low <= entry.estimate <= entry.high for entry in got.pass_at_k)
    # By hand: the first attempt is of arm 0, which has three samples, c of them right.
    assert got.pass_at_k[0].estimate == pytest.approx(np.mean([c[0] / 3 for c in CORRECT]))
    assert [entry.k for entry in got.left_out] == [16] and got.left_out[0].fewest == 8
    assert got.majority_at_k == [] and got.never_solved["count"] == 2


def test_a_run_without_its_first_attempts_is_refused():
    with pytest.raises(ValueError, match=r"12 of 12 problems \('p0'\) have no sample of the schedule's first attempt"):
        summarise([scheduled_run([(0, 2)] * 12, num_samples=(0, 5))], k=(1, 4))


def test_each_arm_alone_as_far_as_its_samples_reach():
    (got,) = summarise([scheduled_run(CORRECT)], k=(1, 4, 8)).runs
    arms = [(arm.name, arm.num_samples["min"], arm.curve[-1].k) for arm in got.arms]
    assert arms == [("runs/ce", 3, 3), ("runs/<b>dco</b>", 5, 5)]
    for j, (arm, n) in enumerate(zip(got.arms, (3, 5), strict=True)):
        for entry in arm.curve:
            assert entry.estimate == pytest.approx(pass_at_k(n, [c[j] for c in CORRECT], entry.k).mean())


def test_a_schedule_of_one_arm_is_a_run_of_one_arm():
    one = run(counts=(0, 3, 8, 16, 1), name="one")
    problems = tuple(dataclasses.replace(p, by_arm=((16, p.num_correct),)) for p in one.problems)
    along = dataclasses.replace(one, name="along", problems=problems, schedule=schedule([0], [4], ["m"]))
    first, second = summarise([one, along], k=(1, 4, 16)).runs
    assert first.pass_at_k == second.pass_at_k and first.curve == second.curve
    assert [(e.k, e.estimate) for e in second.arms[0].curve] == [(e.k, e.estimate) for e in second.curve]


def test_samples_that_are_not_the_first_reach_as_far_as_the_first_gap():
    # 2 + 6 samples: attempts 1 to 5 need two of arm 0 and three of arm 1; attempt 6 a third of arm 0.
    result = scheduled_run(CORRECT, (3, 5))
    short = dataclasses.replace(problem("p0", 1, 8), by_arm=((2, 1), (6, 0)))
    result = dataclasses.replace(result, problems=(short, *result.problems[1:]))
    (got,) = summarise([result], k=(4, 8)).runs
    (entry,) = got.left_out
    assert (entry.k, entry.problems_short, entry.fewest, entry.problem_id) == (8, 1, 5, "p0")
    assert got.curve[-1].k == 5


def test_a_schedule_is_compared_with_a_run_of_one_arm_pair_by_pair():
    along = scheduled_run(CORRECT)
    counts = [sum(c) for c in CORRECT]
    one = run("one", counts, num_samples=8)
    one = dataclasses.replace(one, problems=one.problems[::-1])
    summary = summarise([one, along], k=(1, 4))
    (comparison,) = summary.groups[0].comparisons
    first, second = summary.runs
    for row, a, b in zip(comparison.pass_at_k, first.pass_at_k, second.pass_at_k, strict=True):
        assert row.difference == pytest.approx(b.estimate - a.estimate)
    # The difference is paired: a run against itself differs by 0 with a narrow interval.
    (comparison,) = summarise([along, dataclasses.replace(along, name="again")], k=(4,)).groups[0].comparisons
    assert comparison.pass_at_k[0].difference == 0 and comparison.pass_at_k[0].low == pytest.approx(0, abs=0.25)


@pytest.mark.slow
def test_arms_stand_in_the_tables_the_picture_and_the_files_as_text(tmp_path):
    results = [scheduled_run(CORRECT), run("one", [sum(c) for c in CORRECT], num_samples=8)]
    report = write_report(results, tmp_path, k=(1, 4))
    _, _, arms = tables.tables(report.summary, report.summary.groups[0])
    assert arms.title == "scheduled: each arm of the schedule, alone"
    assert arms.header == ["", "samples per problem", "pass@1", "pass@4"]
    assert arms.rows[0][:2] == ["runs/ce", "3"] and arms.rows[0][3] == "–" and arms.rows[1][3].endswith("%")
    markdown, html = report.markdown.read_text(), report.html.read_text()
    assert "scheduled: each arm of the schedule, alone" in markdown and "runs/\\<b\\>dco" in markdown
    assert "<b>dco</b>" not in html and "runs/&lt;b&gt;dco" in html
    assert "pass@k of the first k attempts along its schedule of 2 arms" in markdown
    numbers = json.loads(report.json.read_text())["runs"]
    assert [arm["name"] for arm in numbers[0]["arms"]] == ["runs/ce", "runs/<b>dco</b>"] and numbers[1]["arms"] == []
    console = Console(file=io.StringIO(), width=200)
    print_report(report.summary, console)
    assert "each arm of the schedule, alone" in console.file.getvalue()
    axes = plot_coverage(report.summary.runs).axes[0]
    thin = [line for line in axes.lines if line.get_linewidth() < 1 and len(line.get_xdata())]
    assert [line.get_xdata()[-1] for line in thin] == [3, 5]
    assert "an arm of the schedule, alone" in [text.get_text() for text in axes.get_legend().get_texts()]


@pytest.mark.slow
def test_a_run_of_one_arm_says_nothing_of_schedules(tmp_path):
    report = write_report([run()], tmp_path, k=(1, 4))
    assert "schedule" not in report.html.read_text().split("<script")[0] + report.markdown.read_text()


def test_the_picture_of_a_schedule_shows_it_in_its_own_colour_and_every_given_arm():
    log_p = np.log(np.random.default_rng(0).beta(0.3, 1, size=(3, 40)))
    expected = cross_fit_schedule([1, 4, 16], log_p=log_p, given_arms=[2])
    left, right = plot_schedule(plan_attempts(16, log_p=log_p), ["a", "b", "_c"], expected, [2]).axes
    lines = {line.get_label(): line for line in left.lines}
    assert lines["schedule"].get_color() == SCHEDULE and lines["\u200b_c"].get_color() == PALETTE[2]
    np.testing.assert_array_equal(lines["schedule"].get_ydata(), expected.curve.estimate)
    np.testing.assert_array_equal(lines["\u200b_c"].get_ydata(), expected.given_arms[0].first)
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["a", "b", "\u200b_c"]
    assert to_hex(right.collections[2].get_facecolor()[0]).upper() == PALETTE[2]  # one colour an arm


@pytest.mark.parametrize("num_arms", [2, 20])
def test_the_picture_of_a_schedule_is_readable_at_the_width_of_a_page(num_arms):
    log_p = np.log(np.random.default_rng(0).beta(0.3, 1, size=(num_arms, 40)))
    names = [f"runs/cross-entropy/checkpoint-{i}" for i in range(num_arms)]
    figure = plot_schedule(
        plan_attempts(256, log_p=log_p), names, cross_fit_schedule([1, 256], log_p=log_p, given_arms=[0]), [0]
    )
    figure.draw_without_rendering()
    assert figure.get_figwidth() <= 8.8
    assert min(text.get_fontsize() for text in figure.findobj(Text) if text.get_text()) >= 9
    for axes in figure.axes:
        legend, panel = axes.get_legend(), axes.get_window_extent()
        assert not legend.get_window_extent().overlaps(panel) and panel.height > 0.5 * panel.width
        for text in legend.get_texts():
            ends = text.get_window_extent().get_points()
            assert (ends >= 0).all() and (ends <= figure.bbox.p1).all()
