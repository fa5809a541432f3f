"""Every error message and warning of the package stands in a test, by three words in a row at least.

Both are read from the source. A message is what is raised or warned with; besides, what a variable in it was set to in
the same file, and any sentence that a function returns, such as a reason or a hint. Values that are put into a message
are left out on both sides. To prove something, the words must stand in a string of a test that is no docstring, and
must belong to at most two messages: phrases that more share do not count. Messages of three words and less are not
looked at. Whether a message names what was got and what to do is the matter of the test that raises it.
"""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
_WORDS, _LEAST = 4, 3
# A returned text of so many words is a sentence.
_SENTENCE = 9
_WARN = ("warn", "warning", "exit")
_TEXT = (ast.Constant, ast.JoinedStr, ast.BinOp, ast.IfExp)


def runs_of(text: str, length: int = _WORDS) -> set[str]:
    """All runs of so many words. Quoting, line breaks, numbers and the signs of regular expressions do not matter."""
    words = re.findall(r"[a-z]+", text.lower())
    return {" ".join(words[i : i + length]) for i in range(len(words) - length + 1)}


def texts_in(node: ast.AST) -> Iterator[str]:
    """The strings in some code, in its order and without docstrings; an f-string is one, without its values."""
    if isinstance(node, ast.JoinedStr):
        yield " ".join(str(part.value) for part in node.values if isinstance(part, ast.Constant))
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
        for child in ast.iter_child_nodes(node):
            yield from texts_in(child)


def messages_in(file: Path) -> Iterator[tuple[int, str]]:
    """Line and text of each message."""
    nodes = list(ast.walk(ast.parse(file.read_text())))
    said: list[ast.expr] = [node.exc for node in nodes if isinstance(node, ast.Raise) and node.exc is not None]
    for node in nodes:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _WARN:
            said += node.args
    for root in said:
        yield root.lineno, " ".join(texts_in(root))
    names = {name.id for root in said for name in ast.walk(root) if isinstance(name, ast.Name)}
    for node in nodes:
        if isinstance(node, ast.Assign | ast.Return) and isinstance(node.value, _TEXT):
            for text in (
                texts_in(node.value) if isinstance(node.value, ast.IfExp) else [" ".join(texts_in(node.value))]
            ):
                if isinstance(node, ast.Return):
                    is_message = len(text.split()) >= _SENTENCE and "<" not in text  # which a page has
                else:  # shorter ones are the beginnings of messages, such as the name of a row
                    is_message = len(runs_of(text)) > 1 and bool(
                        names & {getattr(to, "id", "") for to in node.targets}
                    )
                if is_message:
                    yield node.lineno, text


MESSAGES = {
    file: [(line, text) for line, text in messages_in(file) if runs_of(text)]
    for file in sorted((ROOT / "dco_trl").rglob("*.py"))
}
SAID = Counter(
    run for text in {text for said in MESSAGES.values() for _, text in said} for run in runs_of(text, _LEAST)
)
TESTED = {
    run
    for file in (ROOT / "tests").rglob("*.py")
    for text in texts_in(ast.parse(file.read_text()))
    for run in runs_of(text, _LEAST)
}


@pytest.mark.parametrize("file", MESSAGES, ids=lambda file: str(file.relative_to(ROOT / "dco_trl")))
def test_every_message_has_a_test_of_its_text(file):
    missing = []
    for line, text in MESSAGES[file]:
        if not any(SAID[run] <= 2 and run in TESTED for run in runs_of(text, _LEAST)):
            missing.append(f"line {line}: {text}")
    assert not missing, "\n".join(missing)
