"""`dco-trl solve`: answer problems within a budget of attempts, with a grader that accepts what is right."""

import sys
from dataclasses import asdict, dataclass, field

from ._common import DatasetConfig, ModelConfig, load_problems, parse, status
from ._grading import GradingConfig, grading_limits
from ._sampling import SamplerConfig, load_sampler, load_schedule, sampling_params


@dataclass
class SolveConfig:
    """What to spend."""

    num_attempts: int = field(metadata={"help": "Budget per problem. Raised later, it goes on with the unsolved."})


def main(argv: list[str]) -> int:
    """Run the command."""
    configs = parse(
        "solve",
        argv,
        DatasetConfig,
        ModelConfig,
        SamplerConfig,
        GradingConfig,
        SolveConfig,
        description="Sample in rounds and leave a problem alone once the grader accepts an answer. Answers go to "
        "answers.jsonl in the --output folder. A grader of one's own needs "
        "no column with reference answers. Stopped at any moment, the same command goes on from there.",
    )
    return status("solve", lambda: solve(*configs))


def solve(
    data: DatasetConfig,
    model: ModelConfig,
    sampling: SamplerConfig,
    grading: GradingConfig,
    config: SolveConfig,
) -> None:
    """Do what the command does.

    Args:
        data: The problems.
        model: The model.
        sampling: How to sample, and where to.
        grading: How to verify.
        config: What to spend.
    """
    from ..checks import check_integer
    from ..runs.grade import check_grader
    from ..runs.solve import ANSWERS
    from ..runs.solve import solve as solve_problems

    # What can be wrong without the model is found out before minutes are spent on loading it.
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
    print(summary)
    print(f"written: {sampling.output}/{ANSWERS}")
