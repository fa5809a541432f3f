"""The verdicts of `math` are math-verify's: on real MATH answers, on generated wrong ones, on whole completions."""

import json
import logging
import os
import random
from fractions import Fraction
from pathlib import Path

import pytest
from grading_helpers import grade
from hypothesis import given, settings
from hypothesis import strategies as st
from lengths import MATH_PROBLEMS
from math_verify import parse, verify

from dco_trl.grading import Verdict, extract_answer, extract_reference
from dco_trl.grading.math_verdict import judge, math_verify_parse, quick_verdict

DATA = Path(os.environ.get("DCO_TRL_DATA") or Path(__file__).parents[2] / ".." / "shared" / "data")


@pytest.fixture(autouse=True)
def quiet():
    # math-verify logs its timeouts.
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def math_rows():
    path = DATA / "math" / "train.jsonl"
    if not path.exists():
        pytest.skip("the MATH data set is not there (DCO_TRL_DATA names its parent folder)")
    return [json.loads(line) for line in path.open()]


def verified(gold: str, answer: str) -> bool:
    """math-verify in this process, with its own limits, without the grader's caches and fast paths."""
    parsed = math_verify_parse.__wrapped__
    return verify(parsed(extract_reference(gold), 5), parsed(extract_answer(answer), 5))


def wrong_variants(answer: str, rng: random.Random, others: list[str]) -> list[str]:
    """Strings a model might write instead: some equal in value, most not, some broken."""
    digits = [i for i, c in enumerate(answer) if c.isdigit()]
    variants = [rng.choice(others), answer + "0", "-" + answer, answer.replace("frac", "dfrac"), " " + answer + " "]
    if digits:
        i = rng.choice(digits)
        variants.append(answer[:i] + str(rng.randrange(10)) + answer[i + 1 :])
    if answer:
        i = rng.randrange(len(answer))
        variants += [answer[:i] + answer[i + 1 :], answer[:i] + rng.choice("{}()x2,-\\$ ") + answer[i:]]
    return rng.sample(variants, 2)


@pytest.mark.slow
def test_identical_to_math_verify_on_math():
    """Real references against themselves, each other, and damaged copies."""
    rng = random.Random(0)
    rows = math_rows()
    answers = [row["answer"] for row in rows]
    # Integers are three in five and cheap; half of the sample is something else.
    odd = [a for a in answers if not a.lstrip("-").isdigit()]
    pairs = []
    for gold in rng.sample(answers, MATH_PROBLEMS) + rng.sample(odd, MATH_PROBLEMS):
        for answer in [gold, *wrong_variants(gold, rng, answers)]:
            pairs.append((gold, f"so it is $\\boxed{{{answer}}}$" if rng.random() < 0.5 else answer))
    verdicts, stats = grade("math", [a for _, a in pairs], [g for g, _ in pairs])
    assert stats.timeout == stats.error == 0
    different = [
        (gold, answer, verdict)
        for (gold, answer), verdict in zip(pairs, verdicts, strict=True)
        if (verdict.score == 1.0) != verified(gold, answer)
    ]
    assert different == []
    assert min(sum(v.score == score for v in verdicts) for score in (0.0, 1.0)) > 2 * MATH_PROBLEMS


@pytest.mark.slow
def test_identical_to_math_verify_on_whole_completions():
    """Extraction loses nothing against `parse` of the whole text, in a plain `verify(parse(...), parse(...))`."""
    rng = random.Random(1)
    rows = math_rows()
    templates = [
        "{solution}",
        "The answer is ${answer}$.",
        "The final answer is ${answer}$. I hope it is correct.",
        "so\n\\[\\boxed{{{answer}}}.\\]",
        "**Final Answer:** ${answer}$",
    ]
    texts, golds = [], []
    for row in rng.sample(rows, MATH_PROBLEMS):
        for template in templates:
            for other in (row, rng.choice(rows)):
                texts.append(template.format(**other))
                golds.append(row["answer"])
    verdicts, _ = grade("math", texts, golds)
    whole = [verify(parse(f"\\boxed{{{gold}}}"), parse(text)) for gold, text in zip(golds, texts, strict=True)]
    assert [v.score == 1.0 for v in verdicts] == whole


def test_every_math_reference_is_equal_to_itself():
    """The string comparison gives 1, and math-verify must, too."""
    answers = sorted({row["answer"] for row in math_rows()})
    # One in 24 keeps this test short.
    unequal = [a for a in answers[::24] if a and quick_verdict(*(extract_reference(a),) * 2).score != 1.0]
    assert unequal == []
    assert [a for a in answers[::24] if a and not verified(a, a)] == []


INTEGERS = st.integers(-(10**15) + 1, 10**15 - 1)


@given(INTEGERS, INTEGERS, st.sampled_from(["{}", "0{}", "00{}"]))
@settings(max_examples=60, deadline=None)
def test_integers_are_compared_as_math_verify_does(a, b, form):
    for left, right in [(a, b), (a, a), (a, -a), (a, a + 1), (a, 10 * a)]:
        answer = form.format(right) if right >= 0 else str(right)
        quick = quick_verdict(str(left), answer)
        if quick is not None:
            assert quick == Verdict(float(left == right), answer, "graded")
            assert (quick.score == 1.0) == verify(math_verify_parse(str(left)), math_verify_parse(answer))


FRACTION_FORMS = ["\\frac{{{p}}}{{{q}}}", "{p}/{q}", "\\dfrac{{{p}}}{{{q}}}", "-\\frac{{{p}}}{{{q}}}", "{p}"]


@given(*[st.integers(-12, 12)] * 2, *[st.integers(1, 12)] * 2, *[st.sampled_from(FRACTION_FORMS)] * 2)
@settings(max_examples=100, deadline=None)
def test_fractions_are_compared_as_math_verify_does(p1, p2, q1, q2, form1, form2):
    left, right = form1.format(p=p1, q=q1), form2.format(p=p2, q=q2)
    got = (quick_verdict(left, right) or judge(left, right)).score

    def value(form, p, q):
        return (-1 if form.startswith("-") else 1) * Fraction(p, 1 if form == "{p}" else q)

    assert got == float(value(form1, p1, q1) == value(form2, p2, q2))
    assert (got == 1.0) == verified(left, right)


@pytest.mark.parametrize(
    ("gold", "answer", "score"),
    [
        ("\\frac{1}{2}", "0.5", 1.0),
        ("1000", "1,000", 1.0),
        ("x=5", "5", 1.0),
        ("5", "x=5", 1.0),
        ("\\{1,2\\}", "\\{2,1\\}", 1.0),
        ("(1,2)", "(2,1)", 0.0),
        ("\\left( 3, \\frac{\\pi}{2} \\right)", "(3,\\pi/2)", 1.0),
        ("\\left( 3, \\frac{\\pi}{2} \\right)", "3", 0.0),
        ("\\text{Evelyn}", "Evelyn", 1.0),
        ("2x+3", "3+2x", 1.0),
        ("2x+3", "2", 0.0),
        ("\\sin x", "\\cos x", 0.0),
        ("10\\%", "10", 1.0),
        ("12", "12\\text{ inches}", 1.0),
        ("12", "it is 12 inches", 1.0),
        ("3", "we get $x = 3$", 1.0),
        ("3", "007", 0.0),
        ("7", "007", 1.0),
        ("\\frac{1}{0}", "\\frac{2}{0}", 0.0),
    ],
)
def test_meanings(gold, answer, score):
    assert (quick_verdict(gold, answer) or judge(gold, answer)).score == score
    assert verified(gold, answer) == (score == 1.0)
