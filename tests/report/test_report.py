"""The report's numbers equal the estimators'; what it leaves out, warns about and writes."""

import dataclasses
import io
import json
from xml.etree import ElementTree

import matplotlib.colors
import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure
from rich.console import Console

from dco_trl.grading.code_sandbox import unconfinable
from dco_trl.report import page, print_report, summarise, tables, write_report
from dco_trl.report.compute import curve_points
from dco_trl.report.plots import count_success_rates, plot_confidence, plot_coverage, plot_success
from dco_trl.report.styles import PALETTE, method_style, svg_text, title_strip
from dco_trl.report.summary import Difference, Estimate, LeftOut
from dco_trl.runs import Problem, RunStore, grade_run, load_results
from dco_trl.runs.results import AnswerCount, ProblemResult, RunResult
from dco_trl.statistics import at_least_m_of_k, majority_at_k, pass_at_k


def problem(name, num_correct, num_samples=16, wrong="7", **changes):
    answers = [
        AnswerCount("42", num_correct, True, "graded"),
        AnswerCount(wrong, num_samples - num_correct, False, "graded"),
    ]
    answers = tuple(sorted((a for a in answers if a.count), key=lambda a: -a.count))
    examples = ((0, "It is 42.", True), (1, "It is 7.", False))
    usual = ProblemResult(name, f"prompt of {name}", "42", num_samples, num_correct, 1, answers, examples)
    return dataclasses.replace(usual, **changes)


def run(name="ce", counts=(0, 3, 8, 16, 1), grader="math", **changes):
    problems = tuple(problem(f"p{i}", c, **changes) for i, c in enumerate(counts))
    return RunResult(name, {"model": "m", "sampling": {"temperature": 1.0}}, grader, problems)


def damaged(**changes):
    return RunResult("ce", {}, "math", (dataclasses.replace(problem("p0", 0), **changes),))


def test_numbers_are_the_estimators():
    (got,) = summarise([run()], k=(1, 4, 16, 64)).runs
    for entry in got.pass_at_k:
        assert entry.estimate == pytest.approx(pass_at_k(16, [0, 3, 8, 16, 1], entry.k).mean())
        assert entry.low <= entry.estimate <= entry.high
    votes = [majority_at_k([c, 16 - c], [True, False], [4])[0] for c in (0, 3, 8, 16, 1)]
    assert got.majority_at_k[1].estimate == pytest.approx(np.mean(votes))
    halves = {(entry.num_required, entry.k): entry.estimate for entry in got.at_least_m_of_k}
    assert halves.keys() == {(3, 4), (9, 16)} and halves[9, 16] == pytest.approx(1 / 5)
    assert halves[3, 4] == pytest.approx(at_least_m_of_k(16, [0, 3, 8, 16, 1], 4, 3).mean())
    assert "at least 3 of 4" in tables.markdown(summarise([run()], k=(1, 4, 16)))
    assert got.never_solved["count"] == 1
    assert got.samples == {"total": 80, "correct": 28, "truncated": 5, "unparsed": 0, "timeout": 0, "error": 0}
    assert got.num_samples == {"min": 16, "max": 16}
    assert [p.confidence for p in got.problems] == [1, 13 / 16, 0.5, 1, 15 / 16]


def test_k_above_the_fewest_samples_is_left_out_and_noted():
    short = dataclasses.replace(run(), problems=(*run().problems, problem("short", 2, num_samples=5)))
    summary = summarise([short], k=(1, 4, 16))
    assert [entry.k for entry in summary.runs[0].pass_at_k] == [1, 4]
    assert max(entry.k for entry in summary.runs[0].curve) == 5
    (left_out,) = summary.runs[0].left_out
    assert left_out == LeftOut(k=16, problems_short=1, fewest=5, problem_id="short")
    _, note = tables.notes(summary, summary.runs)
    assert "pass@16 left out" in note and "fewest: 5, problem 'short'" in note
    (nothing,) = summarise([short], k=(64,)).runs  # the curve is drawn all the same
    assert not nothing.pass_at_k and not nothing.majority_at_k and nothing.curve == summary.runs[0].curve


def test_answers_that_nobody_gave_do_not_vote_and_are_no_top_answer():
    silent = problem("p0", 4, answers=(AnswerCount("", 12, False, "unparsed"), AnswerCount("42", 4, True, "graded")))
    (got,) = summarise([RunResult("ce", {}, "math", (silent,))], k=(16,)).runs
    assert (got.problems[0].top_answer, got.problems[0].top_count, got.problems[0].num_distinct) == ("42", 4, 2)
    assert got.majority_at_k[0].estimate == 1.0
    assert got.samples["unparsed"] == 12


@pytest.mark.skipif(unconfinable() is not None, reason="this kernel cannot confine programs")
def test_programs_vote_by_their_text(tmp_path):
    programs = ["```python\nx = 1\n```"] * 3 + ["x = 1.0", "x = 2"]
    with RunStore.writing(
        tmp_path, {"model": "m"}, [Problem("a", "p", "", {"test_list": ["assert x == 1"]})]
    ) as store:
        store.write_samples([("a", i, text, 2, "stop") for i, text in enumerate(programs)])
    grade_run(tmp_path, "code", progress=False)
    (got,) = summarise([load_results(tmp_path)], k=(5,)).runs
    assert (got.problems[0].top_answer, got.problems[0].top_count) == ("x = 1", 3)
    assert got.majority_at_k[-1].estimate == 1.0


def test_one_answer_judged_both_ways_is_one_pile():
    answers = tuple(AnswerCount(*row, "graded") for row in (("7", 7, False), ("42", 5, True), ("42", 4, False)))
    (got,) = summarise([RunResult("ce", {}, "f", (problem("p0", 5, answers=answers),))], k=(16,)).runs
    top = got.problems[0]
    assert (top.top_answer, top.top_count, top.top_correct, top.num_distinct) == ("42", 9, True, 2)
    assert got.majority_at_k[-1].estimate == pytest.approx(5 / 9)


def test_runs_on_the_same_problems_are_compared_whatever_their_order():
    second = run("dco", (1, 5, 8, 9, 2))
    second = dataclasses.replace(second, problems=second.problems[::-1])
    (group,) = summarise([run(), second], k=(1, 16)).groups
    (comparison,) = group.comparisons
    assert (comparison.baseline, comparison.run) == ("ce", "dco")
    assert comparison.pass_at_k[0].difference == pytest.approx((25 - 28) / 80)


@pytest.mark.slow
def test_bold_differences_are_those_whose_interval_leaves_out_zero(tmp_path):
    results = [run(counts=(8,) * 30), run("up", (12,) * 30), run("down", (1,) * 30), run("same", (7, 9) * 15)]
    report = write_report(results, tmp_path, k=(1,))
    (group,) = report.summary.groups
    assert page.clear_cells(group) == {("pass@1", 1), ("pass@1", 2)}
    assert report.html.read_text().count('class="number clear"') == 2


@pytest.mark.slow
def test_unequal_problems_are_reported_apart_and_unequal_graders_warned_of(tmp_path):
    other = run("other", (1, 2), grader="exact")
    summary = write_report([run(), run("dco"), other], tmp_path, k=(1, 4)).summary
    assert [group.runs for group in summary.groups] == [[0, 1], [2]]
    assert [len(group.comparisons) for group in summary.groups] == [1, 0]
    same, grader = summary.warnings
    assert "not on the same problems" in same and "ce, dco (5 problems); other (2 problems)" in same
    assert "different graders (ce: math, dco: math, other: exact)" in grader
    assert (tmp_path / "coverage-1.png").exists() and (tmp_path / "success-2.svg").exists()


def test_same_ids_with_other_references_are_other_problems_and_different_prompts_are_warned_of():
    assert len(summarise([run(), run("dco", reference="43")], k=(1,)).groups) == 2
    assert "different prompts for 5 of them" in summarise([run(), run("dco", prompt="x")], k=(1,)).warnings[0]


def test_a_run_that_solved_nothing_may_have_been_unlucky():
    (got,) = summarise([run(counts=(0, 0, 0))], k=(1, 64)).runs
    assert got.pass_at_k[0].estimate == 0.0 < got.pass_at_k[0].high


@pytest.mark.slow
def test_one_problem_with_one_sample(tmp_path):
    report = write_report([run(counts=(1,), num_samples=1)], tmp_path)
    assert [entry.k for entry in report.summary.runs[0].pass_at_k] == [1]


@pytest.mark.parametrize(
    ("results", "k", "message"),
    [
        ([], (1,), "results: got no run"),
        ([run(), run()], (1,), "two runs are named 'ce'.*dataclasses.replace"),
        ([run(counts=())], (1,), "results: run 'ce' has no problems, so there is nothing to report; sample first"),
        (
            [RunResult("ce", {}, "math", (problem("a", 1), problem("a", 2)))],
            (1,),
            "run 'ce' has problem 'a' twice, and each counts once; remove one",
        ),
        (
            [run(counts=(0,), num_samples=0)],
            (1,),
            "problem 'p0' of run 'ce' has no samples, so no pass@k, .*; finish sampling",
        ),
        (
            [damaged(num_correct=17)],
            (1,),
            "problem 'p0' of run 'ce' has 16 samples, 17 of them correct, and 16 answers, 0 of them correct; grade",
        ),
        ([damaged(answers=())], (1,), "has 16 samples, 0 of them correct, and 0 answers"),
        ([run()], (), r"k: got \[\]; pass whole numbers from 1 up, such as 1 16 256"),
        ([run()], (0, 4), "k: got .*whole numbers"),
    ],
)
def test_errors(results, k, message):
    with pytest.raises(ValueError, match=message):
        summarise(results, k)


@pytest.mark.slow
def test_files(tmp_path):
    folder = tmp_path / "new" / "folder"
    report = write_report([run(), run("dco|<b>", (1, 2, 3, 4, 5))], folder, k=(1, 4))
    written = json.loads((folder / "report.json").read_text())
    assert written == dataclasses.asdict(report.summary)
    assert written["runs"][0]["manifest"] == {"model": "m", "sampling": {"temperature": 1.0}}
    text = (folder / "report.md").read_text()
    for part in ("| pass@4 |", r"dco\|\<b\>", "(coverage.svg)", "sampling.temperature: 1.0"):
        assert part in text
    pictures = {f"{stem}.{kind}" for stem in ("coverage", "confidence", "success") for kind in ("png", "svg")}
    assert {path.name for path in folder.iterdir()} == {"report.html", "report.md", "report.json"} | pictures
    assert set(folder.iterdir()) == {report.html, report.markdown, report.json, *report.plots}
    html = report.html.read_text()
    assert len(html) < 200_000 and "dco|&lt;b&gt;" in html and "<b>" not in html.split("<script")[0]
    assert matplotlib.image.imread(folder / "coverage.png").std() > 0.01


def test_terminal_shows_names_as_they_are():
    stream, summary = io.StringIO(), summarise([run("[red]ce[/]"), run(":smile:", grader="f")], k=(1, 4))
    print_report(summary, Console(file=stream, width=120, emoji=False))
    for shown in ("│ [red]ce[/] │", ":smile: - [red]ce[/]", "warning: ", "graders ([red]ce[/]: math, :smile:: f)"):
        assert shown in " ".join(stream.getvalue().replace("┃", "│").split())


def test_numbers_as_text_have_the_digits_they_need_and_a_mark_where_unreliable():
    assert [tables.percent(x) for x in (0, 0.00024, 0.123, 1)] == ["0.0 %", "0.024 %", "12.3 %", "100.0 %"]
    assert tables.with_interval(Estimate(4, 0.99, 0.97, 1.0, reliable=False)) == "99.0 % [97.0, 100.0]*"
    assert tables.with_interval(Estimate(4, 0.0004, 0.0, 0.001, reliable=True)) == "0.040 % [0.000, 0.100]"
    for reliable, mark in ((True, ""), (False, "*")):
        assert tables.difference(Difference(4, -0.031, -0.05, 0.012, reliable)) == f"-3.1 [-5.0, +1.2]{mark}"


def test_curve_points():
    assert curve_points(1) == [1]
    assert curve_points(5) == [1, 2, 3, 4, 5]
    points = curve_points(4096)
    assert points[-1] == 4096 and {4**i for i in range(7)} <= set(points) and len(points) < 60


@pytest.mark.parametrize(
    "text", ["</script><script>", "<!--<script>", "\u2028\u2029\ufeff", "\ud800 alone", "\x00\x1b[31m", '& \\ "']
)
def test_script_json_is_safe_and_loses_nothing(text):
    encoded = page.script_json([text])
    assert json.loads(encoded) == [text]
    assert encoded.isascii() and not set(encoded) & set("<>&\x00\x1b")


def test_page_takes_the_most_generous_caps_that_fit(monkeypatch):
    long = run(examples=((0, "x" * 50_000, True),))
    report = summarise([long], k=(1,))
    assert page.details(report, [long])[0] == page.CAPS[0]
    for size, caps, num_shown in ((10_000, page.CAPS[2], 5), (700, page.CAPS[-1], 4)):
        monkeypatch.setattr(page, "DETAIL_BYTES", size)
        found, shown = page.details(report, [long])
        assert found == caps and sum(len(detail) for _, detail in shown) <= size and len(shown) == num_shown
    assert "To keep this file small, each problem shows at most" in str(caps)


def test_success_rates_are_counted_in_bins_closed_above():
    labels, counts = count_success_rates([0, 0, 1 / 16, 0.0626, 1 / 8, 0.5, 0.51, 1], 1 / 16)
    assert labels == ["never", "1/16", "1/8", "1/4", "1/2", "1"]
    assert counts.tolist() == [2, 1, 2, 0, 1, 2]


def test_coverage_figure_holds_the_data():
    results = [run("_a $x$", (0, 3, 8, 16, 1) * 3), run("b", (1, 3, 8, 16, 1) * 3)]
    runs = summarise(results, k=(1,)).runs
    figure = plot_coverage(runs)
    (axes,) = figure.axes
    assert axes.get_xscale() == "log" and axes.get_ylim() == (0, 1)
    measured, *_ = axes.lines
    assert measured.get_ydata().tolist() == [entry.estimate for entry in runs[0].curve]
    band = axes.collections[0].get_paths()[0].vertices
    assert {entry.low for entry in runs[0].curve} <= set(band[:, 1])
    assert len(axes.collections) == 2
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["\u200b_a \\$x\\$", "b"]
    figure.savefig(io.BytesIO())


def test_confidence_figure_shows_right_upwards_and_wrong_downwards():
    problems = [problem(f"p{i}", c) for i, c in enumerate((0, 9, 16, 16, 8))]
    problems += [problem("p5", 3, wrong="8"), problem("p6", 0)]
    figure = plot_confidence(summarise([RunResult("a", {}, "math", tuple(problems))], k=(1,)).runs)
    bars = [bar for container in figure.axes[0].containers for bar in container]
    heights = {(round(bar.get_x(), 3), bar.get_height()) for bar in bars if bar.get_height()}
    # 9 and 8 of 16 give the right answer; 13 of 16 a wrong one; all samples a right one twice, a wrong one twice.
    assert heights == {(0.5, 1), (0.55, 1), (0.8, -1), (0.95, 2), (0.95, -2)}
    figure.savefig(io.BytesIO())


def test_success_figure_has_one_bar_per_run_and_bin():
    runs = summarise([run(), run("dco", (1, 2, 3, 4, 16))], k=(1,)).runs
    (axes,) = plot_success(runs).axes
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == ["never", "1/16", "1/8", "1/4", "1/2", "1"]
    heights = [bar.get_height() for container in axes.containers for bar in container]
    assert heights == [1, 1, 0, 1, 1, 1, 0, 1, 1, 2, 0, 1]


def test_a_method_has_one_colour_and_dco_is_darker_the_larger_n():
    for name in ("SFT", "DCO, N = 1"):
        with pytest.raises(ValueError, match=f"got '{name}', not a method; give 'DCO, N = 256' or one of cross"):
            method_style(name)
    assert method_style("cross-entropy") == {"color": PALETTE[0], "marker": "o"}
    colours = [matplotlib.colors.to_rgb(method_style(f"DCO, N = {4**i}")["color"]) for i in range(1, 7)]
    luminance = [0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in colours]
    assert all(lighter - darker > 0.02 for lighter, darker in zip(luminance, luminance[1:], strict=False))
    assert luminance[0] - luminance[-1] > 0.5 and method_style("DCO, N = 256")["color"].upper() == PALETTE[1]
    assert len({method_style(f"DCO, N = {4**i}")["marker"] for i in range(1, 7)}) == 6


# ------------------------------------------------------------ what stops a report


@pytest.fixture
def small_files():
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.slow
def test_a_full_disk_leaves_the_earlier_report_whole(tmp_path, request):
    write_report([run()], tmp_path, k=(1,))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    request.getfixturevalue("small_files")
    with pytest.raises(OSError, match="cannot be written into .*: File too large. An earlier report there is unchan"):
        write_report([run()], tmp_path, k=(1, 4))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.slow
def test_a_file_in_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "report").write_text("")
    with pytest.raises(OSError, match="report cannot be written into .*report: it is a file.* Name another folder"):
        write_report([run()], tmp_path / "report", k=(1,))
    with pytest.raises(OSError, match="Not a directory"):
        write_report([run()], tmp_path / "report" / "below", k=(1,))


@pytest.mark.parametrize("name", ["plain", 'a"b', "it's", "two\nlines"])
def test_text_under_the_pointer_has_any_characters(name):
    figure = Figure()
    title_strip(figure.subplots(), 0, 1, name, "pass@1: 5 %")
    svg = svg_text(figure)
    assert "title:" not in svg
    titles = [element.text for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("}title")]
    assert f"{name}\npass@1: 5 %" in titles
