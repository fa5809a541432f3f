"""`dco-trl solve`: answer problems within a budget of attempts, with a grader that verifies answers."""

from dataclasses import dataclass

from ._common import DatasetConfig, ModelConfig, command, load_problems, option
from ._grading import GradingConfig, grading_limits
from ._sampling import SamplerConfig, prepared


@dataclass
class SolveConfig:
    """What to spend."""

    num_attempts: int = option("Budget per problem. A larger one later goes on with the unsolved problems.")


@command("solve")
def main(
    data: DatasetConfig, model: ModelConfig, sampling: SamplerConfig, grading: GradingConfig, config: SolveConfig
) -> str:
    """Sample in rounds, and stop sampling a problem once the grader accepts an answer. Answers go to answers.jsonl in
    the --output folder. Your own grader needs no column with reference answers. After an interruption, the same
    command goes on.
    """
    from ..checks import check_integer
    from ..runs.grade import check_grader
    from ..runs.sample import check_run_size
    from ..runs.solve import ANSWERS, solve

    # Check what can be checked before loading the model, which takes minutes.
    check_run_size(check_integer("num_attempts", config.num_attempts), sampling.chunk_size)
    problems = load_problems(data, grading.grader)
    check_grader(grading.grader, problems)
    told = f"{len(problems):,} problems, at most {config.num_attempts:,} attempts each"
    with prepared(data, model, sampling, told, progress=False) as given:
        given |= {"run_dir": sampling.output, "num_attempts": config.num_attempts}
        summary = solve(problems, verifier=grading.grader, grading=grading_limits(grading), **given)
    return f"{summary}\nwritten: {sampling.output}/{ANSWERS}"
