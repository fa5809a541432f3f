r"""The answer in `\boxed{}`: the last box, or the boxes that are one answer together."""

import re

_BOX_OR_BRACE = re.compile(r"\\{0,2}(?<![A-Za-z])(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_BOX_WITHOUT_BRACES = re.compile(r"\\boxed\s+([^\s${}]+)")

# What may stand between two boxes of one answer: LaTeX without content, list markers, a variable that is set equal to
# the next box, ...
_NOTHING = re.compile(
    r"\\(?:quad|qquad|newline|par|[hv]space|left|right|text|textbf|mathrm|mbox|begin|end|\\|[,;:!()\[\] ])"
    r"|\{(?:aligned|align\*?)\}"
    r"|\b(?:option|case|part|possibility|guess|candidate|solution|answer|choice)\s?#?\d{1,2}\s?[:.)]"
    r"|^\s*(?:\d{1,2}|[A-Za-z])[.)]|\((?:[a-z]|[ivx]{1,4}|\d)\)"
    r"|[A-Za-z](?:_\{?\w{1,3}\}?)?(?:\([a-z]\))?\s*=\s*[$&({\[]*\s*$",
    re.MULTILINE | re.IGNORECASE,
)
_WORD = re.compile(r"[^\W\d_]+")
# ... or a few joining words, as in "4 apples and 5 oranges". "No, 5" and "so 5" begin a new answer.
_JOINING = set("and or also either maybe perhaps possibly alternatively respectively as well".split())
_JOINING |= set("und oder et ou y o e и или 和 或".split())
_BEGINS_ANEW = set(
    "no not wait but so actually rather instead hence thus therefore then is are was gives give get gets means now "
    "since because correct incorrect correction wrong mistake error sorry oops hmm final finally let we i this that "
    "which where if answer total sum result step solution check later then".split()
)
_MOST_CHARS, _MOST_WORDS = 80, 5


def boxed_answer(text: str) -> str:
    r"""The content of the last complete, non-empty box, or of the boxes that end with it, joined by commas.

    Boxes with only commas, "and", "or" and the like between them are one answer: three boxes are not three attempts. A
    box after more text replaces the earlier ones. Without a box: "". Unclosed boxes cost linear time.

    Examples:
        >>> boxed_answer(r"so $\boxed{3}$, $\boxed{5}$ and $\boxed{7}$.")
        '3, 5, 7'
        >>> boxed_answer(r"\boxed{3}? No, that is wrong: \boxed{\frac{1}{2}}")
        '\\frac{1}{2}'
    """
    boxes = _complete_boxes(text)
    if not boxes:
        bare = _BOX_WITHOUT_BRACES.findall(text)
        return bare[-1].rstrip(".,") if bare else ""
    parts = [boxes[-1][2]]
    for (_, end, content), (start, *_) in zip(boxes[-2::-1], boxes[:0:-1], strict=True):
        if not is_joint(text, end, start):
            break
        parts.append(content)
    return ", ".join(dict.fromkeys(reversed(parts)))


def _complete_boxes(text: str) -> list[tuple[int, int, str]]:
    """Start, end and content of each closed, non-empty box; nested boxes are one, with the innermost content."""
    first = min((i for i in (text.find("boxed"), text.find("fbox")) if i >= 0), default=len(text))
    found: list[tuple[int, int, str]] = []
    stack: list[tuple[int, int] | None] = []
    for match in _BOX_OR_BRACE.finditer(text, max(0, first - 2)):
        token = match.group()
        if token == "{":
            stack.append(None)
        elif token.endswith("{") and len(token) > 2:
            stack.append(match.span())
        elif token == "}" and stack and (box := stack.pop()) is not None:
            start, inside = box
            inner = ""
            while found and found[-1][0] > start:
                inner = inner or found[-1][2]
                found.pop()
            content = inner or text[inside : match.start()].strip()
            if content:
                found.append((start, match.end(), content))
    return found


def is_joint(text: str, start: int, end: int) -> bool:
    """Whether `text[start:end]` does no more than join what is around it."""
    if end - start > _MOST_CHARS:
        return False
    between = _NOTHING.sub(" ", text[start:end])
    words = [word.lower() for word in _WORD.findall(between)]
    if "=" in between or any(character.isdigit() for character in between) or len(words) > _MOST_WORDS:
        return False
    if not words or _BEGINS_ANEW.intersection(words):
        return not words
    # "3 cm, 5 cm": a unit and a comma.
    return bool(_JOINING.intersection(words)) or (len(words) <= 2 and any(mark in between for mark in ",;\n"))
