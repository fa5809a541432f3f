"""The task and the model of the demonstration: two-digit multiplication, answered at once, by a tiny Llama."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

from ..problem import Problem

NUM_TRAIN, NUM_HELD_OUT = 1500, 500
# "47*86=" and "4042": every prompt has 6 tokens, every answer at most 4 digits and the end of sequence.
PROMPT_LENGTH, ANSWER_LENGTH = 6, 5
VOCABULARY = ["<pad>", "<eos>", "*", "=", *"0123456789"]


def make_tokenizer(vocabulary: Sequence[str] = VOCABULARY) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per character; any character outside the task is an error."""
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(vocabulary)}))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()  # the default puts spaces between tokens
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def make_model(seed: int, vocab_size: int = len(VOCABULARY), **changes: Any) -> PreTrainedModel:
    """Return an untrained Llama in float32: of 0.74 million parameters, but for `changes` to its configuration."""
    torch.manual_seed(seed)
    config: dict[str, Any] = dict(
        vocab_size=vocab_size,
        hidden_size=192,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=32,
        pad_token_id=VOCABULARY.index("<pad>"),
        eos_token_id=VOCABULARY.index("<eos>"),
        bos_token_id=None,
    )
    return AutoModelForCausalLM.from_config(LlamaConfig(**config | changes), dtype=torch.float32)


def make_problems(seed: int) -> tuple[Dataset, Dataset]:
    """Draw 1,500 training problems and 500 held-out ones; no factors are in both, in either order."""
    rng = np.random.default_rng(seed)
    pairs = np.array([(a, b) for a in range(10, 100) for b in range(a, 100)])
    pairs = rng.permutation(pairs)
    held_out = rng.permuted(pairs[:NUM_HELD_OUT], axis=1)
    rest = pairs[NUM_HELD_OUT:]
    both_orders = np.unique(np.concatenate([rest, rest[:, ::-1]]), axis=0)
    return _rows(rng.permutation(both_orders)[:NUM_TRAIN]), _rows(held_out)


def as_problems(rows: Dataset) -> list[Problem]:
    """Return the rows as the problems that samplers and `exact_coverage` take."""
    return [Problem(row["prompt"], row["prompt"], row["completion"]) for row in rows]


def _rows(pairs: np.ndarray) -> Dataset:
    return Dataset.from_list([{"prompt": f"{a}*{b}=", "completion": str(a * b)} for a, b in pairs.tolist()])
