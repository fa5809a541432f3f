"""Which blocks a Markdown text has: by CommonMark's rules, as models write them, and in texts made to take long."""

import pytest
from grading_helpers import cpu_seconds

from dco_trl.grading.code_blocks import code_blocks, names_in

DOCUMENTED = 'def f():\n    """\n    ```\n    x\n    ```\n    """\n'


def first(text: str) -> tuple[str, str] | None:
    return next(code_blocks(text), None)


@pytest.mark.parametrize(
    ("text", "language", "code"),
    [
        ("a\n```python\nx = 1\n```\nb", "python", "x = 1\n"),
        ("```\nx = 1\n```\n```Python\nx = 2\n```", "python", "x = 2\n"),
        ("```\r\nx = 1\r\n```\r\n", "", "x = 1\n"),
        ("\ufeff```py\nx = 1\n```", "py", "x = 1\n"),
        ("~~~python\nx = 1\n~~~", "python", "x = 1\n"),
        ("~~~python\nx = '```'\n```\n~~~", "python", "x = '```'\n```\n"),
        ("````md\n```\nx\n```\n````", "md", "```\nx\n```\n"),
        ("``` python solution.py\nx = 1\n```", "python", "x = 1\n"),
        ('```python title="a b"\nx = 1\n```', "python", "x = 1\n"),
        ("```{.python .numberLines}\nx = 1\n```", "python", "x = 1\n"),
        ("```c++\nx\n```", "c++", "x\n"),
        ("1. So:\n\n   ```python\n   if x:\n       y\n   ```\n2. b", "python", "if x:\n    y\n"),
        ("- a\n    - b\n      ```\n      x\n      ```", "", "x\n"),
        ("> ```py\n> x\n> ```\n", "py", "x\n"),
        ("<answer>\n```py\nx\n```\n</answer>", "py", "x\n"),
        ("# Solution\n```py\nx\n```", "py", "x\n"),
        ("so\n```python\nx = 1\ny = ", "python", "x = 1\ny = "),
        (f"```py\n{DOCUMENTED}```", "py", DOCUMENTED),
        ("```py\nx = '```'\n```", "py", "x = '```'\n"),
        ("```py\nx\n```", "py", "x\n"),
        ("```py\n```", "py", ""),
    ],
)  # fmt: skip
def test_the_first_choice(text, language, code):
    assert first(text) == (language, code)


@pytest.mark.parametrize("text", ["", "x = 1", "Use `x` and ``y``.", "~~", "``x``` is no fence"])
def test_no_block(text):
    assert first(text) is None


@pytest.mark.parametrize(
    ("text", "codes"),
    [
        # In Markdown, a fence at the end of a line of code is none: the longer reading comes first.
        ("```py\nreturn x```\nSo.", ["return x```\nSo.", "return x\n"]),
        ("```py\na```\n\n```py\nb```\nSo.", ["a```\n\n```py\nb```\nSo.", "b\n", "a\n"]),
        ("So:\n    ```py\n    x\n    ```", ["x\n\n"]),  # indented too far
        ("```py\na\n```\n```py\nb\n```", ["b\n", "a\n"]),
    ],
)
def test_further_choices(text, codes):
    found = [block for _, block in code_blocks(text)]
    assert found[: len(codes)] == codes


def test_what_python_warns_of_is_a_program():
    assert names_in("x = '\\d'\ny = 1 if 1else 2") is not None


@pytest.mark.parametrize(
    "unit",
    [
        *("```" + " " * 400, "```\n", "```\n \n", "~~~ \n", "`", "~", "```a", "a```", "a ```\n", "a```" + " " * 400),
        *("> ", "> ```\n", ">\n", "- ", "- a\n", "- ```\n", "1. ", "* ", "\t", " ", "    a\n", "a\n", "\n"),
        *("[a]: b\n", "<a\n", "***\n", "# ", "\x00", "\r"),
    ],
)  # fmt: skip
@pytest.mark.slow
def test_time_is_linear(unit):
    """Eight times the text takes about eight times as long; if it were quadratic, 64 times."""

    short, long = (
        cpu_seconds(lambda text: list(code_blocks(text)), "``` \n" + unit * (size // len(unit)))
        for size in (3_000, 24_000)
    )
    assert long < 24 * short + 0.05
