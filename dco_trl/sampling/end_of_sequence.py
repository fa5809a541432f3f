"""Where an answer ends: at the token where a sampler stops, before anything that a chat template adds after it."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Kinds of tokens. Blank tokens are whitespace, or have no text.
CONTENT, BLANK, END = 0, 1, 2
# How vocabularies write whitespace: byte-level BPE, SentencePiece, and its bytes.
_WHITESPACE = re.compile(r"[ĠĊĉč▁\s]+|<0x[0-9A-F]{2}>")


def end_token_ids(tokenizer: "PreTrainedTokenizerBase", generation_config: Any = None) -> tuple[int, ...]:
    """Tokens that end a completion: the tokenizer's end of sequence, then those of the generation config.

    Training appends the tokenizer's; a chat model's template may end a turn with another, listed in its
    `generation_config.json` (a `GenerationConfig`, its dictionary, or None).

    Raises:
        UserError: Neither names one.
    """
    ids = _end_ids(tokenizer, generation_config)
    if not ids:
        raise UserError(
            f"The tokenizer of {tokenizer.name_or_path!r} has no eos_token and the generation config names none, so "
            "no completion would ever end. Set `tokenizer.eos_token` and save the tokenizer."
        )
    return ids


def _end_ids(tokenizer: Any, generation_config: Any) -> tuple[int, ...]:
    of = generation_config
    configured = of.get("eos_token_id") if isinstance(of, dict) else getattr(of, "eos_token_id", None)
    configured = [configured] if isinstance(configured, int) else configured or []
    return tuple(dict.fromkeys(i for i in [tokenizer.eos_token_id, *configured] if i is not None))


def special_ids(tokenizer: "PreTrainedTokenizerBase") -> frozenset[int]:
    """Tokens that decoding leaves out."""
    added = {token for token, entry in tokenizer.added_tokens_decoder.items() if entry.special}
    return frozenset(added | set(tokenizer.all_special_ids))


def token_kinds(tokenizer: "PreTrainedTokenizerBase", generation_config: Any = None) -> NDArray[np.int8]:
    """Kind of each token: `END` if it ends a completion, `BLANK` if it is whitespace or special, else `CONTENT`.

    There is one for each token id, and a last one for larger ids. Neither argument has to name an end.
    """
    names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    special = special_ids(tokenizer)
    likely = special | {token for token, name in enumerate(names) if name and _WHITESPACE.fullmatch(name)}
    ends = _end_ids(tokenizer, generation_config)
    kinds = np.full(max([len(names) - 1, *likely, *ends]) + 2, CONTENT, dtype=np.int8)
    for token in likely:
        if token in special or not str(tokenizer.decode([token])).strip():
            kinds[token] = BLANK
    kinds[list(ends)] = END
    return kinds


def answer_length(kinds: NDArray[np.int8], answer_ids: Sequence[int]) -> int | None:
    r"""Number of tokens of an answer up to and including its end of sequence; None if it has no end.

    The end is the first end of sequence with only blanks after it. In `4<|end|>\n<|endoftext|>` (Phi 3) the answer is
    `4<|end|>` if both end a completion, and all of it if only the last does. `kinds` come from `token_kinds`.
    """
    length = None
    for at in range(len(answer_ids) - 1, -1, -1):
        kind = kinds[min(answer_ids[at], len(kinds) - 1)]
        if kind == CONTENT:
            break
        if kind == END:
            length = at + 1
    return length
