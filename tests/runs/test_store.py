"""The sample store: nothing lost, nothing twice, nothing destroyed."""

import errno
import hashlib
import json
import os
import resource
import shutil
import signal
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
from known_sampler import KnownSampler, environment, make_problems, sampler_params

from dco_trl.runs import Problem, RunStore, StoreError, grade_run, load_results, sample_run
from dco_trl.runs.drawing import plan
from dco_trl.runs.files import locked, write_atomically, write_part
from dco_trl.runs.store import grader_slug
from dco_trl.sampling import SamplingParams

SCRIPT = Path(__file__).with_name("known_sampler.py")


def draw(folder, problems=4, samples=6, chunk=5, **kwargs):
    params = kwargs.pop("params", SamplingParams())
    sampler = kwargs.pop("sampler", None) or KnownSampler()
    return sample_run(folder, make_problems(problems), sampler, samples, params, chunk_size=chunk, progress=False)


def keys(folder):
    """All keys, read without the store."""
    rows = [row for part in sorted(Path(folder, "samples").glob("part-*.parquet")) for row in read(part)]
    return Counter((row["problem_id"], row["sample_index"]) for row in rows)


def read(part):
    return pq.read_table(part, partitioning=None).to_pylist()


def part(run, number, folder="samples"):
    (path,) = Path(run, folder).glob(f"part-{number:06d}-*.parquet")
    return path


def footer_hash(data):
    """Of the footer with its length and the letters behind it, which is found from the file's end."""
    return hashlib.sha256(data[-8 - int.from_bytes(data[-8:-4], "little") :]).hexdigest()[:16]


def exactly(problems, samples):
    return Counter((f"p{i}", j) for i in range(problems) for j in range(samples))


def contents(folder):
    return {
        p.relative_to(folder): p.read_bytes()
        for p in Path(folder).rglob("*")
        if p.is_file() and not p.name.startswith(".lock")
    }


def test_a_run_has_each_sample_once_in_parts_of_bounded_size(tmp_path):
    summary = draw(tmp_path / "run", problems=4, samples=6, chunk=5)
    assert keys(tmp_path / "run") == exactly(4, 6)
    parts = sorted((tmp_path / "run/samples").iterdir())
    assert [part.name for part in parts] == [
        f"part-{i:06d}-{footer_hash(part.read_bytes())}.parquet" for i, part in enumerate(parts)
    ]
    sizes = [len(read(part)) for part in parts]
    assert sizes == [5, 5, 5, 5, 4]
    # Each part is a contiguous piece of the plan.
    order = [(row["problem_id"], row["sample_index"]) for part in parts for row in read(part)]
    assert order == [(f"p{i}", j) for i in range(4) for j in range(6)]
    assert (summary.num_drawn, summary.num_present, summary.num_tokens) == (24, 24, 48)
    rows = {(r["problem_id"], r["sample_index"]): r for part in parts for r in read(part)}
    expected = KnownSampler().draw(2, 3, sampler_params(KnownSampler()))
    assert rows["p2", 3] == {
        "problem_id": "p2",
        "sample_index": 3,
        "text": expected.text,
        "num_tokens": 2,
        "finish_reason": expected.finish_reason,
    }


def test_the_folder_needs_no_library_of_ours_and_no_pickle(tmp_path):
    draw(tmp_path / "run")
    assert {p.suffix for p in (tmp_path / "run").rglob("*") if p.is_file() and not p.name.startswith(".lock")} == {
        ".json",
        ".parquet",
    }
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
    # A run that grew is the run that was drawn at once.
    draw(tmp_path / "once", samples=11)
    rows = [
        sorted(map(str, (r for p in (f / "samples").iterdir() for r in read(p)))) for f in (run, tmp_path / "once")
    ]
    assert rows[0] == rows[1]


@given(
    present=st.lists(st.sets(st.integers(0, 12)), min_size=1, max_size=4),
    num_samples=st.integers(1, 10),
)
@settings(max_examples=100, deadline=None)
def test_the_plan_is_what_is_missing(present, num_samples):
    ids = [str(i) for i in range(len(present))]
    there = {i: np.array(sorted(indices), np.int32) for i, indices in zip(ids, present, strict=True) if indices}
    for start in (0, 4):
        planned = [(p, first + i) for p, first, count in plan(there, ids, num_samples, start) for i in range(count)]
        wanted = range(start, start + num_samples)
        assert planned == [(p, i) for p, has in enumerate(present) for i in wanted if i not in has]


def test_a_lost_part_is_drawn_again(tmp_path):
    run = tmp_path / "run"
    draw(run)
    lost = read(part(run, 2))
    part(run, 2).unlink()
    assert draw(run).num_drawn == len(lost)
    assert keys(run) == exactly(4, 6)
    assert read(part(run, 5)) == lost  # the same draws, in a part of a new number


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"params": SamplingParams(temperature=0.5)}, "sampling.temperature: the run has 1.0, now 0.5"),
        ({"params": SamplingParams(seed=3)}, "sampling.seed: the run has 0, now 3"),
        ({"params": SamplingParams(stop=("a",))}, "sampling.stop: the run has [], now ['a']"),
        ({"sampler": KnownSampler(name="other")}, "model: the run has 'known', now 'other'"),
        ({"problems": 5}, "num_problems: the run has 4, now 5"),
    ],
)
def test_a_changed_manifest_refuses_to_resume_and_says_what_changed(tmp_path, change, told):
    draw(tmp_path / "run")
    before = contents(tmp_path / "run")
    with pytest.raises(StoreError) as error:
        draw(tmp_path / "run", samples=9, **change)
    assert told in str(error.value) and "Nothing was changed" in str(error.value)
    assert contents(tmp_path / "run") == before


def test_a_changed_answer_refuses_and_other_columns_do_not(tmp_path):
    problems = make_problems(2)
    with RunStore.writing(tmp_path / "run", {"model": "m"}, problems):
        pass
    with RunStore.writing(tmp_path / "run", {"model": "m"}, [Problem(p.problem_id, p.prompt, "0") for p in problems]):
        pass
    with pytest.raises(StoreError, match="dataset_fingerprint"):
        with RunStore.writing(tmp_path / "run", {"model": "m"}, [*problems[:1], Problem("p1", "1 - 1 =", "1")]):
            pass


def test_other_versions_are_recorded_and_not_refused(tmp_path):
    problems = make_problems(1)
    for version in ("1", "2"):
        with RunStore.writing(tmp_path / "run", {"model": "m", "versions": {"torch": version}}, problems) as store:
            store.write_samples([("p0", int(version), "text", 1, "stop")])
    manifest = RunStore(tmp_path / "run").manifest
    assert [session["versions"]["torch"] for session in manifest["sessions"]] == ["1", "2"]


def test_a_corrupt_part_is_named_and_left_alone(tmp_path):
    run = tmp_path / "run"
    draw(run)
    damaged = part(run, 1)
    whole = damaged.read_bytes()
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
    assert draw(run).num_drawn == 5
    assert keys(run) == exactly(4, 6)


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


def test_what_is_there_is_asked_of_the_key_columns_alone(tmp_path):
    """On a run of long texts, `present` reads a fraction of the bytes."""
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
    (path,) = store.sample_parts()
    path.unlink()
    write_part(store.samples_dir, "part-000000", pa.table({"problem_id": ["p0"], "sample_index": ["zero"]}))
    with pytest.raises(
        StoreError,
        match=r"is damaged .* \(its columns are of other types: {'problem_id': 'string', 'sample_index': 'str",
    ):
        store.present()


@pytest.mark.parametrize("name", ["part-000009.parquet", "copy of part-000001.parquet", "samples.parquet"])
def test_a_file_with_a_name_that_is_not_ours_is_noticed(tmp_path, name):
    draw(tmp_path / "run")
    shutil.copy(part(tmp_path / "run", 1), tmp_path / "run/samples" / name)
    with pytest.raises(StoreError, match=rf"{name} is no file of this run: its name should be part-NUMBER-HASH"):
        RunStore(tmp_path / "run").present()


def copy_a_part(run):
    path = part(run, 1)
    shutil.copy(path, path.with_name(path.name.replace("000001", "000099")))


def test_whoever_reads_a_run_refuses_a_part_that_was_copied_in(tmp_path):
    run = tmp_path / "run"
    draw(run)
    grade_run(run, "exact", progress=False)
    copy_a_part(run)
    for ask in (
        lambda: draw(run),
        RunStore(run).present,
        lambda: grade_run(run, "exact", progress=False),
        lambda: load_results(run),
    ):
        with pytest.raises(StoreError, match="sample 5 of problem 'p0' is there twice. Was a part copied in by hand"):
            ask()


def test_a_part_of_another_run_is_noticed(tmp_path):
    draw(tmp_path / "small", problems=1)
    draw(tmp_path / "large", problems=4)
    shutil.copy(part(tmp_path / "large", 4), tmp_path / "small/samples")
    for ask in (RunStore(tmp_path / "small").present, lambda: grade_run(tmp_path / "small", "exact", progress=False)):
        with pytest.raises(
            StoreError, match="'p3', which is no problem of this run. Was it copied in from another run"
        ):
            ask()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model": "m"}', "[" * 100_000])
def test_a_damaged_manifest_is_named(tmp_path, content):
    draw(tmp_path / "run")
    (tmp_path / "run/manifest.json").write_text(content)
    with pytest.raises(StoreError, match=r"manifest.json is damaged .*; restore it, or sample into a new folder"):
        draw(tmp_path / "run")
    assert keys(tmp_path / "run") == exactly(4, 6)


def test_a_manifest_of_a_later_version_is_refused(tmp_path):
    draw(tmp_path / "run")
    manifest = tmp_path / "run/manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 9}))
    with pytest.raises(StoreError, match="has format 9, but this version of dco-trl reads format 3. Use the version"):
        RunStore(tmp_path / "run")


def test_changed_or_missing_problems_are_noticed(tmp_path):
    draw(tmp_path / "run")
    draw(tmp_path / "other", problems=3)
    problems = tmp_path / "run/problems.parquet"
    problems.write_bytes((tmp_path / "other/problems.parquet").read_bytes())
    with pytest.raises(StoreError, match="problems.parquet is damaged or missing .its SHA-256 is not the one in"):
        RunStore(tmp_path / "run")
    # With a hash to match, it is still not what was sampled.
    manifest = tmp_path / "run/manifest.json"
    whole = manifest.read_text()
    forged = json.loads(whole) | {"problems_sha256": hashlib.sha256(problems.read_bytes()).hexdigest()}
    manifest.write_text(json.dumps(forged))
    with pytest.raises(StoreError, match="does not have the fingerprint in manifest.json: one of the two was"):
        RunStore(tmp_path / "run")
    manifest.write_text(whole)
    problems.write_bytes(b"PAR1")
    with pytest.raises(StoreError, match="problems.parquet is damaged or missing .*; restore it, or sample"):
        RunStore(tmp_path / "run")
    problems.unlink()
    with pytest.raises(StoreError, match="problems.parquet is damaged or missing .*No such file.*; restore it"):
        RunStore(tmp_path / "run")


def test_folders_that_cannot_be_made_or_held_are_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        StoreError, match="the folder .*file/run cannot be made: Not a directory. Name a folder elsewhere"
    ):
        draw(tmp_path / "file/run")
    (tmp_path / "run/.lock").mkdir(parents=True)
    with pytest.raises(StoreError, match="run/.lock cannot be locked: Is a directory. Check the folder's permissions"):
        draw(tmp_path / "run")

    def no_locks(*_):  # as NFS without its lock daemon
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with pytest.raises(StoreError, match="cannot be locked: No locks available.*a folder on another file system"):
        draw(tmp_path / "other")


def test_folders_that_are_no_runs_are_left_alone(tmp_path):
    with pytest.raises(StoreError, match="holds no run: it has no manifest.json"):
        RunStore(tmp_path)
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(
        StoreError, match=r"holds other files \(thesis.tex\) and no run. Name a new or an empty folder"
    ):
        draw(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "mine" and not (tmp_path / "samples").exists()
    with pytest.raises(StoreError, match="thesis.tex is a file; name a folder"):
        draw(tmp_path / "thesis.tex")


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

    with pytest.raises(
        ValueError, match=r"Forgetful was asked for \[5\] samples and returned \[4\]; it must return as many"
    ):
        draw(tmp_path / "run", sampler=Forgetful())
    assert keys(tmp_path / "run") == Counter()


def test_two_stores_of_one_process_cannot_write_one_folder(tmp_path):
    for _ in range(2):  # and the first still holds it afterwards
        with locked(tmp_path):
            for _ in range(2):
                with pytest.raises(StoreError, match=rf"in use by process {os.getpid()} on .*Wait until it has ended"):
                    draw(tmp_path)
    draw(tmp_path)


@pytest.mark.parametrize("command", ["sample", "grade"])
def test_two_processes_cannot_write_one_run(tmp_path, command):
    run = tmp_path / "run"
    draw(run)
    holder = "RunStore.writing(run, RunStore(run).manifest, RunStore(run).problems)"
    if command == "grade":
        holder = "RunStore(run).grading('exact', 'x')"
    code = (
        f"import sys, time; from dco_trl.runs import RunStore\nrun = {str(run)!r}\n"
        f"with {holder}:\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        before = contents(run)
        with pytest.raises(StoreError, match=rf"in use by process {other.pid} on .*Wait until it has ended"):
            draw(run, samples=9) if command == "sample" else grade_run(run, "exact", progress=False)
        assert contents(run) == before
        other.stdin.close()


def test_what_is_not_held_is_not_written(tmp_path):
    draw(tmp_path / "run")
    store = RunStore(tmp_path / "run")
    before = contents(tmp_path / "run")
    with pytest.raises(StoreError, match="samples is open for reading only; write inside `with RunStore.writing"):
        store.write_samples([("p0", 99, "text", 1, "stop")])
    with pytest.raises(StoreError, match="exact is open for reading only"):
        store.write_grades("exact", store.sample_parts()[0], pa.table({}))
    assert contents(tmp_path / "run") == before


def test_a_lock_ends_with_its_process_and_no_child_has_it(tmp_path):
    """A forked child does not hold its parent's folder, neither by what it believes nor by living on."""
    code = (
        "import os, sys, time; from dco_trl.runs import Problem, RunStore, StoreError\n"
        "with RunStore.writing(sys.argv[1], {'model': 'm'}, [Problem('p0', 'a', 'b')]) as store:\n"
        "    read, write = os.pipe()\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        try: store.write_samples([('p0', 0, 'x', 1, 'stop')]); told = 'wrote'\n"
        "        except StoreError as error: told = str(error)\n"
        "        os.write(write, told.encode()); os.close(1); os.close(2); time.sleep(30); os._exit(0)\n"
        "    print(child, os.read(read, 1000).decode(), flush=True); os.kill(os.getpid(), 9)\n"
    )
    parent = subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], capture_output=True, text=True)
    assert parent.returncode == -signal.SIGKILL, parent.stderr
    child, told = parent.stdout.split(maxsplit=1)
    try:
        os.kill(int(child), 0)  # it lives
        assert "samples is open for reading only" in told
        with locked(tmp_path / "run"):
            pass
    finally:
        os.kill(int(child), signal.SIGKILL)


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    folder = tmp_path / "sub"
    with pytest.raises(StoreError, match="could not be written .No such file or directory."):
        write_atomically(folder / "file", b"new")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # the write fails in the middle
    try:
        with pytest.raises(StoreError, match="file could not be written .File too large.. What was written before is"):
            write_atomically(path, b"new" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(os.getuid() != 0, reason="mounting a small file system needs root")
def test_a_really_full_disk(tmp_path):
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small file system is not permitted here")
    try:
        with pytest.raises(
            StoreError, match="No space left on device.*Free some space and run the same command again"
        ):
            draw(tmp_path / "run", problems=4, samples=20_000, chunk=4_000)
        written = keys(tmp_path / "run")
        assert written and max(written.values()) == 1
        assert sum(len(indices) for indices in RunStore(tmp_path / "run").present().values()) == sum(written.values())
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


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
    # Eight times the samples, of which the larger run holds 110 MB as text alone.
    assert peaks[2048] < peaks[256] + 0.08 and peaks[2048] < 2.0, peaks
