"""Does vLLM sample each adapter's own distribution when one call mixes several?

    python benchmarks/adapters_in_one_call.py
    python benchmarks/adapters_in_one_call.py --model models/SmolLM2-135M-Instruct --dataset data/math-short.jsonl \\
        --num_calls 1 --num_prompts 6

Four random adapters that differ much, each for several requests of every prompt, are drawn from in one call. Then
Transformers, with one adapter at a time, gives the log-probability of every token drawn: it should be the one that
vLLM reports. And the sum of log p less its expectation (minus the entropy), in standard errors, should be normally
distributed: it is that only if the tokens were drawn from what is reported. Without --model, a tiny one with wide
weights from a config, and random prompts: 200,000 tokens in two minutes without a GPU.
"""

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import load_dataset
from peft import LoraConfig, PeftModel, get_peft_model
from scipy.stats import chi2
from transformers import AutoModelForCausalLM, LlamaConfig

from dco_trl.demo.task import VOCABULARY, make_tokenizer
from dco_trl.sampling import SampleRequest, SamplingParams, VLLMSampler

NUM_ADAPTERS, MAX_TOKENS = 4, 16


def save_tiny_model(folder: Path) -> str:
    """A random model of two layers whose distributions are far from even."""
    torch.manual_seed(0)
    sizes = dict(hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    config = LlamaConfig(
        vocab_size=len(VOCABULARY), initializer_range=0.15, pad_token_id=0, eos_token_id=1, bos_token_id=None, **sizes
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


def random_prompts(count: int) -> list[str]:
    rng = np.random.default_rng(0)
    return ["".join(rng.choice(list("0123456789=*"), size=rng.integers(5, 30))) for _ in range(count)]


def save_adapters(model: str, folder: Path, deviation: float) -> list[str]:
    """Random adapters of one model, far from it and from each other."""
    names = []
    for seed in range(NUM_ADAPTERS):
        torch.manual_seed(seed)
        base = AutoModelForCausalLM.from_pretrained(model, dtype="float32")
        adapted = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
        for name, weights in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weights, std=deviation)
        names.append(str(folder / f"adapter-{seed}"))
        adapted.save_pretrained(names[-1])
    return names


def draw(model: str, adapters: Sequence[str], prompts: Sequence[str], num_calls: int) -> list[list[dict[str, Any]]]:
    """Samples of all adapters, by call: `adapter`, `prompt` and `tokens` as ids, and vLLM's `log_p` of each."""
    rng = np.random.default_rng(0)
    sampler = VLLMSampler(model, adapters=adapters, dtype="float32", max_model_len=128, enforce_eager=True)
    generate, calls = sampler.llm.generate, []

    def with_log_p(prompts: Any, params: Any, **kwargs: Any) -> Any:
        for of_request in params:
            of_request.logprobs = 0  # that of the token drawn
        outputs = generate(prompts, params, **kwargs)
        calls.append(list(zip(prompts, kwargs["lora_request"], outputs, strict=True)))
        return outputs

    sampler.llm.generate = with_log_p
    for some in np.array_split(np.array(prompts, dtype=object), num_calls):
        requests = []
        for stream, prompt in enumerate(some):
            first = 0
            for adapter in rng.permutation(np.repeat(adapters, 3)):
                count = int(rng.integers(1, 5))
                requests.append(SampleRequest(prompt, count, first, stream=stream, adapter=str(adapter)))
                first += count
        sampler.sample(requests, SamplingParams(max_tokens=MAX_TOKENS, seed=len(calls)))
    sampler.close()
    return [
        [
            {
                "adapter": lora.lora_path,
                "prompt": prompt["prompt_token_ids"],
                "tokens": list(drawn.token_ids),
                "log_p": [of[token].logprob for token, of in zip(drawn.token_ids, drawn.logprobs, strict=True)],
            }
            for prompt, lora, output in call
            for drawn in output.outputs
        ]
        for call in calls
    ]


@torch.no_grad()
def check(model: str, adapter: str, samples: Sequence[dict[str, Any]]) -> tuple[int, float, float]:
    """Tokens, the largest difference of log-probabilities, and standard errors between log p and its expectation."""
    base = AutoModelForCausalLM.from_pretrained(model, dtype="float32")
    adapted = PeftModel.from_pretrained(base, adapter).eval()
    by_prompt = defaultdict(list)
    for sample in samples:
        by_prompt[tuple(sample["prompt"])].append(sample)
    count, worst, excess, variance = 0, 0.0, 0.0, 0.0
    for prompt, of_prompt in by_prompt.items():
        longest = max(len(sample["tokens"]) for sample in of_prompt)
        ids = [[*prompt, *sample["tokens"], *[0] * (longest - len(sample["tokens"]))] for sample in of_prompt]
        log_p = adapted(torch.tensor(ids)).logits[:, len(prompt) - 1 : -1].log_softmax(-1)
        mean = (log_p.exp() * log_p).sum(-1)
        spread = (log_p.exp() * log_p.square()).sum(-1) - mean.square()
        for i, sample in enumerate(of_prompt):
            tokens = torch.tensor(sample["tokens"])
            own = log_p[i, torch.arange(len(tokens)), tokens]
            worst = max(worst, (own - torch.tensor(sample["log_p"])).abs().max().item())
            excess += (own - mean[i, : len(tokens)]).sum().item()
            variance += spread[i, : len(tokens)].sum().item()
            count += len(tokens)
    return count, worst, excess / variance**0.5


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="Model folder or name; a tiny one, unless given.")
    parser.add_argument("--dataset", help="JSON lines with a column `prompt`; random prompts, unless given.")
    parser.add_argument("--num_calls", type=int, default=4, help="Calls of the engine.")
    parser.add_argument("--num_prompts", type=int, default=150, help="Prompts of each call.")
    args = parser.parse_args(argv)
    wanted = args.num_calls * args.num_prompts
    prompts = random_prompts(wanted)
    if args.dataset:
        prompts = load_dataset("json", data_files=args.dataset, split="train")["prompt"][:wanted]
    distances = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = args.model or save_tiny_model(folder / "model")
        adapters = save_adapters(model, folder, 0.02 if args.model else 0.3)
        calls = draw(model, adapters, prompts, args.num_calls)
        print("| call | adapter | samples | tokens | largest difference of log p | standard errors |\n|" + "---|" * 6)
        for call, samples in enumerate(calls):
            for number, adapter in enumerate(adapters):
                own = [sample for sample in samples if sample["adapter"] == str(Path(adapter).resolve())]
                count, worst, distance = check(model, adapter, own)
                distances.append(distance)
                print(f"| {call} | {number} | {len(own)} | {count} | {worst:.6f} | {distance:+.1f} |", flush=True)
    total = float(np.square(distances).sum())
    print(f"\nsum of squares {total:.1f}, of {len(distances)}: p = {chi2.sf(total, len(distances)):.2f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
