"""Which part of a completion is the program: the block that defines what its tests name, and stands by itself."""

import ast
import builtins
import re
import symtable
from collections.abc import Collection
from functools import lru_cache
from typing import NamedTuple

from .code_blocks import code_blocks

_BUILTINS = frozenset(dir(builtins))
_UNREADABLE = (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError)


class Names(NamedTuple):
    """What a program defines at its top, what it uses and does not define, and whether it calls anything."""

    defined: frozenset[str]
    missing: frozenset[str]
    calls: bool


@lru_cache(maxsize=2048)  # the samples of a problem share their tests, and a vote reads a program once more
def names_in(source: str) -> Names | None:
    """The names of a Python source; None where it is none."""
    try:
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
    r"""The program in a completion.

    With names: the last Python block that defines all of them, else one of them. Without: the last that calls
    something and uses no name that only another block defines, as an example of use does. Else the last that is
    Python, else the last; the whole text where there is no block.

    Args:
        text: The completion.
        wanted: What the tests name.

    Returns:
        Source code, possibly empty.

    Examples:
        >>> extract_code("```python\ndef f(x):\n    return x\n```\nUse it:\n```python\nprint(f(2))\n```", ["f"])
        'def f(x):\n    return x\n'
        >>> extract_code("```python\nx = 1\n```\nand a shell:\n```sh\nls\n```")
        'x = 1\n'
    """
    found = (block.text.removeprefix("\ufeff") for block in code_blocks(text) if re.match(r"py|$", block.language))
    blocks = list(dict.fromkeys(found))
    if not blocks:
        return text.removeprefix("\ufeff")
    read = [(block, names) for block in blocks if (names := names_in(block)) is not None and block.strip()]
    wanted = frozenset(wanted)
    for block, names in read:
        if wanted <= names.defined if wanted else names.calls and not _is_usage(names, read):
            return block
    return next((block for block, names in read if wanted & names.defined), read[0][0] if read else blocks[0])


def _is_usage(names: Names, read: list[tuple[str, Names]]) -> bool:
    return any(names.missing & other.defined for _, other in read)
