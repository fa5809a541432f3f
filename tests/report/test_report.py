"""The report's numbers against the estimators, what it leaves out and warns of, and what it writes."""

import dataclasses
import io
import json

import matplotlib.image
import numpy as np
import pytest
from rich.console import Console

from dco_trl.report import page, print_report, summarise, tables, write_report
from dco_trl.report.plots import (
    CoverageCurve,
    count_success_rates,
    plot_confidence_histogram,
    plot_coverage_curves,
    plot_success_histogram,
)
from dco_trl.report.summary import curve_points
from dco_trl.runs.results import AnswerCount, ProblemResult, RunResult
from dco_trl.statistics import majority_at_k, pass_at_k


def problem(name, num_correct, num_samples=16, wrong="7", **changes):
    answers = [
        AnswerCount("42", num_correct, True, "graded"),
        AnswerCount(wrong, num_samples - num_correct, False, "graded"),
    ]
    fields = {
        "problem_id": name,
        "prompt": f"prompt of {name}",
        "reference": "42",
        "num_samples": num_samples,
        "num_correct": num_correct,
        "num_truncated": 1,
        "answers": tuple(sorted((a for a in answers if a.count), key=lambda a: -a.count)),
        "examples": ((0, "It is 42.", True), (1, "It is 7.", False)),
    }
    return ProblemResult(**(fields | changes))


def run(name="ce", counts=(0, 3, 8, 16, 1), grader="math", **changes):
    problems = tuple(problem(f"p{i}", c, **changes) for i, c in enumerate(counts))
    return RunResult(name, {"model": "m", "sampling": {"temperature": 1.0}}, grader, problems)


def test_numbers_are_the_estimators():
    summary = summarise([run()], k=(1, 4, 16, 64))
    (got,) = summary["runs"]
    for entry in got["pass_at_k"]:
        assert entry["estimate"] == pytest.approx(pass_at_k(16, [0, 3, 8, 16, 1], entry["k"]).mean())
        assert entry["low"] <= entry["estimate"] <= entry["high"]
    votes = [majority_at_k([c, 16 - c], [True, False], [4])[0] for c in (0, 3, 8, 16, 1)]
    assert got["majority_at_k"][1]["estimate"] == pytest.approx(np.mean(votes))
    assert got["never_solved"]["count"] == 1
    assert got["samples"] == {"total": 80, "correct": 28, "truncated": 5, "unparsed": 0, "timeout": 0, "error": 0}
    assert got["extrapolation"]["pass_at_k"] == [] and "only 4 of 5 problems" in got["extrapolation"]["note"]
    (many,) = summarise([run(counts=(0, 3, 8, 16, 1) * 3)], k=(1, 64))["runs"]
    assert [entry["k"] for entry in many["extrapolation"]["pass_at_k"]] == [64]
    assert "not a measurement" in many["extrapolation"]["note"]


def test_k_above_the_fewest_samples_is_left_out_and_said():
    short = dataclasses.replace(run(), problems=(*run().problems, problem("short", 2, num_samples=5)))
    summary = summarise([short], k=(1, 4, 16))
    assert [entry["k"] for entry in summary["runs"][0]["pass_at_k"]] == [1, 4]
    assert max(entry["k"] for entry in summary["runs"][0]["curve"]) == 5
    (left_out,) = summary["runs"][0]["left_out"]
    assert left_out == {"k": 16, "problems_short": 1, "fewest": 5, "problem_id": "short"}
    assert any(
        "pass@16 left out" in note and "fewest: 5, problem 'short'" in note
        for note in tables.notes(summary, summary["runs"])
    )


def test_answers_that_nobody_gave_do_not_vote_and_are_no_top_answer():
    silent = problem("p0", 4, answers=(AnswerCount("", 12, False, "unparsed"), AnswerCount("42", 4, True, "graded")))
    (got,) = summarise([RunResult("ce", {}, "math", (silent,))], k=(16,))["runs"]
    assert got["problems"][0]["top_answer"] == "42"
    assert got["problems"][0]["top_count"] == 4
    assert got["majority_at_k"][0]["estimate"] == 1.0
    assert got["samples"]["unparsed"] == 12


def test_runs_on_the_same_problems_are_compared_whatever_their_order():
    second = run("dco", (1, 5, 8, 9, 2))
    second = dataclasses.replace(second, problems=second.problems[::-1])
    (group,) = summarise([run(), second], k=(1, 16))["groups"]
    (comparison,) = group["comparisons"]
    assert (comparison["baseline"], comparison["run"]) == ("ce", "dco")
    assert comparison["pass_at_k"][0]["difference"] == pytest.approx((25 - 28) / 80)


def test_unequal_problems_are_reported_apart_and_unequal_graders_warned_of(tmp_path):
    other = run("other", (1, 2), grader="exact")
    report = write_report([run(), run("dco"), other], tmp_path, k=(1, 4))
    assert [group["runs"] for group in report["groups"]] == [[0, 1], [2]]
    assert [len(group["comparisons"]) for group in report["groups"]] == [1, 0]
    same, grader = report["warnings"]
    assert "not on the same problems" in same and "ce, dco (5 problems); other (2 problems)" in same
    assert "different graders (ce: math, dco: math, other: exact)" in grader
    assert (tmp_path / "coverage-1.png").exists() and (tmp_path / "success-2.svg").exists()


def test_same_ids_with_other_references_are_other_problems():
    assert len(summarise([run(), run("dco", reference="43")], k=(1,))["groups"]) == 2


def test_different_prompts_are_warned_of():
    assert "different prompts for 5 of them" in summarise([run(), run("dco", prompt="x")], k=(1,))["warnings"][0]


def test_a_run_that_solved_nothing_has_no_extrapolation(tmp_path):
    (got,) = write_report([run(counts=(0, 0, 0))], tmp_path, k=(1, 64))["runs"]
    assert got["extrapolation"]["pass_at_k"] == []
    assert got["pass_at_k"][0]["estimate"] == 0.0
    assert got["pass_at_k"][0]["high"] > 0.0


def test_one_problem_with_one_sample(tmp_path):
    report = write_report([run(counts=(1,), num_samples=1)], tmp_path)
    assert [entry["k"] for entry in report["runs"][0]["pass_at_k"]] == [1]


@pytest.mark.parametrize(
    ("results", "k", "message"),
    [
        ([], (1,), "results: got no run"),
        ([run(), run()], (1,), "two runs are named 'ce'.*dataclasses.replace"),
        ([run(counts=())], (1,), "run 'ce' has no problems"),
        ([RunResult("ce", {}, "math", (problem("a", 1), problem("a", 2)))], (1,), "problem 'a' twice"),
        ([run(counts=(0,), num_samples=0)], (1,), "problem 'p0' of run 'ce' has no samples"),
        ([run()], (), "k: got .*whole numbers"),
        ([run()], (0, 4), "k: got .*whole numbers"),
    ],
)
def test_errors(results, k, message):
    with pytest.raises(ValueError, match=message):
        summarise(results, k)


def test_files(tmp_path):
    report = write_report([run(), run("dco|<b>", (1, 2, 3, 4, 5))], tmp_path / "new" / "folder", k=(1, 4))
    folder = tmp_path / "new" / "folder"
    written = json.loads((folder / "report.json").read_text())
    assert written == {key: value for key, value in report.items() if key != "files"}
    assert written["runs"][0]["manifest"] == {"model": "m", "sampling": {"temperature": 1.0}}
    text = (folder / "report.md").read_text()
    assert (
        "| pass@4 |" in text
        and r"dco\|\<b\>" in text
        and "(coverage.svg)" in text
        and "sampling.temperature: 1.0" in text
    )
    assert {path.name for path in folder.iterdir()} == {
        "report.html", "report.md", "report.json",
        *(f"{stem}.{kind}" for stem in ("coverage", "confidence", "success") for kind in ("png", "svg")),
    }  # fmt: skip
    assert matplotlib.image.imread(folder / "coverage.png").std() > 0.01


def test_terminal_shows_names_as_they_are():
    stream = io.StringIO()
    print_report(
        summarise([run("[red]ce[/]"), run(":smile:")], k=(1, 4)), Console(file=stream, width=120, emoji=False)
    )
    assert "[red]ce[/]" in stream.getvalue() and ":smile: - [red]ce[/]" in stream.getvalue()


@pytest.mark.parametrize(("share", "text"), [(0, "0.0 %"), (0.00024, "0.024 %"), (0.123, "12.3 %"), (1, "100.0 %")])
def test_percent(share, text):
    assert tables.percent(share) == text


def test_an_unreliable_interval_is_marked():
    entry = {"estimate": 0.99, "low": 0.97, "high": 1.0, "reliable": False}
    assert tables.with_interval(entry) == "99.0 % [97.0, 100.0]*"
    assert tables.difference({"difference": -0.031, "low": -0.05, "high": 0.012}) == "-3.1 [-5.0, +1.2]"


def test_curve_points():
    assert curve_points(1) == [1]
    assert curve_points(5) == [1, 2, 3, 4, 5]
    points = curve_points(4096)
    assert points[-1] == 4096 and {4**i for i in range(7)} <= set(points) and len(points) < 60


@pytest.mark.parametrize(
    "text",
    ["</script><script>", "<!--<script>", "\u2028\u2029\ufeff", "\ud800 alone", "\x00\x1b[31m", "& \\ \""],
)  # fmt: skip
def test_script_json_is_safe_and_loses_nothing(text):
    encoded = page.script_json([text])
    assert json.loads(encoded) == [text]
    assert not set(encoded) & set("<>&\u2028\u2029\x00\x1b")
    encoded.encode()


def test_page_takes_the_most_generous_caps_that_fit(monkeypatch):
    long = run(examples=((0, "x" * 50_000, True),))
    report = summarise([long], k=(1,))
    assert page._details(report, [long])[0] == page.CAPS[0]
    monkeypatch.setattr(page, "DETAIL_BYTES", 10_000)
    caps, scripts = page._details(report, [long])
    assert caps == page.CAPS[2] and sum(map(len, scripts)) <= 10_000 and len(scripts) == 5
    monkeypatch.setattr(page, "DETAIL_BYTES", 1000)
    caps, scripts = page._details(report, [long])
    assert caps == page.CAPS[-1] and sum(map(len, scripts)) <= 1000 and len(scripts) < 5


def test_success_rates_are_counted_in_bins_closed_above():
    labels, counts = count_success_rates([0, 0, 1 / 16, 0.0626, 1 / 8, 0.5, 0.51, 1], 1 / 16)
    assert labels == ["never", "1/16", "1/8", "1/4", "1/2", "1"]
    assert counts.tolist() == [2, 1, 2, 0, 1, 2]


def test_coverage_figure_holds_the_data():
    curves = [
        CoverageCurve("_a $x$", [1, 4, 16], [0.1, 0.2, 0.4], [0, 0.1, 0.3], [0.2, 0.3, 0.5]),
        CoverageCurve("b", [1], [0.5], extrapolated_k=[2], extrapolated=[0.6]),
    ]
    figure = plot_coverage_curves(curves, title="$5 a problem")
    axes = figure.axes[0]
    assert axes.get_xscale() == "log"
    assert axes.lines[0].get_ydata().tolist() == [0.1, 0.2, 0.4]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["\u200b_a \\$x\\$", "b", "extrapolated, not measured"]
    figure.savefig(io.BytesIO())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plot_coverage_curves([]), "curves: got an empty"),
        (lambda: plot_coverage_curves([CoverageCurve("a", [1, 2], [0.5])]), "curve 'a': got lengths"),
        (lambda: plot_coverage_curves([CoverageCurve("a", [0], [0.5])]), "needs k > 0"),
        (lambda: plot_confidence_histogram({}), "runs: got an empty"),
        (lambda: plot_confidence_histogram({"a": ([0.5], [True, False])}), "1 confidences and 2 verdicts"),
        (lambda: plot_success_histogram({"a": [float("nan")]}), "rates of 'a': got values outside"),
        (lambda: plot_success_histogram({}), "runs: got an empty"),
    ],
)
def test_plot_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_confidence_figure_counts_every_problem():
    figure = plot_confidence_histogram({"a": ([0, 0.5, 1, 1], [True, False, True, False])})
    assert sum(patch.get_height() for patch in figure.axes[0].patches) == 4
