"""Between text and tokens: prompts as training renders them, completions as training ends them."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import UserError
from .end_of_sequence import end_token_ids, special_ids
from .protocol import Prompt, Sample, SampleRequest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Tokens of context that a decoder gets, since it may treat the first token of a text differently. One or two would not
# do: the last ones may be special tokens, which have no text.
CONTEXT = 32


class Ends(NamedTuple):
    """What ends a completion: tokens, and strings in its text."""

    ids: tuple[int, ...]
    strings: tuple[str, ...]


class Renderer:
    """Renders the prompts of one model or adapter. It needs no end of sequence."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase"):
        self.tokenizer = tokenizer
        self._appended: int | None = None

    def prompt_ids(self, prompt: Prompt | list[int], template_kwargs: Mapping[str, Any] | None = None) -> list[int]:
        """Tokens of a prompt, as TRL's SFTTrainer renders it.

        A string goes through `tokenizer(prompt)`, messages through `apply_chat_template(add_generation_prompt=True)`.
        Tokens that a tokenizer appends to every text, such as an end of sequence, are left out: in training they come
        after the completion. Token ids stay as they are.

        Raises:
            UserError: Messages without a chat template, or a prompt without a token.
        """
        if isinstance(prompt, str):
            [ids] = self.texts_ids([prompt])
        elif is_token_ids(prompt):
            return list(prompt)  # type: ignore[arg-type]
        else:
            ids = self.rendered(prompt, template_kwargs, add_generation_prompt=True)
        if not ids:
            raise UserError(
                f"prompt={prompt!r} has no tokens under the tokenizer of {self.tokenizer.name_or_path!r}. Remove it."
            )
        return ids

    def texts_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of plain texts, without those that the tokenizer appends."""
        if self._appended is None:
            self._appended = self._num_appended(next(filter(str.strip, texts), "a"))  # whitespace may have no tokens
        return [ids[: len(ids) - self._appended] for ids in self.tokenizer(list(texts))["input_ids"]]

    def rendered(self, messages: Any, template_kwargs: Mapping[str, Any] | None = None, **how: Any) -> list[int]:
        """Tokens of messages."""
        if self.tokenizer.chat_template is None:
            raise UserError(
                f"The prompt is a list of messages, but the tokenizer of {self.tokenizer.name_or_path!r} has no chat "
                "template, so it cannot be rendered. Give plain text prompts, or save a chat template with the "
                "tokenizer (`tokenizer.chat_template = ...`)."
            )
        options = {**(template_kwargs or {}), **how, "tokenize": True, "return_dict": True}
        encoded: Any = self.tokenizer.apply_chat_template(messages, **options)
        return list(encoded["input_ids"])

    def _num_appended(self, text: str) -> int:
        """How many tokens the tokenizer appends to every text, found from this one."""
        whole, bare = (self.tokenizer(text, add_special_tokens=special)["input_ids"] for special in (True, False))
        starts = range(len(whole) - len(bare) + 1)
        return next((len(whole) - at - len(bare) for at in starts if whole[at : at + len(bare)] == bare), 0)


class Codec(Renderer):
    """Renders the prompts and reads the completions of one model or adapter. It needs an end of sequence."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", generation_config: Any = None):
        super().__init__(tokenizer)
        self.end_ids = end_token_ids(tokenizer, generation_config)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Tokens that are not part of a text."""
        return special_ids(self.tokenizer)

    def ends(self, stop: Sequence[str]) -> Ends:
        """What ends a completion, given these stop strings; one that is a special token becomes a token."""
        special = {str(self.tokenizer.convert_ids_to_tokens(i)): i for i in self.special_ids} if stop else {}
        for text in stop:
            inner = next((name for name in special if name in text), None)
            if inner is not None and text not in special:
                raise UserError(
                    f"stop={text!r} holds the special token {inner!r}, which is not part of a completion's text, so "
                    f"it would never be found. Stop at {inner!r} alone."
                )
        ids = [*self.end_ids, *(special[text] for text in stop if text in special)]
        return Ends(tuple(dict.fromkeys(ids)), tuple(text for text in stop if text not in special))

    def samples(self, prompts: Sequence[list[int]], completions: Sequence[Sequence[int]], ends: Ends) -> list[Sample]:
        """A sample for each completion, given its tokens up to and including the end of sequence, if there is one."""
        is_ended = [bool(ids) and ids[-1] in ends.ids for ids in completions]
        # The end of sequence need not be a special token: remove it by position, then special tokens by name.
        bodies = [list(ids[:-1]) if end else list(ids) for ids, end in zip(completions, is_ended, strict=True)]
        samples = []
        for ids, end, text in zip(completions, is_ended, self.texts(prompts, bodies), strict=True):
            text, stopped = cut_at_stop(text, ends.strings)
            samples.append(Sample(text, tuple(ids), len(ids), "stop" if end or stopped else "length"))
        return samples

    def texts(self, contexts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]) -> list[str]:
        """Text of each continuation: that of the whole without that of the context, and without special tokens.

        Decoded alone, a continuation would lose its first space with SentencePiece's decoders.
        """
        near = [tuple(context[-CONTEXT:]) for context in contexts]
        distinct = list(set(near))
        context_text = dict(zip(distinct, self._decoded(distinct), strict=True))
        wholes = self._decoded([(*ids, *more) for ids, more in zip(near, continuations, strict=True)])
        texts = []
        for ids, whole in zip(near, wholes, strict=True):
            text = context_text[ids]
            if not whole.startswith(text):  # the context ends within a character, which the continuation completes
                text = text.rstrip("\ufffd")
            texts.append(whole[len(text) :])
        return texts

    def _decoded(self, sequences: Sequence[tuple[int, ...]]) -> list[str]:
        lists, how = list(map(list, sequences)), {"clean_up_tokenization_spaces": False}
        return self.tokenizer.batch_decode(lists, skip_special_tokens=True, **how) if lists else []


class Codecs:
    """The codec of each adapter: with the tokenizer in its folder if it has one, else with that of the model.

    Training saves its changes of the tokenizer there (end of sequence, chat template, added tokens). The model's
    tokenizer may be unknown, as an endpoint's is; adapters have no generation config of their own.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase | None", generation_config: Any = None):
        self.own = None if tokenizer is None else Codec(tokenizer, generation_config)
        self._generation_config = generation_config
        self._of: dict[tuple[str, int], Codec] = {}

    @classmethod
    def load(cls, name: str) -> "Codecs":
        """Codecs with the tokenizer of a folder or hub name, and the generation config beside it."""
        from transformers import AutoTokenizer, GenerationConfig

        try:
            generation_config = GenerationConfig.from_pretrained(name)
        except OSError:  # an adapter's folder has a tokenizer and no generation config
            generation_config = None
        return cls(AutoTokenizer.from_pretrained(name), generation_config)

    def of(self, adapter: str | None) -> Any:
        """The codec of an adapter's folder, or else the model's; None if that is unknown."""
        file = Path(adapter or "", "tokenizer_config.json")
        if not adapter or not file.is_file():
            return self.own
        key = adapter, file.stat().st_mtime_ns  # training writes it anew
        if key not in self._of:
            from transformers import AutoTokenizer

            self._of[key] = Codec(AutoTokenizer.from_pretrained(adapter), self._generation_config)
        return self._of[key]

    def encode(
        self, requests: Sequence[SampleRequest], max_tokens: int, context: int | None, how: str
    ) -> list[Prompt | list[int]]:
        """Tokens of all prompts. A prompt without a codec stays as it is.

        Raises:
            UserError: A prompt leaves no room for `max_tokens` in the context. The message holds `how` to change that.
        """
        prompts: list[Prompt | list[int]] = []
        for request in requests:
            codec = self.of(request.adapter)
            if codec is None:
                prompts.append(request.prompt)
                continue
            ids = codec.prompt_ids(request.prompt, request.template_kwargs)
            prompts.append(ids)
            if context is not None and len(ids) + max_tokens > context:
                raise UserError(
                    f"A prompt of {len(ids)} tokens and max_tokens={max_tokens} make {len(ids) + max_tokens} tokens, "
                    f"more than the {context} of the context. {how} The prompt (stream {request.stream}) begins "
                    f"{codec.tokenizer.decode(ids[:16])!r}."
                )
        return prompts


def is_token_ids(prompt: Prompt | list[int]) -> bool:
    """Whether a prompt is token ids already, rather than text or messages."""
    return bool(prompt) and isinstance(prompt[0], int)


def cut_at_stop(text: str, stop: Iterable[str]) -> tuple[str, bool]:
    """Text before the first stop string, and whether there was one."""
    ends = [at for at in (text.find(s) for s in stop) if at >= 0]
    return (text[: min(ends)], True) if ends else (text, False)
