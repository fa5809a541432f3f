"""Callbacks for any Transformers trainer: pass@k during training."""

import datetime
import itertools
import os
from collections.abc import Callable, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..checks import check_integer
from ..grading import load_grader
from ..problem import Problem
from ..runs import grade_run, load_results, problems_from_rows, read_problems, sample_run
from ..sampling import Sampler, SamplingParams, TransformersSampler
from ..statistics import pass_at_k
from .sharded_weights import is_sharded

# The other processes wait this long for the main one: sampling may exceed a collective's usual half hour.
_PATIENCE = datetime.timedelta(days=7)


class PassAtKCallback(TrainerCallback):
    r"""Sample, grade and log pass@k while a model trains.

    At the end of each epoch, or every so many steps, it draws `num_samples` completions for each problem, grades them,
    and logs the mean over problems of the unbiased estimate

    $$\text{pass@}k = 1 - \binom{n-c}{k} \Big/ \binom{n}{k}$$

    as `eval_pass@k` through the trainer's own `log`, so that it reaches TensorBoard, trackio, wandb, and the log
    history. Each evaluation keeps its samples and verdicts in a run folder, `OUTPUT_DIR/pass_at_k/step-00000100`,
    which `dco-trl grade` and `dco-trl report` read. If the trainer evaluates at the same step, its metrics get the
    values too, so that `metric_for_best_model="eval_pass@16"` works.

    Works with any `transformers.Trainer`: `DCOTrainer`, `SFTTrainer`, `GRPOTrainer`. With several processes, the main
    one samples and grades, and the others wait. Training does not change: random states and the trainer's other
    metrics are left alone.

    Args:
        dataset: Rows with the columns `prompt` and `answer` (a `datasets.Dataset`, or a list of mappings), a file or
            name that `read_problems` takes, or problems that it returned.
        grader: "math", "exact", "package.module:function", or a function with the signature of TRL's reward functions.
        sampler: "transformers" samples the model in training. A sampler object samples the model that it has loaded;
            loading the trained weights into it is up to you.
        num_samples: Samples drawn per problem, n.
        k: Number of attempts, or several such numbers, each at most `num_samples`.
        every: "epoch", or a number of optimizer steps.
        trainer: The trainer to log through. Transformers does not tell a callback its trainer, so make the trainer
            first and add the callback to it.
        params: How to sample; by default temperature 1 and at most 512 tokens.
        batch_size: Sequences at a time, with `sampler="transformers"`.
        output_dir: Folder for the runs; by default `pass_at_k` in the trainer's `output_dir`.

    Raises:
        ValueError: `k`, `num_samples` or `every` out of range, or an unknown sampler name; at the start of training:
            no trainer, or one that shards the model (FSDP, DeepSpeed ZeRO-3) with `sampler="transformers"`.
        DataError: The data set cannot be used.
        GraderError: The grader cannot be loaded.

    Examples:
        ```python
        >>> from dco_trl.trainer import PassAtKCallback
        >>> trainer.add_callback(  # doctest: +SKIP
        ...     PassAtKCallback(dataset, "math", "transformers", num_samples=16, k=[1, 16], trainer=trainer)
        ... )

        ```

    References:
        Chen et al., "Evaluating Large Language Models Trained on Code", arXiv 2107.03374, for the estimator.

    Relations:
        `DCOConfig(coverage_at=…)` logs exact coverage of the evaluation set, without sampling: prefer it for short
        answers. `dco-trl eval` evaluates a saved model.
    """

    def __init__(
        self,
        dataset: Any,
        grader: str | Callable,
        sampler: Literal["transformers"] | Sampler,
        num_samples: int,
        k: int | Sequence[int],
        every: Literal["epoch"] | int = "epoch",
        *,
        trainer: Trainer | None = None,
        params: SamplingParams | None = None,
        batch_size: int = 64,
        output_dir: str | os.PathLike[str] | None = None,
    ):
        ks = [check_integer("k", one, at_least=0) for one in np.atleast_1d(k).tolist()]
        num_samples = check_integer("num_samples", num_samples)
        if not ks or min(ks) < 1 or max(ks) > num_samples:
            raise ValueError(
                f"k must be from 1 to num_samples={num_samples}, got {k}: pass@k cannot be estimated from fewer than "
                "k samples. Raise num_samples or lower k."
            )
        if every != "epoch" and (not isinstance(every, Integral) or every < 1):
            raise ValueError(f"every must be 'epoch' or a number of steps of at least 1, got {every!r}")
        if isinstance(sampler, str) and sampler != "transformers":
            raise ValueError(
                f"sampler={sampler!r} is not known here: 'transformers' samples the model in training. To use "
                "another, pass the sampler itself, for example ServerSampler(model, base_url=...)."
            )
        self.problems = _problems(dataset)
        load_grader(grader)  # a missing grader should fail now, not after the first epoch
        self.grader, self.sampler, self.num_samples, self.k = grader, sampler, num_samples, ks
        self.every, self.trainer, self.params = every, trainer, params or SamplingParams()
        self.batch_size, self.output_dir = batch_size, output_dir
        self._last: tuple[int, dict[str, float]] = (-1, {})
        self._group: Any = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Check that this trainer can be evaluated."""
        self._last = (-1, {})
        if self.trainer is None:
            raise ValueError(
                "PassAtKCallback has no trainer to log through, because Transformers does not tell callbacks their "
                "trainer. Make the trainer first: "
                "`trainer.add_callback(PassAtKCallback(..., trainer=trainer))`."
            )
        if self.sampler == "transformers" and is_sharded(self.trainer.accelerator):
            raise ValueError(
                "sampler='transformers' samples on the main process, which does not hold the whole model under FSDP "
                "and DeepSpeed ZeRO-3. Pass a sampler that has a model of its own, such as ServerSampler or "
                "VLLMSampler."
            )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Evaluate every so many steps."""
        if self.every != "epoch" and state.global_step % self.every == 0:
            self._evaluate(args, state)

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Evaluate every epoch."""
        if self.every == "epoch":
            self._evaluate(args, state)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any = None, **_: Any
    ) -> None:
        """Add the values to the trainer's own evaluation at this step, for `metric_for_best_model`."""
        if metrics is not None and self._last[0] == state.global_step:
            metrics.update(self._last[1])

    def _evaluate(self, args: TrainingArguments, state: TrainerState) -> None:
        if state.global_step == self._last[0]:
            return
        trainer: Any = self.trainer
        several = trainer.accelerator.num_processes > 1
        if several and self._group is None:
            # All processes make it before the main one is busy; on the CPU, whatever backend training uses.
            self._group = torch.distributed.new_group(backend="gloo", timeout=_PATIENCE)
        values = torch.full((len(self.k),), float("nan"), dtype=torch.float64)
        try:
            if state.is_world_process_zero:
                values = torch.from_numpy(self._pass_at_k(args, state))
        finally:  # the others must hear of a failure, or they would wait for days
            if several:
                torch.distributed.broadcast(values, src=0, group=self._group)
        if values.isnan().any():
            raise RuntimeError("PassAtKCallback failed on the main process; the reason is in its error")
        metrics = {f"eval_pass@{k}": float(value) for k, value in zip(self.k, values, strict=True)}
        self._last = (state.global_step, metrics)
        # TRL's trainers add the metrics gathered for the mode that the model is in: those of training must wait for
        # training's next log.
        mode, trainer.model.training = trainer.model.training, False
        try:
            trainer.log(dict(metrics))
        finally:
            trainer.model.training = mode

    def _pass_at_k(self, args: TrainingArguments, state: TrainerState) -> np.ndarray:
        """pass@k of the model as it is now; on the main process."""
        folder = _new_folder(Path(self.output_dir or Path(args.output_dir or ".", "pass_at_k")), state.global_step)
        progress = not args.disable_tqdm
        origin = {"callback": "PassAtKCallback", "global_step": state.global_step, "epoch": state.epoch}
        sampler: Any = self.sampler
        if sampler == "transformers":
            trainer: Any = self.trainer
            tokenizer = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)  # of a processor
            model = trainer.accelerator.unwrap_model(trainer.model)
            sampler = TransformersSampler(model, tokenizer=tokenizer, batch_size=self.batch_size, progress=progress)
        sample_run(folder, self.problems, sampler, self.num_samples, self.params, dataset=origin, progress=progress)
        summary = grade_run(folder, self.grader, progress=progress)
        problems = load_results(folder, summary.grader).problems
        counts = np.array([[problem.num_samples, problem.num_correct] for problem in problems])
        return pass_at_k(counts[:, :1], counts[:, 1:], np.array(self.k)).mean(axis=0)


def _problems(dataset: Any) -> list[Problem]:
    if isinstance(dataset, (str, os.PathLike)):
        return read_problems(os.fspath(dataset))
    rows = list(dataset)
    if rows and all(isinstance(row, Problem) for row in rows):
        return rows
    return problems_from_rows(rows, name="dataset")


def _new_folder(parent: Path, step: int) -> Path:
    """A new folder for this evaluation: the samples in those of an earlier training are of other weights."""
    names = (f"step-{step:08d}{f'-{number}' if number > 1 else ''}" for number in itertools.count(1))
    return next(parent / name for name in names if not (parent / name).exists())
