"""A hook of MkDocs: the site's first page is README."""

import re
from pathlib import Path
from typing import Any

README = Path(__file__).parents[1] / "README.md"
_LINK = re.compile(r"(!?\[[^\]]*\])\(([^)]+)\)")


def on_page_read_source(page: Any, **_: object) -> str | None:
    return _LINK.sub(_from_docs, README.read_text()) if page.file.src_uri == "index.md" else None


def _from_docs(found: re.Match[str]) -> str:
    """The link as it is from docs/; the text alone of what is no page of the site."""
    text, target = found.groups()
    if target.startswith(("https://", "#")):
        return found[0]
    return f"{text}({target.removeprefix('docs/')})" if target.startswith("docs/") else text[1:-1]
