"""BulkGrader: duplicates, order, limits, replaced workers, columns of several kinds, counts."""

import os
import resource
import subprocess
import sys

import numpy as np
import psutil
import pyarrow as pa
import pytest
from grading_helpers import grade, has_ended, scores, until

from dco_trl.grading import BulkGrader, GraderError, Verdict, exact_grader, math_grader
from dco_trl.grading.pool import WorkerPool

TOWER = "10^{10^{10^{10}}} + 1"


@pytest.fixture(scope="module")
def bulk():
    with BulkGrader("math", num_workers=2, timeout=10.0) as grader:
        yield grader


@pytest.mark.slow
def test_order_duplicates_and_counts():
    completions = ["0.5", "\\boxed{\\frac{1}{2}}", "2", "0.5", "", "\\frac{2}{4}", "1"]
    answers = ["\\frac{1}{2}"] * 6 + ["1"]
    with BulkGrader("math", num_workers=1) as grader:
        verdicts = grader.grade(None, completions, answers, progress=False)
        assert [v.score for v in verdicts] == [1, 1, 0, 1, 0, 1, 1]
        assert verdicts[0] is verdicts[3]
        assert verdicts[4] == Verdict(0.0, "", "unparsed")
        stats = grader.stats
        assert (stats.rows, stats.distinct, stats.graded, stats.unparsed) == (7, 6, 6, 1)
        assert stats.computed == 3  # equal strings, no answer and integers are not sent anywhere
        assert str(stats) == "7 samples, 6 distinct: 6 graded, 1 unparsed, 0 timed out, 0 failed"
        grader.grade(None, ["5"], ["5"], progress=False)
        assert stats.rows == 8


def test_the_same_answer_to_different_problems_is_judged_for_each(bulk):
    verdicts = bulk.grade(None, ["0.5", "0.5", "0.5"], ["\\frac12", "\\frac13", "0.5"], progress=False)
    assert [v.score for v in verdicts] == [1.0, 0.0, 1.0]


@pytest.mark.parametrize("kind", [list, np.array, pa.array, lambda x: pa.chunked_array([x[:3], x[3:]]), tuple])
@pytest.mark.parametrize("name", ["math", "exact"])
def test_columns_of_any_kind(kind, name, bulk):
    completions, answers = ["0.5", "1", ".5", "x", "1", "0.50"], ["0.5", "1", "0.5", "0.5", "2", "0.5"]
    expected = [1.0, 1.0, 1.0, 0.0, 0.0, 1.0]
    grader = bulk if name == "math" else BulkGrader("exact")
    assert [v.score for v in grader.grade(None, kind(completions), kind(answers), progress=False)] == expected


def test_messages_numbers_and_nothing(bulk):
    messages = [[{"role": "assistant", "content": "\\boxed{72}"}]]
    assert bulk.grade([messages], messages, [72], progress=False) == [Verdict(1.0, "72", "graded")]
    assert bulk.grade([], [], [], progress=False) == []
    assert BulkGrader("exact").grade(None, [], [], progress=False) == []


def test_references_that_cannot_be_read(bulk):
    verdicts = bulk.grade(None, ["1", "\\text{}", "1"], ["\\text{}", "\\text{}", ""], progress=False)
    # The same string is right whatever it means; other pairs have no verdict.
    assert [(v.score, v.status) for v in verdicts] == [(None, "unparsed"), (1.0, "graded"), (None, "unparsed")]


def test_prose_shows_what_was_read(bulk):
    verdicts = bulk.grade(None, ["It must be $\\frac{4}{2}$ then", "12 inches"], ["2", "12"], progress=False)
    assert verdicts == [Verdict(1.0, "\\frac{4}{2}", "graded"), Verdict(1.0, "12", "graded")]


def test_arguments_are_checked(bulk):
    with pytest.raises(ValueError, match="answers has 1 rows for 2 completions: give one per completion"):
        bulk.grade(None, ["1", "2"], ["1"])
    with pytest.raises(ValueError, match="level has 1 rows for 2 completions"):
        bulk.grade(["p", "p"], ["1", "2"], ["1", "2"], {"level": [1]})
    with pytest.raises(ValueError, match=r"answers\[1\] is None: a sample without a reference"):
        bulk.grade(None, ["1", "2"], ["1", None])
    with pytest.raises(ValueError, match="num_workers must be at least 1, got 0"):
        BulkGrader("math", num_workers=0)
    with pytest.raises(ValueError, match="timeout is the time a verdict may take, in seconds: .* got 0"):
        BulkGrader("math", timeout=0)
    with pytest.raises(ValueError, match="memory_limit is in bytes, and math-verify needs at least 256 MiB"):
        BulkGrader("math", memory_limit=1024)


@pytest.mark.slow
def test_a_hanging_pair_costs_its_worker_and_nothing_else():
    answers = [TOWER] + [f"\\frac{{{i}}}{{7}}" for i in range(40)] + [TOWER + "+ 1"]
    with BulkGrader("math", num_workers=1, timeout=1.0) as grader:
        grader.grade(None, ["0.25"], ["\\frac{1}{4}"], progress=False)
        before = [w.process.pid for w in grader._pool._workers.values()]
        verdicts = grader.grade(None, answers, ["\\frac{3}{7}"] * 42, progress=False)
        assert (
            (verdicts[0].score, verdicts[0].status) == (None, "timeout") == (verdicts[-1].score, verdicts[-1].status)
        )
        assert [v.score for v in verdicts[1:-1]] == [float(i == 3) for i in range(40)]
        assert (grader.stats.timeout, grader.stats.graded) == (2, 41)
        assert not any(psutil.pid_exists(pid) for pid in before)


@pytest.mark.slow
def test_a_dying_worker_is_replaced_and_its_pair_tried_again():
    pool = WorkerPool(1, timeout=10.0, memory_limit=1 << 30)
    pairs = [("1", f"\\frac{{{i}}}{{3}}") for i in range(200)]
    results = {}
    for index, outcome in pool.run(pairs):
        results[index] = outcome
        if len(results) in (1, 77):
            pool._workers[0].process.kill()  # as the system does when memory runs out
    pool.close()
    assert sorted(results) == list(range(200))
    assert all((v.score, v.status) == (float(i == 3), "graded") for i, v in results.items())


@pytest.mark.slow
def test_a_pair_that_kills_every_worker_is_an_error(tmp_path, monkeypatch):
    # A math-verify whose process dies on one string, as of a crash in a compiled library.
    (tmp_path / "sitecustomize.py").write_text(
        "import math_verify, signal\n"
        "real = math_verify.parse\n"
        "def parse(text, *args, **kwargs):\n"
        "    if 'kill' in text: signal.raise_signal(9)\n"
        "    return real(text, *args, **kwargs)\n"
        "math_verify.parse = parse\n"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    verdicts, _ = grade("math", ["0.5", "kill", "\\frac{2}{4}"], ["\\frac{1}{2}"] * 3)
    assert [(v.score, v.status) for v in verdicts] == [(1.0, "graded"), (None, "error"), (1.0, "graded")]


@pytest.mark.slow
def test_workers_are_renewed(monkeypatch):
    monkeypatch.setattr("dco_trl.grading.pool._ITEMS_PER_WORKER", 40)
    pool = WorkerPool(1, timeout=10.0, memory_limit=1 << 30)
    pids = set()
    done = 0
    for _ in pool.run([("1", f"{i}.5") for i in range(100)]):
        done += 1
        pids.add(pool._workers[0].process.pid)
    pool.close()
    assert done == 100 and len(pids) == 3


@pytest.mark.slow
def test_an_abandoned_run_leaves_no_answers_behind():
    pool = WorkerPool(1, timeout=10.0, memory_limit=1 << 30)
    next(iter(run := pool.run([("1", f"{i}.5") for i in range(100)])))
    run.close()
    assert [verdict.score for _, verdict in pool.run([("0.5", "\\frac12")])] == [1.0]
    pool.close()


@pytest.mark.slow
def test_workers_end_with_the_grader_and_with_the_process():
    with BulkGrader("math", num_workers=2) as grader:
        grader.grade(None, [f"\\frac{{{i}}}{{3}}" for i in range(200)], ["1"] * 200, progress=False)
        workers = [psutil.Process(w.process.pid) for w in grader._pool._workers.values()]
        assert workers
    assert not any(w.is_running() for w in workers)

    code = (
        "import os\nfrom dco_trl.grading import BulkGrader\n"
        "grader = BulkGrader('math', num_workers=1)\n"
        "grader.grade(None, ['0.5'], ['x'], progress=False)\n"
        "print(grader._pool._workers[0].process.pid, flush=True)\nos.kill(os.getpid(), 9)"
    )
    pid = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout)
    until(lambda: has_ended(pid))


@pytest.mark.slow
def test_a_worker_loads_little_and_is_limited():
    with BulkGrader("math", num_workers=1, memory_limit=512 << 20) as grader:
        grader.grade(None, ["0.5"], ["\\frac{1}{3}"], progress=False)
        process = psutil.Process(grader._pool._workers[0].process.pid)
        assert process.memory_info().rss < 150 << 20
        assert not any("torch" in m.path or "numpy" in m.path or "vllm" in m.path for m in process.memory_maps())
        assert process.rlimit(resource.RLIMIT_AS)[0] == 512 << 20
        assert process.rlimit(resource.RLIMIT_FSIZE)[0] == 0
        assert process.num_threads() == 1


@pytest.mark.parametrize(
    ("name", "reason"), [("math", "encodings|dco_trl"), ("operator:eq", "What it printed is above")]
)
def test_a_worker_that_cannot_start_says_why(name, reason, monkeypatch):
    monkeypatch.setattr("dco_trl.grading.pool.sys.path", [])
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    with pytest.raises(GraderError, match=f"a grading worker could not start:\n(.|\n)*({reason})"):
        grade(name, ["0.5"], ["\\frac{1}{3}"])


def test_a_worker_that_is_too_slow_to_start_is_named(monkeypatch):
    monkeypatch.setattr("dco_trl.grading.pool._START_SECONDS", 0.001)
    text = "a grading worker did not start within 0.001 seconds. Use fewer num_workers"
    with pytest.raises(GraderError, match=text):
        grade("math", ["0.5"], ["\\frac{1}{3}"])


@pytest.mark.slow
def test_an_error_does_not_wait_for_workers_that_start(tmp_path):
    grader = tmp_path / "grader.py"
    grader.write_text(
        "import time\n"
        "try:\n"
        f"    open({str(tmp_path / 'first')!r}, 'x')\n"
        "except FileExistsError:\n"
        "    raise RuntimeError('the second') from None\n"
        "time.sleep(60)\n"
        "def score(completions, **kwargs):\n"
        "    return [1.0]\n"
    )
    pool = WorkerPool(2, 10.0, 1 << 30, f"{grader}:score")
    with pytest.raises(GraderError, match="the second"):
        list(pool.run([(None, [text], ["a"], {}) for text in "ab"]))
    assert [worker.has_ended for worker in pool._workers.values()] == [True, True]


def test_a_system_without_a_limit_on_memory_is_warned_of(monkeypatch, tmp_path):
    worker = tmp_path / "worker"  # reports what one reports where the system has no such limit, and ends
    worker.write_text("""#!/bin/sh\necho '{"ready": true, "memory_limited": false}'\n""")
    worker.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(worker))
    text = "memory_limit: this system does not limit a process's address space. Watch the memory"
    with pytest.warns(UserWarning, match=text):
        grade("math", ["0.5"], ["\\frac{1}{3}"])


@pytest.mark.slow
def test_math_grader_survives_a_fork():
    assert math_grader(["0.5"], answer=["\\frac12"]) == [1.0]
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, repr(math_grader(["0.25"], answer=["\\frac14"])).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answers:
        assert answers.read() == "[1.0]"
    os.waitpid(child, 0)
    assert math_grader(["0.75"], answer=["\\frac34"]) == [1.0]


def test_a_users_function_sees_each_row_once():
    calls = []

    def grader(prompts, completions, answer, level, **kwargs):
        calls.append(len(completions))
        return [float(c == a) if level_ else None for c, a, level_ in zip(completions, answer, level, strict=True)]

    completions = ["a", "b", "a", "a"] * 1000
    columns = {"level": [1, 1, 1, 0] * 1000}
    with BulkGrader(grader) as bulk:
        verdicts = bulk.grade(["p"] * 4000, completions, ["a"] * 4000, columns, progress=False)
        assert calls == [3]
        assert [v.score for v in verdicts[:4]] == [1.0, 0.0, 1.0, None]
        assert (bulk.stats.rows, bulk.stats.distinct, bulk.stats.unparsed) == (4000, 3, 1000)
        bulk.grade(["p"] * 3000, [str(i) for i in range(3000)], ["a"] * 3000, {"level": [1] * 3000}, progress=False)
        assert calls[1:] == [1024, 1024, 952]


def test_a_row_without_a_prompt_takes_it_from_no_other():
    is_q = lambda completions, prompts: [float(prompt == "q") for prompt in prompts]  # noqa: E731
    assert scores(is_q, ["a", "b"], ["1", "1"], prompts=[None, "q"]) == [0.0, 1.0]


@pytest.mark.slow
def test_exact_compares_the_whole_of_a_long_answer():
    long = "x + " * 5000 + "1"
    completions = [f"\\boxed{{{text}}}" for text in (long.replace(" ", ""), long, long + "0")]
    verdicts, _ = grade("exact", completions, [long] * 3)
    assert [v.score for v in verdicts] == exact_grader(completions, answer=[long] * 3) == [1.0, 1.0, 0.0]
    assert all(len(v.answer) == 1000 for v in verdicts)
    assert len({v.answer for v in verdicts}) == 3  # cut, and still told apart by a vote


@pytest.mark.slow
def test_a_bar_on_standard_error(capsys):
    with BulkGrader("math", num_workers=1) as grader:
        grader.grade(None, ["0.5", "0.25", "1"], ["\\frac13", "\\frac14", "1"])
    shown = capsys.readouterr()
    assert "grading (math): 100%" in shown.err and "2/2" in shown.err and shown.out == ""
    grade(lambda completions, **k: [1.0] * len(completions), ["1", "2", "1"], ["1"] * 3)
    assert capsys.readouterr().err == ""
