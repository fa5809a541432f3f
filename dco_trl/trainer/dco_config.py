"""Arguments of `DCOTrainer`."""

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, Literal, get_args, get_origin

from trl import SFTConfig

from ..checks import check_integer, check_num_attempts, check_num_required


def with_help(config: Any) -> Any:
    """Make each field's description in the docstring the help that a command line shows."""
    document = re.sub(r"\[(`\w+`)\]\[.+?\]", r"\1", inspect.getdoc(config) or "")
    for name, text in re.findall(r"^    (\w+): (.+(?:\n {8}.+)*)", document, re.M):
        if name in config.__annotations__:
            help = " ".join(text.split()).replace("%", "%%")
            config.__dataclass_fields__[name].metadata = MappingProxyType({"help": help})
    return config


@with_help
@dataclass
class DCOConfig(SFTConfig):
    r"""Arguments of [`DCOTrainer`][dco_trl.trainer.DCOTrainer]: those of TRL's `SFTConfig`, and a few more.

    With \(u\) running over the units (sequences, or turns) of an optimizer step, \(T_u\) their number of labelled
    tokens and \(F_u\) their weight, `loss_reduction` chooses

    $$\texttt{token}: \frac{\sum_u F_u \text{NLL}_u}{\sum_u T_u} \qquad
      \texttt{sequence}: \frac{\sum_u F_u \text{NLL}_u}{\sum_u 1} \qquad
      \texttt{sequence\_mean}: \frac{\sum_u F_u \text{NLL}_u / T_u}{\sum_u 1}$$

    Args:
        num_attempts: Number of attempts N in the loss: how often the model will be sampled for one problem at test
            time. 1 is cross-entropy. No default is right for everybody. 16 is mild: it only lowers the weight of
            answers whose probability is above a few per cent, so it costs little pass@1. Set it to your own budget.
        num_required: Number m of the N attempts that must be right: 1 is coverage. Raise it for a majority vote, or if
            several answers must agree: the loss is -log P[Binomial(N, p) >= m].
        loss_reduction: `"token"` is TRL's normaliser, so that `num_attempts=1` is `SFTTrainer`; `"sequence"` is the
            paper's formula, summed over an answer and averaged over answers; `"sequence_mean"` is the authors'
            released code, averaged over an answer's tokens first.
        unit: What has a probability of its own: the `"sequence"`, all labelled tokens of a row together, or each
            `"turn"`, a contiguous run of labelled tokens, sampled `num_attempts` times by itself.
        coverage_at: The k's for which evaluation logs `eval_coverage@k`, and `eval_at_least_m@k` where m are required.

    Raises:
        ValueError: An argument is out of its range.

    Examples:
        ```python
        >>> from dco_trl import DCOConfig
        >>> args = DCOConfig(output_dir="model-dco", num_attempts=256, use_cpu=True, bf16=False, report_to="none")
        >>> args.loss_reduction
        'token'

        ```

    References:
        Chen et al., arXiv 2502.07154, section 4; the authors' released code for `"sequence_mean"`. For `num_required`:
        Ousherovitch and Tewari, "Compute Aligned Training", arXiv 2604.24957.
    """

    num_attempts: int = 16
    num_required: int = 1
    loss_reduction: Literal["token", "sequence", "sequence_mean"] = "token"
    unit: Literal["sequence", "turn"] = "sequence"
    coverage_at: list[int] = field(default_factory=lambda: [1, 16, 256, 4096])

    def __post_init__(self) -> None:
        self.num_attempts = check_num_attempts(self.num_attempts)
        self.num_required = check_num_required(self.num_required, self.num_attempts)
        for one in fields(self):
            choices = get_args(one.type)
            if get_origin(one.type) is Literal and (value := getattr(self, one.name)) not in choices:
                raise ValueError(f"`{one.name}` must be one of {choices}, got {value!r}. Leave it out for the first.")
        if not isinstance(self.coverage_at, Sequence) or isinstance(self.coverage_at, str):
            raise ValueError(f"`coverage_at` must be a list of integers, such as [1, 16], got {self.coverage_at!r}.")
        self.coverage_at = [check_integer(f"coverage_at[{i}]", k) for i, k in enumerate(self.coverage_at)]
        try:
            super().__post_init__()
        except ValueError as error:
            if "bf16/gpu" not in str(error):
                raise
            raise ValueError(
                "bfloat16, TRL's default, needs a GPU, and none was found. To train on the CPU, set `use_cpu=True`; "
                "for float32, `bf16=False`."
            ) from error

    @property
    def coverage_metrics(self) -> dict[str, tuple[int, int]]:
        """The coverage metrics of an evaluation: k, and how many of the k must be right."""
        m = self.num_required
        names = {f"coverage@{k}": (k, 1) for k in self.coverage_at}
        return names | {f"at_least_{m}@{k}": (k, m) for k in self.coverage_at if 1 < m <= k}
