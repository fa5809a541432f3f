"""Folders that one process at a time writes to, and files that are whole or absent."""

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys

import pyarrow as pa
import pytest
from known_sampler import contents, draw, keys

from dco_trl.runs import RunStore, StoreError, grade_run
from dco_trl.runs.files import locked, write_atomically


def test_folders_that_cannot_be_made_or_held_are_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "run/.lock").mkdir(parents=True)
    for folder, told in (("file", "File exists"), ("file/run", "Not a directory"), ("run", "Is a directory")):
        with pytest.raises(StoreError, match=f"folder .*{folder} cannot be made or locked: {told}. Check its perm"):
            draw(tmp_path / folder)

    def no_locks(*_):  # as NFS without its lock daemon
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with pytest.raises(StoreError, match="No locks available. Check its permissions, or name a folder on another"):
        draw(tmp_path / "other")
    assert (tmp_path / "file").read_text() == "mine"


def test_two_stores_of_one_process_cannot_write_one_folder(tmp_path):
    for _ in range(2):  # and the first still holds it afterwards
        with locked(tmp_path):
            for _ in range(2):
                with pytest.raises(StoreError, match=rf"in use by process {os.getpid()} on .*Wait until it has ended"):
                    draw(tmp_path)
    draw(tmp_path)


@pytest.mark.parametrize("command", ["sample", "grade"])
@pytest.mark.slow
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
    """A forked child cannot write to its parent's folder, and does not keep it locked by living on."""
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
    write_atomically(tmp_path / "new/folder/file", b"new")
    with pytest.raises(StoreError, match="file/x could not be written .File exists.*Check the folder's permissions"):
        write_atomically(path / "x", b"new")
    shutil.rmtree(tmp_path / "new")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # the write fails in the middle
    try:
        with pytest.raises(StoreError, match="file could not be written .File too large.. What was written before is"):
            write_atomically(path, b"new" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(os.getuid() != 0, reason="mounting a small file system needs root")
@pytest.mark.slow
def test_a_really_full_disk(tmp_path):
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small file system is not permitted here")
    try:
        with pytest.raises(StoreError, match="No space left on device.*Free some space and run the same command"):
            draw(tmp_path / "run", problems=4, samples=20_000, chunk=4_000)
        written = keys(tmp_path / "run")
        assert written and max(written.values()) == 1
        assert sum(len(indices) for indices in RunStore(tmp_path / "run").present().values()) == sum(written.values())
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
