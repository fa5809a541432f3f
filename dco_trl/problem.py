"""A problem: what a model is asked, and the answer it is graded against."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import UserError

# Plain text, or chat messages.
Prompt = str | list[dict[str, Any]]

# The file beside a checkpoint with the log p of every evaluation row, which training writes and `runs` reads. Its
# metadata has the fingerprint of each evaluation set under this key, as JSON.
EVAL_LOG_P_NAME = "eval_log_p.parquet"
EVAL_ROWS_KEY = "dco_eval_rows"


class DataError(UserError):
    """A data set that cannot be used for evaluation; the message says which rows, why, and what to do."""


@dataclass(frozen=True)
class Problem:
    """One problem: what the model is asked, and the answer it is graded against.

    Args:
        problem_id: Unique in its data set.
        prompt: Plain text, or chat messages (`[{"role": "user", "content": …}]`).
        answer: The reference answer.
        columns: Further columns of the row, which graders get as keyword arguments. `tools` and
            `chat_template_kwargs` are also arguments of the chat template, as in TRL's training.
        completion: The reference as chat messages, where it is more than its text: a tool call, or several messages.

    Examples:
        >>> Problem("sum-1", "2 + 2 =", "4", {"difficulty": "easy"}).answer
        '4'

    Relations:
        `dco_trl.runs.read_problems` and `dco_trl.runs.problems_from_rows` make them from data sets.
    """

    problem_id: str
    prompt: Prompt
    answer: str
    columns: Mapping[str, Any] = field(default_factory=dict)
    completion: list[dict[str, Any]] | None = field(default=None, repr=False)

    @property
    def template_kwargs(self) -> dict[str, Any]:
        """Arguments of the chat template beside the messages."""
        tools = self.columns.get("tools")
        tools = json.loads(tools) if isinstance(tools, str) else tools
        return ({} if tools is None else {"tools": tools}) | dict(self.columns.get("chat_template_kwargs") or {})
