"""Throughput of VLLMSampler with eight LoRA adapters in one call, against one adapter and the model alone.

    python examples/scripts/prepare_smollm2.py --output_dir models/SmolLM2-135M-Instruct
    python benchmarks/adapters.py --output adapters.json

One engine with room for all adapters. Three ways in turn, round after round, the order reversed every other round;
each draws the same number of samples of the same prompts.

- model: every request for the model alone;
- one adapter: every request for the same adapter;
- eight adapters: each of the eight prompts for another adapter, as a schedule of attempts asks for them.

The adapters are random and small, of rank 16 in all linear layers, so that samples are about as long with them as
without.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

from measure import environment, quiet, ratio_summary
from sampling import PROMPTS, vllm_version

from dco_trl.sampling import SampleRequest, SamplingParams, VLLMSampler

NUM_ADAPTERS = len(PROMPTS)


def save_adapters(model: str, folder: str) -> list[str]:
    """Random adapters of one model."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model)
    folders = []
    for seed in range(NUM_ADAPTERS):
        torch.manual_seed(seed)
        adapted = get_peft_model(base, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.002)
        folders.append(f"{folder}/adapter-{seed}")
        adapted.save_pretrained(folders[-1])
        base = adapted.unload()
    return folders


def draw(sampler: VLLMSampler, adapters: list[str], num_samples: int, first: int, max_tokens: int) -> int:
    """One call; prompt i goes to the i-th of the adapters. Returns the number of tokens."""
    requests = [
        SampleRequest(prompt, num_samples, first, stream, adapters[stream % len(adapters)])
        for stream, prompt in enumerate(PROMPTS)
    ]
    groups = sampler.sample(requests, SamplingParams(max_tokens=max_tokens))
    return sum(sample.num_tokens for samples in groups for sample in samples)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", help="JSON file to write")
    parser.add_argument("--model", default="models/SmolLM2-135M-Instruct", help="checkpoint folder")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds")
    parser.add_argument("--num-samples", type=int, default=8, help="samples of each of the 8 prompts per round")
    parser.add_argument("--max-tokens", type=int, default=32, help="tokens per sample, at most")
    args = parser.parse_args()
    if not Path(args.model).is_dir():
        parser.error(f"{args.model} is not there: examples/scripts/prepare_smollm2.py makes it")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    quiet()
    with tempfile.TemporaryDirectory() as folder:
        adapters = save_adapters(args.model, folder)
        sampler = VLLMSampler(args.model, adapters=adapters, progress=False, max_model_len=512, enforce_eager=True)
        ways = {"model": [""], "one adapter": adapters[:1], "eight adapters": adapters}
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for i in range(args.rounds + 1):
            for name in list(ways)[:: 1 if i % 2 else -1]:
                start = time.perf_counter()
                tokens = draw(sampler, ways[name], args.num_samples, i * args.num_samples, args.max_tokens)
                rates[name].append(tokens / (time.perf_counter() - start))
        sampler.close()
    rows = []
    for way, rival in (("one adapter", "model"), ("eight adapters", "model"), ("eight adapters", "one adapter")):
        # The first round warms up.
        row = {"way": way, "rival": rival, **ratio_summary(rates[way][1:], rates[rival][1:])}
        rows.append(row)
        print(
            f"{way:14} / {rival:11}  tokens per second {row['median']:.3f} [{row['q25']:.3f}, {row['q75']:.3f}]  "
            f"{row['pairs']} pairs"
        )
    if args.output:
        record = {
            "benchmark": "tokens per second of VLLMSampler with LoRA adapters in one call, as ratios",
            "model": Path(args.model).name,
            "adapters": f"{NUM_ADAPTERS} of rank 16 in all linear layers",
            "samples_a_round": len(PROMPTS) * args.num_samples,
            "max_tokens": args.max_tokens,
        }
        description = environment()
        description["versions"]["vllm"] = vllm_version()
        with open(args.output, "w") as file:
            json.dump({**record, **description, "rows": rows}, file, indent=2)


if __name__ == "__main__":
    main()
