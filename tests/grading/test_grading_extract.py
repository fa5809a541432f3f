"""Extraction and normalisation: how models write answers, and linear time on hostile text."""

import pytest
from grading_helpers import cpu_seconds, table
from hypothesis import given, settings
from hypothesis import strategies as st

from dco_trl.grading import completion_text, extract_answer, extract_reference, normalize_answer, strip_thoughts

LONG = "Let us work this out with care, one step after another, as a good student would do. " * 5


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        *table("answers.tsv"),
        (" $42$.\n", "42"),
        ("", ""),
        ("  \n ", ""),
        ("12 " + "and so on " * 100, ""),
        ("He has 5." + "\n####" * 100, ""),
        (LONG + "\n#### Step 1: 3 + 4 = 7", ""),
        (LONG + "\n### Final Answer\n\n42", "42"),
        (LONG + "\n**Final Answer**\n\\[\n42\n\\]", "42"),
    ],
)
def test_extract_answer(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("<think>42? No</think>\n\n41", "\n\n41"),
        ("42? No</think>41", "41"),
        ("<think>42", ""),
        ("41 <think>Let me check", "41 "),
        ("<think>a<think>b</think>c</think>41", "41"),
        ("<thinking>a<reflection>42</reflection>43</thinking>41", "41"),
        ("<thinking>a<reflection>42</reflection>43", ""),
        ("[THINK]42[/THINK]41", "41"),
        ("◁think▷42◁/think▷41", "41"),
        ("<|START_THINKING|>42<|END_THINKING|>41", "41"),
        ("<|channel|>analysis<|message|>42<|end|><|start|>assistant<|channel|>final<|message|>41", "41"),
        ("analysis42assistantfinal41", "41"),
        ("a < b and [1, 2]", "a < b and [1, 2]"),
        ("thinking 42", "thinking 42"),
        # Special tokens that a tokenizer kept.
        ("<think>42</think>41<|im_end|>\n<|endoftext|>", "41"),
        ("B</s> ", "B"),
        ("if a <|x|> b </s>c>", "if a <|x|> b </s>c>"),
        ("<|im_end|>41", "<|im_end|>41"),
        # Letters that only look like a tag's.
        *(
            ("<TH\u0130NK>x</think> 4", " 4"),
            ("<th\u0131nk> 4", "<th\u0131nk> 4"),
            ("<thought\u017f>4", "<thought\u017f>4"),
        ),
    ],
)
def test_thoughts(text, rest):
    assert strip_thoughts(text) == rest


def test_thoughts_in_other_tags():
    tags = [("(hm)", "(so)")]
    assert strip_thoughts("(hm)42(SO)41", tags) == "41" and strip_thoughts("(hm)42", tags) == ""
    assert strip_thoughts("<think>42</think>41", tags) == "<think>42</think>41"
    assert strip_thoughts("<think>42</think>41", ()) == "<think>42</think>41"
    assert extract_answer("(hm)\\boxed{42}(so)41", tags) == "41"


def test_a_long_text_without_a_mark_has_no_answer_but_a_long_reference_has():
    text = "x + " * 100 + "1"
    assert extract_answer(text) == ""
    assert extract_reference(text) == text
    assert extract_reference("we get \\boxed{3}") == "3"
    assert extract_reference(72) == "72"


@given(st.text(alphabet="ab1,+^_ \\frac", max_size=40).map(str.strip).filter(lambda s: s and "\\" not in s[-1]))
@settings(max_examples=200, deadline=None)
def test_boxed_content_comes_back(answer):
    # A backslash before a brace escapes it, so it is kept out of the end.
    assert extract_answer(f"bla $\\boxed{{{answer}}}$ bla") == answer


@given(st.text(max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_text_gives_a_string(text):
    answer = extract_answer(text)
    assert isinstance(answer, str) and answer == answer.strip()
    assert isinstance(normalize_answer(answer), str)


@pytest.mark.parametrize(
    "unit",
    [
        *("\\boxed{", "\\boxed", "\\boxed ", "{", "}", "####", "answer is ", "answer ", "<answer>", "</answer>", "$"),
        "\\",
        *("a. B", "\\boxed{answer is 5}", "\\boxed{\\text{answer is", "\\boxed{1} and ", "answer to ", "7, not "),
        *("answer is not x but ", "correct option is ", "Final Answer\n", "#### Step\n", "<think>", "</think>"),
        *("</s>", "<|im_end|>", "</s> ", "<|im_end|> x", "<|"),
    ],
)
@pytest.mark.slow
def test_hostile_repetition_costs_linear_time(unit):
    short, long = (cpu_seconds(extract_answer, unit * n + "\n" + " " * n) for n in (5_000, 40_000))
    # Eight times the length: linear gives 8, quadratic 64. The constant covers the clock's resolution.
    assert long < 32 * (short + 1e-3)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        *(("$\\left( \\dfrac12, 1 \\right)$", "(\\frac{1}{2},1)"), ("1,000", "1000"), ("1{,}234{,}567", "1234567")),
        *(("-1,000.50", "-1000.5"), (".50", "0.5"), ("3.0", "3"), ("\\text{(A)}", "(A)"), ("90^\\circ", "90")),
        *(("90^{\\circ}", "90"), ("\\$18", "18"), ("\\sqrt2", "\\sqrt{2}"), ("x \\, y", "xy"), ("12.", "12")),
        *(("10 cm", "10cm"), ("１２", "12"), ("x²", "x^{2}"), ("90°", "90^\\circ"), ("\\dbinom52", "\\binom{5}{2}")),
        *(("\\frac 1 2", "\\frac{1}{2}"), ("1\\,000", "1000")),
    ],
)
def test_normalised_equal(left, right):
    assert normalize_answer(left) == normalize_answer(right)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        *(("1/2", "0.5"), ("1,2", "12"), ("(1,234)", "1234"), ("1", "-1"), ("a", "A"), (".", "0"), ("10", "1")),
        *(("1.05", "1.5"), ("5 6", "56"), ("5\\ 6", "56"), ("New York", "NewYork"), ("\\pi r", "\\pir")),
    ],
)
def test_normalised_different(left, right):
    assert normalize_answer(left) != normalize_answer(right)


def test_completion_text():
    assert completion_text("a") == "a"
    assert completion_text([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]) == "a"
    assert completion_text([{"role": "assistant", "content": None}]) == ""
    parts = [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}]
    assert completion_text([{"role": "assistant", "content": parts}]) == "ab"
    with pytest.raises(TypeError, match="a completion must be a string or a list of messages .* got int: '3'"):
        completion_text(3)
    with pytest.raises(TypeError, match="got list"):
        completion_text([])
