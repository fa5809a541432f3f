"""Two workers of a Ray cluster on two cores beside one process on two cores, and what a block costs by itself.

    python benchmarks/cluster.py --output cluster.json

The model is a tiny Llama, made on the spot, so that what is not the model's work shows. Each way draws the same
samples once for warming up and then as often as asked, in one run; times are the medians. A block's overhead is the
time that a worker's call takes which returns 512 finished samples.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from tiny_models import save_checkpoint  # noqa: E402

from dco_trl.sampling import RaySampler, Sample, SampleRequest, SamplingParams, TransformersSampler  # noqa: E402
from dco_trl.sampling.ray_pool import RayPool  # noqa: E402


class Finished:
    """Returns samples that cost next to nothing."""

    def sample(self, count: int) -> list[Sample]:
        return [Sample(f"The answer is {i}.", tuple(range(i, i + 12)), 12, "stop") for i in range(count)]


def seconds(work, repetitions: int) -> float:
    work()
    times = []
    for _ in range(repetitions):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


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
    found = {"one process": seconds(lambda: alone.sample(requests, params), arguments.repetitions)}
    alone.close()
    began = time.perf_counter()
    cluster = RaySampler("transformers", model, num_workers=2, block_size=512)
    cluster.sample([SampleRequest("1+1=", 64, stream=i) for i in range(2)], params)
    found["start of two workers"] = time.perf_counter() - began
    found["two workers"] = seconds(lambda: cluster.sample(requests, params), arguments.repetitions)
    cluster.close()
    pool = RayPool(Finished, 1)
    blocks = [512] * 64
    found["a block of 512 samples"] = seconds(lambda: list(pool.each("sample", blocks)), 3) / len(blocks)
    pool.close()
    for name, value in found.items():
        print(f"{name:24} {value:8.4f} s")
    arguments.output.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
