"""Samples from elsewhere become runs for grade, report and schedule.

`samples/inspect.eval` and `inspect.parquet` were written by inspect_ai 0.3.285 (its mock model, and its `samples_df`);
the rows of `output-rs*.jsonl` follow NeMo-Skills' documentation, since it was not installable here.
"""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dco_trl.cli import main
from dco_trl.runs import DataError, RunStore, StoreError, load_results, read_problems
from dco_trl.runs.arms import read_arms
from dco_trl.runs.import_samples import import_samples

SAMPLES = Path(__file__).parent / "samples"
PLAIN = [
    {"problem_id": "a", "text": "It is 2.", "correct": True, "answer": "2", "num_tokens": 4, "finish_reason": "stop"},
    {"problem_id": "b", "text": "#### 5", "correct": False},
    {"problem_id": "a", "text": "3 and", "correct": False, "finish_reason": "length"},
    {"problem_id": "b", "text": "no idea"},
]


@pytest.fixture
def problems(tmp_path, monkeypatch):
    """The command's data set, whose rows have ids `a` and `b`."""
    monkeypatch.chdir(tmp_path)
    rows = [{"id": "a", "prompt": "1 + 1 =", "answer": "2"}, {"id": "b", "prompt": "2 + 2 =", "answer": "4"}]
    Path("problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("plain.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PLAIN))
    pq.write_table(pa.Table.from_pylist(PLAIN), "plain.parquet")
    return read_problems("problems.jsonl")


def rows(run):
    store = RunStore(run)
    [part] = store.sample_parts()
    return [tuple(row.values()) for row in store.read_samples(part).to_pylist()]


INSPECT = [3, 1, 3, 1]


@pytest.mark.parametrize(
    ("files", "counts"),
    [
        (["plain.jsonl"], [2, 1, 2, 0]),
        (["plain.parquet"], [2, 1, 2, 0]),
        ([SAMPLES / "output-rs0.jsonl", SAMPLES / "output-rs1.jsonl"], [2, 1, 2, 1]),
        ([SAMPLES / "inspect.parquet"], INSPECT),
        # Its libraries warn about each other.
        pytest.param([SAMPLES / "inspect.eval"], INSPECT, marks=pytest.mark.filterwarnings("default")),
    ],
    ids=lambda value: Path(value[0]).name if isinstance(value[0], str | Path) else "",
)
def test_each_format_becomes_a_graded_run_that_can_be_graded_anew(problems, files, counts, capsys):
    if Path(files[0]).suffix == ".eval":
        pytest.importorskip("inspect_ai", reason="inspect_ai is not installed: pip install inspect-ai")
    command = ["import", *map(str, files), "--dataset", "problems.jsonl", "--output", "run"]
    assert main([*command, "--model", "theirs", "--temperature", "0.7"]) == 0
    assert f"{counts[0] + counts[2]} samples of 2 problems in run" in capsys.readouterr().out
    found = load_results("run").problems
    assert [number for p in found for number in (p.num_samples, p.num_correct)] == counts
    assert main(["grade", "run", "--grader", "math"]) == 0
    assert [p.num_samples for p in load_results("run", "math").problems] == counts[::2]
    [arm] = read_arms(["run"], "imported").arms
    assert arm.name == "theirs, T=0.7"
    # The same call changes nothing; other samples are another run.
    assert main([*command, "--model", "theirs", "--temperature", "0.7"]) == 0
    assert load_results("run", "imported").problems == found
    assert main([*command[:2], "--dataset", "problems.jsonl", "--output", "run", "--model", "others"]) == 2
    assert "holds a run of something else" in capsys.readouterr().err


def test_what_is_known_of_a_sample_comes_along(problems):
    import_samples(["plain.jsonl"], problems, "run")
    assert rows("run") == [
        ("a", 0, "It is 2.", 4, "stop"),
        ("b", 0, "#### 5", None, "stop"),
        ("a", 1, "3 and", None, "length"),
        ("b", 1, "no idea", None, "stop"),
    ]
    a, b = load_results("run").problems
    assert {answer.answer: answer.correct for answer in a.answers} == {"2": True, "3 and": False}
    assert {answer.answer: answer.status for answer in b.answers} == {"5": "graded", "": "unparsed"}
    assert (a.num_truncated, b.num_ungraded) == (1, 1)
    assert RunStore("run").manifest["model"] == "run"
    # Killed between a part of samples and its verdicts.
    for part in Path("run/grades/imported").glob("part-*"):
        part.unlink()
    import_samples(["plain.jsonl"], problems, "run")
    assert load_results("run").problems == (a, b)
    with pytest.raises(StoreError, match="samples_sha256: the run has"):
        import_samples([SAMPLES / "output-rs0.jsonl"], problems, "run")
    import_samples([SAMPLES / "output-rs0.jsonl"], problems, "nemo")
    assert rows("nemo") == [("a", 0, "So \\boxed{2}.", 13, "stop"), ("b", 0, "I think \\boxed{5}", 17, "length")]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"problem": "a", "completion": "x"}, r"columns \['completion', 'problem'\]. Samples have `problem_id`"),
        ({"problem_id": "c", "text": "x"}, "row 0 is of problem 'c', but the data set has 'a', 'b' and so on. Give"),
        ({"problem_id": "a", "text": None}, "row 0 has no text but None: leave out rows that were not sampled"),
        ({"problem_id": "a", "text": "x", "correct": "yes"}, "row 0 has the verdict 'yes': write true or false"),
        (5, "row 0 is not an object with columns but 5"),
        ({"generation": "x", "expected_answer": "4"}, "has the reference answer '4', but problem 'a' has '2': is it"),
    ],
)
def test_what_cannot_be_samples_of_these_problems_is_named(problems, row, told):
    Path("theirs.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=told):
        import_samples(["theirs.jsonl"], problems, "run")
    with pytest.raises(DataError, match="there are no samples to import: name files"):
        import_samples([], problems, "run")
    assert not Path("run").exists()
