"""The verdict cache: what it stores, for whom, and what happens if the file is damaged, locked or shared."""

import re
import sqlite3
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import grading_helpers
import pytest

from dco_trl.grading import BulkGrader, Verdict
from dco_trl.grading.cache import VerdictCache

PAIRS = [("1", f"\\frac{{{i}}}{{3}}") for i in range(6)]


def grade(folder, pairs=PAIRS):
    return grading_helpers.grade("math", [a for _, a in pairs], [r for r, _ in pairs], cache_dir=folder)


@pytest.mark.slow
def test_second_time_from_disk(tmp_path):
    first, stats = grade(tmp_path / "new" / "folder")
    assert (stats.computed, stats.from_cache) == (6, 0)
    again, stats = grade(tmp_path / "new" / "folder")
    assert (stats.computed, stats.from_cache) == (0, 6)
    assert again == first and [v.score for v in again] == [0, 0, 0, 1, 0, 0]
    shown, _ = grade(tmp_path, [("12", "12 inches")])
    assert grade(tmp_path, [("12", "12 inches")])[0] == shown and shown[0].answer == "12"


def test_keys(tmp_path, monkeypatch):
    cache = VerdictCache(tmp_path, 10.0, 1 << 30)
    hostile = [("a", "b"), ("ab", ""), ("", "ab"), ("1", "\ud800"), ("1", "\x00"), ("1:", "2"), ("1", ":2")]
    for i, pair in enumerate(hostile):
        cache.put(pair, Verdict(float(i % 2), "\ud800" if i else ""))
    cache.flush()
    assert [cache.get(pair).score for pair in hostile] == [0, 1, 0, 1, 0, 1, 0]
    assert cache.get(("1", "\ud800")).answer == "\ud800" and cache.get(("a", "b")).answer == ""
    many = [("x", str(i)) for i in range(1200)]
    for pair in many[::2]:
        cache.put(pair, Verdict(1.0))
    cache.flush()
    assert [i for i, pair in enumerate(many) if cache.get(pair)] == list(range(0, 1200, 2))
    cache.close()
    # Another version of a library may judge otherwise.
    monkeypatch.setattr("dco_trl.grading.cache.identity", lambda: "math 1; math-verify 99")
    other = VerdictCache(tmp_path, 10.0, 1 << 30)
    assert other.get(("a", "b")) is None
    other.close()


def test_limits_are_tried_again_only_if_raised(tmp_path):
    cache = VerdictCache(tmp_path, 2.0, 1 << 30)
    cache.put(("1", "hang"), Verdict(None, "", "timeout"))
    cache.put(("1", "crash"), Verdict(None, "", "error"))
    cache.put(("1", "2"), Verdict(0.0))
    cache.close()
    for timeout, memory, known in [(2.0, 1 << 30, 3), (1.0, 1 << 29, 3), (3.0, 1 << 30, 1), (2.0, 1 << 31, 1)]:
        cache = VerdictCache(tmp_path, timeout, memory)
        assert sum(cache.get(("1", answer)) is not None for answer in ("hang", "crash", "2")) == known
        cache.close()


@pytest.mark.parametrize("damage", ["text", "torn", "layout", "status", "score", "answer"])
@pytest.mark.slow
def test_a_damaged_file_is_set_aside(tmp_path, damage):
    path = tmp_path / "verdicts.sqlite"
    if damage == "text":
        path.write_bytes(b"this is no database " * 100)
    elif damage == "torn":
        cache = VerdictCache(tmp_path, 10.0, 1 << 30)
        for i in range(5000):
            cache.put(("1", str(i)), Verdict(0.0))
        cache.close()
        data = bytearray(path.read_bytes())
        data[4096:] = b"\xa5" * (len(data) - 4096)
        path.write_bytes(data)
    else:
        if damage != "layout":
            grade(tmp_path)
        connection = sqlite3.connect(path)
        change = {"status": "status = 'maybe'", "score": "score = 7", "answer": "answer = x'ff'"}.get(damage)
        connection.execute(f"UPDATE verdicts SET {change}" if change else "CREATE TABLE verdicts (something)")
        connection.commit()
        connection.close()
    with pytest.warns(UserWarning, match="verdict cache .*verdicts.sqlite is damaged .* a new one begun") as caught:
        verdicts, stats = grade(tmp_path)
    if damage == "layout":
        assert "its table has other columns" in str(caught[0].message)
    if damage in ("status", "score"):
        assert re.search("it holds the verdict .* with status", str(caught[0].message))
    assert [v.score for v in verdicts] == [0, 0, 0, 1, 0, 0]
    assert len(list(tmp_path.glob("verdicts.sqlite.damaged-*"))) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again, stats = grade(tmp_path)
    assert again == verdicts and stats.from_cache == 6


@pytest.mark.slow
def test_a_folder_that_cannot_be_used(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="cannot be used .*; going on without it"):
        verdicts, _ = grade(tmp_path / "file" / "below")
    assert [v.score for v in verdicts] == [0, 0, 0, 1, 0, 0]


@pytest.mark.slow
def test_a_locked_file_is_done_without(tmp_path, monkeypatch):
    grade(tmp_path)
    real = sqlite3.connect
    monkeypatch.setattr("dco_trl.grading.cache.sqlite3.connect", lambda path, **options: real(path, timeout=0.1))
    other = real(tmp_path / "verdicts.sqlite")
    other.execute("BEGIN EXCLUSIVE")
    with pytest.warns(UserWarning, match="database is locked"):
        verdicts, _ = grade(tmp_path)
    other.close()
    assert [v.score for v in verdicts] == [0, 0, 0, 1, 0, 0]
    assert not list(tmp_path.glob("*damaged*"))


@pytest.mark.slow
def test_two_processes_write_at_once(tmp_path):
    code = (
        "import sys, warnings\nwarnings.simplefilter('error')\n"
        "from dco_trl.grading import Verdict\nfrom dco_trl.grading.cache import VerdictCache\n"
        "me = int(sys.argv[2])\n"
        "cache = VerdictCache(sys.argv[1], 10.0, 1 << 30)\n"
        "for i in range(3000):\n"
        "    cache.put(('both' if i % 2 else str(me), str(i)), Verdict(float(i % 3 == 0), str(i)))\n"
        "    if i % 50 == 0: cache.flush()\n"
        "cache.close()"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(me)], stderr=subprocess.PIPE) for me in (1, 2)
    ]
    for process in processes:
        assert process.communicate()[1] == b"" and process.returncode == 0
    cache = VerdictCache(tmp_path, 10.0, 1 << 30)
    for who in ("1", "2", "both"):
        found = {i: (v.score, v.answer) for i in range(3000) if (v := cache.get((who, str(i))))}
        assert found == {i: (float(i % 3 == 0), str(i)) for i in range(3000) if bool(i % 2) == (who == "both")}
    cache.close()


def test_threads_share_a_cache(tmp_path):
    cache = VerdictCache(tmp_path, 10.0, 1 << 30)

    def use(me):
        found = []
        for i in range(300):
            cache.put((str(me), str(i)), Verdict(float(i % 2), f"{me} {i}"))
            if i % 20 == 0:
                cache.flush()
                found += [cache.get((str(me), str(j))).answer == f"{me} {j}" for j in range(i)]
        return all(found) and len(found)

    with warnings.catch_warnings(), ThreadPoolExecutor(8) as executor:
        warnings.simplefilter("error")
        assert set(executor.map(use, range(8))) == {sum(range(0, 300, 20))}
    cache.close()


@pytest.mark.slow
def test_an_interrupted_grading_keeps_what_it_has(tmp_path, monkeypatch):
    with BulkGrader("math", num_workers=1, cache_dir=tmp_path) as grader:
        real = grader._pool.run

        def interrupted(pairs):
            for i, item in enumerate(real(pairs)):
                if i == 4:
                    raise KeyboardInterrupt
                yield item

        monkeypatch.setattr(grader._pool, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            grader.grade(None, [a for _, a in PAIRS], ["1"] * 6, progress=False)
    _, stats = grade(tmp_path)
    assert (stats.from_cache, stats.computed) == (4, 2)
