"""The fenced blocks of a Markdown text, and which of them is the program that a row's tests are for."""

import ast
import builtins
import re
import symtable
import threading
import warnings
from collections.abc import Collection, Iterator
from functools import cache, lru_cache
from typing import Any, NamedTuple

from ..extras import require

# Models write fences at the end of a line of code, and indented ones right after a paragraph. Markdown knows neither:
# a line break goes before them.
_NO_FENCE = re.compile(r"(?<=[^\s`])[ \t]*(?=```+[ \t]*$)|^(?=[ \t]+```)", re.MULTILINE)
_LANGUAGE = re.compile(r"[\w+#-]+")
_BUILTINS = frozenset(dir(builtins))
_warnings_lock = threading.Lock()
_UNREADABLE = (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError)


def code_blocks(text: str) -> Iterator[tuple[str, str]]:
    r"""The fenced blocks of a text, the likeliest answer first: the caller takes the first that it can use.

    The last block comes first. An unclosed block ends with the text. Models also write fences that Markdown does not
    know: a block with fences at the end of its lines of code is followed by its parts, and blocks that are indented
    too far come last. Each block is its language (in lower case, "" if none is named) and its text. Some come twice.

    Examples:
        >>> next(code_blocks("So:\n1. this\n   ~~~Python title=x\n   x = 1\n   ~~~\n"))
        ('python', 'x = 1\n')
        >>> [block for _, block in code_blocks("```\nx = 1```\nIt is 1.")]
        ['x = 1```\nIt is 1.', 'x = 1\n', 'x = 1\n']

    References:
        CommonMark 0.31, section 4.5.
    """
    text = text.removeprefix("\ufeff")
    if "```" not in text and "~~~" not in text:
        return
    for language, block in reversed(_fences(text)):
        yield language, block
        if (parts := _NO_FENCE.sub("\n", block)) != block:
            yield from reversed(_fences(f"```{language}\n{parts}", any_indentation=True))
    yield from reversed(_fences(_NO_FENCE.sub("\n", text), any_indentation=True))


def _fences(text: str, any_indentation: bool = False) -> list[tuple[str, str]]:
    fences = [token for token in _parser(any_indentation).parse(text) if token.type == "fence"]
    return [("".join(_LANGUAGE.findall(token.info)[:1]).lower(), token.content) for token in fences]


@cache
def _parser(any_indentation: bool) -> Any:
    require("a grader that reads code blocks", "eval", "markdown_it")
    from markdown_it import MarkdownIt

    # HTML is left out: a fence on the line after a tag such as `<answer>` is a fence.
    parser = MarkdownIt("zero").enable(["blockquote", "fence", "hr", "list"])
    if not any_indentation:
        parser.enable("code")  # four spaces make indented code, in which a fence is text
    parser.core.ruler.enableOnly(["normalize", "block"])
    return parser


class Names(NamedTuple):
    """What a program defines at top level, what it uses without defining it, and whether it calls anything."""

    defined: frozenset[str]
    missing: frozenset[str]
    calls: bool


@lru_cache(maxsize=2048)  # the samples of a problem share their tests, and a vote reads a program again
def names_in(source: str) -> Names | None:
    """The names of a source; None if it is not Python."""
    try:
        with _warnings_lock, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's about the model's program, which could also be made errors
            tree = ast.parse(source)
            top = symtable.symtable(source, "program.py", "exec")
    except _UNREADABLE:
        return None
    defined, used = set(), set()
    tables = [top]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        for symbol in table.get_symbols():
            is_of_module = table is top or symbol.is_global()
            if is_of_module and (symbol.is_assigned() or symbol.is_imported() or symbol.is_namespace()):
                defined.add(symbol.get_name())
            if is_of_module and symbol.is_referenced():
                used.add(symbol.get_name())
    calls = any(isinstance(node, ast.Call) for node in ast.walk(tree))
    return Names(frozenset(defined), frozenset(used - defined - _BUILTINS), calls)


def extract_code(text: str, wanted: Collection[str] = ()) -> str:
    r"""The source of the program in a completion, possibly empty.

    With names: the last Python block that defines all of them, else one of them. Without: the last that calls
    something and uses no name that only another block defines, as an example of use does. Otherwise the last block
    that is Python, else the last block. A text without blocks is the program itself.

    Args:
        text: The completion.
        wanted: What the tests name.

    Examples:
        >>> extract_code("```python\ndef f(x):\n    return x\n```\nUse it:\n```python\nprint(f(2))\n```", ["f"])
        'def f(x):\n    return x\n'
        >>> extract_code("```python\nx = 1\n```\nand a shell:\n```sh\nls\n```")
        'x = 1\n'
    """
    found = (block.removeprefix("\ufeff") for language, block in code_blocks(text) if re.match(r"py|$", language))
    blocks = list(dict.fromkeys(found))
    if not blocks:
        return text.removeprefix("\ufeff")
    read = [(block, names) for block in blocks if (names := names_in(block)) is not None and block.strip()]
    wanted = frozenset(wanted)
    for block, names in read:
        is_usage = any(names.missing & other.defined for _, other in read)
        if wanted <= names.defined if wanted else names.calls and not is_usage:
            return block
    return next((block for block, names in read if wanted & names.defined), read[0][0] if read else blocks[0])
