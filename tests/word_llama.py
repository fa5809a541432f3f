"""A tiny Llama over twelve words, with every answer's probability within reach."""

from pathlib import Path

from peft import PeftModel
from tiny_models import make_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast

VOCABULARY = ["<pad>", "<eos>", "<unk>", "<user>", "<end>", "a", "b", "c", "d", "e", "f", "g"]
END_IDS = (1, 4)  # <eos>, the tokenizer's; <end>, the generation config's
CONTEXT = 96
# For training: the answer is the prompt's first word, which an untrained model finds now and then.
ROWS = [{"prompt": f"{x} {y}", "completion": f" {x}", "answer": x} for x in "abcd" for y in "efg"]


def make_word_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of twelve words, separated by spaces, with a chat template."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="right"
    )
    fast.chat_template = (
        "{% if tools %}g {% endif %}{{ hint + ' ' if hint is defined else '' }}"
        "{% for message in messages %}<user> {{ message['content'] }} <end> {% endfor %}"
        "{% if add_generation_prompt %}<user>{% endif %}"
    )
    return fast


def make_word_model(seed: int = 0):
    """A Llama over those words whose next-token probabilities are neither flat nor peaked.

    Its generation config is hostile: every value in it would change the distribution if it were not overridden.
    """
    model = make_model(
        "llama", seed, vocab_size=len(VOCABULARY), max_position_embeddings=CONTEXT, initializer_range=0.15
    )
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=0.3,
        top_k=2,
        repetition_penalty=3.0,
        suppress_tokens=[5, 6],
        eos_token_id=list(END_IDS),
        pad_token_id=0,
    )
    return model.eval()


def save_words(folder: Path, seed: int = 0) -> Path:
    """The model and its tokenizer as a checkpoint."""
    make_word_model(seed).save_pretrained(folder)
    make_word_tokenizer().save_pretrained(folder)
    return folder


def load_reference(checkpoint: Path, adapter: Path | None = None):
    """The model to compute exact probabilities with."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    return (model if adapter is None else PeftModel.from_pretrained(model, adapter)).eval()
