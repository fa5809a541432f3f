"""A run in shards: the division, the locks, and processes that are killed all the time."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from known_sampler import KnownSampler, environment, make_problems, sample_and_grade
from tiny_models import save_checkpoint

from dco_trl.runs import RunStore, StoreError, grade_run, load_results, locks, sample_run
from dco_trl.runs.locks import alone_for_a_moment, locked
from dco_trl.runs.sample import plan
from dco_trl.runs.shards import BLOCK, WHOLE, Shard
from dco_trl.sampling import SamplingParams


def draw(folder, shard=None, problems=5, samples=100, chunk=40, **kwargs):
    return sample_run(
        folder,
        make_problems(problems),
        kwargs.pop("sampler", None) or KnownSampler(),
        samples,
        SamplingParams(),
        chunk_size=chunk,
        shard=shard,
        progress=False,
    )


def rows(folder):
    """All samples, read without the store, in the order of their keys."""
    parts = Path(folder, "samples").glob("part-*.parquet")
    found = [row for part in parts for row in pq.read_table(part, partitioning=None).to_pylist()]
    return sorted(found, key=lambda row: (row["problem_id"], row["sample_index"]))


# ------------------------------------------------------------------ the division


@given(st.integers(1, 40), st.integers(1, 200), st.integers(1, 12), st.integers(0, 150))
@settings(max_examples=200, deadline=None)
def test_shards_are_disjoint_complete_balanced_and_stay_when_a_run_grows(problems, samples, count, more):
    ids = [str(i) for i in range(problems)]

    def of(index, num_samples):
        gaps = plan({}, ids, num_samples, Shard(index, count))
        return {(position, first + i) for position, first, number in gaps for i in range(number)}

    shards = [of(index, samples) for index in range(count)]
    assert set().union(*shards) == {(p, i) for p in range(problems) for i in range(samples)}
    sizes = [len(shard) for shard in shards]
    assert sum(sizes) == problems * samples
    assert max(sizes) - min(sizes) <= min(BLOCK, samples)
    for index, shard in enumerate(shards):
        assert shard == {key for key in of(index, samples + more) if key[1] < samples}


def test_a_shard_draws_whole_blocks_of_many_problems():
    gaps = list(plan({}, [str(i) for i in range(8)], 8 * BLOCK, Shard(1, 4)))
    assert {number for _, _, number in gaps} == {BLOCK} and {first % BLOCK for _, first, _ in gaps} == {0}
    assert Counter(position for position, _, _ in gaps) == dict.fromkeys(range(8), 2)
    assert list(plan({}, ["a"], 100, WHOLE)) == [(0, 0, 100)]


@given(st.integers(1, 6), st.integers(1, 6), st.lists(st.integers(1, 9), min_size=1, max_size=6))
@settings(max_examples=100, deadline=None)
def test_parts_are_graded_by_one_shard_each(drawn_by, graded_by, numbers):
    names = [
        Path(f"{Shard(i, drawn_by).stem}{number:06d}-{'0' * 16}.parquet")
        for i in range(drawn_by)
        for number in range(numbers[i % len(numbers)])
    ]
    owners = [[shard for shard in range(graded_by) if Shard(shard, graded_by).has_part(name)] for name in names]
    assert all(len(owner) == 1 for owner in owners)
    if drawn_by == graded_by and drawn_by > 1:  # each its own
        assert all(f"part-{owner}of" in name.name for [owner], name in zip(owners, names, strict=True))
    if drawn_by == 1:
        sizes = np.bincount([owner for [owner] in owners], minlength=graded_by)
        assert sizes.max() - sizes.min() <= 1


@pytest.mark.parametrize("text", ["4/4", "1", "-1/4", "1/0", "a/b", "1/2/3", "", " 0/4", "0.0/4", 3, (0, 4), "²/4"])
def test_what_is_no_shard_is_refused(text, tmp_path):
    with pytest.raises(ValueError, match=r"shard=.* must be i/n, with i from 0 to n-1: of four processes, the first"):
        draw(tmp_path / "run", text)
    with pytest.raises(ValueError, match=r"must be i/n, with i from 0 to n-1"):
        Shard.parse(text)
    assert not (tmp_path / "run").exists()


# ----------------------------------------------------------------------- one run


def test_shards_one_after_another_are_one_run(tmp_path):
    summaries = [draw(tmp_path / "run", f"{i}/3") for i in (2, 0, 1)]
    draw(tmp_path / "whole")
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    assert sum(s.num_drawn for s in summaries) == 500 and [s.num_present for s in summaries] == [164, 168, 168]
    names = {path.name.rsplit("-", 2)[0] for path in (tmp_path / "run/samples").iterdir()}
    assert names == {"part-0of3", "part-1of3", "part-2of3"}
    sessions = json.loads((tmp_path / "run/manifest.json").read_text())["sessions"]
    assert [session["shard"] for session in sessions] == ["2/3", "0/3", "1/3"]
    again = draw(tmp_path / "run", "1/3")
    assert again.num_drawn == 0 and again.num_present == 168

    for i in range(3):
        summary = grade_run(tmp_path / "run", "exact", shard=f"{i}/3", progress=False)
        assert summary.num_new == summary.num_samples == summaries[(i + 1) % 3].num_drawn
    assert grade_run(tmp_path / "run", "exact", progress=False).num_new == 0
    grade_run(tmp_path / "whole", "exact", progress=False)
    assert load_results(tmp_path / "run").problems == load_results(tmp_path / "whole").problems


def test_another_number_of_shards_goes_on_with_what_is_missing(tmp_path):
    draw(tmp_path / "run", "0/4")
    draw(tmp_path / "run", "3/4", samples=40)
    for i in range(3):
        draw(tmp_path / "run", f"{i}/3")
    assert draw(tmp_path / "run").num_drawn == 0
    draw(tmp_path / "run", samples=120)
    draw(tmp_path / "whole", samples=120)
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    graded = [grade_run(tmp_path / "run", "exact", shard=f"{i}/2", progress=False).num_new for i in range(2)]
    assert sum(graded) == 600 and min(graded) > 0
    assert sum(p.num_samples for p in load_results(tmp_path / "run").problems) == 600


def test_parts_of_folders_that_share_no_disk_are_one_run_when_copied_together(tmp_path):
    for i in range(3):
        draw(tmp_path / str(i), f"{i}/3")
        grade_run(tmp_path / str(i), "exact", shard=f"{i}/3", progress=False)
        shutil.copytree(tmp_path / str(i), tmp_path / "run", dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*"))
    draw(tmp_path / "whole")
    grade_run(tmp_path / "whole", "exact", progress=False)
    assert load_results(tmp_path / "run").problems == load_results(tmp_path / "whole").problems
    assert draw(tmp_path / "run", "1/3").num_drawn == 0


def test_more_shards_than_work_leave_some_without_any(tmp_path):
    drawn = [draw(tmp_path / "run", f"{i}/9", problems=2, samples=40).num_drawn for i in range(9)]
    assert drawn == [32, 32, 8, 8, 0, 0, 0, 0, 0]
    graded = [grade_run(tmp_path / "run", "exact", shard=f"{i}/9", progress=False).num_samples for i in range(9)]
    assert graded == drawn


def test_a_shard_reads_and_removes_nothing_of_its_siblings(tmp_path):
    draw(tmp_path / "run", "0/2")
    (part,) = (tmp_path / "run/samples").glob("part-0of2-000000-*")
    part.write_bytes(b"damaged")
    stale = tmp_path / "run/samples" / f".tmp-1-{Shard(0, 2).stem}000009-x.parquet"
    own = tmp_path / "run/samples" / f".tmp-1-{Shard(1, 2).stem}000009-x.parquet"
    stale.touch(), own.touch()
    draw(tmp_path / "run", "1/2")
    assert stale.exists() and not own.exists()
    with pytest.raises(StoreError, match="part-0of2-000000-.* is damaged and was left as it is"):
        draw(tmp_path / "run", "0/2")
    part.unlink()
    draw(tmp_path / "run", "0/2")
    assert len(rows(tmp_path / "run")) == 500 and not stale.exists()


# ------------------------------------------------------------------------- locks


def test_a_shard_twice_is_refused_and_siblings_are_not(tmp_path):
    with RunStore.writing(tmp_path / "run", {"model": "m"}, make_problems(2), Shard(1, 4)):
        with pytest.raises(StoreError, match=rf"shard 1/4 of .*run is in use by this process \(pid {os.getpid()}\)"):
            with locked(tmp_path / "run", Shard(1, 4)):
                pass
        with locked(tmp_path / "run", Shard(2, 4)):
            pass
        code = (
            "from pathlib import Path; from dco_trl.runs.locks import locked, Shard\n"
            f"with locked(Path({str(tmp_path / 'run')!r}), Shard(1, 4)): pass"
        )
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert f"in use by another process (pid {os.getpid()} on " in other.stderr
    with locked(tmp_path / "run", Shard(1, 4)):
        pass


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        (Shard(1, 4), Shard(1, 8), "at work as shard 1/4, and cannot be worked on in 8 shards meanwhile: in use by"),
        (Shard(1, 4), WHOLE, "at work as shard 1/4, and cannot be worked on as a whole meanwhile: in use by this"),
        (WHOLE, Shard(0, 2), "at work as a whole, and cannot be worked on in 2 shards meanwhile: in use by this"),
    ],
)
def test_two_divisions_at_a_time_are_refused(tmp_path, first, second, told):
    draw(tmp_path / "run", samples=4)
    with locked(tmp_path / "run", first):
        with pytest.raises(StoreError, match=told), locked(tmp_path / "run", second):
            pass
        with pytest.raises(StoreError, match="meanwhile: in use by this process"):
            draw(tmp_path / "run", None if second == WHOLE else str(second))
    with locked(tmp_path / "run", second):
        pass


def test_two_divisions_of_grading_are_refused_and_sampling_goes_on(tmp_path):
    draw(tmp_path / "run", "0/2")
    with RunStore(tmp_path / "run").grading("exact", "x", Shard(0, 2)):
        with pytest.raises(StoreError, match="cannot be worked on in 3 shards"):
            grade_run(tmp_path / "run", "exact", shard="0/3", progress=False)
        draw(tmp_path / "run", "1/2")


def test_starting_waits_for_another_start_but_not_for_ever(tmp_path, monkeypatch):
    begin = threading.Event()

    def hold():
        with alone_for_a_moment(tmp_path):
            begin.set()
            time.sleep(0.3)

    thread = threading.Thread(target=hold)
    thread.start()
    begin.wait()
    with locked(tmp_path):
        assert not thread.is_alive() or thread.join() is None
    monkeypatch.setattr(locks, "_PATIENCE", 0.1)
    with alone_for_a_moment(tmp_path):
        with pytest.raises(StoreError, match="could not be entered for 0 s: .lock-start is held by this process"):
            with locked(tmp_path):
                pass


def test_shards_that_start_together_make_one_run(tmp_path):
    problems = make_problems(6)
    code = (
        "import sys; from known_sampler import *\n"
        "sys.stdin.read(1)\n"
        "sample_run(sys.argv[1], make_problems(6), KnownSampler(), 64, chunk_size=32, shard=sys.argv[2],"
        " progress=False)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    processes = [subprocess.Popen([*command, f"{i}/4"], env=environment(), stdin=subprocess.PIPE) for i in range(4)]
    for process in processes:
        process.communicate(b"x")
    assert [process.returncode for process in processes] == [0] * 4
    present = RunStore(tmp_path / "run").present()
    assert {name: len(indices) for name, indices in present.items()} == {p.problem_id: 64 for p in problems}
    sessions = json.loads((tmp_path / "run/manifest.json").read_text())["sessions"]
    assert sorted(session["shard"] for session in sessions) == ["0/4", "1/4", "2/4", "3/4"]


# ------------------------------------------------------------------------- kills

NUM_PROBLEMS, NUM_SAMPLES = 12, 160
PRELOADED = ("dco_trl.sampling.transformers_sampler", "transformers.models.llama.modeling_llama")


@pytest.mark.slow
def test_four_shards_with_kills_equal_one_process(tmp_path, monkeypatch):
    """Each shard is killed at random moments, over and over, until it gets through between two kills."""
    seed = random.randrange(2**32)
    moments = random.Random(seed)
    checkpoint = str(save_checkpoint(tmp_path / "model"))
    run, whole = str(tmp_path / "run"), str(tmp_path / "whole")
    context = multiprocessing.get_context("forkserver")  # each start forks a process that has imported everything
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    context.set_forkserver_preload(["known_sampler", "dco_trl.grading", *PRELOADED])
    args = (NUM_PROBLEMS, NUM_SAMPLES, checkpoint)
    process = context.Process(target=make_problems, args=(1,))
    process.start(), process.join()
    began = time.monotonic()
    process = context.Process(target=sample_and_grade, args=(*args, whole))
    process.start(), process.join()
    assert process.exitcode == 0
    seconds = time.monotonic() - began

    open_shards, at_work, kills, ended = list(range(4)), {}, 0, time.monotonic() + 120
    while open_shards and time.monotonic() < ended:
        for i in open_shards:
            if i not in at_work:
                at_work[i] = context.Process(target=sample_and_grade, args=(*args, run, f"{i}/4"))
                at_work[i].start()
        time.sleep(moments.uniform(0.0, seconds / 5))
        victim = moments.choice(sorted(at_work))
        if kills < 24 and at_work[victim].is_alive():
            os.kill(at_work[victim].pid, signal.SIGKILL)
        for i, process in list(at_work.items()):
            if i == victim or not process.is_alive():
                process.join()
                assert process.exitcode in (0, -signal.SIGKILL), f"shard {i}: {process.exitcode}; seed {seed}"
                kills += process.exitcode != 0
                if process.exitcode == 0:
                    open_shards.remove(i)
                del at_work[i]
    assert not open_shards and kills >= 6, f"{kills} kills; seed {seed}"

    assert rows(run) == rows(whole), f"seed {seed}"
    # Short ones may be alike by chance.
    long = [row["text"] for row in rows(whole) if row["finish_reason"] == "length"]
    assert len(set(long)) == len(long) > NUM_PROBLEMS * NUM_SAMPLES / 2  # no draw repeats another's
    assert load_results(run).problems == load_results(whole).problems, f"seed {seed}"
    assert 0 < sum(problem.num_correct for problem in load_results(run).problems) < NUM_PROBLEMS * NUM_SAMPLES
    assert len(list(Path(run, "samples").glob("part-*"))) >= 4


def test_a_run_that_another_shard_makes_meanwhile_is_no_foreign_folder(tmp_path, monkeypatch):
    run, listed = tmp_path / "run", Path.iterdir

    def listed_late(folder):
        monkeypatch.setattr(Path, "iterdir", listed)
        with RunStore.writing(run, {"model": "m"}, make_problems(2), Shard(0, 2)) as store:
            store.write_samples([("p0", 0, "x", 1, "stop")])
        return listed(folder)

    monkeypatch.setattr(Path, "iterdir", listed_late)
    with RunStore.writing(run, {"model": "m"}, make_problems(2), Shard(1, 2)) as store:
        assert len(store.sample_parts()) == 1
