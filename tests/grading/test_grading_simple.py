"""Multiple choice, JSON, regular expressions, and `exact` with another normalisation."""

import functools

import numpy as np
import pytest
from grading_helpers import grade, needs_confinement, scores

from dco_trl.grading import (
    GraderError,
    choice_grader,
    exact_grader,
    json_grader,
    load_grader,
    math_grader,
    regex_grader,
)

RIGHT_B = (
    *("B", "(B)", "b)", "B. Paris", "**B**", "The answer is (B) because it rains.", "Answer: B because it rains"),
    *("\\boxed{\\text{B}}", "$\\mathbf{B}$", "\\boxed{\\text{B}. Paris}", "`B`", "Ｂ", "（Ｂ）", "𝐁", "Ⓑ", "[B]"),
    *("<think>A</think>B", "ANSWER: $B$", "Answer: \\textbf{(B)}", "\\(\\text{B}\\)", "**Answer: (B)** Paris"),
    *("Answer: B\n\nA is wrong.", "answer: b", "The answer is clearly B.", "It's B.", "B is correct"),
    *("(B) because (A) is wrong", "Answer: B, not A", "B - Paris", "The answer is B rather than A"),
    *("I would choose B.", "I'd go with (B).", "I think it's B", "It must be B.", "Ans: B", "I'll pick option B"),
    *("B. Cannot be A.", "B. Can't be A, which is too small.", "B, is not A", "B - cannot be A"),
    *("B. the cell membrane", "\\boxed{B: A polygenic score}", "Answer: B. I think so.", "The correct option is B."),
)
NO_LETTER = (
    *("Answer: B or C", "Answer: (B) or (C)", "Answer: B/C", "Answer: A B C D", "B; C", "both B and C"),
    *("either B or C", "Answer: A) B) C)", "Answer: A. B. C.", "(B) (C)", "B | C", "\\boxed{B}, \\boxed{C}"),
    *("The answer is B (or C)", "B, maybe C", "E coli", "C. elegans", "B cells", "D minor", "C++", "A+", "D'accord"),
    *("Don't know", "None of the above", "Vitamin B", "The answer is not B", "(A) 5 (B) 6", "AB", "B. or C."),
    *("B is wrong. C is wrong.", "B isn't right", "(B) cannot be true", "Option B is not right. C.", "B is ruled out"),
    *("<think>B", "I would choose a Basset.", "B or C", "Both", "A dog"),
)
LONG = "Let us see what the options are and think about each of them in turn. " * 6


@pytest.mark.parametrize(
    ("text", "reference", "score"),
    [
        ("Option B", "(B)", 1.0),
        (LONG + "So the answer is B.", "B", 1.0),
        (LONG + "\\boxed{B}", "\\boxed{B}", 1.0),
        ([{"role": "assistant", "content": "B"}], "B", 1.0),
        ("2", "2", 1.0),
        ("(2) red", "2", 1.0),
        ("I think so", "I", 0.0),
        ("A", "B", 0.0),
        ("", "B", 0.0),
        (LONG + " (B)", "B", 0.0),  # never says what its answer is
        ("B", "", None),
        ("B", "?", None),
        *((text, "B", 1.0) for text in RIGHT_B),
        *((text, text.strip("(")[:1] if text[0] in "ABCDE" else "B", 0.0) for text in NO_LETTER),
        ("Answer: A, B, C, D", "A", 0.0),
        ("Answer: A, B, C, D", "D", 0.0),
        ("\\boxed{\\langle H\\rangle \\ll \\Delta E}\n\n**Answer: D**", "D", 1.0),
        ("\\boxed{\\langle H\\rangle \\ll \\Delta E}\n\n**Answer: D**", "E", 0.0),
        ("The answer is E. coli", "E", 0.0),
        ("С", "C", 1.0),  # Cyrillic
        ("В", "B", 0.0),  # the third letter of that alphabet
        ("2.5", "2", 0.0),
    ],
)
def test_choice(text, reference, score):
    assert choice_grader([text], answer=[reference]) == [score]


@pytest.mark.parametrize(
    ("text", "reference", "choices", "score"),
    [
        ("B", 1, ["red", "blue"], 1.0),  # MMLU
        ("B", "1", ["red", "blue"], 1.0),
        ("A", "1", ["red", "blue"], 0.0),
        ("The answer is Blue.", 1, ["red", "blue"], 1.0),
        ("a dog", "A", ["A dog", "a cat"], 1.0),
        ("C", "C", ["red", "blue"], None),
        ("A", 7, ["red", "blue"], None),
        ("B", "B", {"text": ["red", "blue"], "label": ["A", "B"]}, 1.0),  # ARC
        ("2", "2", {"text": ["red", "blue"], "label": ["1", "2"]}, 1.0),
        ("blue", "2", '{"text": ["red", "blue"], "label": ["1", "2"]}', 1.0),
        ("B", "B", None, 1.0),
        ("B", "B", [], 1.0),
        ("B", "B", "red or blue", 1.0),
        ("E. coli", "B", ["S. aureus", "E. coli"], 1.0),
        ("E. coli", "E", ["a", "b", "c", "E. coli", "e"], 0.0),
        ("B. red", "B", ["red", "blue"], 0.0),  # the text of the other
        ("B. blue", "B", ["red", "blue"], 1.0),
        ("B", 1, "red or blue", None),
        ("A", "A", "5", 1.0),
        ("The answer is B.", "B", ["O", "A", "B", "AB"], 1.0),  # the letter, though it is the text of option C
        ("The answer is AB.", "D", ["O", "A", "B", "AB"], 1.0),
        ("1", "1", {"label": ["1", "2"], "text": ["2", "1"]}, 1.0),
        ("B", "blue", ["red", "blue"], 1.0),  # a reference that is an option's text
        ("blue", "blue", ["red", "blue"], 1.0),
        ("red", "blue", ["red", "blue"], 0.0),
        ("B", "green", ["red", "blue"], None),
    ],
)
def test_choice_of_options(text, reference, choices, score):
    assert choice_grader([text], answer=[reference], choices=[choices]) == [score]


def test_choice_reads_arcs_column():
    assert choice_grader(["D"], answerKey=["D"]) == [1.0]


@pytest.mark.parametrize(
    ("text", "reference", "score"),
    [
        ('{"a": 1, "b": [2, {"c": null}]}', '{"b": [2.0, {"c": null}], "a": 1}', 1.0),
        ('Here:\n```json\n{"a": 1}\n```\nDone.', {"a": 1}, 1.0),
        ("```\n[1]\n```\n```JSON\n[2]\n```", "[2]", 1.0),
        ('first [1], then {"a": [3]} it is', '{"a": [3]}', 1.0),
        ('{"a": [3]} [', '{"a": [3]}', 1.0),
        ("3", "3", 1.0),
        ('"x"', '"x"', 1.0),
        ("[1, 2]", "[2, 1]", 0.0),
        ("[1]", "[1, 1]", 0.0),
        ("true", "1", 0.0),
        ("1", "true", 0.0),
        ("false", "0", 0.0),
        ('{"a": 1}', '{"a": 1, "b": 2}', 0.0),
        ("NaN", "[1]", 0.0),
        ("no", "[1]", 0.0),
        ("", "[1]", 0.0),
        ("[" * 100_000, "[1]", 0.0),
        ("[" * 900 + "[]," * 8_000, "[]", 0.0),
        ('{"' * 50_000, "[]", 0.0),
        ("[1] and [2], " * 500 + '{"a": 1}', '{"a": 1}', 1.0),
        ('```json\n{"a": 1}\n```\nsays\n```\nDone: {\n```', '{"a": 1}', 1.0),
        ('```json\n{"a": "x ``` y"}\n```', '{"a": "x ``` y"}', 1.0),
        ('1. So\n   ~~~json\n   {"a": 1}\n   ~~~', '{"a": 1}', 1.0),
        ('<think>{"a": 2}</think>{"a": 1}', '{"a": 1}', 1.0),
        ('{"a": 1}<think>{"a": 2}', '{"a": 2}', 0.0),
        ("9" * 10_000, "[1]", 0.0),
        ("[1]", "[1", None),
        ("[NaN]", "[NaN]", None),
        ("1", "[" * 100_000, None),
        *(("true", "True", 1.0), ("false", "True", 0.0), ("1", "True", 0.0)),  # as a run folder keeps booleans
        *(("3", np.int64(3), 1.0), ("[1.0]", np.array([1]), 1.0), ("{}", {"a": object()}, None)),
    ],
)
def test_json(text, reference, score):
    assert json_grader([text], answer=[reference]) == [score]


@pytest.mark.parametrize(
    ("text", "pattern", "score"),
    [
        ("The answer is 12 cm", r"12(\.0)? ?(cm)?", 1.0),
        ("12.0", r"12(\.0)? ?(cm)?", 1.0),
        ("112", r"12", 0.0),
        ("The answer is negative 3.", r"negative \d", 1.0),  # as it was written
        ("It was Paris or\nLondon", r"(?is).*paris.*", 1.0),
        ("", "x", 0.0),
        ("x", "(", None),
        ("x", "(?P<a>x)(?P<a>y)", None),
        *(("", "", None), ("x", "", None)),
    ],
)
def test_regex(text, pattern, score):
    assert regex_grader([text], pattern=[pattern]) == [score]


@pytest.mark.parametrize("grader", [choice_grader, exact_grader, json_grader, math_grader, regex_grader])
def test_references_are_needed(grader):
    name = grader.__name__.removesuffix("_grader")
    missing = f"grader '{name}' needs the reference answers: give the data set a column named `answer` or `"
    with pytest.raises(GraderError, match=missing):
        grader(["x"])
    too_many = f"grader '{name}': one reference per completion is needed, got 2 references for 1 completions"
    with pytest.raises(GraderError, match=too_many):
        grader(["x"], answer=["x", "y"])
    assert grader([], answer=[]) == []


@pytest.mark.parametrize(
    ("name", "text", "reference"), [("choice", "(B)", "B"), ("json", "[1.0]", "[1]"), ("regex", "12", r"\d+")]
)
def test_by_name_in_workers(name, text, reference):
    assert load_grader(name).__name__ == f"{name}_grader"
    assert scores(name, [text, "wrong"], [reference] * 2) == [1.0, 0.0]


@pytest.mark.slow
def test_an_expression_without_end_is_stopped():
    verdicts, _ = grade("regex", ["a" * 40 + "b", "a"], ["(a|a)*c"] * 2, timeout=1.0)
    assert [(verdict.score, verdict.status) for verdict in verdicts] == [(None, "timeout"), (0.0, "graded")]


@needs_confinement
def test_code_leaves_thoughts_out():
    right, wrong = "```python\nx = 1\n```", "```python\nx = 2\n```"
    texts = [f"<think>{wrong}</think>{right}", f"<think>{right}</think>{wrong}", f"<think>{right}"]
    verdicts, _ = grade("code", texts, [""] * 3, {"test_list": [["assert x == 1"]] * 3})
    assert [(verdict.score, verdict.answer) for verdict in verdicts] == [(1.0, "x = 1"), (0.0, "x = 2"), (0.0, "")]


def test_thought_tags_are_an_argument():
    text, tags = "(hm) \\boxed{B} (so) The answer is A.", [("(hm)", "(so)")]
    for grader in (choice_grader, exact_grader, regex_grader, math_grader):
        assert grader([text], answer=["A"]) == [0.0]
        assert grader([text], answer=["A"], thought_tags=tags) == [1.0]
        [verdict], _ = grade(functools.partial(grader, thought_tags=tags), [text], ["A"])
        assert (verdict.score, verdict.answer) == (1.0, "A")


def test_exact_with_another_normalisation():
    texts, references = ["The answer is Paris.", "paris", "1,000"], ["PARIS", "Rome", "1000"]
    assert exact_grader(texts, answer=references) == [0.0, 0.0, 1.0]
    assert exact_grader(texts, answer=references, normalize=str.casefold) == [1.0, 0.0, 0.0]
    assert scores(functools.partial(exact_grader, normalize=str.casefold), texts, references) == [1.0, 0.0, 0.0]


@pytest.mark.slow
def test_a_vote_counts_one_spelling_of_a_choice_and_of_json():
    options = [["red", "blue"]] * 5
    completions = ["The answer is (B).", "b", "blue", "The answer is A", "no idea"]
    verdicts, _ = grade("choice", completions, ["B"] * 5, {"choices": options})
    assert [verdict.answer for verdict in verdicts] == ["B", "B", "B", "A", "no idea"]
    assert [verdict.score for verdict in verdicts] == [1, 1, 1, 0, 0]
    assert [verdict.answer for verdict in grade("choice", ["(b) so", "B."], ["B"] * 2)[0]] == ["B", "B"]
    first, other = '{"a": true, "b": [1, 2.5]}', '{"a": 1, "b": [1, 2.5]}'
    texts = ['{"b": [1.0, 2.5], "a": true}', '```json\n{"a":true,"b":[1,2.5]}\n```', other, "none", "1e999"]
    verdicts, _ = grade("json", texts, [texts[0]] * 5)
    assert [verdict.score for verdict in verdicts] == [1, 1, 0, 0, 0]
    assert [verdict.answer for verdict in verdicts] == [first, first, other, "none", "Infinity"]
