"""`math` and `exact`, the loader, and reward functions from elsewhere: TRL's, reasoning-gym's, the user's."""

import asyncio
import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from grading_helpers import grade, scores

from dco_trl.grading import (
    BulkGrader,
    GraderError,
    call_grader,
    code_grader,
    exact_grader,
    grader_name,
    load_grader,
    math_grader,
)


def message(text):
    return [{"role": "assistant", "content": text}]


def test_exact():
    completions = ["so it is \\boxed{1{,}000}", "999", message("#### 1,000"), "", "x" * 1000]
    assert exact_grader(completions, answer=["1000"] * 5) == [1.0, 0.0, 1.0, 0.0, 0.0]
    assert exact_grader(["1/2", "0.5"], solution=["0.5", "0.5"]) == [0.0, 1.0]
    assert exact_grader([""], answer=[""]) == [0.0]
    assert exact_grader(["5 6", "\\boxed{5 6.}"], answer=["56", "5 6"]) == [0.0, 1.0]


def test_math_as_a_reward_function():
    completions = ["so $x = \\boxed{0.5}$", "2", message("The answer is $\\frac{2}{4}$."), "12 inches", ""]
    half = "\\frac{1}{2}"
    got = math_grader(completions=completions, prompts=["p"] * 5, answer=[half, half, half, "12", "1"], other=[0] * 5)
    assert got == [1.0, 0.0, 1.0, 1.0, 0.0]
    assert math_grader(["3"], solution=["we find \\boxed{3}"]) == [1.0]
    assert math_grader([], answer=[]) == []


def test_load_grader(tmp_path, monkeypatch):
    assert load_grader("math") is math_grader and load_grader("exact") is exact_grader
    assert load_grader(len) is len
    assert load_grader("dco_trl.grading:exact_grader") is exact_grader
    (tmp_path / "my_reward_of_test.py").write_text(
        "class A:\n    @staticmethod\n    def f(completions): return [0.0]\nx = 3\n"
    )
    (tmp_path / "my_broken_of_test.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert load_grader("my_reward_of_test:A.f")(["a"]) == [0.0]
    for name, text in {
        "maths": "'maths' is not known: give 'math', 'exact', 'choice', 'json', 'regex', 'code', or 'package.module:",
        "trl.rewards.accuracy_reward": "a colon before the function's name",
        "no_such_module_here:f": "importing 'no_such_module_here' failed: ModuleNotFoundError",
        "my_broken_of_test:f": "division by zero. Check the name, and that the module lies in the current folder or",
        "my_reward_of_test:g": "the module 'my_reward_of_test' has no 'g'. Check the function's name",
        "my_reward_of_test:x": "'my_reward_of_test:x' is of type int. Name a function of that module",
    }.items():
        with pytest.raises(GraderError, match=text):
            load_grader(name)


def test_grader_name():
    assert grader_name("a:b") == "a:b"
    assert list(map(grader_name, (math_grader, exact_grader, code_grader))) == ["math", "exact", "code"]
    assert grader_name(message) == f"{__name__}:message"
    assert BulkGrader("exact").name == "exact"


@pytest.mark.slow
def test_trl_accuracy_reward():
    grader = load_grader("trl.rewards:accuracy_reward")
    completions = ["\\boxed{\\frac{1}{2}}", message("\\boxed{3}"), "no formula"]
    answers = ["$\\frac{1}{2}$", "$\\frac{1}{2}$", "$1$"]
    direct = grader(completions=[message(c) if isinstance(c, str) else c for c in completions], solution=answers)
    assert direct == [1.0, 0.0, 0.0]
    verdicts, _ = grade("trl.rewards:accuracy_reward", [*completions, "$1$"], [*answers, "no formula"])
    assert [v.score for v in verdicts] == [*direct, None] and verdicts[3].status == "unparsed"
    assert [v.answer for v in verdicts] == ["\\frac{1}{2}", "3", "no formula", "1"]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["chain_sum", "countdown", "letter_counting", "mini_sudoku"])
def test_reasoning_gym(task):
    reasoning_gym = pytest.importorskip("reasoning_gym")
    entries = list(reasoning_gym.create_dataset(task, size=4, seed=3))
    scorer = reasoning_gym.get_score_answer_fn(task)
    right = [f"<think>1 2 3</think><answer>{e['answer']}</answer>" for e in entries]
    wrong = [f"the answer is {e['answer']}7" for e in entries]
    bare = [e["answer"] for e in entries]
    columns = {name: [e[name] for e in entries] * 3 for name in ("question", "metadata")}
    found = scores("dco_trl.grading.reasoning_gym:score", right + wrong + bare, bare * 3, columns)
    assert found[:4] == found[8:] == [scorer(e["answer"], e) for e in entries] == [1.0] * 4
    assert found[4:8] == [0.0] * 4  # though chain_sum gives partial credit for a number that contains the right one


def test_reasoning_gym_reads_metadata_as_json():
    pytest.importorskip("reasoning_gym")
    score = load_grader("dco_trl.grading.reasoning_gym:score")
    assert score(["4"], answer=["4"], metadata=['{"source_dataset": "chain_sum"}']) == [1.0]


def test_without_reasoning_gym_the_command_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    monkeypatch.delitem(sys.modules, "dco_trl.grading.reasoning_gym", raising=False)
    with pytest.raises(GraderError, match=r"^this grader needs reasoning-gym \(.*\): pip install reasoning-gym$"):
        load_grader("dco_trl.grading.reasoning_gym:score")


def test_what_a_function_is_given():
    seen = {}

    def everything(prompts, completions, answer, solution, level, **kwargs):
        seen.update(
            prompts=prompts, completions=completions, answer=answer, solution=solution, level=level, more=kwargs
        )
        return [1, None]

    columns = {"level": [1, 2], "subject": ["a", "b"]}
    assert call_grader(everything, ["p", "q"], ["c", "d"], ["x", "y"], columns) == [1.0, None]
    assert seen["completions"] == ["c", "d"] and seen["answer"] == seen["solution"] == ["x", "y"]
    assert seen["level"] == [1, 2] and seen["more"] == {"subject": ["a", "b"]}

    def few(completions, answer):
        return [float(c == a) for c, a in zip(completions, answer, strict=True)]

    assert call_grader(few, ["p"], ["c"], ["c"], {"level": [1]}) == [1.0]

    def own_solution(completions, solution, **kwargs):
        return [float(s == "worked") for s in solution]

    assert call_grader(own_solution, None, ["c"], ["a"], {"solution": ["worked"]}) == [1.0]


def test_coroutine_arrays_and_callable_objects():
    async def later(completions, **kwargs):
        return np.array([0.25] * len(completions))

    class Reward:
        def __call__(self, completions, **kwargs):
            return tuple(np.float32(1) for _ in completions)

    assert call_grader(later, None, ["a", "b"], ["1", "1"]) == [0.25, 0.25]
    assert call_grader(Reward(), None, ["a"], ["1"]) == [1.0]


def test_coroutines_share_one_event_loop():
    """They may hold a client open over calls, batches of 1,024 rows, and threads."""
    loops = []

    async def grader(completions, **kwargs):
        loops.append(asyncio.get_running_loop())
        await asyncio.sleep(0)
        return [1.0] * len(completions)

    verdicts, _ = grade(grader, [str(i) for i in range(1030)], ["a"] * 1030)
    with ThreadPoolExecutor(4) as executor:
        list(executor.map(lambda i: call_grader(grader, None, ["a"], ["a"]), range(8)))

    async def in_a_notebook():
        return call_grader(grader, None, ["a"], ["a"])

    asyncio.run(in_a_notebook())
    assert len(verdicts) == 1030 and len(loops) == 11 and len(set(loops)) == 1


@pytest.mark.slow
def test_threads_get_their_own_verdicts():
    """Eight threads in one pool, each with problems of its own."""

    def use(me):
        answers = [f"\\frac{{{i}}}{{{me + 7}}}" for i in range(40)]
        return math_grader(answers, answer=[f"{me + 3}/{me + 7}"] * 40) == [float(i == me + 3) for i in range(40)]

    with ThreadPoolExecutor(8) as executor:
        assert list(executor.map(use, range(8))) == [True] * 8
    with BulkGrader("math", num_workers=1) as bulk, ThreadPoolExecutor(8) as executor:
        texts = [[f"\\frac{{{i}}}{{{me + 7}}}" for i in range(20)] for me in range(8)]
        found = executor.map(lambda me: bulk.grade(None, texts[me], [f"4/{me + 7}"] * 20, progress=False), range(8))
        assert [[v.score for v in verdicts] for verdicts in found] == [[float(i == 4) for i in range(20)]] * 8
        assert (bulk.stats.rows, bulk.stats.graded) == (160, 160)


def _raise(completions, **kwargs):
    raise KeyError("gold")


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (_raise, r"_raise' raised KeyError: 'gold'. It was called with 2 completions and .*'answer', 'completions'"),
        (lambda completions, needed, **k: [0, 0], "raised TypeError: .*missing 1 required .*'needed'"),
        (lambda completions, **k: [1.0], "must return one score per completion: 2 expected, got 1"),
        (lambda completions, **k: 1.0, "must return a list of scores, one per completion, got float: '1.0'"),
        (lambda completions, **k: None, "must return a list of scores, one per completion, got NoneType"),
        (lambda completions, **k: [1.0, math.nan], "returned nan as score 1: return a finite number .*, or None"),
        (lambda completions, **k: [math.inf, 0.0], "returned inf as score 0: return a finite number"),
        (lambda completions, **k: [10**5000, 0.0], "returned inf as score 0: return a finite number"),
        (lambda completions, **k: [1.0, "yes"], "must return numbers or None: score 1 is str 'yes'"),
        (lambda completions, **k: [[1.0], 0], r"must return numbers or None: score 0 is list '\[1.0\]'"),
    ],
)
def test_faulty_functions_are_named(function, text):
    with pytest.raises(GraderError, match=text):
        call_grader(function, ["p", "p"], ["a", "b"], ["1", "1"])
    with pytest.raises(GraderError, match=text):
        grade(function, ["a", "b"], ["1", "1"], prompts=["p", "p"])


def test_the_package_is_light_to_import():
    """It loads neither torch, TRL, vLLM nor math-verify: workers and the command line import it."""
    code = (
        "import sys; from dco_trl.grading import BulkGrader, load_grader; load_grader('math');"
        "print([m for m in ('torch', 'trl', 'transformers', 'vllm', 'math_verify') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
