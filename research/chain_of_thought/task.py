"""Two-digit products by the distributive law: rationales, models, and pre-training on the sub-skills.

Pre-training teaches sums of two products, `47*80+9*31=3760+279=4039`, and products by one digit with their partial
products, `47*6=40*6+7*6=240+42=282`. A product of two two-digit numbers is in neither. Fine-tuning has to teach one
step, which is to split a factor: `47*86=47*80+47*6=3760+282=4042`. It comes in 16 forms. `tiny.py` learns four of
them from nothing.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from dco_trl.demo import task as demo

VOCABULARY = ["<pad>", "<eos>", *"0123456789", *"*+=()"]
NUM_TRAIN, NUM_VALIDATION, NUM_TEST = 300, 256, 256
NUM_FORMS = 16
# Tokens of the longest right rationale, 25 with its end of sequence, and some room.
MAX_TOKENS = 28
PRETRAINING: dict[str, Any] = dict(num_steps=1500, batch_size=256, learning_rate=2e-3, share_of_sums=0.7)
_IDS = {token: i for i, token in enumerate(VOCABULARY)}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per character."""
    return demo.make_tokenizer(VOCABULARY)


def make_model(seed: int, hidden_size: int = 64, num_layers: int = 3) -> PreTrainedModel:
    """A Llama, of 162,368 parameters unless another size is asked for."""
    return demo.make_model(
        seed,
        len(VOCABULARY),
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=num_layers,
        max_position_embeddings=64,
    )


def rationale(a: int, b: int, form: int) -> str:
    """One of 16: which factor is split, which part comes first, and which factor of each partial product."""
    if form & 1:
        a, b = b, a
    parts = [b // 10 * 10, b % 10]
    if form & 2:
        parts.reverse()
    products = [f"{part}*{a}" if form & bit else f"{a}*{part}" for part, bit in zip(parts, (4, 8), strict=True)]
    return f"{products[0]}+{products[1]}={a * parts[0]}+{a * parts[1]}={a * b}"


def last_number(completions: list[str], answer: list[str], **columns: Any) -> list[float]:
    """A grader: 1 where the last number is the answer."""
    return [float(text.split("=")[-1] == reference) for text, reference in zip(completions, answer, strict=True)]


def make_problems(seed: int) -> dict[str, list[dict[str, Any]]]:
    """Problems to train on, with one form each, and those of validation and test."""
    rng = np.random.default_rng(seed)
    pairs = rng.permutation([(a, b) for a in range(10, 100) for b in range(a, 100)]).tolist()
    rows = [
        {
            "prompt": f"{a}*{b}=",
            "completion": rationale(a, b, int(rng.integers(NUM_FORMS))),
            "answer": str(a * b),
        }
        for a, b in (pair if rng.random() < 0.5 else pair[::-1] for pair in pairs)
    ]
    ends = np.cumsum([NUM_TRAIN, NUM_VALIDATION, NUM_TEST])
    return {
        name: rows[end - size : end]
        for name, end, size in zip(
            ("train", "validation", "test"), ends, (NUM_TRAIN, NUM_VALIDATION, NUM_TEST), strict=True
        )
    }


def without_sampling(rows: list[dict[str, Any]]) -> Dataset:
    """Rows as `sampler="none"` reads them. Their counts are not used: weights are 1 for cross-entropy."""
    return Dataset.from_list([{**row, "num_sampled": 1, "num_correct": 0} for row in rows])


def pretraining_row(rng: np.random.Generator) -> tuple[str, str]:
    """A prompt and its completion: a sum of two products, or a product by one digit."""

    def product(a: int, b: int) -> str:
        return f"{a}*{b}" if rng.random() < 0.5 else f"{b}*{a}"

    a, c = rng.integers(10, 100, 2).tolist()
    b, d = rng.integers(0, 10, 2).tolist()
    if rng.random() < PRETRAINING["share_of_sums"]:
        terms = [(a, 10 * b), (c, d)]
        if rng.random() < 0.5:
            terms.reverse()
        prompt, steps = "+".join(product(x, y) for x, y in terms), ""
    else:
        parts = [a // 10 * 10, a % 10]
        if rng.random() < 0.5:
            parts.reverse()
        terms = [(part, d) for part in parts]
        prompt = product(a, d)
        steps = "+".join(product(x, y) for x, y in terms) + "="
    values = [x * y for x, y in terms]
    return f"{prompt}=", f"{steps}{values[0]}+{values[1]}={sum(values)}"


def pretrained(seed: int, folder: Path, device: str, num_steps: int = PRETRAINING["num_steps"]) -> Path:
    """The folder of the seed's pre-trained model, which is made unless it is there."""
    path = folder / f"base-{num_steps}-seed-{seed}"
    if path.exists():
        return path
    rng, model = np.random.default_rng([seed, 1]), make_model(seed).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99), weight_decay=0.01)
    for step in range(num_steps):
        warm, cool = (step + 1) / 100, max(0.02, (num_steps - step) / (0.3 * num_steps))
        for group in optimizer.param_groups:
            group["lr"] = PRETRAINING["learning_rate"] * min(1.0, warm, cool)
        ids, labels = _pretraining_batch(rng)
        loss = model(input_ids=ids.to(device), labels=labels.to(device)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert math.isfinite(loss.item())
    unfinished = path.with_name(path.name + "-unfinished")
    model.to("cpu").save_pretrained(unfinished)
    unfinished.rename(path)
    return path


def _pretraining_batch(rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    rows = [pretraining_row(rng) for _ in range(PRETRAINING["batch_size"])]
    width = max(len(prompt) + len(completion) + 1 for prompt, completion in rows)
    ids = np.zeros((len(rows), width), dtype=np.int64)
    labels = np.full_like(ids, -100)
    for i, (prompt, completion) in enumerate(rows):
        tokens = [*(_IDS[token] for token in prompt + completion), _IDS["<eos>"]]
        ids[i, : len(tokens)] = tokens
        labels[i, len(prompt) : len(tokens)] = tokens[len(prompt) :]
    return torch.from_numpy(ids), torch.from_numpy(labels)
