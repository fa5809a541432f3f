"""Tokenizers with the habits and the chat templates of well-known models, tiny and made on the spot."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import trl
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
VOCAB_SIZE = 512
# What every vocabulary is trained on.
TEXT = [
    "1 + 2 = 3",
    "What is 12 * 12?",
    "You add numbers.",
    "def add(a, b):\n    return a + b",
    "assistant user system",
]
SMOLLM2 = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful AI "
    "assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + m['role'] + '\n' + "
    "m['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'system' %}{{ '<<SYS>>' + m['content'] + '<</SYS>>' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)


@dataclass(frozen=True)
class Family:
    """How a model's tokenizer and template behave.

    Args:
        template: A file of TRL's, without its suffix, or the template itself.
        eos: The tokenizer's end of sequence.
        bos: Token that it puts before a text; "" for none.
        special: Further special tokens.
        ends: Further ends of sequence that the generation config names.
        kind: "bytes" (GPT 2's), "metaspace", or "llama2" (a space put in front, and taken off again).
        appends: Whether a text gets an end of sequence.
    """

    template: str
    eos: str
    bos: str = ""
    special: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()
    kind: str = "bytes"
    appends: bool = False

    @property
    def chat_template(self) -> str:
        return self.template if "{" in self.template else (TEMPLATES / f"{self.template}.jinja").read_text()


CHATML = ("<|im_start|>", "<|endoftext|>")
HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|python_tag|>", "<|end_of_text|>")
COHERE = ("<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>")
DEEPSEEK = ("<｜User｜>", "<｜Assistant｜>")
GLM = ("[gMASK]", "<sop>", "<|system|>", "<|assistant|>")
HARMONY = ("<|start|>", "<|message|>", "<|channel|>", "<|end|>")
FAMILIES = {
    "Llama 3": Family("llama3", "<|eot_id|>", "<|begin_of_text|>", HEADERS, ("<|end_of_text|>", "<|eom_id|>")),
    "Llama 3.1": Family("llama3_1", "<|eot_id|>", "<|begin_of_text|>", HEADERS, ("<|end_of_text|>", "<|eom_id|>")),
    "Qwen 2.5": Family("qwen2_5", "<|im_end|>", "", CHATML, ("<|endoftext|>",)),
    "Qwen 3": Family("qwen3", "<|im_end|>", "", CHATML, ("<|endoftext|>",)),
    "Gemma": Family("gemma", "<eos>", "<bos>", ("<start_of_turn>",), ("<end_of_turn>",), "metaspace"),
    "Phi 3": Family("phi3", "<|endoftext|>", "", ("<|user|>", "<|assistant|>", "<|system|>"), ("<|end|>",), "llama2"),
    "Cohere": Family("cohere", "<|END_OF_TURN_TOKEN|>", "<BOS_TOKEN>", COHERE),
    "GLM 4": Family("glm4moe", "<|endoftext|>", "", GLM, ("<|user|>", "<|observation|>")),
    "gpt-oss": Family("gptoss", "<|return|>", "", HARMONY, ("<|call|>",)),
    "DeepSeek V3": Family("deepseekv3", "<｜end▁of▁sentence｜>", "<｜begin▁of▁sentence｜>", DEEPSEEK),
    "DeepSeek R1": Family("deepseek_r1_distill", "<｜end▁of▁sentence｜>", "<｜begin▁of▁sentence｜>", DEEPSEEK),
    "LFM 2": Family("lfm2", "<|im_end|>", "<|startoftext|>", CHATML),
    "SmolLM2": Family(SMOLLM2, "<|im_end|>", "", CHATML),
    "Llama 2": Family(LLAMA2, "</s>", "<s>", kind="llama2"),
    "an end appended": Family(SMOLLM2.replace("<|im_end|>", "</s>"), "</s>", "", CHATML[:1], (), "metaspace", True),
}


@cache
def make_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a family, of at most `VOCAB_SIZE` tokens. It is shared: copy it to change it."""
    family = FAMILIES[name]
    tokenizer = Tokenizer(models.BPE(byte_fallback=family.kind != "bytes", unk_token=None))
    special = [t for t in ("<pad>", family.bos, family.eos, *family.special, *family.ends) if t]
    text = [*TEXT, family.chat_template]
    if family.kind == "bytes":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        # SentencePiece's pieces begin with a space or have none; a line break is a byte, and part of no other token.
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=True)
        special += [f"<0x{i:02X}>" for i in range(256)]
        alphabet = [chr(i) for i in range(33, 127)]
        text = [part.replace("\n", " ") for part in text]
        parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        if family.kind == "llama2":
            tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
            parts.append(decoders.Strip(" ", 1, 0))
        tokenizer.decoder = decoders.Sequence(parts)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(text, trainer)
    if family.kind == "llama2":
        tokenizer.pre_tokenizer = None
    before = [(family.bos, tokenizer.token_to_id(family.bos))] if family.bos else []
    after = [(family.eos, tokenizer.token_to_id(family.eos))] if family.appends else []
    if before or after:
        pattern = " ".join([*(t for t, _ in before), "$A", *(t for t, _ in after)])
        tokenizer.post_processor = processors.TemplateProcessing(single=pattern, special_tokens=before + after)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token=family.eos, bos_token=family.bos or None
    )
    fast.chat_template = family.chat_template
    return fast
