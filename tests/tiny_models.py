"""Tiny models and tokenizers, made on the spot: nothing is downloaded."""

from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

CHARACTERS = list("0123456789*+-=abcdefghijklmnopqrstuvwxyz QA:?.\n")

# What each family adds to the common sizes. Gemma caps its logits; Mixtral adds an auxiliary loss.
FAMILIES: dict[str, tuple[str, dict]] = {
    "llama": ("LlamaConfig", {}),
    "qwen": ("Qwen2Config", {"tie_word_embeddings": True}),
    "gemma": (
        "Gemma2Config",
        {"head_dim": 32, "final_logit_softcapping": 2.0, "query_pre_attn_scalar": 32, "layer_types": None},
    ),
    "mixtral": (
        "MixtralConfig",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "output_router_logits": True, "router_aux_loss_coef": 0.1},
    ),
}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token a character, and `<pad>`, `<eos>`."""
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", "<unk>", *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")

    tokenizer.decoder = decoders.Fuse()  # the default puts spaces between tokens
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def make_model(family: str = "llama", seed: int = 0, **overrides) -> PreTrainedModel:
    """A model of about 30,000 parameters of one of `FAMILIES`, in float32."""
    config_class, extra = FAMILIES[family]
    sizes = dict(
        vocab_size=3 + len(CHARACTERS),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        attention_dropout=0.0,
    )
    config = getattr(transformers, config_class)(**{**sizes, **extra, **overrides})
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def save_checkpoint(folder: str | Path, family: str = "llama", seed: int = 0, **overrides) -> Path:
    """Save model and tokenizer as a checkpoint folder, as a user's would be."""
    folder = Path(folder)
    make_model(family, seed, **overrides).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def save_adapter(
    folder: str | Path, seed: int, checkpoint: str | Path = "MODEL", std: float = 0.2, **lora: Any
) -> Path:
    """Save a LoRA adapter of a checkpoint as if it were trained: both factors random, large enough to matter."""
    torch.manual_seed(seed)
    config = LoraConfig(**{"target_modules": "all-linear", **lora})
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(checkpoint), config)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=std)
    model.save_pretrained(folder)
    return Path(folder)
