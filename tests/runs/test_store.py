"""The sample store loses, repeats and destroys nothing."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from known_sampler import (
    KnownSampler,
    contents,
    draw,
    environment,
    exactly,
    keys,
    make_problems,
    read,
    sampler_params,
)

from dco_trl.runs import Problem, RunStore, StoreError, grade_run, load_results
from dco_trl.runs.drawing import plan
from dco_trl.runs.files import write_part
from dco_trl.runs.store import grader_slug

SCRIPT = Path(__file__).with_name("known_sampler.py")


def part(run, number, folder="samples"):
    (path,) = Path(run, folder).glob(f"part-{number:06d}-*.parquet")
    return path


def footer_hash(data):
    """The hash of the footer with the length and letters after it, found from the file's end."""
    return hashlib.sha256(data[-8 - int.from_bytes(data[-8:-4], "little") :]).hexdigest()[:16]


def test_a_run_has_each_sample_once_in_parts_of_bounded_size(tmp_path):
    summary = draw(tmp_path / "run", problems=4, samples=6, chunk=5)
    parts = sorted((tmp_path / "run/samples").iterdir())
    assert [part.name for part in parts] == [
        f"part-{i:06d}-{footer_hash(part.read_bytes())}.parquet" for i, part in enumerate(parts)
    ]
    assert [len(read(part)) for part in parts] == [5, 5, 5, 5, 4]
    rows = [row for part in parts for row in read(part)]
    assert [(row["problem_id"], row["sample_index"]) for row in rows] == list(exactly(4, 6))
    assert (summary.num_drawn, summary.num_present, summary.num_tokens) == (24, 24, 48)
    expected = KnownSampler().draw(2, 3, sampler_params(KnownSampler()))
    known = {"problem_id": "p2", "sample_index": 3, "text": expected.text, "num_tokens": 2}
    assert rows[15] == {**known, "finish_reason": expected.finish_reason}
    # Reading the folder needs neither this package nor pickle.
    assert {path.suffix for path in contents(tmp_path / "run")} == {".json", ".parquet"}
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    assert manifest["model"] == "known" and manifest["sampling"]["temperature"] == 1.0
    assert manifest["versions"]["numpy_version"] == np.__version__ and "numpy_version" not in manifest
    assert manifest["num_samples"] == 6 and manifest["num_problems"] == 4


def test_problems_come_back_as_they_were(tmp_path):
    problems = [
        Problem("plain", '[{"role": "user"}]', "a\u00e9\x00b", {"level": 1, "tags": ["x"], "none": None}),
        Problem("chat", [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}], "2"),
    ]
    with RunStore.writing(tmp_path / "run", {"model": "m"}, problems):
        pass
    assert RunStore(tmp_path / "run").problems == problems


def test_running_again_draws_nothing_and_more_samples_add_to_the_run(tmp_path):
    run = tmp_path / "run"
    draw(run, samples=6)
    before = contents(run / "samples")
    again = draw(run, samples=6)
    assert again.num_drawn == 0 and "nothing to draw: the run has all of its" in str(again)
    assert draw(run, samples=3).num_drawn == 0  # fewer: what is there stays
    assert draw(run, samples=11).num_drawn == 4 * 5
    assert keys(run) == exactly(4, 11)
    assert {name: data for name, data in contents(run / "samples").items() if name in before} == before
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["num_samples"] == 11
    assert [session["num_samples"] for session in manifest["sessions"]] == [6, 6, 3, 11]
    # A run that grew equals a run that was drawn at once.
    draw(tmp_path / "once", samples=11)
    rows = [
        sorted(map(str, (r for p in (f / "samples").iterdir() for r in read(p)))) for f in (run, tmp_path / "once")
    ]
    assert rows[0] == rows[1]


@given(present=st.lists(st.sets(st.integers(0, 12)), min_size=1, max_size=4), num_samples=st.integers(1, 10))
@settings(max_examples=100, deadline=None)
def test_the_plan_is_what_is_missing(present, num_samples):
    there = [np.array(sorted(indices), np.int32) for indices in present]
    for wanted in (np.arange(num_samples), np.arange(4, 4 + num_samples)):
        gaps = plan([wanted] * len(there), there)
        planned = [(position, first + i) for position, first, count in gaps for i in range(count)]
        assert planned == [(p, i) for p, has in enumerate(present) for i in wanted if i not in has]
        assert all((position, first + count, 1) not in gaps for position, first, count in gaps)


def test_a_changed_answer_refuses_and_other_columns_do_not(tmp_path):
    problems = make_problems(2)
    without = [Problem(p.problem_id, p.prompt, "0") for p in problems]
    for same in (problems, without):
        with RunStore.writing(tmp_path / "run", {"model": "m"}, same):
            pass
    with pytest.raises(StoreError, match="dataset_fingerprint"):
        with RunStore.writing(tmp_path / "run", {"model": "m"}, [*problems[:1], Problem("p1", "1 - 1 =", "1")]):
            pass


def test_a_corrupt_part_is_named_and_left_alone(tmp_path):
    run = tmp_path / "run"
    draw(run)
    damaged = part(run, 1)
    whole, lost = damaged.read_bytes(), read(damaged)
    for broken in (whole[: len(whole) // 2], b"", b"not parquet at all", whole[:40] + b"\xff" * 30 + whole[70:]):
        damaged.write_bytes(broken)
        before = contents(run)
        with pytest.raises(StoreError) as error:
            draw(run)
        assert str(damaged) in str(error.value) and "Move this file out of the folder" in str(error.value)
        after = contents(run)
        # Only the record of sessions may grow.
        assert {**after, Path("manifest.json"): None} == {**before, Path("manifest.json"): None}
    damaged.rename(tmp_path / "aside.parquet")  # what the message says to do
    assert draw(run).num_drawn == len(lost) == 5
    assert keys(run) == exactly(4, 6)
    assert read(part(run, 5)) == lost  # the same draws, in a part of a new number


def test_a_flipped_bit_is_found_by_whoever_reads_it_and_by_nobody_else(tmp_path):
    draw(tmp_path / "run", samples=2)
    store = RunStore(tmp_path / "run")
    path = store.sample_parts()[0]
    whole, before = path.read_bytes(), store.read_samples(path)
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    texts = pq.ParquetFile(path).metadata.row_group(0).column(2)
    first = texts.dictionary_page_offset
    found = Counter()
    for place in [*range(4, footer, 3), *range(footer, len(whole), 41), -1]:
        data = bytearray(whole)
        data[place] ^= 1 << place % 8
        path.write_bytes(data)
        for columns in (None, ["problem_id", "sample_index"]):
            try:  # unless it is noticed, the bit says nothing, as in a page's statistics, or is of another column
                assert store.read_samples(path, columns) == before.select(columns or before.column_names)
                assert 0 <= place < footer, f"byte {place} of the footer"
                found[columns is None, "same"] += 1
            except StoreError as error:
                assert "is damaged and was left as it is (" in str(error) and str(path) in str(error)
                assert columns is None or not first <= place < first + texts.total_compressed_size
                found[columns is None, "damaged"] += 1
    assert found[True, "damaged"] > found[False, "damaged"] > 20 and found[True, "same"] > 0
    path.write_bytes(whole[:-1] + b"\0")
    with pytest.raises(StoreError, match=r"its footer has the hash \w+, which is not the one in its name"):
        draw(tmp_path / "run")


@pytest.mark.slow
def test_what_is_there_is_asked_of_the_key_columns_alone(tmp_path):
    """With long texts, `present` reads a fraction of the bytes."""
    samples = [("p0", i, f"{i} " + os.urandom(2_000).hex(), 1, "stop") for i in range(1500)]
    with RunStore.writing(tmp_path / "run", {"model": "m"}, make_problems(1)) as store:
        path = store.write_samples(samples)
    code = (
        "import os, sys\nfrom dco_trl.runs import RunStore\nstore = RunStore(sys.argv[1])\n"
        "def read(): return int(open('/proc/self/io').readline().split()[1])\n"
        "before = read(); assert len(store.present()['p0']) == 1500; print(read() - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], capture_output=True, text=True)
    assert 0 < int(done.stdout) < path.stat().st_size / 20, done.stderr


def test_a_table_of_other_columns_is_not_read(tmp_path):
    draw(tmp_path / "run", chunk=100)
    store = RunStore(tmp_path / "run")
    store.sample_parts()[0].unlink()
    write_part(store.samples_dir, "part-000000", pa.table({"problem_id": ["p0"], "sample_index": ["zero"]}))
    with pytest.raises(StoreError, match="is damaged .*its columns are of other types: .*'sample_index': 'string'"):
        store.present()


@pytest.mark.parametrize("name", ["part-000009.parquet", "copy of part-000001.parquet", "samples.parquet"])
def test_a_file_with_a_name_that_is_not_ours_is_noticed(tmp_path, name):
    draw(tmp_path / "run")
    shutil.copy(part(tmp_path / "run", 1), tmp_path / "run/samples" / name)
    with pytest.raises(StoreError, match=rf"{name} is not a file of this run: its name should be part-NUMBER-HASH"):
        RunStore(tmp_path / "run").present()


def test_whoever_reads_a_run_refuses_a_part_that_was_copied_in(tmp_path):
    run, large = tmp_path / "run", tmp_path / "large"
    draw(run)
    draw(large, problems=6)
    grade_run(run, "exact", progress=False)
    for copied, told in (
        (part(run, 1), "sample 5 of problem 'p0' is there twice. Was a part copied in by hand"),
        (part(large, 5), "'p4', which is not a problem of this run. Was it copied in from another run"),
    ):
        copy = Path(shutil.copy(copied, run / "samples" / f"part-000099-{copied.name[12:]}"))
        grade, read_it = (lambda: grade_run(run, "exact", progress=False)), (lambda: load_results(run))
        for ask in (lambda: draw(run), RunStore(run).present, grade, read_it):
            with pytest.raises(StoreError, match=told):
                ask()
        copy.unlink()


def test_folders_that_are_no_runs_are_left_alone(tmp_path):
    with pytest.raises(StoreError, match="holds no run: it has no manifest.json"):
        RunStore(tmp_path)
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(StoreError, match=r"holds other files \(thesis.tex\) and no run. Name a new or an empty"):
        draw(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_nothing_to_do_is_said_and_makes_no_folder(tmp_path):
    with pytest.raises(StoreError, match="there are no problems to sample: the data set is empty"):
        draw(tmp_path / "run", problems=0)
    with pytest.raises(ValueError, match="`num_samples` must be an integer of at least 1, got 0"):
        draw(tmp_path / "run", samples=0)
    with pytest.raises(ValueError, match="`chunk_size` must be an integer of at least 1, got 0"):
        draw(tmp_path / "run", chunk=0)
    assert not (tmp_path / "run").exists()


def test_a_sampler_that_loses_samples_is_refused(tmp_path):
    class Forgetful(KnownSampler):
        def sample(self, requests, params):
            return [samples[1:] for samples in super().sample(requests, params)]

    with pytest.raises(ValueError, match=r"Forgetful was asked for \[5\] samples and returned \[4\]; it must return"):
        draw(tmp_path / "run", sampler=Forgetful())
    assert keys(tmp_path / "run") == Counter()


def test_slugs_are_folder_names():
    assert grader_slug("math") == "math"
    assert grader_slug("my.module:function") == "my.module-function"
    assert grader_slug("../../etc:f") == "etc-f" and grader_slug("..") == "grader"


@pytest.mark.slow
def test_memory_does_not_grow_with_the_run(tmp_path):
    peaks = {}
    for samples in (256, 2048):
        command = [sys.executable, str(SCRIPT), str(tmp_path / str(samples)), "100", str(samples), "8192", "0", "500"]
        done = subprocess.run([*command, "math"], env=environment(), capture_output=True, text=True, check=True)
        report = json.loads(done.stdout.splitlines()[-1])
        assert report["samples"] == 100 * samples
        peaks[samples] = max(report["kib"]) / 2**20
    # Eight times the samples; the text alone of the larger run is 110 MB.
    assert peaks[2048] < peaks[256] + 0.08 and peaks[2048] < 2.0, peaks
