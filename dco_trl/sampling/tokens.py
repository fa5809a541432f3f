"""Between text and tokens: prompts as training renders them, completions as training ends them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from .end_of_sequence import end_token_ids, special_ids
from .protocol import Prompt, Sample, SampleRequest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Tokens of context that a decoder is given: it may treat the first token of a text otherwise than the others.
_CONTEXT = 8
# So many are looked at: the last of them may be special ones, and no text.
CONTEXT = 4 * _CONTEXT


@dataclass(frozen=True)
class Ends:
    """What ends a completion: tokens, and strings in its text."""

    ids: tuple[int, ...]
    strings: tuple[str, ...]


class Renderer:
    """Renders the prompts of one model or adapter, which needs no end of sequence."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase"):
        self.tokenizer = tokenizer
        self._appended: int | None = None

    def prompt_ids(self, prompt: Prompt | list[int], template_kwargs: Mapping[str, Any] | None = None) -> list[int]:
        """Tokens of a prompt, as TRL's SFTTrainer renders it.

        A string goes through `tokenizer(prompt)`, messages through `apply_chat_template(add_generation_prompt=True)`.
        What a tokenizer appends to every text, such as an end of sequence, is left out: in training it stands behind
        the completion. Token ids stay as they are.

        Args:
            prompt: Text, messages or token ids.
            template_kwargs: Further arguments of the chat template.

        Returns:
            Token ids, at least one.

        Raises:
            ValueError: Messages without a chat template, or a prompt without a token.
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
        """Tokens of plain texts, without what the tokenizer appends."""
        if not texts:
            return []
        appended = self._num_appended(next(filter(None, texts), "a"))
        return [ids[: len(ids) - appended] for ids in self.tokenizer(list(texts))["input_ids"]]

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
        """How many tokens the tokenizer appends to a text, told from one that it certainly reads."""
        if self._appended is None:
            whole, bare = (self.tokenizer(text, add_special_tokens=special)["input_ids"] for special in (True, False))
            starts = range(len(whole) - len(bare) + 1)
            found = (len(whole) - at - len(bare) for at in starts if whole[at : at + len(bare)] == bare)
            self._appended = next(found, 0)
        return self._appended


class Codec(Renderer):
    """Renders the prompts and reads the completions of one model or adapter.

    Args:
        tokenizer: Its tokenizer.
        generation_config: A `GenerationConfig`, its dictionary, or None.

    Raises:
        ValueError: Neither names an end of sequence.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", generation_config: Any = None):
        super().__init__(tokenizer)
        self.end_ids = end_token_ids(tokenizer, generation_config)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Tokens that are no part of a text."""
        return special_ids(self.tokenizer)

    @cached_property
    def _special_names(self) -> dict[str, int]:
        return {str(self.tokenizer.convert_ids_to_tokens(i)): i for i in self.special_ids}

    def ends(self, stop: Sequence[str]) -> Ends:
        """What ends a completion that is asked for with these stop strings: a special token ends it as a token.

        Raises:
            ValueError: A special token within a longer stop string, which no text ever holds.
        """
        special = self._special_names
        ids, strings = list(self.end_ids), []
        for text in stop:
            inner = next((name for name in special if name in text), None)
            if text in special:
                ids.append(special[text])
            elif inner is not None:
                raise UserError(
                    f"stop={text!r} holds the special token {inner!r}, which is no part of a completion's text, so it "
                    f"would never be found. Stop at {inner!r} alone."
                )
            else:
                strings.append(text)
        return Ends(tuple(dict.fromkeys(ids)), tuple(strings))

    def samples(self, prompts: Sequence[list[int]], completions: Sequence[Sequence[int]], ends: Ends) -> list[Sample]:
        """Samples from generated tokens.

        Args:
            prompts: Token ids of the prompt of each completion.
            completions: Token ids of each, up to and including the end of sequence if it came.
            ends: What ends a completion.

        Returns:
            One sample for each completion.
        """
        is_ended = [bool(ids) and ids[-1] in ends.ids for ids in completions]
        # The end of sequence need not be a special token: take it off by position, then the special ones by name.
        bodies = [list(ids[:-1]) if end else list(ids) for ids, end in zip(completions, is_ended, strict=True)]
        samples = []
        for ids, end, text in zip(completions, is_ended, self.texts(prompts, bodies), strict=True):
            text, stopped = cut_at_stop(text, ends.strings)
            samples.append(Sample(text, tuple(ids), len(ids), "stop" if end or stopped else "length"))
        return samples

    def texts(self, contexts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]) -> list[str]:
        """Text of each continuation: that of the whole less that of the context, special tokens left out.

        Decoded alone, a continuation would lose its first space with SentencePiece's decoders.
        """
        distinct: dict[tuple[int, ...], tuple[list[int], str]] = {}
        near = [tuple(context[-CONTEXT:]) for context in contexts]
        for ids in near:
            if ids not in distinct:
                tail = list(ids[-_CONTEXT:])
                text = self._decoded([tail])[0]
                if not text.strip():  # special tokens only: as good as no context
                    tail = list(ids)
                    text = self._decoded([tail])[0]
                distinct[ids] = tail, text
        wholes = self._decoded([distinct[ids][0] + list(more) for ids, more in zip(near, continuations, strict=True)])
        texts = []
        for ids, whole in zip(near, wholes, strict=True):
            text = distinct[ids][1]
            if not whole.startswith(text):  # the context ends within a character, which the continuation completes
                text = text.rstrip("\ufffd")
            texts.append(whole[len(text) :])
        return texts

    def _decoded(self, sequences: list[list[int]]) -> list[str]:
        return self.tokenizer.batch_decode(sequences, skip_special_tokens=True, clean_up_tokenization_spaces=False)


class Codecs:
    """The codec of each adapter: with its own tokenizer if its folder has one, else that of the model.

    What training changed in the tokenizer (end of sequence, chat template, added tokens) is saved there.

    Args:
        tokenizer: The model's; None if it is not known, as that of an endpoint.
        generation_config: The model's, which adapters have none of.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase | None", generation_config: Any = None):
        self.own = None if tokenizer is None else Codec(tokenizer, generation_config)
        self._generation_config = generation_config
        self._of: dict[str, tuple[int, Codec]] = {}

    @classmethod
    def load(cls, name: str | None) -> "Codecs":
        """With the tokenizer of a folder or hub name, and the generation config beside it."""
        from transformers import AutoTokenizer, GenerationConfig

        if name is None:
            return cls(None)
        try:
            generation_config = GenerationConfig.from_pretrained(name)
        except OSError:  # an adapter's folder has a tokenizer and no generation config
            generation_config = None
        return cls(AutoTokenizer.from_pretrained(name), generation_config)

    def of(self, adapter: str | None) -> Any:
        """The codec of an adapter's folder; of the model, if there is none; None if that is not known."""
        file = Path(adapter or "", "tokenizer_config.json")
        if not adapter or not file.is_file():
            return self.own
        changed = file.stat().st_mtime_ns
        if self._of.get(adapter, (0, None))[0] != changed:
            from transformers import AutoTokenizer

            self._of[adapter] = changed, Codec(AutoTokenizer.from_pretrained(adapter), self._generation_config)
        return self._of[adapter][1]


def is_token_ids(prompt: Prompt | list[int]) -> bool:
    """Whether a prompt is token ids already, and not text or messages."""
    return bool(prompt) and isinstance(prompt[0], int)


def encode_prompts(
    codec_of: Callable[[SampleRequest], Codec],
    requests: Sequence[SampleRequest],
    max_tokens: int,
    context: int | None,
    how: str,
) -> list[list[int]]:
    """Tokens of all prompts; one that leaves no room for `max_tokens` is refused before anything is drawn."""
    prompts = []
    for request in requests:
        codec = codec_of(request)
        ids = codec.prompt_ids(request.prompt, request.template_kwargs)
        prompts.append(ids)
        if context is not None and len(ids) + max_tokens > context:
            raise UserError(
                f"A prompt of {len(ids)} tokens and max_tokens={max_tokens} make {len(ids) + max_tokens} tokens, more "
                f"than the {context} of the context. {how} The prompt (stream {request.stream}) begins "
                f"{codec.tokenizer.decode(ids[:16])!r}."
            )
    return prompts


def cut_at_stop(text: str, stop: Iterable[str]) -> tuple[str, bool]:
    """Text before the first stop string, and whether there was one."""
    ends = [at for at in (text.find(s) for s in stop) if at >= 0]
    return (text[: min(ends)], True) if ends else (text, False)
