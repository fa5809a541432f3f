"""`dco-trl solve`: answer problems within a budget of attempts, with a grader that verifies answers."""

import sys
from dataclasses import asdict, dataclass

from ._common import DatasetConfig, ModelConfig, execute, load_problems, option
from ._grading import GradingConfig, grading_limits
from ._sampling import SamplerConfig, load_sampler, load_schedule, sampling_params


@dataclass
class SolveConfig:
    """What to spend."""

    num_attempts: int = option("Budget per problem. A larger one later goes on with the unsolved problems.")


def main(argv: list[str]) -> int:
    """Run the command."""
    return execute("solve", argv, solve)


def solve(
    data: DatasetConfig, model: ModelConfig, sampling: SamplerConfig, grading: GradingConfig, config: SolveConfig
) -> str:
    """Sample in rounds, and stop sampling a problem once the grader accepts an answer. Answers go to answers.jsonl in
    the --output folder. Your own grader needs no column with reference answers. After an interruption, the same
    command goes on.
    """
    from ..checks import check_integer
    from ..runs.grade import check_grader
    from ..runs.solve import ANSWERS
    from ..runs.solve import solve as solve_problems

    # Check what can be checked before loading the model, which takes minutes.
    check_integer("num_attempts", config.num_attempts)
    params = sampling_params(sampling)
    schedule = load_schedule(model, sampling, params)
    problems = load_problems(data, grading.grader)
    check_grader(grading.grader, problems)
    print(f"{len(problems):,} problems, at most {config.num_attempts:,} attempts each", file=sys.stderr)
    sampler = load_sampler(model, sampling, progress=False, schedule=schedule)
    try:
        summary = solve_problems(
            problems,
            sampler,
            grading.grader,
            run_dir=sampling.output,
            num_attempts=config.num_attempts,
            schedule=schedule,
            params=params,
            chunk_size=sampling.chunk_size,
            dataset=asdict(data),
            grading=grading_limits(grading),
        )
    finally:
        sampler.close()
    return f"{summary}\nwritten: {sampling.output}/{ANSWERS}"
