"""The report of one or more evaluated runs: tables, Markdown, JSON, pictures, and a page to look at."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..extras import require

require("dco_trl.report", "eval", "matplotlib", "plotly", "rich", "scipy")

from ..runs.results import RunResult
from . import page, tables
from .plots import CoverageCurve, plot_confidence_histogram, plot_coverage_curves, plot_success_histogram
from .summary import DEFAULT_K, summarise
from .tables import print_report

__all__ = ["DEFAULT_K", "print_report", "summarise", "write_report"]


def write_report(
    results: Sequence[RunResult], output_dir: str | os.PathLike[str], k: Sequence[int] = DEFAULT_K
) -> dict[str, Any]:
    r"""Write the report of one or more runs into a folder.

    The files, written over where they are there already:

    - `report.html`: one page without any network access: curves to hover over, histograms, and a table of problems to
      sort and search, each with its distinct answers, their counts and verdicts, and a few raw samples;
    - `report.md`: the tables and links to the pictures;
    - `report.json`: every number, with intervals and manifests;
    - `coverage`, `confidence` and `success`, as `.png` and `.svg` (with `-1`, `-2`, … in the name, one of each for
      every group of runs, where the runs are not all on the same problems).

    pass@k is the unbiased estimate, averaged over problems, and given only where every problem has at least k samples.
    Runs on the same problems are compared pair by pair with the first of them.

    The keys of `report.json`:

    - `k`, `confidence`, `interval_method`, `warnings`, `created`, `dco_trl`, `format`;
    - `groups`: runs on the same problems: `runs` (indices), `num_problems`, `k`, `comparisons` (each with
      `baseline`, `run` and `pass_at_k`: `k`, `difference`, `low`, `high`);
    - `runs`: `name`, `grader`, `manifest`, `num_problems`, `num_samples`, `samples` (counts), `pass_at_k` and
      `curve` (`k`, `estimate`, `low`, `high`, `reliable`), `left_out`, `majority_at_k`, `never_solved`,
      `extrapolation`, and `problems` (counts, and the most frequent answer of each).

    Args:
        results: The runs, as `load_results` reads them, with different names.
        output_dir: The folder, made if need be.
        k: Numbers of attempts to report; those above the number of samples are left out, and the report says so.

    Returns:
        What `report.json` holds, and under `files` the paths of `html`, `markdown`, `json` and `plots`.

    Raises:
        ValueError: There is no run, two runs share a name, a run has no problems or a problem no samples, or k
            is not made of whole numbers from 1 up.

    Examples:
        >>> import tempfile
        >>> from dco_trl.runs.results import AnswerCount, ProblemResult, RunResult
        >>> answers = (AnswerCount("42", 3, True, "graded"), AnswerCount("41", 1, False, "graded"))
        >>> problem = ProblemResult("p0", "6 * 7 =", "42", 4, 3, 0, answers, ((0, "42", True),))
        >>> report = write_report([RunResult("ce", {"model": "m"}, "exact", (problem,))], tempfile.mkdtemp())
        >>> [(entry["k"], entry["estimate"]) for entry in report["runs"][0]["pass_at_k"]]
        [(1, 0.75), (4, 1.0)]

    References:
        Chen et al., "Evaluating Large Language Models Trained on Code", arXiv 2107.03374, for the estimator.

    Relations:
        `print_report` prints the tables. `dco-trl report` is this from the command line.
    """
    report = summarise(results, k)
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    plots = [
        str(path)
        for index in range(len(report["groups"]))
        for stem, figure in _figures(report, index).items()
        for path in _save(figure, folder / f"{stem}{tables.plot_suffix(report, index)}")
    ]
    _write(folder / "report.md", tables.markdown(report))
    _write(
        folder / "report.json", json.dumps(report, indent=1, ensure_ascii=True, allow_nan=False, default=str) + "\n"
    )
    _write(folder / "report.html", page.render(report, results))
    names = {"html": "report.html", "markdown": "report.md", "json": "report.json"}
    return {**report, "files": {**{key: str(folder / name) for key, name in names.items()}, "plots": plots}}


def _figures(report: dict[str, Any], group_index: int) -> dict[str, Any]:
    runs = [report["runs"][index] for index in report["groups"][group_index]["runs"]]
    curves = [
        CoverageCurve(
            run["name"],
            *([entry[key] for entry in run["curve"]] for key in ("k", "estimate", "low", "high")),
            *([entry[key] for entry in run["extrapolation"]["curve"]] for key in ("k", "estimate")),
        )
        for run in runs
    ]
    rates = {run["name"]: [p["num_correct"] / p["num_samples"] for p in run["problems"]] for run in runs}
    return {
        "coverage": plot_coverage_curves(curves),
        "confidence": plot_confidence_histogram({run["name"]: page.confidences(run) for run in runs}),
        "success": plot_success_histogram(rates, num_samples=max(run["num_samples"]["max"] for run in runs)),
    }


def _save(figure, stem: Path) -> list[Path]:
    paths = [stem.with_name(stem.name + suffix) for suffix in (".png", ".svg")]
    for path in paths:
        figure.savefig(path, dpi=150, facecolor="white")
    return paths


def _write(path: Path, text: str) -> None:
    # Model output may hold lone surrogates, which are no UTF-8.
    path.write_text(text, encoding="utf-8", errors="backslashreplace")
