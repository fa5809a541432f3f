"""Sample and grade one run on the GPUs of a Ray cluster, for those who have Ray (`pip install 'ray[data]'`).

    python examples/scaling/ray_data.py --model MODEL --dataset data/test.jsonl --output /shared/runs/ce \\
        --num-samples 10000 --num-shards 32 --num-workers 8 --sampler vllm

Each row of the data set is a shard of the run; each worker holds a sampler, loaded once, and takes shard after shard.
The run folder is on a file system that all nodes share. What was stopped goes on: the same command draws what is
missing. Afterwards: dco-trl report RUN
"""

import argparse
from typing import Any


class ShardWorker:
    """One sampler, for as many shards as come."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        from dco_trl.runs import read_problems
        from dco_trl.sampling import make_sampler

        self.arguments = arguments
        self.problems = read_problems(arguments["dataset"])
        self.sampler = make_sampler(arguments["sampler"], arguments["model"], progress=False)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        from dco_trl.runs import grade_run, sample_run
        from dco_trl.sampling import SamplingParams

        given, shard = self.arguments, str(row["shard"])
        params = SamplingParams(max_tokens=given["max_tokens"])
        drawn = sample_run(
            given["output"], self.problems, self.sampler, given["num_samples"], params, shard=shard, progress=False
        )
        graded = grade_run(given["output"], given["grader"], shard=shard, num_workers=2, progress=False)
        return {"shard": shard, "drawn": drawn.num_drawn, "samples": graded.num_samples, "correct": graded.num_correct}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dataset", required=True, help="file with the columns prompt and answer")
    parser.add_argument("--output", required=True, help="the run's folder")
    parser.add_argument("--num-samples", type=int, required=True, help="samples per problem")
    parser.add_argument("--num-shards", type=int, required=True, help="more than workers, so that none waits long")
    parser.add_argument("--num-workers", type=int, default=1, help="samplers at a time")
    parser.add_argument("--gpus-per-worker", type=float, default=1.0, help="0 on a CPU")
    parser.add_argument("--sampler", default="vllm", choices=("vllm", "transformers"))
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--grader", default="math")
    arguments = parser.parse_args()

    import ray.data

    n = arguments.num_shards
    shards = ray.data.from_items([{"shard": f"{i}/{n}"} for i in range(n)], override_num_blocks=n)
    done = shards.map(
        ShardWorker,
        fn_constructor_args=(vars(arguments),),
        compute=ray.data.ActorPoolStrategy(size=arguments.num_workers),
        num_gpus=arguments.gpus_per_worker,
    )
    for row in done.iter_rows():
        print(row, flush=True)


if __name__ == "__main__":
    main()
