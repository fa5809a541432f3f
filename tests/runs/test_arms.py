"""Measured arms: one file from `dco-trl coverage`, checkpoints and graded runs, on the same problems."""

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dco_trl.runs import Problem, RunStore, grade_run
from dco_trl.runs.arm import Arm
from dco_trl.runs.arms import read_arms, write_arms
from dco_trl.runs.files import StoreError

ARMS = [Arm("MODEL", "runs/a", 1.0, "f" * 16), Arm("MODEL", "runs/a", 1.5, "f" * 16), Arm("other")]
LOG_P = np.array([[-0.5, -np.inf, -3.0], [-1.0, -2.0, -3.0], [0.0, -1e3, -4.0]])


def save_checkpoint_log_p(folder, rows, dataset="", base=None, fingerprint=None):
    folder.mkdir(parents=True)
    if base:
        (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    columns = {"arm": [folder.name] * len(rows), "dataset": [dataset] * len(rows), "row": list(rows)}
    table = pa.table({**columns, "log_p": [float(x) for x in rows.values()]})
    if fingerprint:
        table = table.replace_schema_metadata({"dco_eval_rows": json.dumps({dataset: fingerprint})})
    pq.write_table(table, folder / "eval_log_p.parquet")


def save_run(folder, texts, **sampling):
    """A graded run of two problems with the names of rows: "0" (answer 2) and "1" (answer 4)."""
    problems = [Problem("0", "1+1=", "2"), Problem("1", "2+2=", "4")]
    with RunStore.writing(folder, {"model": "MODEL", "sampling": sampling}, problems) as store:
        store.write_samples([(p, i, text, 1, "stop") for p, row in texts.items() for i, text in enumerate(row)])
    grade_run(folder, "exact", progress=False)
    return folder


def write(folder, arm, problem_ids):
    """The file of one arm on problems of one letter each, as a list."""
    file = folder / f"{len(list(folder.iterdir()))}.parquet"
    write_arms(file, [arm], list(problem_ids), np.full((1, len(problem_ids)), -1.0))
    return [file]


def test_what_is_written_is_read(tmp_path):
    file = tmp_path / "new" / "arms.parquet"
    write_arms(file, ARMS, ["x", "y", "z"], LOG_P)
    read = read_arms([file])
    assert read.arms == tuple(ARMS) and read.problem_ids == ("x", "y", "z") and read.num_left_out == 0
    np.testing.assert_array_equal(read.log_p, LOG_P)
    assert read.num_sampled.dtype == np.int64 and not read.num_sampled.any() and not read.num_correct.any()
    table = pq.read_table(file)
    assert ",".join(table.column_names) == "arm,model,model_fingerprint,adapter,temperature,problem_id,log_p"
    assert table["arm"].to_pylist()[3] == "runs/a, T=1.5"
    # Rows in another order are the same arms.
    pq.write_table(table.take([7, 3, 0, 5, 8, 1, 6, 4, 2]), file)
    read = read_arms([file])
    order = [read.arms.index(arm) for arm in ARMS]
    columns = [read.problem_ids.index(name) for name in ("x", "y", "z")]
    np.testing.assert_array_equal(read.log_p[np.ix_(order, columns)], LOG_P)


def test_problems_that_an_arm_lacks_are_left_out_and_counted(tmp_path):
    write_arms(tmp_path / "a.parquet", ARMS[:1], ["x", "y", "z"], LOG_P[:1])
    write_arms(tmp_path / "b.parquet", ARMS[1:2], ["w", "z", "x"], LOG_P[1:2])
    read = read_arms([tmp_path / "a.parquet", tmp_path / "b.parquet"])
    assert read.problem_ids == ("x", "z") and read.num_left_out == 2
    np.testing.assert_array_equal(read.log_p, [[-0.5, -3.0], [-3.0, -2.0]])


def test_checkpoints_runs_and_files_together(tmp_path):
    run = save_run(tmp_path / "run", {"0": ["2", "3", "2", "2"], "1": ["5", "5", "5", "4"]}, temperature=0.7)
    for step, log_p in ((9, -1.0), (10, -2.0)):
        save_checkpoint_log_p(tmp_path / f"dco/checkpoint-{step}", {0: log_p, 1: -0.1}, base="MODEL")
    save_checkpoint_log_p(tmp_path / "whole/checkpoint-3", {0: -7.0, 1: -0.2})
    write_arms(tmp_path / "arms.parquet", ARMS[2:], ["1", "0"], LOG_P[2:, :2])
    read = read_arms([run, tmp_path / "dco", tmp_path / "whole/checkpoint-3", tmp_path / "arms.parquet"])
    assert [arm.name for arm in read.arms] == [
        "MODEL, T=0.7",
        *(str(tmp_path / f"dco/checkpoint-{step}") for step in (9, 10)),
        str(tmp_path / "whole/checkpoint-3"),
        "other",
    ]
    assert [arm.model for arm in read.arms[1:4]] == ["MODEL", "MODEL", str(tmp_path / "whole/checkpoint-3")]
    assert read.arms[3].model_fingerprint and not read.arms[1].model_fingerprint
    np.testing.assert_array_equal(
        read.log_p, [[np.nan, np.nan], [-1.0, -0.1], [-2.0, -0.1], [-7.0, -0.2], [-1e3, 0.0]]
    )
    assert read.num_sampled[0].tolist() == [4, 4] and read.num_correct[0].tolist() == [3, 1]


def test_several_evaluation_sets_are_kept_apart(tmp_path):
    save_checkpoint_log_p(tmp_path / "checkpoint-1", {0: -1.0}, dataset="easy")
    assert read_arms([tmp_path / "checkpoint-1" / "eval_log_p.parquet"]).problem_ids == ("easy/0",)


@pytest.mark.parametrize("content", [b"{", b"[1]", b"3", b"\xff"])
def test_damaged_names_of_rows_are_damage(tmp_path, content):
    save_checkpoint_log_p(tmp_path / "checkpoint-1", {0: -1.0})
    file = tmp_path / "checkpoint-1/eval_log_p.parquet"
    pq.write_table(pq.read_table(file).replace_schema_metadata({"dco_eval_rows": content}), file)
    with pytest.raises(StoreError, match="eval_log_p.parquet is damaged .* Evaluate that checkpoint again"):
        read_arms([tmp_path / "checkpoint-1"])


@pytest.mark.parametrize(("dataset", "told"), [("", ""), ("easy", " of 'easy'")])
def test_checkpoints_that_were_evaluated_on_other_rows_are_refused(tmp_path, dataset, told):
    for name, fingerprint in (("a", "1" * 16), ("b", "1" * 16), ("c", "2" * 16), ("old", None)):
        save_checkpoint_log_p(tmp_path / name / "checkpoint-1", {0: -1.0}, dataset, "MODEL", fingerprint)
    assert len(read_arms([tmp_path / name for name in ("a", "b", "old")]).arms) == 3
    error = f"checkpoint-1 and .*c/checkpoint-1 were evaluated on different rows{told}, or on the same rows in another"
    with pytest.raises(StoreError, match=error):
        read_arms([tmp_path / "a", tmp_path / "old", tmp_path / "c" / "checkpoint-1"])
    # Sets with different names are not compared.
    save_checkpoint_log_p(tmp_path / "d", {0: -1.0}, "other", "MODEL", "3" * 16)
    with pytest.raises(StoreError, match="no problem was measured by all 2 arms"):
        read_arms([tmp_path / "a", tmp_path / "d"])


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda path: [], "there are no arms: name files of `dco-trl coverage`"),
        (lambda path: [path], "holds no arms: it is neither a file of `dco-trl coverage` nor a graded run nor a"),
        (lambda path: write(path, ARMS[0], "x") * 2, r"arm 'runs/a' was read before\. Name each"),
        # The same folder with a slash and without a fingerprint.
        (
            lambda path: write(path, ARMS[0], "x") + write(path, Arm("MODEL", "runs/a/"), "x"),
            r"arm 'runs/a' was read before\. Name each",
        ),
        (
            lambda path: write(path, ARMS[0], "x") + write(path, ARMS[1], "y"),
            r"no problem was measured by all 2 arms, by their ids \(runs/a on \['x'\]; runs/a, T=1.5 on \['y'\]\)",
        ),
        (lambda path: write(path, ARMS[0], "xx"), r"has problem 'x' twice\. Measure each"),
        (lambda path: [path / "absent.parquet"], "absent.parquet holds no arms"),
        (
            lambda path: [save_run(path / "run", {"0": ["2"], "1": ["4"]}, temperature=1.0, top_p=0.9)],
            r"sampled with top_p 0\.9 and top_k 0\. An arm is a model, an adapter and a temperature",
        ),
    ],
)
def test_what_is_not_measured_arms_is_refused(tmp_path, make, told):
    with pytest.raises(StoreError, match=told):
        read_arms(make(tmp_path))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda table: table.drop_columns("adapter"), "it lacks the column 'adapter' among"),
        (lambda table: table.set_column(6, "log_p", pa.nulls(1, pa.float64())), "column 'log_p' has empty cells"),
        (lambda table: table.set_column(4, "temperature", pa.array(["hot"])), "holds no measured arms"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path, change, told):
    [file] = write(tmp_path, ARMS[0], "x")
    pq.write_table(change(pq.read_table(file)), file)
    with pytest.raises(StoreError, match=told):
        read_arms([file])


def test_a_damaged_file_is_refused(tmp_path):
    (tmp_path / "arms.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(StoreError, match="arms.parquet holds no measured arms"):
        read_arms([tmp_path / "arms.parquet"])
    save_checkpoint_log_p(tmp_path / "checkpoint-1", {0: -1.0}, base="MODEL")
    for content in ("{", "[]", "{}"):
        (tmp_path / "checkpoint-1/adapter_config.json").write_text(content)
        with pytest.raises(StoreError, match="adapter_config.json is damaged .*Restore it from the adapter's"):
            read_arms([tmp_path / "checkpoint-1"])


def test_the_nan_of_a_diverged_model_names_its_arm(tmp_path):
    log_p = np.array([[-0.5, -1.0], [-1.0, np.nan]])
    told = "log p of arm 'runs/a, T=1.5' is NaN for 1 of 2 problems (first 'y'). The model has diverged"
    with pytest.raises(StoreError, match=re.escape(told)):
        write_arms(tmp_path / "arms.parquet", ARMS[:2], ["x", "y"], log_p)
    assert not (tmp_path / "arms.parquet").exists()
    save_checkpoint_log_p(tmp_path / "checkpoint-9", {0: float("nan"), 1: float("nan"), 2: -1.0})
    told = f"log p of arm '{tmp_path / 'checkpoint-9'}' is NaN for 2 of 3 problems (first '0')"
    with pytest.raises(StoreError, match=re.escape(told)):
        read_arms([tmp_path / "checkpoint-9"])
