"""Leave out what a model thinks before it answers."""

import re
from collections.abc import Sequence
from functools import lru_cache

_NAMES = (
    "think thinking thought thoughts reasoning reason reflection analysis scratchpad inner_monologue antThinking "
    "thought_process thinking_process chain_of_thought cot rationale"
).split()
# An opening "" means that the text has none: the prompt has it, or the tokenizer drops it.
THOUGHT_TAGS: tuple[tuple[str, str], ...] = (
    *((f"<{name}>", f"</{name}>") for name in (*_NAMES, "seed:think", "longcat_think", "mm:think")),
    *((f"<|{name}|>", f"<|/{name}|>") for name in _NAMES),
    *((f"<|begin_of_{name}|>", f"<|end_of_{name}|>") for name in _NAMES),
    *((f"<|start_{name}|>", f"<|end_{name}|>") for name in _NAMES),
    *((f"<|{name}_start|>", f"<|{name}_end|>") for name in _NAMES),
    *((f"◁{name}▷", f"◁/{name}▷") for name in _NAMES),
    *(("[think]", "[/think]"), ("[thinking]", "[/thinking]"), ("<|inner_prefix|>", "<|inner_suffix|>")),
    *(("<|channel|>analysis", "<|channel|>final<|message|>"), ("<|channel>thought", "<channel|>")),
    *(("", "assistantfinal"), ("<unused94>", "<unused95>"), ("Here is my thought process:", "Here is my response:")),
)
# What a tokenizer writes at the end of a text whose special tokens were kept.
_END_TOKEN = re.compile(r"<\|[\w-]{2,30}\|>|</s>|<eos>|<end_of_turn>")


def strip_thoughts(text: str, tags: Sequence[tuple[str, str]] = THOUGHT_TAGS) -> str:
    """A completion without its thoughts: what stands after the last closing tag, up to an unclosed opening tag.

    Special tokens at its end, such as `<|im_end|>` and `</s>`, are left out too.

    Args:
        text: A completion.
        tags: Pairs of an opening and a closing tag, in any case; an opening "" stands for none. The default has those
            of DeepSeek, Qwen, Magistral, Kimi, gpt-oss, Command, Granite, Seed and similar models.

    Examples:
        >>> strip_thoughts("<think>42? No.</think>The answer is 41."), strip_thoughts("Hm, 42.</think> 41")
        ('The answer is 41.', ' 41')
        >>> strip_thoughts("<think>The answer is 42"), strip_thoughts("(a) b (/a) c", [("(a)", "(/a)")])
        ('', ' c')

    Relations:
        Every built-in grader calls it. Give other tags with `functools.partial(math_grader, thought_tags=[...])`.
    """
    pattern, kinds, signs = _USUAL if tags is THOUGHT_TAGS else _reader(tuple((o, c) for o, c in tags))
    if not any(sign in text for sign in signs):
        return _without_end_tokens(text)
    start, end = 0, len(text)
    open_tags: dict[int, int] = {}  # kind to position, in the order in which they were opened
    for match in pattern.finditer(text):
        found = kinds.get(match[0].lower())
        if found is None:  # `re` takes "ı" and "ſ" for "i" and "s"
            continue
        kind, is_opening = found
        if is_opening:
            open_tags.setdefault(kind, match.start())
        elif kind in open_tags:
            # What was opened inside it ends with it.
            for inner in list(open_tags)[list(open_tags).index(kind) :]:
                del open_tags[inner]
            start = match.end()
        elif not open_tags:
            start = match.end()
    if open_tags:
        end = next(iter(open_tags.values()))
        start = min(start, end)
    return _without_end_tokens(text[start:end])


def _without_end_tokens(text: str) -> str:
    if not text.rstrip().endswith(">"):
        return text
    end = len(text)
    for token in reversed(list(_END_TOKEN.finditer(text))):
        if text[token.end() : end].strip():
            break
        end = token.start()
    return text[:end]


@lru_cache(maxsize=32)
def _reader(tags: tuple[tuple[str, str], ...]) -> tuple[re.Pattern, dict[str, tuple[int, bool]], set[str]]:
    """A pattern of all tags, what each tag is, and strings of which every text with a tag has one."""
    kinds: dict[str, tuple[int, bool]] = {}
    for kind, (opening, closing) in enumerate(tags):
        kinds |= {opening.lower(): (kind, True), closing.lower(): (kind, False)}
    kinds.pop("", None)
    by_first: dict[str, list[str]] = {}
    for tag in sorted(kinds, key=len, reverse=True):
        by_first.setdefault(tag[0], []).append(re.escape(tag[1:]))
    alternatives = [f"{re.escape(first)}(?:{'|'.join(rest)})" for first, rest in by_first.items()]
    signs = {tag if tag[0].isalnum() else tag[0] for pair in tags for tag in pair if tag}
    return re.compile("|".join(alternatives) or "(?!)", re.IGNORECASE), kinds, signs


_USUAL = _reader(THOUGHT_TAGS)
