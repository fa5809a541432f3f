"""Two workers of a Ray cluster on two cores beside one process on two cores, and what a block costs by itself.

    python benchmarks/cluster.py --output cluster.json

The model is a tiny Llama, made on the spot, so that the work around the model shows. Both ways draw the same samples,
in turns, once for warming up and then as often as asked. The ratio is the median over the pairs, with quartiles. A
block's overhead is the time of a worker's call that returns 512 finished samples.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from measure import environment, ratio_summary

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from tiny_models import save_checkpoint  # noqa: E402

from dco_trl.sampling import RaySampler, Sample, SampleRequest, SamplingParams, TransformersSampler  # noqa: E402
from dco_trl.sampling.ray_pool import RayPool  # noqa: E402


class Finished:
    """Returns samples that cost next to nothing."""

    def sample(self, count: int) -> list[Sample]:
        return [Sample(f"The answer is {i}.", tuple(range(i, i + 12)), 12, "stop") for i in range(count)]


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--work_dir", type=Path, default=Path("runs/cluster"))
    parser.add_argument("--num_samples", type=int, default=32, help="of each of 16 problems, 32 tokens each")
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6}
    model = str(save_checkpoint(arguments.work_dir / "model", **sizes))
    requests = [SampleRequest(f"{i}+1=", arguments.num_samples, stream=i) for i in range(16)]
    params = SamplingParams(max_tokens=32)
    torch.set_num_threads(2)
    alone = TransformersSampler(model, progress=False)
    began = time.perf_counter()
    cluster = RaySampler("transformers", model, num_workers=2, block_size=512)
    cluster.sample([SampleRequest("1+1=", 64, stream=i) for i in range(2)], params)
    start = time.perf_counter() - began
    samplers = {"one process": alone, "two workers": cluster}
    ways = {name: partial(sampler.sample, requests, params) for name, sampler in samplers.items()}
    for way in ways.values():
        way()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(arguments.repetitions):
        for name, way in ways.items():
            times[name].append(seconds(way))
    alone.close()
    cluster.close()
    pool = RayPool(Finished, 1)
    blocks = [512] * 64
    per_block = [seconds(lambda: list(pool.each("sample", blocks))) / len(blocks) for _ in range(4)][1:]
    pool.close()
    ratio = ratio_summary(times["one process"], times["two workers"])
    found = {
        "environment": environment(),
        "seconds": times,
        "start_of_two_workers": start,
        "times_faster": ratio,
        "seconds_of_a_block": statistics.median(per_block),
    }
    arguments.output.write_text(json.dumps(found, indent=2) + "\n")
    for name, values in times.items():
        print(f"{name:30} {statistics.median(values):8.2f} s")
    print(f"{'times faster with two workers':30} {ratio['median']:8.2f} [{ratio['q25']:.2f}, {ratio['q75']:.2f}]")
    print(f"{'start of two workers':30} {start:8.2f} s")
    print(f"{'a block of 512 samples':30} {1000 * found['seconds_of_a_block']:8.2f} ms")


if __name__ == "__main__":
    main()
