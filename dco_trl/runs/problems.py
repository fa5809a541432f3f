"""Problems from rows: a prompt, its reference answer, and the further columns that graders get."""

import hashlib
import json
import logging
import math
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..checks import check_integer
from ..problem import DataError, Problem
from .messages import are_messages, checked_answer, checked_prompt, checked_text, is_plain, split_messages
from .rows import checked_row, read_rows, short, some

logger = logging.getLogger(__name__)


def read_problems(
    source: str | Path,
    *,
    split: str = "test",
    config: str | None = None,
    num_problems: int | None = None,
    prompt_column: str = "prompt",
    answer_column: str | None = "answer",
    id_column: str | None = None,
    prompt_template: str | None = None,
    chat: bool = False,
) -> list[Problem]:
    r"""Read problems from a file, a folder saved by `datasets`, or a data set's name on the Hub.

    Args:
        source: A `.jsonl`, `.json` (a list of objects), `.parquet` or `.csv` file; otherwise a folder or a name that
            `datasets` can load.
        split: The split to take if the source has several. Files have none.
        config: The configuration of a data set on the Hub, such as `main`.
        num_problems: Take the first `num_problems` rows only; None takes all.
        prompt_column: The column with the prompt, plain or conversational; ignored with `prompt_template`. Rows with
            `messages` in place of `prompt` are split: the last message is the `completion`, the others the prompt.
        answer_column: The column with the reference answer. Numbers become text. None: there is none, and `answer` is
            "" (for a verifier that needs no reference). Split rows without `answer` take the completion.
        id_column: The column with the problem ids, which must be unique. None: the column `id` if it is unique,
            otherwise the number of the row.
        prompt_template: A format string over the columns, such as `"Question: {problem}\nAnswer:"`. Double the
            braces that are part of the text: `\\boxed{{}}`.
        chat: Send a plain prompt as one user message, through the model's chat template.

    Raises:
        DataError: The source cannot be read, is empty, lacks a column, or has a row that cannot be asked and graded;
            the message names the file, the row and the column.

    Examples:
        ```python
        >>> import json, pathlib, tempfile
        >>> from dco_trl.runs import read_problems
        >>> file = pathlib.Path(tempfile.mkdtemp(), "problems.jsonl")
        >>> _ = file.write_text(json.dumps({"problem": "1 + 1?", "answer": 2}))
        >>> read_problems(file, prompt_template="{problem}\nAnswer:")
        [Problem(problem_id='0', prompt='1 + 1?\nAnswer:', answer='2', columns={'problem': '1 + 1?'})]

        ```

    Relations:
        [`problems_from_rows`][dco_trl.runs.problems_from_rows] does the same for rows in memory.
    """
    return problems_from_rows(
        read_rows(source, split=split, config=config),
        num_problems=num_problems,
        prompt_column=prompt_column,
        answer_column=answer_column,
        id_column=id_column,
        prompt_template=prompt_template,
        chat=chat,
        name=str(source),
    )


def problems_from_rows(
    rows: Iterable[Mapping[str, Any]],
    *,
    num_problems: int | None = None,
    prompt_column: str = "prompt",
    answer_column: str | None = "answer",
    id_column: str | None = None,
    prompt_template: str | None = None,
    chat: bool = False,
    name: str = "the data set",
) -> list[Problem]:
    """Turn rows, such as a `datasets.Dataset`, into problems.

    Args:
        rows: Mappings from a column's name to its value.
        num_problems: As for [`read_problems`][dco_trl.runs.read_problems], like the next five.
        prompt_column: As there.
        answer_column: As there.
        id_column: As there.
        prompt_template: As there.
        chat: As there.
        name: What error messages call the data set.

    Raises:
        ValueError: `num_problems` is not an integer of at least 1.
        DataError: As for [`read_problems`][dco_trl.runs.read_problems].

    Examples:
        ```python
        >>> from dco_trl.runs import problems_from_rows
        >>> problems_from_rows([{"prompt": "1 + 1 =", "answer": "2"}])[0].problem_id
        '0'

        ```
    """
    if num_problems is not None:
        num_problems = check_integer("num_problems", num_problems)
    table = [checked_row(row, f"{name}: row {number}") for number, row in enumerate(islice(rows, num_problems))]
    if not table:
        raise DataError(f"{name} is empty: there is nothing to sample. Check the file or the split.")
    if num_problems is not None and len(table) < num_problems:
        raise DataError(f"is {num_problems}, and {name} has {len(table)} rows. Ask for fewer.", "num_problems")
    if prompt_template is None and prompt_column == "prompt" and not any("prompt" in row for row in table):
        table = [split_messages(row, f"{name}: row {number}") for number, row in enumerate(table)]
        if answer_column == "answer" and not any("answer" in row for row in table):
            answer_column = "completion"
    # Rows of a JSON-lines file may have different columns; a column counts as present if any row has it.
    present = list(dict.fromkeys(column for row in table for column in row))
    if pictures := {"image", "images"} & set(present):
        raise DataError(
            f"{name} has the column {min(pictures)!r}, but sampling and exact coverage show a model no pictures, only "
            "text. `DCOTrainer` trains and evaluates such rows. Remove the column to ask the text alone."
        )
    used, source = {prompt_column}, f"column {prompt_column!r}"
    if prompt_template is not None:
        used = _template_columns(prompt_template, present, name)
        source = f"the prompt from {some(sorted(used))}"
    elif prompt_column not in present:
        raise DataError(
            f"names {prompt_column!r}, which is not a column of {name}; its columns are {present}. Name the column "
            "with the prompt, or give a prompt template over other columns, such as 'Question: {problem}\\nAnswer:'.",
            "prompt_column",
        )
    if answer_column is not None and answer_column not in present:
        raise DataError(
            f"names {answer_column!r}, which is not a column of {name}; its columns are {present}. Name the column "
            "with the reference answer.",
            "answer_column",
        )
    for column in sorted(used | ({answer_column} if answer_column is not None else set())):
        if empty := [number for number, row in enumerate(table) if _is_missing(row.get(column))]:
            raise DataError(
                f"{name}: column {column!r} is absent, None or empty in {len(empty)} of {len(table)} rows (row "
                f"numbers {some(empty)}). Remove or fill these rows: each problem needs it to be asked and graded."
            )

    id_column, ids = _problem_ids(table, id_column, present, name)
    # The columns of the prompt, the answer and the id are not kept twice.
    taken = {answer_column, id_column} | ({prompt_column} if prompt_template is None else set())
    problems = []
    for number, (problem_id, row) in enumerate(zip(ids, table, strict=True)):
        where = f"{name}: row {number}"
        prompt: Any = row[prompt_column] if prompt_template is None else _filled(prompt_template, row, where)
        reference: Any = None if answer_column is None else row[answer_column]
        is_more = isinstance(prompt, list) and are_messages(reference) and not is_plain(reference)
        problem = Problem(
            checked_text(problem_id, f"{where}, column {id_column!r}"),
            checked_prompt(prompt, chat, f"{where}, {source}"),
            "" if answer_column is None else _reference(reference, f"{where}, column {answer_column!r}"),
            {column: value for column, value in row.items() if column not in taken},
            [dict(message) for message in reference] if is_more else None,
        )
        problems.append(problem)
    _warn_of_repeats(problems, name)
    return problems


def fingerprint(problems: Sequence[Problem]) -> str:
    """SHA-256 of the ids, prompts and answers, in order, which a run must share to be resumed or compared.

    Args:
        problems: The problems.

    Returns:
        64 hexadecimal digits. Of the further columns, only the arguments of the chat template count.

    Examples:
        ```python
        >>> from dco_trl.runs import Problem, fingerprint
        >>> fingerprint([Problem("0", "1 + 1 =", "2")])[:8]
        '418a354d'

        ```
    """
    digest = hashlib.sha256()
    for problem in problems:
        row: list[Any] = [problem.problem_id, problem.prompt, problem.answer]
        row += [problem.template_kwargs] if problem.template_kwargs else []
        digest.update(json.dumps(row, sort_keys=True, ensure_ascii=True).encode() + b"\n")
    return digest.hexdigest()


class _Columns(string.Formatter):
    """Formats a row's columns by their literal names: dots and brackets look nothing up."""

    def get_field(self, field_name: str, args: Any, kwargs: Any) -> tuple[Any, str]:
        return kwargs[field_name], field_name


def _template_columns(template: str, present: list[str], name: str) -> set[str]:
    """The columns that a template names, after a check that they are present."""
    try:
        columns = {column for _, column, _, _ in string.Formatter().parse(template) if column is not None}
    except ValueError as error:
        raise DataError(
            f"{template!r} is not a format string: {error}. Double braces that are part of the text.",
            "prompt_template",
        ) from error
    if not columns:
        raise DataError(
            f"{template!r} names no column: every prompt would be the same. Name one in braces, of {present}.",
            "prompt_template",
        )
    if absent := sorted(columns - set(present)):
        raise DataError(
            f"names {absent}, but the columns of {name} are {present}. Double braces that are part of the text.",
            "prompt_template",
        )
    return columns


def _filled(template: str, row: Mapping[str, Any], where: str) -> str:
    try:
        return _Columns().vformat(template, (), row)
    except (ValueError, TypeError, KeyError, OverflowError, MemoryError) as error:
        raise DataError(
            f"{template!r} cannot format the columns of {where}, {short(row)}: {error}.", "prompt_template"
        ) from error


def _problem_ids(
    table: list[dict[str, Any]], id_column: str | None, present: list[str], name: str
) -> tuple[str | None, list[str]]:
    """The column with the ids, None if rows are numbered, and the ids."""
    column = "id" if id_column is None else id_column
    values = [row.get(column) for row in table]
    ids = list(map(str, values))
    missing = [number for number, value in enumerate(values) if _is_missing(value)]
    repeated = [value for value, count in Counter(ids).items() if count > 1]
    if not missing and not repeated:
        return column, ids
    if id_column is None:
        if "id" in present:
            logger.warning("%s: column 'id' is not unique; problems are named by row number instead", name)
        return None, [str(number) for number in range(len(table))]
    wrong = f"column {column!r} is not unique: {some(repeated)} occur more than once. Name a column that is"
    if missing:
        wrong = f"column {column!r} is empty in {len(missing)} rows (numbers {some(missing)}). Fill them"
    if column not in present:
        wrong = f"there is no column {column!r}; its columns are {present}. Name one of them"
    raise DataError(f"does not name the rows of {name}: {wrong}, or leave it out to number the rows.", "id_column")


def _reference(value: Any, where: str) -> str:
    if isinstance(value, float | np.floating) and math.isinf(value):
        raise DataError(f"{where}: {value} is not an answer that can be compared. Write it as text.")
    if value and are_messages(value):  # a conversational completion, as in TRL's prompt-completion format
        value = checked_answer(value[-1], where)
    if isinstance(value, list | dict):
        try:
            value = json.dumps(value, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"{where}: {short(value)} cannot be written as text: {error}. Write it as text."
            ) from error
    return checked_text(str(value), where)


def _is_missing(value: Any) -> bool:
    if isinstance(value, str | list | dict):
        return not (value.strip() if isinstance(value, str) else value)
    return value is None or (isinstance(value, float | np.floating) and math.isnan(value))


def what_is_asked(problem: Problem) -> str:
    """What a model is shown of a problem, as text: two problems with equal text are one question."""
    return json.dumps([problem.prompt, problem.template_kwargs], default=str)


def _warn_of_repeats(problems: list[Problem], name: str) -> None:
    first: dict[str, Problem] = {}
    repeats, others = [], []
    for problem in problems:
        earlier = first.setdefault(what_is_asked(problem), problem)
        if earlier is problem:
            continue
        repeats.append(problem.problem_id)
        if earlier.answer != problem.answer:
            others.append(f"{short(earlier.answer)} and {short(problem.answer)}")
            if not _is_same_number(earlier.answer, problem.answer):
                raise DataError(
                    f"{name}: problems {earlier.problem_id!r} and {problem.problem_id!r} have the same prompt but "
                    f"different answers, {others[-1]}. Remove one of them."
                )
    if repeats:
        logger.warning("%s: %d problems repeat an earlier one (ids %s)", name, len(repeats), some(repeats))
    if others:
        logger.warning("%s: one prompt has one number in several spellings: %s", name, some(others))


def _is_same_number(first: str, second: str) -> bool:
    try:
        return float(first) == float(second)
    except ValueError:
        return False
