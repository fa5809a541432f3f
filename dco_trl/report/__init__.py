"""The report of one or more evaluated runs: tables, Markdown, JSON, pictures, and an HTML page."""

import io
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from ..extras import require

require("dco_trl.report", "eval", "matplotlib", "rich", "scipy")

from matplotlib.figure import Figure

from ..runs.results import RunResult
from . import page, tables
from .compute import DEFAULT_K, summarise
from .plots import plot_confidence, plot_coverage, plot_success
from .styles import svg_text
from .summary import Summary
from .tables import print_report

__all__ = ["DEFAULT_K", "Report", "Summary", "print_report", "summarise", "write_report"]


@dataclass(frozen=True)
class Report:
    """A written report: its numbers, and the paths of the page, the tables, the numbers as JSON and the pictures."""

    summary: Summary
    html: Path
    markdown: Path
    json: Path
    plots: tuple[Path, ...]


def write_report(
    results: Sequence[RunResult],
    output_dir: str | os.PathLike[str],
    k: Sequence[int] = DEFAULT_K,
) -> Report:
    r"""Write the report of one or more runs into a folder.

    The files, which replace those of an earlier report:

    - `report.html`: one page without network access: the pictures with their values under the pointer, and a table
      of problems to sort and search, each with its distinct answers, their counts and verdicts, and a few raw samples;
    - `report.md`: the tables and links to the pictures;
    - `report.json`: every number, with intervals and manifests;
    - `coverage`, `confidence` and `success`, as `.png` and `.svg`. If the runs are not all on the same problems, each
      group of runs has its own, with `-1`, `-2`, … in the names.

    pass@k is the unbiased estimate, averaged over problems, for each k that every problem has samples for. With a
    schedule it is that of the first k attempts; thin curves show each arm alone. Runs on the same problems are
    compared pair by pair with the first of them.

    The keys of `report.json`, where each `k` has its `estimate` (or `difference`), `low`, `high` and `reliable`:

    - `k`, `confidence`, `interval_method`, `warnings`, `created`, `dco_trl`, `format`;
    - `groups`, runs on the same problems: `runs` (indices), `num_problems`, `k`, `majority_k`, `comparisons` (each
      with `baseline`, `run` and `pass_at_k`);
    - `runs`: `name`, `grader`, `manifest`, `num_problems`, `num_samples`, `samples` (counts), `pass_at_k`, `curve`,
      `left_out`, `majority_at_k` and `at_least_m_of_k` (with `num_required`; both empty with a schedule),
      `never_solved`, `problems` (counts, and the most frequent answer of each), and `arms` (with a schedule: `name`,
      `num_samples` and `curve` of each arm alone).

    Args:
        results: The runs, as `load_results` reads them, with different names.
        output_dir: The folder, made if need be.
        k: Numbers of attempts to report. Those above the number of samples are left out with a note.

    Returns:
        The numbers, and the paths of the files.

    Raises:
        ValueError: As for `summarise`.
        OSError: A file could not be written. An earlier report in the folder is then unchanged.

    Examples:
        >>> import tempfile
        >>> from dco_trl.runs.results import AnswerCount, ProblemResult, RunResult
        >>> answers = (AnswerCount("42", 3, True, "graded"), AnswerCount("41", 1, False, "graded"))
        >>> problem = ProblemResult("p0", "6 * 7 =", "42", 4, 3, 0, answers, ((0, "42", True),))
        >>> report = write_report([RunResult("ce", {"model": "m"}, "exact", (problem,))], tempfile.mkdtemp())
        >>> [(entry.k, entry.estimate) for entry in report.summary.runs[0].pass_at_k]
        [(1, 0.75), (4, 1.0)]

    Relations:
        `print_report` prints the tables. `dco-trl report` calls this function.
    """
    summary = summarise(results, k)
    pictures = {"coverage": plot_coverage, "confidence": plot_confidence, "success": plot_success}
    figures = {
        f"{stem}{tables.plot_suffix(summary, index)}": plot(summary.runs_of(group))
        for index, group in enumerate(summary.groups)
        for stem, plot in pictures.items()
    }
    svgs = {name: svg_text(figure) for name, figure in figures.items()}
    plots = {f"{name}.svg": text.encode() for name, text in svgs.items()}
    plots |= {f"{name}.png": _png(figure) for name, figure in figures.items()}
    numbers = json.dumps(asdict(summary), indent=1, allow_nan=False, default=str) + "\n"
    texts = {
        "report.html": page.render(summary, results, svgs),
        "report.md": tables.markdown(summary),
        "report.json": numbers,
    }
    # Model output may hold lone surrogates, which UTF-8 cannot encode.
    files = {name: text.encode("utf-8", errors="backslashreplace") for name, text in texts.items()}
    folder = Path(output_dir)
    _write(folder, {**plots, **files})
    html, markdown, numbers_file = (folder / name for name in texts)
    return Report(summary, html, markdown, numbers_file, tuple(folder / name for name in plots))


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=150, facecolor="white")
    return file.getvalue()


def _write(folder: Path, files: dict[str, bytes]) -> None:
    """Write all files under temporary names first, so that no report mixes old and new files."""
    unfinished = {folder / f".{name}.unfinished": folder / name for name in files}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, content in zip(unfinished, files.values(), strict=True):
            path.write_bytes(content)
        for path, final in unfinished.items():
            path.replace(final)
    except OSError as error:
        for path in unfinished:
            with suppress(OSError):
                path.unlink()
        reason = "it is a file" if folder.is_file() else error.strerror
        raise OSError(
            f"the report cannot be written into {folder}: {reason}. An earlier report there is unchanged. Name "
            "another folder, or make room and repeat the command: no sample is drawn or graded again."
        ) from error
