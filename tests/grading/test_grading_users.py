"""A user's function, named by its import path, runs in workers that may be killed, under the same limits."""

import os
import subprocess
import sys

import grading_helpers
import numpy as np
import pytest
from grading_helpers import has_ended, until

from dco_trl.cli._grading import GradingConfig
from dco_trl.cli._grading import grade as grade_command
from dco_trl.grading import BulkGrader, GraderError, math_grader
from dco_trl.problem import Problem
from dco_trl.runs import RunStore

SOURCE = """
import asyncio, os, subprocess, sys, time

def right(prompts, completions, answer, level, **kwargs):
    assert len(completions) == 1 and level == [{"n": 1}]
    return [float(p == "p" and c == a) for p, c, a in zip(prompts, completions, answer)]

def slow(completions, answer):
    if completions[0] == "hang":
        time.sleep(600)
    return [float(completions[0] == answer[0])]

def hungry(completions, answer):
    if completions[0] == "eat":
        bytearray(10 << 30)
    return [1.0]

def dies(completions, **kwargs):
    if completions[0] == "die":
        os._exit(3)
    return [1.0]

def raises(completions, **kwargs):
    raise KeyError("gold")

def chatty(completions, **kwargs):
    print("[[1.0, null]]" * 20_000)
    print("x" * 200_000, file=sys.stderr)
    return [None if completions[0] == "none" else 0.5]

async def later(completions, **kwargs):
    await asyncio.sleep(0)
    return [0.75]

def starts_a_program(completions, **kwargs):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    open(completions[0], "w").write(str(child.pid))
    time.sleep(600)

def prints_everywhere(completions, answer):
    for descriptor in range(1, 10):
        try:
            os.write(descriptor, b'[1.0, "graded", null]\\n{"number": 99, "verdict": [1.0, "", "graded"]}\\n7')
        except OSError:
            pass
    return [float(completions[0] == answer[0])]

def never_silent(completions, **kwargs):
    while True:
        for descriptor in range(1, 10):
            try:
                os.write(descriptor, b"still here\\n")
            except OSError:
                pass
        time.sleep(0.05)

def reads_standard_input(completions, **kwargs):
    return [float(sys.stdin.read() == "")]

def process(completions, **kwargs):
    return [float(os.getpid())] * len(completions)
"""


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    (tmp_path / "users_graders_of_test.py").write_text(SOURCE)
    (tmp_path / "broken_in_workers.py").write_text(
        "import os\nif 'PYTHONHASHSEED' in os.environ: 1 / 0\ndef f(completions): return [1.0]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    yield
    sys.modules.pop("users_graders_of_test", None)


def grade(name, completions, answers=None, columns=None, **options):
    grader = name if callable(name) else f"users_graders_of_test:{name}"
    verdicts, stats = grading_helpers.grade(
        grader, completions, answers or ["a"] * len(completions), columns, **options
    )
    return [(verdict.score, verdict.status) for verdict in verdicts], stats


def test_it_gets_one_row_at_a_time_with_every_column():
    rows = ["a", "b", "a"] * 500
    verdicts, stats = grade("right", rows, columns={"level": [{"n": 1}] * 1500}, prompts=["p"] * 1500)
    assert verdicts == [(1.0, "graded"), (0.0, "graded"), (1.0, "graded")] * 500
    assert (stats.rows, stats.distinct, stats.computed) == (1500, 2, 2)


@pytest.mark.slow
def test_many_distinct_rows_come_back_in_order():
    texts = [str(i) for i in range(2500)]
    verdicts, stats = grade("slow", texts, [str(i - i % 2) for i in range(2500)], num_workers=2)
    assert [score for score, _ in verdicts] == [float(i % 2 == 0) for i in range(2500)] and stats.computed == 2500


@pytest.mark.slow
def test_a_function_that_hangs_is_killed_after_the_timeout():
    verdicts, stats = grade("slow", ["a", "hang", "b"], timeout=1.0)
    assert verdicts == [(1.0, "graded"), (None, "timeout"), (0.0, "graded")]
    assert (stats.timeout, stats.graded) == (1, 2)
    assert grade("never_silent", ["a"], timeout=1.0)[0] == [(None, "timeout")]  # whatever it writes meanwhile


@pytest.mark.slow
def test_what_it_has_started_ends_with_it(tmp_path):
    verdicts, _ = grade("starts_a_program", [str(tmp_path / "pid")], timeout=3.0)
    assert verdicts == [(None, "timeout")]
    until(lambda: has_ended(int((tmp_path / "pid").read_text())))


@pytest.mark.slow
def test_a_function_that_fills_the_memory_or_dies_costs_its_row():
    assert grade("hungry", ["a", "eat", "b"])[0] == [(1.0, "graded"), (None, "error"), (1.0, "graded")]
    assert grade("dies", ["a", "die", "b"])[0] == [(1.0, "graded"), (None, "error"), (1.0, "graded")]


def test_a_faulty_function_is_named():
    text = "grader 'users_graders_of_test:raises' raised KeyError: 'gold'. It was called with 1 completions"
    with pytest.raises(GraderError, match=text):
        grade("raises", ["a"])


def test_a_row_that_cannot_be_sent_names_the_way_out():
    text = r"a row cannot be sent to a grading worker: .*lambda.*keep the grader in this process \(in_process=True"
    with pytest.raises(GraderError, match=text):
        grade("slow", ["a"], columns={"thing": [lambda: 0]})
    assert grade("slow", ["a"], columns={"thing": [lambda: 0]}, in_process=True)[0] == [(1.0, "graded")]


def test_a_function_that_only_a_worker_cannot_import():
    with pytest.raises(GraderError, match=r"ZeroDivisionError: division by zero.*\(in a worker process\)"):
        grading_helpers.grade("broken_in_workers:f", ["a"], ["a"])


@pytest.mark.slow
def test_output_and_input_are_not_the_protocols(capfd):
    with pytest.warns(UserWarning, match="2 of 3 scores are exactly 0.5. Only a score above 0.5 is correct, so these"):
        verdicts, stats = grade("chatty", ["a", "none", "b"])
    assert verdicts == [(0.5, "graded"), (None, "unparsed"), (0.5, "graded")]
    assert stats.undecided == 2 and str(stats).endswith("0 failed, 2 with a score of exactly 0.5")
    captured = capfd.readouterr()
    assert "[[1.0, null]]" in captured.err and captured.out == ""
    assert grade("reads_standard_input", ["a"])[0] == [(1.0, "graded")]


def test_what_it_writes_to_any_descriptor_shifts_no_verdict():
    verdicts, _ = grade("prints_everywhere", [str(i) for i in range(50)], [str(i - i % 2) for i in range(50)])
    assert verdicts == [(float(i % 2 == 0), "graded") for i in range(50)]


def test_coroutines_in_a_worker():
    assert grade("later", ["a", "b"])[0] == [(0.75, "graded")] * 2


def test_in_this_process_where_asked_for():
    assert grade("process", ["a"], in_process=True)[0] == [(float(os.getpid()), "graded")]
    assert grade("process", ["a"])[0] != [(float(os.getpid()), "graded")]
    assert grade(lambda completions, **k: [float(os.getpid())], ["a"])[0] == [(float(os.getpid()), "graded")]


def test_a_vote_counts_what_the_grader_calls_the_answer():
    def grader(completions, **kwargs):
        return [1.0] * len(completions)

    long = "\n".join(["x = 1"] * 100)
    verdicts, _ = grading_helpers.grade(grader, ["so \\boxed{5}", long, long + "0"], ["a"] * 3)
    # Without a marked answer, the whole text: no sample abstains, and different texts stay apart.
    assert [v.answer for v in verdicts] == ["5", long, long + "0"]
    grader.answer_of = lambda completion: completion[-1]
    assert [v.answer for v in grading_helpers.grade(grader, ["ab", "cb"], ["a"] * 2)[0]] == ["b", "b"]
    for answer_of, text in (
        (len, "its `answer_of` must return what a completion answers, as a string, got int: '1'"),
        (lambda completion: completion["text"], "its `answer_of` raised TypeError: string indices"),
    ):
        grader.answer_of = answer_of
        with pytest.raises(GraderError, match=text):
            grade(grader, ["a"])


def test_an_object_that_holds_a_grader_is_not_that_grader():
    class Opposite:
        func = staticmethod(math_grader)

        def __call__(self, **columns):
            return [1 - score for score in self.func(**columns)]

    assert grade(Opposite(), ["1", "2"], ["1", "1"])[0] == [(0.0, "graded"), (1.0, "graded")]


def test_half_throughout_is_warned_of_once():
    with BulkGrader(lambda completions, **k: [0.5] * len(completions)) as bulk:
        with pytest.warns(UserWarning, match="8 of 8 scores are exactly 0.5") as caught:
            bulk.grade(None, ["a", "b"] * 4, ["a"] * 8, progress=False)
            bulk.grade(None, ["c"], ["a"], progress=False)
    assert len(caught) == 1 and bulk.stats.undecided == 9


def test_rows_that_only_look_equal_are_graded_apart():
    first, second = np.zeros(5000), np.zeros(5000)
    second[2500] = 1.0  # its repr leaves the middle out
    largest = lambda completions, data: [float(array.max()) for array in data]  # noqa: E731
    verdicts, stats = grade(largest, ["a"] * 3, columns={"data": [first, second, first]})
    assert [score for score, _ in verdicts] == [0.0, 1.0, 0.0] and stats.distinct == 2
    called = lambda completions, data: [float(f()) for f in data]  # noqa: E731
    assert [score for score, _ in grade(called, ["a"] * 2, columns={"data": [lambda: 0, lambda: 1]})[0]] == [0.0, 1.0]


@pytest.mark.slow
def test_a_worker_that_hangs_ends_with_a_killed_parent(tmp_path):
    code = (
        "import os, threading, time\nfrom dco_trl.grading import BulkGrader\n"
        "grader = BulkGrader('users_graders_of_test:starts_a_program', num_workers=1, timeout=600)\n"
        f"path = {str(tmp_path / 'pid')!r}\n"
        "threading.Thread(target=grader.grade, args=(None, [path], ['a']), daemon=True).start()\n"
        "while not os.path.exists(path): time.sleep(0.1)\n"
        "print(grader._pool._workers[0].process.pid, flush=True)\nos.kill(os.getpid(), 9)"
    )
    pid = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout)
    until(lambda: has_ended(pid))


@pytest.mark.slow
def test_the_shells_timeout_reaches_the_function(tmp_path):
    with RunStore.writing(tmp_path / "run", {"model": "m"}, [Problem("p", "q", "a")]) as store:
        store.write_samples([("p", i, text, 1, "stop") for i, text in enumerate(("a", "hang"))])
    summary = grade_command(
        str(tmp_path / "run"), GradingConfig("users_graders_of_test:slow", timeout=1.0, num_workers=1)
    )
    assert (summary.num_correct, summary.statuses["timeout"], summary.statuses["graded"]) == (1, 1, 1)
    summary = grade_command(
        str(tmp_path / "run"), GradingConfig("users_graders_of_test:process", grader_in_process=True)
    )
    assert summary.num_correct == 2


@pytest.mark.parametrize(("local", "workers"), [("1", 8), ("3", 2), ("16", 1), ("", 8), ("x", 8)])
def test_workers_are_shared_by_the_processes_of_a_machine(local, workers, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(8), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    assert BulkGrader("math")._pool.num_workers == workers
    assert BulkGrader("math", num_workers=5)._pool.num_workers == 5
