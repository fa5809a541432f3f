"""A sampler of a known distribution, also as a process that tests can kill, starve of disk and measure.

python known_sampler.py RUN PROBLEMS SAMPLES CHUNK SECONDS_PER_CHUNK TEXT_LENGTH [GRADER]
"""

import json
import os
import resource
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from dco_trl.runs import Problem, RunStore, grade_run, load_results, sample_run
from dco_trl.runs.arm import Arm
from dco_trl.runs.attempts import Attempts
from dco_trl.runs.schedule_file import ArmSchedule
from dco_trl.sampling.protocol import Sample, SamplingParams
from dco_trl.statistics import plan_attempts


class KnownSampler:
    """Answers problem s with a number drawn uniformly from 0 to s + 1: right, which is 0, with p = 1 / (s + 2).

    Further arguments are entries of its identity.
    """

    def __init__(self, seconds: float = 0.0, length: int = 0, **identity):
        self.seconds, self.padding = seconds, "x" * length
        own = {"model": "known", "revision": "", "adapter": "", "sampler": "known", "numpy_version": np.__version__}
        self.identity = lambda: own | identity

    def sample(self, requests, params):
        time.sleep(self.seconds)
        return [
            [self.draw(r.stream, r.first_index + i, r.params(params)) for i in range(r.num_samples)] for r in requests
        ]

    def draw(self, stream, index, params):
        answer = np.random.default_rng([params.seed, stream, index]).integers(stream % 50 + 2)
        text = f"{self.padding}The answer is {answer}."
        return Sample(text, (1, 2), 2, "length" if answer == 1 else "stop")

    def close(self):
        pass


def rows(run):
    """All rows of a run, in order."""
    store = RunStore(run)
    found = [row for part in store.sample_parts() for row in store.read_samples(part).to_pylist()]
    return sorted(found, key=lambda row: (row["problem_id"], row["sample_index"]))


class ArmSampler(KnownSampler):
    """Right only with the adapter of the problem's parity, or at temperature 2, so that a schedule helps."""

    def sample(self, requests, params):
        drawn = super().sample(requests, params)
        return [
            [self.under(r.adapter, r.stream, r.params(params), sample) for sample in samples]
            for r, samples in zip(requests, drawn, strict=True)
        ]

    def under(self, adapter, stream, params, sample):
        is_right = (adapter or "").endswith(("even", "odd")[stream % 2]) or params.temperature == 2
        return sample if is_right else Sample("The answer is 99.", (1, 2), 2, "stop")

    def draw_arm(self, arm, stream, index, seed):
        """The draw of one attempt alone, with the seed that the sampler gets."""
        params = SamplingParams(temperature=arm.temperature, seed=seed)
        return self.under(arm.adapter, stream, params, self.draw(stream, index, params))


def make_schedule(folder):
    """Three arms for `ArmSampler`, 32 attempts."""
    for name in ("even", "odd"):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "adapter_config.json").write_text("{}")
    arms = (Arm("known", str(folder / "even")), Arm("known", str(folder / "odd")), Arm("known", temperature=2.0))
    log_p = np.log(np.tile([[0.3, 1e-9, 1e-9], [1e-9, 0.3, 1e-9], [0.02, 0.02, 0.2]], 5))
    return ArmSchedule(plan_attempts(32, log_p=log_p), arms)


def sampler_params(sampler, params=None, schedule=None):
    """The parameters that a run gives the sampler; their seed depends on the arms."""
    return Attempts((), sampler, params or SamplingParams(), schedule).sampler_params


def draw(folder, problems=4, samples=6, chunk=5, **arguments):
    """Sample a run in small parts."""
    arguments = {"sampler": KnownSampler(), "params": SamplingParams(), **arguments}
    return sample_run(
        folder, make_problems(problems), num_samples=samples, chunk_size=chunk, progress=False, **arguments
    )


def read(part):
    """The rows of a file, read without the store."""
    return pq.read_table(part, partitioning=None).to_pylist()


def keys(folder):
    """How often each sample is there, read without the store."""
    rows = [row for part in sorted(Path(folder, "samples").glob("part-*.parquet")) for row in read(part)]
    return Counter((row["problem_id"], row["sample_index"]) for row in rows)


def exactly(problems, samples):
    """`keys` of a run that has each sample once."""
    return Counter((f"p{i}", j) for i in range(problems) for j in range(samples))


def contents(folder):
    """The content of each file but the locks."""
    files = [path for path in Path(folder).rglob("*") if path.is_file() and not path.name.startswith(".lock")]
    return {path.relative_to(folder): path.read_bytes() for path in files}


def make_problems(count):
    return [Problem(f"p{i}", f"{i} - {i} =", "0", {"level": i % 3}) for i in range(count)]


def slow_grader(completions, **kwargs):
    """Takes long enough for a part that a kill can interrupt it."""
    time.sleep(0.01)
    return [float(text.endswith(" 0.")) for text in completions]


def is_even(completions, **kwargs):
    """Right if a text has an even number of characters."""
    return [float(len(text) % 2 == 0) for text in completions]


def environment():
    """The environment of processes that import this module."""
    here = str(Path(__file__).parent)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([here, *sys.path]), "OMP_NUM_THREADS": "1"}


if __name__ == "__main__":
    run, num_problems, num_samples, chunk = sys.argv[1], *map(int, sys.argv[2:5])
    sampler = KnownSampler(seconds=float(sys.argv[5]), length=int(sys.argv[6]))
    sample_run(run, make_problems(num_problems), sampler, num_samples, chunk_size=chunk or None, progress=False)
    for grader in sys.argv[7:]:
        peak_sampling = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        grade_run(run, grader, num_workers=1, progress=False)
        peak_grading = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        result = load_results(run)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        counts = sum(problem.num_samples for problem in result.problems)
        print(json.dumps({"kib": [peak_sampling, peak_grading, peak], "samples": counts}))
