"""The fenced blocks of a Markdown text, as a maintained parser reads them. Linear in the text's length."""

import re
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

from ..extras import require

# A fence at the end of a line of code is to stand on a line of its own; an indented one may not follow a paragraph.
_NO_FENCE = re.compile(r"(?<=[^\s`])[ \t]*(?=```+[ \t]*$)|^(?=[ \t]+```)", re.MULTILINE)
_LANGUAGE = re.compile(r"[\w+#-]+")


class CodeBlock(NamedTuple):
    """A fenced block: its language in lower case, "" where none is named, and what is in it."""

    language: str
    text: str


def code_blocks(text: str) -> Iterator[CodeBlock]:
    r"""The fenced blocks of a text, the likeliest answer first: the caller takes the first that it can use.

    The last block comes first. A block that is not closed ends with the text. After a block come its parts where
    fences stand at the end of a line of code, which Markdown does not take for fences and models write; after all
    blocks come those that are indented too far for Markdown.

    Args:
        text: A completion.

    Returns:
        The blocks; some more than once.

    Examples:
        >>> next(code_blocks("So:\n1. this\n   ~~~Python title=x\n   x = 1\n   ~~~\n"))
        CodeBlock(language='python', text='x = 1\n')
        >>> [block.text for block in code_blocks("```\nx = 1```\nIt is 1.")]
        ['x = 1```\nIt is 1.', 'x = 1\n', 'x = 1\n']

    References:
        CommonMark 0.31, section 4.5.
    """
    text = text.removeprefix("\ufeff")
    if "```" not in text and "~~~" not in text:
        return
    for block in reversed(_fences(text)):
        yield block
        parts = _NO_FENCE.sub("\n", block.text)
        if parts != block.text:
            yield from reversed(_fences(f"```{block.language}\n{parts}", any_indentation=True))
    yield from reversed(_fences(_NO_FENCE.sub("\n", text), any_indentation=True))


def _fences(text: str, any_indentation: bool = False) -> list[CodeBlock]:
    found = []
    for token in _parser(any_indentation).parse(text):
        if token.type == "fence":
            language = _LANGUAGE.search(token.info)
            found.append(CodeBlock(language[0].lower() if language else "", token.content))
    return found


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
