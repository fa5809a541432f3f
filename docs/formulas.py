"""A hook of MkDocs: formulas become MathML as a page is built, so that a reader needs no script and no network."""

import html
import re

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

# As pymdownx.arithmatex leaves them.
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(content: str, **_: object) -> str:
    return _FORMULA.sub(_to_mathml, content)


def _to_mathml(found: re.Match[str]) -> str:
    tag, opening, latex = found.groups()
    mathml = convert(html.unescape(latex), display="block" if opening == "[" else "inline")
    unknown = re.findall(r"\\[a-zA-Z]+", mathml)
    if unknown:
        raise PluginError(f"latex2mathml does not know {', '.join(unknown)}, in the formula {html.unescape(latex)}")
    return f'<{tag} class="arithmatex">{mathml}</{tag}>'
